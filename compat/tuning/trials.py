"""The loop of a worker: draw a configuration, train it, report each epoch, until enough trials are complete."""

from __future__ import annotations

import os
import socket
import sys
import time
import zlib
from dataclasses import dataclass
from statistics import median
from typing import TYPE_CHECKING, Any

import numpy as np

from compat.options import FitOptions
from compat.pairs import Pairs
from compat.training.fit import fit_transformer
from compat.training.selection import Distractors
from compat.tuning.leases import LEASE, Abandoned, fail_and_retry, own_lease
from compat.tuning.space import TunedSpace, digest_of

if TYPE_CHECKING:
    from optuna import Study
    from optuna.trial import FrozenTrial, Trial

SCORE = "held_out_reciprocal_rank"
RANDOM_TRIALS = 8
"""Trials drawn at random before those after them are drawn by what they found."""
PATIENT_TRIALS = 5
"""So many trials run to their end before any is compared with their median."""
LEAST_EPOCHS = 3
"""No trial is pruned before so many epochs, or a fifth of them: the step size is still rising."""
MOST_PRUNED = 3
"""From so many pruned trials on for each one wanted, trials run to their end, so that a study ends too."""
MOST_ENDED = 20
"""A study gives up after so many trials for each one wanted: almost none of them can be trained."""
POLL_SECONDS = 0.3
DIVERGED = "the loss became"
"""How the message begins with which training stops where the loss is no number."""


@dataclass(frozen=True)
class Work:
    """What a worker works on.

    Attributes:
        pairs: Of all trials.
        gallery: Old vectors beyond the pairs, or None.
        fixed: Options that hold for every trial.
        space: What a trial draws.
        trials: Complete trials wanted.
        worker: Number of this worker.
        shared: Whether workers of other machines draw too.
        alone: Whether no other machine can be at work (`Abandoned`).
    """

    pairs: Pairs
    gallery: Distractors | None
    fixed: FitOptions
    space: TunedSpace
    trials: int
    worker: int = 0
    shared: bool = False
    alone: bool = False


class Surplus(Exception):
    """Another worker began the last trial that was wanted at the same moment."""


class Orphaned(BaseException):
    """The command that started this worker is gone."""


def work(study: Study, job: Work, *, parent: int | None = None) -> None:
    """Run trials until as many as wanted are complete, whoever runs them.

    Args:
        study: The study, whose sampler is set anew for each trial, so that a study that was interrupted goes on with
            the trials that it would have had.
        job: What to work on.
        parent: Process id of the command that started this one; when it is gone, so is the worker.

    Raises:
        ValueError: If a trial fails otherwise than by its loss, or nearly all of them do.
    """
    from optuna.trial import TrialState

    abandoned = Abandoned(study, elsewhere_is_dead=job.alone)
    pace = _Pace(study, job.trials)
    while True:
        for number in abandoned.recover():
            _say(f"trial {number}  its process is gone; its parameters are tried again")
        counts = _counts(study)
        if counts[TrialState.COMPLETE] >= job.trials:
            _fail_silent(study)
            return
        if sum(counts.values()) >= MOST_ENDED * job.trials:
            raise ValueError(
                f"only {counts[TrialState.COMPLETE]} of {sum(counts.values())} trials could be completed; narrow the "
                "space to what can be trained, a lower learning rate above all"
            )
        if counts[TrialState.COMPLETE] + counts[TrialState.RUNNING] >= job.trials:
            _fail_silent(study)
            _leave_if_orphaned(parent)
            time.sleep(POLL_SECONDS)  # the others may be pruned, or die
            continue
        prunes = counts[TrialState.PRUNED] < MOST_PRUNED * job.trials
        _run_one(study, job, sum(counts.values()), prunes=prunes, parent=parent, pace=pace)


def _counts(study: Study) -> dict[Any, int]:
    from optuna.trial import TrialState

    states = [trial.state for trial in study.get_trials(deepcopy=False)]
    return {state: states.count(state) for state in TrialState}


def _fail_silent(study: Study) -> None:
    """Fail what no heartbeat came of; optuna itself looks only before it begins a trial."""
    import warnings

    from optuna.exceptions import ExperimentalWarning
    from optuna.storages import fail_stale_trials

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ExperimentalWarning)
        fail_stale_trials(study)


