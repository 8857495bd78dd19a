"""The best trials judged again where they were not chosen: on other folds, trained from other seeds.

The best of many trials is partly the luckiest on the fold that all of them were judged by; what it reaches on other
divisions of the pairs is free of that choice (Cawley and Talbot, "On over-fitting in model selection and subsequent
selection bias in performance evaluation", JMLR 2010).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from statistics import mean
from typing import TYPE_CHECKING, Any

from compat.options import FitOptions
from compat.training.fit import fit_transformer
from compat.tuning.baseline import ridge_elsewhere
from compat.tuning.space import digest_of, with_values
from compat.tuning.trials import Work

if TYPE_CHECKING:
    from optuna import Study
    from optuna.trial import FrozenTrial

JUDGED = "judged_again"
"""The study's attribute that keeps what was judged, by configuration or `ridge` and then by seed."""


@dataclass(frozen=True)
class Finalist:
    """A trial among the best.

    Attributes:
        trial: Its number.
        options: Its options of training.
        value: Held-out reciprocal rank in the study.
        elsewhere: Those on other folds from other seeds.
    """

    trial: int
    options: FitOptions
    value: float
    elsewhere: tuple[float, ...]

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
        }


def options_of(trial: FrozenTrial, job: Work) -> FitOptions:
    """The options that a trial was trained with."""
    held = {name: values[0] for name, values in job.space.values.items() if len(values) == 1}
    if trial.params.get("pairing", held.get("pairing", job.fixed.interpolation.pairing)) == "none":
        held = {name: value for name, value in held.items() if name not in ("rate", "schedule")}
    return with_values(job.fixed, held | trial.params)


def judge_again(
    study: Study, job: Work, *, finalists: int, judgings: int, strength: float, on_judged: Callable[[str], None]
) -> tuple[list[Finalist], tuple[float, ...]]:
    """The best trials of different configurations, best first by their other judgings, and ridge's judgings.

    What was judged before is taken from the study.

    Args:
        study: With complete trials.
        job: What they were trained on.
        finalists: How many.
        judgings: By how many other seeds.
        strength: Of ridge.
        on_judged: Called with a line for each finalist.
    """
    from optuna.trial import TrialState

    complete = study.get_trials(deepcopy=False, states=(TrialState.COMPLETE,))
    order = sorted(complete, key=lambda trial: (-(trial.value or 0.0), trial.number))
    distinct = {digest_of(options_of(trial, job)): trial for trial in reversed(order)}
    seeds = [job.fixed.seed + 1 + i for i in range(judgings)]
    known: dict[str, dict[str, float]] = dict(study.user_attrs.get(JUDGED, {}))
    if missing := [seed for seed in seeds if str(seed) not in known.get("ridge", {})]:
        ranks = ridge_elsewhere(job.pairs, job.fixed, job.gallery, strength, missing)
        known["ridge"] = known.get("ridge", {}) | dict(zip(map(str, missing), ranks, strict=True))
        study.set_user_attr(JUDGED, known)
    found = []
    for trial in [trial for trial in order if trial in distinct.values()][:finalists]:
        options = options_of(trial, job)
        digest = digest_of(options)
        for seed in seeds:
            if str(seed) not in known.get(digest, {}):
                fitted = fit_transformer(job.pairs, replace(options, seed=seed), gallery=job.gallery)
                rank = fitted.training["held_out"]["mean_reciprocal_rank"]
                known[digest] = known.get(digest, {}) | {str(seed): rank}
                study.set_user_attr(JUDGED, known)
        ranks = tuple(known[digest][str(seed)] for seed in seeds)
        found.append(Finalist(trial.number, options, trial.value or 0.0, ranks))
        on_judged(f"trial {trial.number}  {trial.value:.4f} in the study, {mean(ranks):.4f} on other folds")
    found.sort(key=lambda finalist: (-finalist.judged, -finalist.value, finalist.trial))
    return found, tuple(known["ridge"][str(seed)] for seed in seeds)
