"""The best trials judged again, on other folds, trained from other seeds; the best of them there is the best.

The best of many trials is partly the luckiest on the fold that all of them were judged by. The best of the finalists is
so too, a little, and each of their trainings stopped by the fold that it is judged by: these figures tell which is the
best, not how good it is. That is for `compat.tuning.contest`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from statistics import mean
from typing import TYPE_CHECKING, Any

from compat.options import FitOptions
from compat.training.epoch_run import Diverged
from compat.training.fit import fit_transformer
from compat.tuning.contest import Contest, against_ridge
from compat.tuning.pace import START, say
from compat.tuning.space import digest_of, with_values
from compat.tuning.trials import Work, reached

if TYPE_CHECKING:
    from optuna import Study
    from optuna.trial import FrozenTrial

JUDGED = "judged_again"
"""The study's attribute that keeps what was judged, by configuration and then by seed."""
CONTESTS = "against_ridge"
"""The study's attribute that keeps contests with ridge, by configuration and number of parts."""


@dataclass(frozen=True)
class Finalist:
    """A trial among the best.

    Attributes:
        trial: Its number.
        options: Its options of training.
        value: Held-out reciprocal rank in the study.
        elsewhere: Those on other folds from other seeds; 0 where its loss diverged.
        start: That of the affine map that it starts at, where it learned nothing in the study.
    """

    trial: int
    options: FitOptions
    value: float
    elsewhere: tuple[float, ...]
    start: float | None = None

    @property
    def judged(self) -> float:
        """What it is ranked by: the mean over the other folds, without the one that it was chosen by."""
        return mean(self.elsewhere)

    def to_dict(self) -> dict[str, Any]:
        """The finalist as plain values."""
        return {
            "trial": self.trial,
            "config": digest_of(self.options),
            "value": self.value,
            "elsewhere": list(self.elsewhere),
            "judged": self.judged,
            "start": self.start,
        }


def options_of(trial: FrozenTrial, job: Work) -> FitOptions:
    """The options that a trial was trained with."""
    held = {name: values[0] for name, values in job.space.values.items() if len(values) == 1}
    if trial.params.get("pairing", held.get("pairing", job.fixed.interpolation.pairing)) == "none":
        held = {name: value for name, value in held.items() if name not in ("rate", "schedule")}
    return with_values(job.fixed, held | trial.params)


def judge_again(
    study: Study, job: Work, *, finalists: int, judgings: int, on_judged: Callable[[str], None]
) -> list[Finalist]:
    """The best trials of different configurations, best first by their other judgings.

    What was judged before is taken from the study.

    Args:
        study: With complete trials.
        job: What they were trained on.
        finalists: How many.
        judgings: By how many other seeds.
        on_judged: Called with a line for each finalist.
    """
    from optuna.trial import TrialState

    complete = study.get_trials(deepcopy=False, states=(TrialState.COMPLETE,))
    order = sorted(complete, key=lambda trial: (-(trial.value or 0.0), trial.number))
    distinct = {digest_of(options_of(trial, job)): trial for trial in reversed(order)}
    seeds = [job.fixed.seed + 1 + i for i in range(judgings)]
    known: dict[str, dict[str, float]] = dict(study.user_attrs.get(JUDGED, {}))
    found = []
    for trial in [trial for trial in order if trial in distinct.values()][:finalists]:
        options = options_of(trial, job)
        digest = digest_of(options)
        for seed in seeds:
            if str(seed) not in known.get(digest, {}):
                known[digest] = known.get(digest, {}) | {str(seed): _rank(job, replace(options, seed=seed))}
                study.set_user_attr(JUDGED, known)
        ranks = tuple(known[digest][str(seed)] for seed in seeds)
        found.append(Finalist(trial.number, options, trial.value or 0.0, ranks, trial.user_attrs.get(START)))
        on_judged(f"trial {trial.number}  {trial.value:.4f} in the study, {mean(ranks):.4f} on other folds")
    found.sort(key=lambda finalist: (-finalist.judged, -finalist.value, finalist.trial))
    return found


def _rank(job: Work, options: FitOptions) -> float:
    try:
        return reached(fit_transformer(job.pairs, options, gallery=job.gallery, on_note=say).training).rank
    except Diverged:
        return 0.0


def contest_of(
    study: Study, job: Work, best: Finalist, *, judgings: int, reports: int, on_part: Callable[[str], None]
) -> Contest:
    """The best finalist beside ridge (`against_ridge`); what was compared before is taken from the study."""
    known: dict[str, dict[str, Any]] = dict(study.user_attrs.get(CONTESTS, {}))
    key = f"{digest_of(best.options)} {judgings} {reports}"
    if key not in known:
        found = against_ridge(job, best.options, judgings=judgings, reports=reports, on_part=on_part)
        known[key] = asdict(found)
        study.set_user_attr(CONTESTS, known)
    return Contest(**known[key])
