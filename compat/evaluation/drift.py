"""Whether today's queries still look like those that a map was fitted on."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from statistics import NormalDist
from typing import Any, Literal

import numpy as np

from compat.metrics.intervals import Interval, wilson_ends
from compat.transformers.artefact import NO_FAMILIARITY, Transformer, WrongSpace
from compat.vectors import BLOCK_ROWS
from stores.store import EmbeddingStore

DriftVerdict = Literal["as_fitted", "drifted", "too_few"]

STRANGE = 0.95
"""A query beyond this percentile of held-out pairs counts as strange."""
LEVEL = 0.05
"""Highest p-value that counts as drift, and so the rate of false alarms."""
LEAST_SHARE = 0.10
"""Twice the strange queries that are expected: fewer change little of what is found, however sure one is of them."""
LEAST_STATISTIC = 0.10
"""A tenth of the queries moved from one part of the distribution to another, for the same reason."""
LEAST_QUERIES = 50
"""Fewer independent queries tell only the grossest drift; at 50 the statistic must reach 0.19."""
STRANGEST = 20
_Z = NormalDist().inv_cdf(0.975)


@dataclass(frozen=True)
class DriftReport:
    """How today's queries compare with the pairs that were held out when the map was fitted.

    Attributes:
        queries: How many there are.
        expected_share: Of strange queries where nothing has changed.
        strange_share: Share found, with a 95% interval.
        statistic: Kolmogorov-Smirnov distance between their novelty and that of the held-out pairs, 0..1.
        p_value: Chance of such a distance where nothing has changed.
        verdict: `as_fitted`, `drifted` or `too_few`.
        reason: Why, and what to do, on one line.
        strangest: Item ids of the most novel queries, the most novel first.
    """

    queries: int
    expected_share: float
    strange_share: Interval
    statistic: float
    p_value: float
    verdict: DriftVerdict
    reason: str
    strangest: tuple[str | int, ...]

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON values by name."""
        return asdict(self) | {"strangest": list(self.strangest)}


def drift_report(transformer: Transformer, store: EmbeddingStore) -> DriftReport:
    """Compare a store of the new model's raw queries with what a transformer was fitted on.

    Only where queries lie is looked at (`Familiarity.novelty`), so neither a gallery nor right answers are needed.
    Queries of one label are not independent: there it is labels that are counted.

    Args:
        transformer: One fitted to enough pairs to know what is familiar.
        store: Today's queries, in the transformer's query space.

    Raises:
        WrongSpace: If they are in another space.
        ValueError: If the transformer does not know what is familiar, or there is no query.
    """
    if store.space != transformer.query_space:
        raise WrongSpace(f"the queries {store.path} are in {store.space}, expected {transformer.query_space}")
    if transformer.familiarity is None:
        raise ValueError(NO_FAMILIARITY)
    if not len(store):
        raise ValueError(f"{store.path} holds no queries; drift is told from {LEAST_QUERIES} or more")
    familiarity = transformer.familiarity
    novelty = np.empty(len(store))
    for start in range(0, len(store), BLOCK_ROWS):
        stop = min(start + BLOCK_ROWS, len(store))
        novelty[start:stop] = familiarity.novelty(store.rows(start, stop))
    independent = _independent(store)
    statistic = distance_to_uniform(novelty)
    held_out = familiarity.calibration.independent
    p_value = kolmogorov_p_value(statistic, independent * held_out / (independent + held_out))
    strange = float((novelty > STRANGE).mean())
    low, high = wilson_ends(strange, _Z, independent)
    share = Interval(strange, min(low, strange), max(high, strange))
    large = statistic >= LEAST_STATISTIC or share.value >= LEAST_SHARE
    drifted = p_value < LEVEL and large
    verdict: DriftVerdict = "too_few" if independent < LEAST_QUERIES else "drifted" if drifted else "as_fitted"
    most_novel = np.argsort(-novelty, kind="stable")[:STRANGEST]
    return DriftReport(
        queries=len(store),
        expected_share=1 - STRANGE,
        strange_share=share,
        statistic=statistic,
        p_value=p_value,
        verdict=verdict,
        reason=_reason(verdict, share, statistic, p_value, independent),
        strangest=tuple(store.items["item_id"].gather(most_novel).to_list()),
    )


def distance_to_uniform(percentiles: np.ndarray) -> float:
    """The Kolmogorov-Smirnov statistic of values [n] in 0..1 against the uniform distribution."""
    ordered, count = np.sort(percentiles), len(percentiles)
    steps = np.arange(count + 1) / count
    return float(max((steps[1:] - ordered).max(), (ordered - steps[:-1]).max()))


def kolmogorov_p_value(statistic: float, count: float) -> float:
    """Chance of a Kolmogorov-Smirnov statistic at least this large where the distributions are one.

    Args:
        statistic: The distance.
        count: Number of values; n m / (n + m) for two samples of n and m.

    Source: Stephens, "Use of the Kolmogorov-Smirnov, Cramér-von Mises and related statistics without extensive tables",
    JRSS B 32 (1970), for the argument of Kolmogorov's limit at small counts.
    """
    root = math.sqrt(count)
    scaled = (root + 0.12 + 0.11 / root) * statistic
    if scaled < 0.3:  # where the series needs many terms, and the chance is 1 to five digits
        return 1.0
    terms = (2 * (-1) ** (k - 1) * math.exp(-2 * (k * scaled) ** 2) for k in range(1, 101))
    return min(max(sum(terms), 0.0), 1.0)


def _independent(store: EmbeddingStore) -> int:
    if "label" not in store.items.columns:
        return len(store)
    labels = store.items["label"]
    return labels.drop_nulls().n_unique() + labels.null_count()


def _reason(verdict: DriftVerdict, share: Interval, statistic: float, p_value: float, independent: int) -> str:
    found = (
        f"{share.value:.1%} of the queries (95% interval {share.low:.1%} to {share.high:.1%}) lie beyond what "
        f"{STRANGE:.0%} of the pairs reach, {1 - STRANGE:.0%} expected (Kolmogorov-Smirnov {statistic:.3f}, "
        f"p = {p_value:.2g})"
    )
    if verdict == "too_few":
        return f"{independent} independent queries tell too little; bring {LEAST_QUERIES} or more, best some hundreds"
    if verdict == "as_fitted":
        return f"{found}: the map still fits its queries"
    return (
        f"{found}: embed some hundred of today's queries by both models (compat.sample picks which) and fit again with "
        "them as query-like pairs (--more)"
    )
