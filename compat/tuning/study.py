"""`tune`: a whole study, from two stores to its best configuration."""

from __future__ import annotations

from contextlib import ExitStack
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from compat.tuning.baseline import best_ridge
from compat.tuning.finalists import contest_of, judge_again
from compat.tuning.opening import MADE_OF, made_of, open_study, opened_work, require_same
from compat.tuning.options import TuneOptions
from compat.tuning.pace import say
from compat.tuning.page import render_study
from compat.tuning.record import Outcome, importances, read_record, study_record, trial_rows, write_artefacts
from compat.tuning.space import tunable
from compat.tuning.storage import opened_storage, require_optuna, sole_command
from compat.tuning.trials import Work, work
from compat.tuning.unseen import SCORED, opened_split, score_once
from compat.tuning.workers import run_workers

if TYPE_CHECKING:
    from optuna import Study


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
        known, wanted = read_record(options.out), made_of(job)
        if known:
            require_same(str(options.out), known, wanted, options.name)
        ridge = best_ridge(job.pairs, job.fixed, job.gallery)  # before a folder is made: it says what pairs lack
        options.out.mkdir(parents=True, exist_ok=True)
        stack.enter_context(sole_command(options.out))
        study = open_study(stack.enter_context(opened_storage(options.storage, options.out)), options.name, wanted)
        for reason in job.space.left_out:
            say(f"left out: {reason}")
        _run(study, options, job)
        judgings = options.judgings
        finalists = judge_again(study, job, finalists=options.finalists, judgings=judgings, on_judged=say)
        contest = contest_of(study, job, finalists[0], judgings=judgings, reports=options.reports, on_part=say)
        outcome = Outcome(finalists, ridge, contest, *importances(study))
        rows = trial_rows(study)
        record = study_record(options, job, rows, outcome) | {MADE_OF: wanted}
        pending = False
        scored = known.get(SCORED) or study.user_attrs.get(SCORED)
        write_artefacts(options.out, record | {SCORED: scored}, rows, render_study(record | {SCORED: scored}, rows))
        if split is not None:
            found = score_once(study, job, split, outcome.best.options, scored)
            pending = found is None
            record[SCORED] = found
            write_artefacts(options.out, record, rows, render_study(record, rows))
        return Tuned(record | {SCORED: record.get(SCORED, scored)}, scored is not None, pending)


def _run(study: Study, options: TuneOptions, job: Work) -> None:
    if options.workers == 1:
        work(study, job)
        return
    run_workers(options)
    # Where workers were killed, what they left is still to be done.
    work(study, replace(job, worker=options.workers))
