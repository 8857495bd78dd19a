"""Whether abstaining on the queries that are strange to a map makes those answered more accurate."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from compat.metrics.abstention import RiskCoverage
from compat.metrics.intervals import Bootstrap, Interval, bootstrap_means, interval

SHARES = tuple(step / 20 for step in range(11))
"""Shares abstained on: 0, 0.05, ... 0.5. Who abstains on more than half needs another map."""
CURVE_RESAMPLES = 500
"""Enough for a standard error, of which each point of the curve needs its own."""
JUDGED = 0.2
"""The share that decides whether abstaining helps: enough queries on either side to tell."""


@dataclass(frozen=True)
class ConfidenceSection:
    """Recall@1 of the queries answered, by the share abstained on.

    Attributes:
        abstained: Shares of the queries.
        recall_at_1: Of those answered, with 95% intervals.
        area: Under the risk-coverage curve; lower is better.
        random_area: The area of abstaining at random.
        score: What strangeness is.
        threshold: The highest strangeness still answered, at each share.
        helps: Whether the 95% interval of the gain at a fifth abstained on is above zero.
        reason: That gain in one line.
    """

    abstained: tuple[float, ...]
    recall_at_1: tuple[Interval, ...]
    area: float
    random_area: float
    score: str
    threshold: tuple[float, ...]
    helps: bool
    reason: str

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON values by name."""
        lists = {name: list(value) for name, value in vars(self).items() if isinstance(value, tuple)}
        return asdict(self) | lists | {"recall_at_1": [found.to_dict() for found in self.recall_at_1]}


def confidence_section(
    strangeness: np.ndarray,
    correct: np.ndarray,
    clusters: np.ndarray | None = None,
    *,
    score: str = "predicted failure",
    seed: int = 0,
) -> ConfidenceSection:
    """The curve of recall@1 over the share abstained on, and whether abstaining helps.

    Args:
        strangeness: Of each query, floats [q] (`Transformer.strangeness`).
        correct: Recall@1 of each query, bool or floats in 0..1, [q].
        clusters: Integer codes [q] of queries that are drawn together, or None for single queries.
        score: What strangeness is (`Familiarity.score`).
        seed: Of the bootstrap.

    Raises:
        ValueError: If there is no query, a strangeness is NaN, or the lengths differ.
    """
    curve = RiskCoverage.of(strangeness, correct)
    groups = None if clusters is None else np.asarray(clusters)[curve.order]
    recalls = []
    for share in SHARES:
        answered = slice(curve.answered(share))
        mine = None if groups is None else groups[answered]
        recalls.append(
            Bootstrap(curve.correct[answered, None], mine, resamples=CURVE_RESAMPLES, seed=seed).proportion(0)
        )
    gain = _gain(curve, groups, seed=seed)
    return ConfidenceSection(
        abstained=SHARES,
        recall_at_1=tuple(recalls),
        area=curve.area,
        random_area=curve.random_area,
        score=score,
        threshold=tuple(map(curve.threshold, SHARES)),
        helps=gain.low > 0,
        reason=_reason(curve, gain),
    )


def _gain(curve: RiskCoverage, groups: np.ndarray | None, *, seed: int) -> Interval:
    answered = np.arange(len(curve.order)) < curve.answered(JUDGED)
    # A draw's right answers are divided by the number of answers in that draw.
    columns = np.stack([curve.correct * answered, answered, curve.correct], axis=1)
    right, count, everything = bootstrap_means(columns, groups, seed=seed).T
    with np.errstate(divide="ignore", invalid="ignore"):
        drawn = right / count - everything
    return interval(curve.accuracy(JUDGED) - curve.accuracy(0), drawn)


def _reason(curve: RiskCoverage, gain: Interval) -> str:
    change = (
        f"recall@1 from {curve.accuracy(0):.3f} to {curve.accuracy(JUDGED):.3f} "
        f"(gain {gain.value:+.3f} [{gain.low:+.3f}, {gain.high:+.3f}])"
    )
    strangest = f"abstaining on the strangest {JUDGED:.0%}"
    if gain.low > 0:
        return f"{strangest} raises {change}"
    if gain.high < 0:
        return f"{strangest} lowers {change}: answer them all"
    return f"{strangest} takes {change}, which may be chance: answer them all"
