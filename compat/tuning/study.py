"""`tune`: a whole study, from two stores to its best configuration."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np

from compat.pairs import join_pairs
from compat.training.selection import distractors_of
from compat.tuning.baseline import best_ridge
from compat.tuning.finalists import contest_of, judge_again
from compat.tuning.options import TuneOptions
from compat.tuning.pace import say
from compat.tuning.page import render_study
from compat.tuning.record import Outcome, importances, read_record, study_record, trial_rows, write_artefacts
from compat.tuning.space import space_for, tunable
from compat.tuning.storage import is_server, opened_storage, require_optuna, sole_command
from compat.tuning.trials import Work, work
from compat.tuning.unseen import SCORED, opened_split, score_once
from stores.galleries.zarr_store import open_complete

if TYPE_CHECKING:
    from optuna import Study
    from optuna.storages import BaseStorage

MADE_OF = "made_of"
"""The study's attribute that says of which pairs and options it is."""
RIDGE = "ridge"
"""The study's attribute that keeps what the plain linear map reached."""


@dataclass(frozen=True)
class Tuned:
    """A finished study.

    Attributes:
        record: What study.json holds.
        scored_before: Whether the score on the test split was there before.
        pending: Whether another command is at work on that score.
    """

    record: dict[str, Any]
    scored_before: bool
    pending: bool = False


def tune(options: TuneOptions) -> Tuned:
    """Run a study until as many trials as wanted are complete, name its best, and write what it found.

    Run again, it goes on, or finds that nothing is left to do.

    Raises:
        FileNotFoundError: If a store is missing.
        ImportError: If optuna, or the driver of the storage, is missing.
        ValueError: If the stores do not pair up, an option is wrong, the storage fails, or it or the folder holds a
            study of other pairs or options.
    """
    tunable(options.transformer)
    require_optuna()
    if options.out.exists() and not options.out.is_dir():
        raise NotADirectoryError(f"{options.out} is a file, expected a folder for the study; name another --out")
    with ExitStack() as stack:
        job = stack.enter_context(opened_work(options))
        split = stack.enter_context(opened_split(options, job))
        known = read_record(options.out)
        if known:
            _require_same(str(options.out), known, made_of(job), options.name)
        ridge = best_ridge(job.pairs, job.fixed, job.gallery)  # before a folder is made: it says what pairs lack
        options.out.mkdir(parents=True, exist_ok=True)
        stack.enter_context(sole_command(options.out))
        study = open_study(stack.enter_context(opened_storage(options.storage, options.out)), options, job)
        for reason in job.space.left_out:
            say(f"left out: {reason}")
        _run(study, options, job)
        judgings = options.judgings
        finalists = judge_again(study, job, finalists=options.finalists, judgings=judgings, on_judged=say)
        contest = contest_of(study, job, finalists[0], judgings=judgings, reports=options.reports, on_part=say)
        outcome = Outcome(finalists, ridge, contest, *importances(study))
        rows = trial_rows(study)
        record = study_record(options, job, rows, outcome) | {MADE_OF: made_of(job)}
        pending = False
        scored = known.get(SCORED) or study.user_attrs.get(SCORED)
        write_artefacts(options.out, record | {SCORED: scored}, rows, render_study(record | {SCORED: scored}, rows))
        if split is not None:
            found = score_once(study, job, split, outcome.best.options, scored)
            pending = found is None
            record[SCORED] = found
            write_artefacts(options.out, record, rows, render_study(record, rows))
        return Tuned(record | {SCORED: record.get(SCORED, scored)}, scored is not None, pending)


@contextmanager
def opened_work(options: TuneOptions, *, worker: int = 0) -> Iterator[Work]:
    """The pairs of a study and what its trials draw.

    Raises:
        FileNotFoundError: If a store is missing.
        ValueError: If the stores do not pair up, or nothing is left to tune.
    """
    with ExitStack() as stores:
        old, new = (stores.enter_context(open_complete(path)) for path in (options.old, options.new))
        pairs = join_pairs(old, new)
        gallery = None
        if options.gallery is not None:
            gallery = distractors_of(stores.enter_context(open_complete(options.gallery)), pairs, seed=options.seed)
        space = space_for(options.space, options.fit, pairs)
        alone = options.storage is None
        shared = is_server(options.storage)
        yield Work(pairs, gallery, options.fit, space, options.trials, worker, shared=shared, alone=alone)


def open_study(storage: BaseStorage, options: TuneOptions, job: Work) -> Study:
    """The study of a storage, begun or gone on with.

    Raises:
        ValueError: If one of that name is there and is of other pairs or options.
    """
    import optuna

    study = optuna.create_study(storage=storage, study_name=options.name, direction="maximize", load_if_exists=True)
    wanted = made_of(job)
    found = study.user_attrs.get(MADE_OF)
    if found is None and not study.get_trials(deepcopy=False):
        study.set_user_attr(MADE_OF, wanted)
    else:
        _require_same("the storage", {"name": options.name, MADE_OF: found}, wanted, options.name)
    return study


def made_of(job: Work) -> dict[str, Any]:
    """What makes trials of one study comparable, as plain values."""
    found = {
        "pairs": job.pairs.fingerprint(),
        "options": asdict(job.fixed),
        "space": job.space.values,
        "gallery": None if job.gallery is None else _digest(job.gallery.vectors),
    }
    return json.loads(json.dumps(found))  # as it comes back from a storage


def _require_same(where: str, found: Mapping[str, Any], wanted: dict[str, Any], name: str) -> None:
    known = found.get(MADE_OF) or {}
    other = [part for part, value in wanted.items() if part not in known or known[part] != value]
    other += ["name"] if found.get("name") != name else []
    if other:
        raise ValueError(
            f"{where} holds a study {found.get('name')!r} of other {' and '.join(other)}; give this one another --out, "
            "and in a database another --name"
        )


def _run(study: Study, options: TuneOptions, job: Work) -> None:
    if options.workers == 1:
        work(study, job)
        return
    from compat.tuning.workers import run_workers

    run_workers(options)
    # Where workers were killed, what they left is still to be done.
    work(study, replace(job, worker=options.workers))


def _digest(vectors: np.ndarray) -> str:
    return hashlib.blake2b(np.ascontiguousarray(vectors).data, digest_size=16).hexdigest()
