"""A measure of each query, taken together by the group that the query belongs to.

Which group fares worst is asked of the upper ends of intervals, that is by how much a group surely fares as badly: by
point value the worst of many groups is always a tiny one, by chance.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np

from compat.metrics.intervals import LEVEL

NONE = "(none)"
"""Group of queries that have no value."""
LEAST_QUERIES = 20
"""A group of fewer queries is small."""


@dataclass(frozen=True, eq=False)
class Groups:
    """Which group each query is in.

    Attributes:
        names: Of the groups, each once.
        codes: Group of each query, int64 [q].
    """

    names: tuple[str, ...]
    codes: np.ndarray

    @classmethod
    def of(cls, values: Iterable[object]) -> Groups:
        """Groups of equal text, in the order in which they come; null and NaN are the group `NONE`."""
        codes: dict[str, int] = {}
        found = [codes.setdefault(NONE if _is_missing(value) else str(value), len(codes)) for value in values]
        return cls(tuple(codes), np.array(found, np.int64))


def group_means(values: np.ndarray, groups: Groups) -> tuple[np.ndarray, np.ndarray]:
    """How many queries each group has and the mean of their measure.

    Args:
        values: One measure of each query, floats [q]; NaN where it has none, which is not counted.
        groups: Of the queries.

    Returns:
        Counts, int64 [n], and means, float64 [n], NaN where the count is 0.
    """
    asked = ~np.isnan(values)
    counts = np.bincount(groups.codes[asked], minlength=len(groups.names))
    sums = np.bincount(groups.codes[asked], values[asked], minlength=len(groups.names))
    return counts, np.divide(sums, counts, out=np.full(len(counts), np.nan), where=counts > 0)


def highest_means(
    values: np.ndarray, groups: Groups, clusters: np.ndarray | None = None, *, span: float = 1.0
) -> np.ndarray:
    """What no group's true mean exceeds, all groups together, 97.5 times in 100; float64 [n], NaN where no query is.

    Far wider than an interval of one group, and sound for a group of one query. Source: Hoeffding, J. Am. Stat. Assoc.
    58 (1963), for independent clusters weighed by their queries; Bonferroni over the groups.

    Args:
        values: One measure of each query, floats [q], NaN where it has none.
        groups: Of the queries.
        clusters: Codes int64 [q] of queries that are not independent of each other; None where all are.
        span: Difference between the largest and the smallest value that is possible: 2 for a change of a recall.
    """
    counts, means = group_means(values, groups)
    asked = ~np.isnan(values)
    kin = np.arange(len(values)) if clusters is None else clusters
    pairs, sizes = np.unique(np.stack([groups.codes[asked], kin[asked]]), axis=1, return_counts=True)
    squares = np.bincount(pairs[0], sizes.astype(np.float64) ** 2, minlength=len(counts))
    judged = max(int((counts > 0).sum()), 1)
    reach = span * np.sqrt(squares * math.log(judged / ((1 - LEVEL) / 2)) / 2)
    return means + np.divide(reach, counts, out=np.full(len(counts), np.nan), where=counts > 0)


def worst_first(upper: np.ndarray, named: np.ndarray) -> np.ndarray:
    """Groups, the worst first, int64 [n]: those that may be named by their upper ends, after them the others by theirs.

    Args:
        upper: Upper end of the interval of each group's measure, floats [n]; NaN comes last.
        named: Whether a group may be called the worst, bool [n]: it is not small, or surely worse than all queries are.
    """
    return np.lexsort((upper, ~named))


def _is_missing(value: object) -> bool:
    return value is None or (isinstance(value, float) and math.isnan(value))
