"""How accuracy rises as the strangest queries go unanswered: the risk-coverage curve of selective prediction.

A query is answered where its score is low and abstained on where it is high. Coverage is the share answered, risk the
share of those that are wrong. Tied queries go in random order: each counts as right as its tie is on average, so every
figure is the mean over all orders of the ties, and a score that is the same for all is no better than chance.

Sources: El-Yaniv and Wiener, "On the foundations of noise-free selective classification", JMLR 11 (2010); Geifman and
El-Yaniv, "Selective classification for deep neural networks", NeurIPS 2017.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np


@dataclass(frozen=True, eq=False)
class RiskCoverage:
    """Queries in the order in which they are answered.

    Attributes:
        order: Numbers of the queries, the least strange first, int64 [q].
        scores: Theirs in that order, rising, float64 [q].
        correct: How right each is in that order, a tie's mean for each of the tie, float64 [q] in 0..1.
    """

    order: np.ndarray
    scores: np.ndarray
    correct: np.ndarray

    @classmethod
    def of(cls, scores: np.ndarray, correct: np.ndarray) -> RiskCoverage:
        """From the scores of queries [q], higher being stranger, and whether each is answered rightly, [q] in 0..1.

        Raises:
            ValueError: If there is no query, the lengths differ, or a score or an outcome is NaN.
        """
        scores, correct = np.asarray(scores, np.float64), np.asarray(correct, np.float64)
        if scores.ndim != 1 or scores.shape != correct.shape or not len(scores):
            raise ValueError(
                f"found {list(scores.shape)} scores and {list(correct.shape)} outcomes, expected one of each for every "
                "query, and one query at least"
            )
        if np.isnan(scores).any() or np.isnan(correct).any():
            raise ValueError("a score or an outcome is NaN; leave out queries that were not judged")
        _, tie, sizes = np.unique(scores, return_inverse=True, return_counts=True)
        order = np.argsort(tie, kind="stable")
        return cls(order, scores[order], (np.bincount(tie, correct) / sizes)[tie[order]])

    def answered(self, abstained: float) -> int:
        """How many queries are answered when a share goes unanswered; one at least.

        Raises:
            ValueError: If the share is not at least 0 and below 1.
        """
        if not 0 <= abstained < 1:
            raise ValueError(f"the share abstained on must be at least 0 and below 1, found {abstained}")
        return max(1, round(len(self.order) * (1 - abstained)))

    def accuracy(self, abstained: float) -> float:
        """Accuracy of the queries answered when a share of them, the strangest, is not."""
        return float(self._accuracies[self.answered(abstained) - 1])

    def threshold(self, abstained: float) -> float:
        """The highest score that is still answered."""
        return float(self.scores[self.answered(abstained) - 1])

    @cached_property
    def _accuracies(self) -> np.ndarray:
        return np.cumsum(self.correct) / np.arange(1, len(self.correct) + 1)

    @property
    def area(self) -> float:
        """Area under the curve (AURC), 0..1: the mean risk over coverages 1/q, 2/q, ..., 1. Lower is better."""
        return float(1.0 - self._accuracies.mean())

    @property
    def random_area(self) -> float:
        """The area when queries are abstained on at random: the risk of answering all."""
        return float(1.0 - self._accuracies[-1])
