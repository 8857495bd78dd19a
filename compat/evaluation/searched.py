"""What a setting compares, for measures that need the labels of every pair."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from compat.metrics.score_histogram import OnPairs
from compat.neighbors import Rows
from stores.space import Similarity


class Searched(NamedTuple):
    """What one setting compares.

    Attributes:
        queries: Floats [q, d], in the common order of queries.
        gallery: [g, d].
        similarity: What they are compared by.
        rows: Where row i of the common gallery is in this one, int64 [g]; None where the order is the same.
    """

    queries: np.ndarray
    gallery: Rows
    similarity: Similarity
    rows: np.ndarray | None = None

    def moved(self, gallery_labels: np.ndarray, own: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Labels [g] and own rows [q] in this gallery's order."""
        if self.rows is None:
            return gallery_labels, own
        labels = np.empty_like(gallery_labels)
        labels[self.rows] = gallery_labels
        return labels, np.where(own >= 0, self.rows[np.maximum(own, 0)], -1)


def mate_counts(query_labels: np.ndarray, gallery_labels: np.ndarray, own: np.ndarray) -> np.ndarray:
    """Gallery rows of each query's label but its own item, int64 [q]."""
    ordered = np.sort(gallery_labels)
    counts = np.searchsorted(ordered, query_labels, "right") - np.searchsorted(ordered, query_labels, "left")
    if not len(gallery_labels):
        return counts
    return counts - ((own >= 0) & (gallery_labels[np.maximum(own, 0)] == query_labels))


def continued(on_pairs: OnPairs | None, before: int, pairs: int) -> OnPairs | None:
    """Progress of one of several passes, told as that of all: `before` pairs are done, `pairs` are all."""
    return (lambda done, _: on_pairs(before + done, pairs)) if on_pairs else None
