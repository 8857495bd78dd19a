"""How far a measured mean may be from the true one: a bootstrap over whole identities, or over queries."""

from __future__ import annotations

from dataclasses import asdict, dataclass

import numpy as np

RESAMPLES = 2000
LEVEL = 0.95


@dataclass(frozen=True)
class Interval:
    """A value and the ends of its 95% interval."""

    value: float
    low: float
    high: float

    def to_dict(self) -> dict[str, float]:
        """The three numbers by name."""
        return asdict(self)

    def __str__(self) -> str:
        return f"{self.value:.3f} [{self.low:.3f}, {self.high:.3f}]"


def bootstrap_means(
    values: np.ndarray, clusters: np.ndarray | None = None, *, resamples: int = RESAMPLES, seed: int = 0
) -> np.ndarray:
    """Means of resampled queries, float64 [resamples, m]; columns share the draws, so they compare in pairs.

    Args:
        values: One measure a column, floats [q, m].
        clusters: Integer codes [q]; queries of one code (an identity) are drawn together, because they are not
            independent of each other. None draws single queries.
        resamples: Number of draws.
        seed: The same seed gives the same draws.

    Source: Efron and Tibshirani, "An Introduction to the Bootstrap", 1993; the cluster form draws whole groups.
    """
    generator = np.random.default_rng(seed)
    if clusters is None:
        sums, counts = values, np.ones(len(values))
    else:
        codes = np.unique(clusters, return_inverse=True)[1]
        sums = np.zeros((codes.max() + 1, values.shape[1]))
        np.add.at(sums, codes, values)
        counts = np.bincount(codes).astype(float)
    groups = len(counts)
    means = np.empty((resamples, values.shape[1]))
    step = max(1, 2_000_000 // groups)
    for start in range(0, resamples, step):
        size = min(step, resamples - start)
        weights = generator.multinomial(groups, np.full(groups, 1 / groups), size=size)
        means[start : start + size] = (weights @ sums) / (weights @ counts)[:, None]
    return means


def interval(value: float, means: np.ndarray) -> Interval:
    """The percentile interval of a measured value from its bootstrap means [resamples]; NaN draws are left out."""
    tail = 100 * (1 - LEVEL) / 2
    low, high = np.nanpercentile(means, [tail, 100 - tail])
    return Interval(float(value), float(low), float(high))


def proportion_interval(value: float, means: np.ndarray, groups: int, queries: int) -> Interval:
    """Like `interval` for a mean of values between 0 and 1, kept from collapsing to a point at 0 and at 1.

    Where every query agrees, no draw differs from another. As many as 1 - tail^(1/groups) of the groups might still
    hold a query that does not (the exact binomial bound for that many agreeing groups), and such a group is counted
    with one of its queries. Source: Clopper and Pearson, Biometrika 26 (1934).
    """
    found = interval(value, means)
    slack = _unseen(groups, queries)
    if value >= 1:
        return Interval(found.value, min(found.low, 1.0 - slack), 1.0)
    if value <= 0:
        return Interval(found.value, 0.0, max(found.high, slack))
    return found


def paired_slack(difference: np.ndarray, groups: np.ndarray) -> tuple[float, float]:
    """How far a mean difference may lie below and above its measured value although no group of queries shows it.

    A bootstrap cannot draw a loss that it never saw: where no group loses, up to 1 - tail^(1/groups) of them might, and
    likewise for gains; see `proportion_interval`.

    Args:
        difference: One setting's measure minus another's, floats [q].
        groups: Codes 0..g-1 of queries that are drawn together, int64 [q].
    """
    sums = np.bincount(groups, difference)
    slack = _unseen(len(sums), len(groups))
    return (0.0 if (sums < 0).any() else slack), (0.0 if (sums > 0).any() else slack)


def _unseen(groups: int, queries: int) -> float:
    tail = (1 - LEVEL) / 2
    return (1 - tail ** (1 / groups)) * groups / queries
