"""The loop of a worker: draw a configuration, train it, report each epoch, until enough trials are complete."""

from __future__ import annotations

import os
import socket
import time
import zlib
from collections.abc import Mapping
from dataclasses import dataclass
from statistics import median
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from compat.options import FitOptions
from compat.pairs import Pairs
from compat.training.epoch_run import Diverged
from compat.training.fit import fit_transformer
from compat.training.selection import Distractors
from compat.tuning.leases import LEASE, Abandoned, fail_and_retry, own_lease
from compat.tuning.pace import START, Pace, say
from compat.tuning.space import TunedSpace, digest_of

if TYPE_CHECKING:
    from optuna import Study
    from optuna.trial import Trial

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
    pace = Pace(study, job.trials)
    while True:
        for number in abandoned.recover():
            say(f"trial {number}  its process is gone; its parameters are tried again")
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


def _run_one(study: Study, job: Work, existing: int, *, prunes: bool, parent: int | None, pace: Pace) -> None:
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
        retry(study, found, to_blame=False)
    else:
        fail_and_retry(study, found, to_blame=False)


def _leave_if_orphaned(parent: int | None) -> None:
    if parent is not None and os.getppid() != parent:
        raise Orphaned


class Reached(NamedTuple):
    """What a network reached on held-out pairs by being trained.

    Attributes:
        rank: Reciprocal rank of its best epoch.
        recall_at_1: Of that epoch.
        start: Reciprocal rank of the affine map that a residual_mlp starts at, where no epoch does better: then that
            map is what comes back. None where it learned something.
    """

    rank: float
    recall_at_1: float
    start: float | None


def reached(training: Mapping[str, Any]) -> Reached:
    """What the record of a training says; an untouched start does not count, since all that learn nothing share it."""
    best = max(training["epochs"], key=lambda epoch: epoch[SCORE])
    start = training["start"]["mean_reciprocal_rank"] if training.get("returned_start") else None
    return Reached(best[SCORE], best["held_out_recall_at_1"], start)


class Objective:
    """Trains one trial; its value is the held-out reciprocal rank of the best epoch, never that of its start."""

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
            fitted = fit_transformer(
                self._job.pairs, options, gallery=self._job.gallery, on_epoch=self._on_epoch, on_note=say
            )
        except Diverged as error:
            self._note_cost()
            trial.set_user_attr("diverged", str(error))
            trial.report(0.0, len(self._paces) + 1)  # so that its neighbours are not tried again and again
            raise TrialPruned(str(error)) from None
        self._note_cost()
        found = reached(fitted.training)
        trial.set_user_attr("recall_at_1", found.recall_at_1)
        if found.start is not None:
            trial.set_user_attr(START, found.start)
        return found.rank

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