def _run_one(study: Study, job: Work, existing: int, *, prunes: bool, parent: int | None, pace: _Pace) -> None:
    from optuna.pruners import MedianPruner, NopPruner
    from optuna.samplers import TPESampler

    entropy = [job.fixed.seed + job.worker, existing, zlib.crc32(socket.gethostname().encode()) if job.shared else 0]
    seed = int(np.random.SeedSequence(entropy).generate_state(1)[0])
    study.sampler = TPESampler(seed=seed, n_startup_trials=RANDOM_TRIALS, constant_liar=True)
    unjudged = max(LEAST_EPOCHS, job.fixed.epochs // 5)
    study.pruner = MedianPruner(PATIENT_TRIALS, n_warmup_steps=unjudged) if prunes else NopPruner()
    objective = Objective(study, job, parent)
    try:
        study.optimize(objective, n_trials=1, catch=(Surplus,))
    except (Orphaned, KeyboardInterrupt):
        if objective.trial is not None:
            _give_back(study, objective.trial)
        raise
    if objective.trial is not None:
        pace.tell(study.get_trials(deepcopy=False)[objective.trial.number])


def _give_back(study: Study, trial: Trial) -> None:
    from optuna.trial import TrialState

    from compat.tuning.leases import retry

    found = study.get_trials(deepcopy=False)[trial.number]
    if found.state == TrialState.FAIL:  # optuna has failed it on the way out
        retry(study, found)
    else:
        fail_and_retry(study, found)


def _leave_if_orphaned(parent: int | None) -> None:
    if parent is not None and os.getppid() != parent:
        raise Orphaned


class Objective:
    """Trains one trial; its value is the held-out reciprocal rank of the epoch that is kept."""

    def __init__(self, study: Study, job: Work, parent: int | None) -> None:
        self._study, self._job, self._parent = study, job, parent
        self.trial: Trial | None = None
        self._started = 0.0
        self._paces: list[float] = []

    def __call__(self, trial: Trial) -> float:
        """The value of a trial.

        Raises:
            TrialPruned: If it does worse than the median of others did at that epoch, or its loss is no number.
            Surplus: If it is one more than is wanted.
        """
        from optuna import TrialPruned

        trial.set_user_attr(LEASE, own_lease())
        self.trial, self._started = trial, time.monotonic()
        options = self._job.space.draw(trial, self._job.fixed)
        if self._is_surplus(trial.number):
            raise Surplus(f"{self._job.trials} trials are complete or under way without it")
        trial.set_user_attr("config", digest_of(options))
        try:
            fitted = fit_transformer(self._job.pairs, options, gallery=self._job.gallery, on_epoch=self._on_epoch)
        except ValueError as error:
            if not str(error).startswith(DIVERGED):
                raise
            self._note_cost()
            trial.set_user_attr("diverged", str(error))
            trial.report(0.0, len(self._paces) + 1)  # so that its neighbours are not tried again and again
            raise TrialPruned(str(error)) from None
        self._note_cost()
        held_out = fitted.training["held_out"]
        trial.set_user_attr("recall_at_1", held_out["recall_at_1"])
        return held_out["mean_reciprocal_rank"]

    def _is_surplus(self, number: int) -> bool:
        from optuna.trial import TrialState

        others = self._study.get_trials(deepcopy=False, states=(TrialState.COMPLETE, TrialState.RUNNING))
        complete = sum(trial.state == TrialState.COMPLETE for trial in others)
        earlier = sum(trial.state == TrialState.RUNNING and trial.number < number for trial in others)
        return complete + earlier >= self._job.trials

    def _on_epoch(self, record: dict[str, Any]) -> None:
        from optuna import TrialPruned

        assert self.trial is not None  # trained for a trial only
        _leave_if_orphaned(self._parent)
        self._paces.append(record["pairs_per_second"])
        self.trial.report(record[SCORE], record["epoch"])
        if self.trial.should_prune():
            self._note_cost()
            raise TrialPruned(f"after epoch {record['epoch']}")

    def _note_cost(self) -> None:
        assert self.trial is not None
        self.trial.set_user_attr("seconds", round(time.monotonic() - self._started, 3))
        self.trial.set_user_attr("epochs", len(self._paces))
        if self._paces:
            self.trial.set_user_attr("pairs_per_second", round(median(self._paces), 1))


class _Pace:
    """Says how a trial ended and when the study may be done."""

    def __init__(self, study: Study, wanted: int) -> None:
        self._study, self._wanted = study, wanted
        self._began, self._before = time.monotonic(), self._complete()

    def _complete(self) -> int:
        from optuna.trial import TrialState

        return len(self._study.get_trials(deepcopy=False, states=(TrialState.COMPLETE,)))

    def tell(self, trial: FrozenTrial) -> None:
        """Print one line."""
        from optuna.trial import TrialState

        complete = self._complete()
        ended = {
            TrialState.COMPLETE: f"{trial.value:.4f}" if trial.value is not None else "",
            TrialState.PRUNED: f"pruned after epoch {trial.user_attrs.get('epochs', trial.last_step)}",
            TrialState.FAIL: "not needed",
        }.get(trial.state, trial.state.name.lower())
        if "diverged" in trial.user_attrs:
            ended = f"diverged in epoch {trial.last_step}"
        best = "no best yet"
        if complete:
            best = f"best {self._study.best_value:.4f} (trial {self._study.best_trial.number})"
        seconds = trial.user_attrs.get("seconds", 0.0)
        line = f"trial {trial.number}  {ended}  {best}  {seconds:.1f} s  {complete}/{self._wanted} complete"
        if complete > self._before and complete < self._wanted:
            each = (time.monotonic() - self._began) / (complete - self._before)
            line += f", about {_readable(each * (self._wanted - complete))} left"
        _say(line)


def _readable(seconds: float) -> str:
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"


def _say(line: str) -> None:
    sys.stderr.write(line + "\n")  # in one write, so that lines of several workers do not mix
    sys.stderr.flush()
