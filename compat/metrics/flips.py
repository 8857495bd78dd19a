"""Queries that one system gets right and another wrong: a better mean may hide many who are newly turned away."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True, eq=False)
class Flips:
    """How answers change from one system to another, on the same queries.

    Attributes:
        negative: Right before and wrong after, bool [q].
        positive: Wrong before and right after, bool [q].
        before: Right before, bool [q].
        asked: Has a right answer that could be found, bool [q]; the others neither flip nor count.
    """

    negative: np.ndarray
    positive: np.ndarray
    before: np.ndarray
    asked: np.ndarray

    @property
    def negative_rate(self) -> float:
        """Share of all queries asked that flip to wrong; NaN without queries."""
        return _share(self.negative, self.asked)

    @property
    def positive_rate(self) -> float:
        """Share of all queries asked that flip to right; NaN without queries."""
        return _share(self.positive, self.asked)

    @property
    def negative_rate_of_right(self) -> float:
        """Share of those right before that are wrong after; NaN where none was right."""
        return _share(self.negative, self.before)

    @property
    def positive_rate_of_wrong(self) -> float:
        """Share of those wrong before that are right after; NaN where none was wrong."""
        return _share(self.positive, self.asked & ~self.before)


def flips(before: np.ndarray, after: np.ndarray) -> Flips:
    """Which queries change from right to wrong and back.

    Args:
        before: Recall@1 of each query under the one system, 0 or 1, floats [q]; NaN where nothing is relevant.
        after: Under the other.

    Raises:
        ValueError: If the two are not of the same queries.

    Source: the negative flip rate of Yan et al., "Positive-Congruent Training", CVPR 2021.
    """
    if before.shape != after.shape or not np.array_equal(np.isnan(before), np.isnan(after)):
        found = " and ".join(str(int((~np.isnan(recall)).sum())) for recall in (before, after))
        raise ValueError(f"flips compare one set of queries, found {found} answered, or not the same ones")
    asked = ~np.isnan(before)
    was, became = asked & (before > 0), asked & (after > 0)
    return Flips(was & ~became, asked & ~was & became, was, asked)


def _share(some: np.ndarray, of: np.ndarray) -> float:
    return float(some.sum() / of.sum()) if of.any() else float("nan")
