"""How many are accepted rightly at a rate of accepting wrongly, with an interval over identities.

Draws of identities with replacement each find their threshold anew, so an interval holds the uncertainty of the
threshold too; the gallery is taken as given. The spread of the draws gives the number of independent trials that would
show as much, and Wilson's interval for that number is reported: it does not shrink to a point where every draw agrees.

Source: Wilson, Journal of the American Statistical Association 22 (1927); effective sample sizes after Kish, "Survey
Sampling", 1965.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from compat.metrics.intervals import Interval, student_quantile, wilson_ends
from compat.metrics.verification import ErrorCurve, unsupported

DRAWS = 1000


@dataclass(frozen=True)
class Reached:
    """How many are accepted rightly at a rate of accepting wrongly, or why that cannot be said.

    Attributes:
        rate: The rate asked for, FAR or FPIR.
        share: TAR or TPIR with its interval; None where too few impostors can show the rate.
        threshold: The lowest that holds the rate; None where there is none, or where nothing may be accepted.
        reason: Why something is missing.
    """

    rate: float
    share: Interval | None
    threshold: float | None
    reason: str = ""

    def to_dict(self, rate: str, share: str) -> dict[str, Any]:
        """Plain values, under the field's names for the two rates."""
        return {
            rate: self.rate,
            share: self.share.to_dict() if self.share else None,
            "threshold": self.threshold,
            "reason": self.reason,
        }


def reached_at(curve: ErrorCurve, rate: float, draws: np.ndarray, identities: int, groups: int, noun: str) -> Reached:
    """What a curve reaches at a rate.

    Args:
        curve: Of all pairs or probes.
        rate: FAR or FPIR.
        draws: TAR or TPIR at that rate in every draw, floats [draws], NaN where it has none.
        identities: With a genuine pair or a mated probe; so many trials count where draws do not differ.
        groups: That draws were made of: identities, or groups of them.
        noun: What impostors are called.
    """
    if reason := unsupported(rate, curve.impostor_pairs, noun):
        return Reached(rate, None, None, reason)
    point = curve.at_far(rate)
    share = _effective_wilson(point.tar, draws, identities, groups)
    if np.isfinite(point.threshold):
        return Reached(rate, share, point.threshold)
    return Reached(rate, share, None, f"more than {rate:g} of the {noun} tie at the highest score")


def identity_draws(generator: np.random.Generator, groups: int, draws: int) -> np.ndarray:
    """How often each group is drawn, floats [draws, groups]."""
    return generator.multinomial(groups, np.full(groups, 1 / groups), size=draws).astype(np.float64)


def _effective_wilson(value: float, draws: np.ndarray, identities: int, groups: int) -> Interval:
    spread = float(np.nanvar(draws)) if np.isfinite(draws).any() else 0.0
    spread *= groups / max(groups - 1, 1)  # draws of few groups vary too little by that share
    trials = value * (1 - value) / spread if spread > 0 and 0 < value < 1 else float(identities)
    low, high = wilson_ends(value, student_quantile(groups - 1), max(trials, 1.0))
    return Interval(value, min(low, value), max(high, value))
