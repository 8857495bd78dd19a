"""A gallery of one vector a label, the mean of its items, and the rank of the right label in it."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from compat.metrics.relevance import Relevance
from compat.metrics.retrieval import relevant_ranks
from compat.neighbors import ArrayRows, Rows, comparable_rows, require_finite, take_rows
from stores.space import Similarity

GALLERY_ROWS = 16_384


@dataclass(frozen=True)
class LabelMeans:
    """Means of the items of each label.

    Attributes:
        rows: Means of unit rows for the cosine, of the plain rows otherwise, float32 [l, d].
        labels: Their label codes, int64 [l], rising.
        sizes: Items averaged, int64 [l].
    """

    rows: np.ndarray
    labels: np.ndarray
    sizes: np.ndarray

    def relevance(self, query_labels: np.ndarray, own_labels: np.ndarray) -> Relevance:
        """The mean of the query's label is right.

        A label with no other item than the query's own has nothing to find: its mean is hidden from that query.

        Args:
            query_labels: Label codes [q].
            own_labels: The label code of the query's own item in the gallery, or -1 where it is not there, int64 [q].
        """
        right, own = self._places(query_labels), self._places(own_labels)
        alone = (own >= 0) & (self.sizes[own] == 1)
        kept = (right >= 0) & ~(alone & (right == own))
        queries = np.flatnonzero(kept)
        return Relevance(
            rows=right[queries],
            offsets=np.searchsorted(queries, np.arange(len(query_labels) + 1)),
            excluded=np.where(alone, own, -1),
        )

    def _places(self, labels: np.ndarray) -> np.ndarray:
        place = np.minimum(np.searchsorted(self.labels, labels), len(self.labels) - 1)
        return np.where(self.labels[place] == labels, place, -1)


def label_means(gallery: Rows, labels: np.ndarray, similarity: Similarity = "cosine") -> LabelMeans:
    """Mean vector of each label's items, the gallery read block by block.

    Args:
        gallery: [g, d].
        labels: Label codes [g], 0 or above.
        similarity: With the cosine each item counts by its direction alone.

    Raises:
        ValueError: If there is not one label for each row, the gallery is empty or holds NaN.
    """
    if not len(labels) or len(labels) != len(gallery):
        raise ValueError(f"means need a label for each gallery row, found {len(labels)} labels, {len(gallery)} rows")
    known, codes, sizes = np.unique(labels, return_inverse=True, return_counts=True)
    sums: np.ndarray | None = None
    for start in range(0, len(gallery), GALLERY_ROWS):
        block = gallery.rows(start, min(start + GALLERY_ROWS, len(gallery)))
        require_finite(block, "gallery", start)
        sums = np.zeros((len(known), block.shape[1])) if sums is None else sums
        np.add.at(sums, codes[start : start + len(block)], comparable_rows(block, similarity))
    assert sums is not None  # there is at least one row
    return LabelMeans((sums / sizes[:, None]).astype(np.float32), known, sizes)


def mean_ranks(
    queries: np.ndarray,
    query_labels: np.ndarray,
    gallery: Rows,
    labels: np.ndarray,
    own: np.ndarray,
    *,
    similarity: Similarity = "cosine",
) -> tuple[np.ndarray, Relevance]:
    """Ranks of the right label among the means of all labels, and what was relevant.

    Where a query's own item is in the gallery, its label's mean is computed without it for that query: a mean that
    holds the query itself is found too easily. Where the label has nothing but the own item, nothing is relevant.

    Args:
        queries: Floats [q, d].
        query_labels: Label codes [q].
        gallery: Single items, [g, d].
        labels: Their label codes [g], 0 or above.
        own: The gallery row that is the query's own item, or -1, int64 [q].
        similarity: What is ranked by.

    Returns:
        Ranks int64 [r], for the Relevance beside them, which is in the gallery of means.
    """
    means = label_means(gallery, labels, similarity)
    own_labels = np.where(own >= 0, labels[np.maximum(own, 0)], -1)
    relevance = means.relevance(query_labels, own_labels)
    asked, right = relevance.queries, relevance.rows
    answers = means.rows[right].astype(np.float64)
    inside = np.flatnonzero((own[asked] >= 0) & (means.labels[right] == own_labels[asked]))
    sizes = means.sizes[right[inside], None]
    mine = comparable_rows(take_rows(gallery, own[asked[inside]]), similarity)
    answers[inside] = (sizes * answers[inside] - mine) / (sizes - 1)
    ranks = relevant_ranks(queries, ArrayRows(means.rows), relevance, similarity=similarity, stand_ins=answers)
    return ranks, relevance
