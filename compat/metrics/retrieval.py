"""How well queries find what is relevant to them, from the ranks of the relevant gallery rows.

Every measure here is a function of those ranks, so they are found once, over the full ranking, in bounded memory.
A relevant row's rank counts every irrelevant row that scores at least as high: ties go against the query, so a map that
sends everything to one point finds nothing. Among themselves relevant rows are ranked 1, 2, ... by score. Scores closer
than `TIE` are tied: the product of equal vectors differs by a rounding with their place in the matrix.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from compat.neighbors import comparable_rows
from stores.space import Similarity

QUERY_ROWS = 256
GALLERY_ROWS = 262_144
TIE = np.float32(1e-6)


class Rows(Protocol):
    """Vectors that can be read by range: an `EmbeddingStore`, or an array through `ArrayRows`."""

    def __len__(self) -> int: ...

    def rows(self, start: int, stop: int) -> np.ndarray:
        """Vectors start..stop-1, floats [stop - start, d]."""
        ...


@dataclass(frozen=True)
class ArrayRows:
    """An array [n, d] read as `Rows`."""

    array: np.ndarray

    def __len__(self) -> int:
        return len(self.array)

    def rows(self, start: int, stop: int) -> np.ndarray:
        """Vectors start..stop-1."""
        return self.array[start:stop]


@dataclass(frozen=True)
class Relevance:
    """Which gallery rows are right for each query.

    Attributes:
        rows: Relevant gallery rows of all queries one after the other, int64 [r]; each query's are distinct.
        offsets: Query i has rows[offsets[i]:offsets[i + 1]], int64 [q + 1].
        excluded: A gallery row that query i must not see (its own item), or -1, int64 [q].
    """

    rows: np.ndarray
    offsets: np.ndarray
    excluded: np.ndarray

    @property
    def counts(self) -> np.ndarray:
        """Relevant rows of each query, int64 [q]."""
        return np.diff(self.offsets)

    @classmethod
    def by_label(cls, query_labels: np.ndarray, gallery_labels: np.ndarray, own: np.ndarray) -> Relevance:
        """Same label, the query's own item left out.

        Args:
            query_labels: Integer codes [q].
            gallery_labels: Integer codes [g].
            own: The gallery row that is the query's own item, or -1, int64 [q].
        """
        order = np.argsort(gallery_labels, kind="stable")
        ordered = gallery_labels[order]
        first = np.searchsorted(ordered, query_labels, "left")
        last = np.searchsorted(ordered, query_labels, "right")
        rows = [order[a:b][order[a:b] != o] for a, b, o in zip(first, last, own, strict=True)]
        return cls._of(rows, own)

    @classmethod
    def by_item(cls, own: np.ndarray) -> Relevance:
        """The gallery row of the same item, or -1 where there is none, int64 [q]."""
        rows = [np.array([row] if row >= 0 else [], np.int64) for row in own]
        return cls._of(rows, np.full(len(own), -1))

    @classmethod
    def by_judgement(cls, queries: int, query: np.ndarray, row: np.ndarray) -> Relevance:
        """Given pairs of a query number and a relevant gallery row, both int64 [r]; doubled pairs count once."""
        pairs = np.unique(np.stack([query, row], axis=1), axis=0) if len(query) else np.empty((0, 2), np.int64)
        bounds = np.searchsorted(pairs[:, 0], np.arange(queries + 1))
        return cls(pairs[:, 1], bounds, np.full(queries, -1))

    def moved(self, rows: np.ndarray) -> Relevance:
        """The same relevance in a gallery that holds row i of this one as its row rows[i], int64 [g]."""
        excluded = np.where(self.excluded >= 0, rows[np.maximum(self.excluded, 0)], -1)
        return Relevance(rows[self.rows], self.offsets, excluded)

    @classmethod
    def _of(cls, rows: list[np.ndarray], excluded: np.ndarray) -> Relevance:
        offsets = np.concatenate([[0], np.cumsum([len(r) for r in rows])]).astype(np.int64)
        return cls(np.concatenate([*rows, np.empty(0, np.int64)]).astype(np.int64), offsets, excluded)


@dataclass(frozen=True)
class RetrievalScores:
    """Measures for each query, float64 [q]; NaN where a query has no relevant row.

    Attributes:
        recall_at_1: Whether a relevant row comes first: 0 or 1.
        recall_at_5: Whether one is among the first five.
        recall_at_10: Whether one is among the first ten.
        average_precision: Mean over the relevant rows of the precision at their rank, over the full ranking.
        reciprocal_rank: One over the rank of the first relevant row.
    """

    recall_at_1: np.ndarray
    recall_at_5: np.ndarray
    recall_at_10: np.ndarray
    average_precision: np.ndarray
    reciprocal_rank: np.ndarray


def relevant_ranks(
    queries: np.ndarray,
    gallery: Rows,
    relevance: Relevance,
    *,
    similarity: Similarity = "cosine",
    gallery_rows: int = GALLERY_ROWS,
    on_queries: Callable[[int], None] | None = None,
) -> np.ndarray:
    """Ranks of the relevant rows by similarity over the whole gallery, int64 [r] in the order of `relevance`, from 1.

    Args:
        queries: Floats [q, d].
        gallery: [g, d], read in blocks of `gallery_rows`.
        relevance: Which rows are relevant. Within a query the ranks come out in rising order.
        similarity: What is ranked by: the cosine, or the plain inner product.
        gallery_rows: Gallery vectors held in memory at a time.
        on_queries: Called with the number of queries done in a pass, for progress.

    Raises:
        ValueError: If dimensions differ or the relevance does not have one entry for each query.
    """
    if len(relevance.offsets) != len(queries) + 1:
        raise ValueError(f"relevance is for {len(relevance.offsets) - 1} queries, found {len(queries)}")
    queries = comparable_rows(queries, similarity)
    starts = range(0, len(gallery), gallery_rows)
    scores = np.empty(len(relevance.rows), np.float32)
    at_least = np.zeros(len(relevance.rows), np.int64)  # rows scoring as high as this relevant one, itself included
    # One block: find the relevant scores and count against them at once. More: a pass for each.
    passes = [(True, True)] if len(starts) == 1 else [(True, False), (False, True)]
    for find, count in passes:
        for start in starts:
            stop = min(start + gallery_rows, len(gallery))
            block = comparable_rows(gallery.rows(start, stop), similarity).T
            if block.shape[0] != queries.shape[1]:
                raise ValueError(f"queries are {queries.shape[1]}-D, the gallery {block.shape[0]}-D")
            for first in range(0, len(queries), QUERY_ROWS):
                product = queries[first : first + QUERY_ROWS] @ block
                for i, row_scores in enumerate(product, start=first):
                    mine = slice(relevance.offsets[i], relevance.offsets[i + 1])
                    own = relevance.excluded[i] - start
                    if 0 <= own < len(row_scores):
                        row_scores[own] = -np.inf
                    if find:
                        local = relevance.rows[mine] - start
                        here = (local >= 0) & (local < len(row_scores))
                        scores[mine][here] = row_scores[local[here]]
                    if count:
                        at_least[mine] += _count_at_least(row_scores, scores[mine] - TIE)
                if on_queries:
                    on_queries(min(first + QUERY_ROWS, len(queries)))
    return _ranks(scores, at_least, relevance)


def _count_at_least(row_scores: np.ndarray, thresholds: np.ndarray) -> np.ndarray:
    if len(thresholds) <= 16:
        return np.array([np.count_nonzero(row_scores >= t) for t in thresholds], np.int64)
    return len(row_scores) - np.searchsorted(np.sort(row_scores), thresholds, "left")


def _ranks(scores: np.ndarray, at_least: np.ndarray, relevance: Relevance) -> np.ndarray:
    ranks = np.empty(len(scores), np.int64)
    for a, b in zip(relevance.offsets[:-1], relevance.offsets[1:], strict=True):
        order = np.argsort(-scores[a:b], kind="stable")
        ordered = scores[a:b][order]
        relevant_at_least = np.searchsorted(-ordered, TIE - ordered, "right")
        ranks[a:b] = at_least[a:b][order] - relevant_at_least + np.arange(1, b - a + 1)
    return ranks


def retrieval_scores(ranks: np.ndarray, relevance: Relevance) -> RetrievalScores:
    """Measures for each query from the ranks of its relevant rows.

    Example:
        >>> relevance = Relevance(np.array([4, 7]), np.array([0, 2]), np.array([-1]))
        >>> retrieval_scores(np.array([1, 4]), relevance).average_precision  # (1/1 + 2/4) / 2
        array([0.75])
    """
    queries = len(relevance.offsets) - 1
    best = np.full(queries, np.nan)
    precision = np.full(queries, np.nan)
    for i, (a, b) in enumerate(zip(relevance.offsets[:-1], relevance.offsets[1:], strict=True)):
        if b > a:
            best[i] = ranks[a]
            precision[i] = np.mean(np.arange(1, b - a + 1) / ranks[a:b])

    def recall_at(k: int) -> np.ndarray:
        return np.where(np.isnan(best), np.nan, best <= k)

    return RetrievalScores(recall_at(1), recall_at(5), recall_at(10), precision, 1.0 / best)
