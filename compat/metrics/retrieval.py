"""How well queries find what is relevant to them, from the ranks of the relevant gallery rows.

Every measure here is a function of those ranks, so they are found once, over the full ranking, in bounded memory.
A relevant row's rank counts every irrelevant row that scores at least as high: ties go against the query, so a map that
sends everything to one point finds nothing. Among themselves relevant rows are ranked 1, 2, ... by score, the lower
grade first where they tie. Scores closer than `TIE` are tied: the product of equal vectors differs by a rounding with
their place in the matrix.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
import torch

from compat.metrics.relevance import Relevance
from compat.neighbors import ArrayRows, Rows, comparable_rows, require_finite
from stores.space import Similarity

__all__ = [
    "TIE",
    "ArrayRows",
    "RetrievalScores",
    "Rows",
    "cmc",
    "first_ranks",
    "relevant_ranks",
    "retrieval_scores",
    "share_found",
]

DEPTH = 10
"""How far down the ranking precision and discounted gain look."""
GALLERY_ROWS = 65_536
TIE = np.float32(1e-6)
_TILE_QUERIES, _TILE_ROWS = 512, 16_384
"""Scores held at a time, 32 MiB: they are counted while a cache still has them."""
_AT_ONCE = 2**20
"""Coordinates multiplied at a time for the scores of relevant rows."""
_FEW = 10
"""With no more relevant rows than this, comparing with each is faster than sorting."""

OnRows = Callable[[int, int], None]


def relevant_ranks(
    queries: np.ndarray,
    gallery: Rows,
    relevance: Relevance,
    *,
    similarity: Similarity = "cosine",
    stand_ins: np.ndarray | None = None,
    gallery_rows: int = GALLERY_ROWS,
    on_rows: OnRows | None = None,
) -> np.ndarray:
    """Rank by similarity of each relevant row, from 1, int64 [r] in the order of `relevance.rows`.

    The gallery is read twice, once where it fits in one block: for the scores of the relevant rows, and to count what
    scores as high.

    Args:
        queries: Floats [q, d].
        gallery: [g, d], read in blocks of `gallery_rows`.
        relevance: Which rows are relevant.
        similarity: What is ranked by: the cosine, or the plain inner product.
        stand_ins: Vectors [r, d] that are ranked in place of `relevance.rows`, for queries that may not see those as
            they are.
        gallery_rows: Gallery vectors held in memory at a time.
        on_rows: Called with the gallery rows counted so far and all of them, for progress.

    Raises:
        ValueError: If dimensions differ, a vector holds NaN or the relevance does not have one entry for each query.
    """
    if len(relevance.offsets) != len(queries) + 1:
        raise ValueError(f"relevance is for {len(relevance.offsets) - 1} queries, found {len(queries)}")
    require_finite(queries, "query")
    queries = comparable_rows(queries, similarity)
    blocks = _Blocks(gallery, similarity, gallery_rows, queries.shape[1])
    query = relevance.queries
    if stand_ins is None:
        scores = _pair_scores(queries, blocks, relevance)
    else:
        scores = _precise(queries[query], comparable_rows(stand_ins, similarity))
    irrelevant = _count_as_high(queries, blocks, relevance, scores, on_rows)
    grades = np.zeros(len(scores)) if relevance.grades is None else relevance.grades
    order = np.lexsort((grades, -scores, query))
    ranks = np.empty(len(scores), np.int64)
    ranks[order] = irrelevant[order] + np.arange(len(scores)) - relevance.offsets[query] + 1
    return ranks


class _Blocks:
    """Comparable vectors of a gallery, block by block, as often as asked; a single block is read once and kept."""

    def __init__(self, gallery: Rows, similarity: Similarity, rows: int, dim: int) -> None:
        self.total, self._rows, self._dim = len(gallery), rows, dim
        self._gallery = gallery
        self._similarity: Similarity = similarity
        self._kept: np.ndarray | None = None

    def __iter__(self) -> Iterator[tuple[int, np.ndarray]]:
        for start in range(0, self.total, self._rows):
            yield start, self._read(start) if self._kept is None else self._kept

    def _read(self, start: int) -> np.ndarray:
        block = self._gallery.rows(start, min(start + self._rows, self.total))
        if block.shape[1] != self._dim:
            raise ValueError(f"queries are {self._dim}-D, the gallery {block.shape[1]}-D")
        require_finite(block, "gallery", start)
        block = np.require(comparable_rows(block, self._similarity), requirements=["C", "W"])
        if self.total <= self._rows:
            self._kept = block
        return block


def _pair_scores(queries: np.ndarray, blocks: _Blocks, relevance: Relevance) -> np.ndarray:
    """Score of each relevant row, float32 [r]."""
    scores = np.zeros(len(relevance.rows), np.float32)
    order = np.argsort(relevance.rows, kind="stable")
    ordered, query = relevance.rows[order], relevance.queries
    chunk = max(1, _AT_ONCE // queries.shape[1])
    for start, block in blocks:
        first, last = np.searchsorted(ordered, [start, start + len(block)])
        for at in range(first, last, chunk):
            pairs = order[at : min(at + chunk, last)]
            scores[pairs] = _precise(queries[query[pairs]], block[relevance.rows[pairs] - start])
    return scores


def _precise(queries: np.ndarray, rows: np.ndarray) -> np.ndarray:
    """Inner products of pairs of vectors [n, d], float32 [n], summed in float64, so that equal vectors tie."""
    return (queries * rows).sum(axis=1, dtype=np.float64).astype(np.float32)


def _count_as_high(
    queries: np.ndarray, blocks: _Blocks, relevance: Relevance, scores: np.ndarray, on_rows: OnRows | None
) -> np.ndarray:
    """How many irrelevant rows score at least as high as each relevant one, less `TIE`, int64 [r]."""
    # Queries with most relevant rows first: those that have a j-th one are then the first few of a tile.
    asked = np.argsort(-relevance.counts, kind="stable")[: np.count_nonzero(relevance.counts)]
    counts, offsets = relevance.counts[asked], relevance.offsets[asked]
    place = np.full(len(queries), -1)
    place[asked] = np.arange(len(asked))
    # What is not counted: relevant rows and the own item, by row.
    hidden_row = np.concatenate([relevance.rows, relevance.excluded])
    hidden_place = place[np.concatenate([relevance.queries, np.arange(len(queries))])]
    by_row = np.argsort(hidden_row, kind="stable")
    hidden_row, hidden_place = hidden_row[by_row], hidden_place[by_row]
    asking = torch.from_numpy(queries[asked])
    thresholds = scores - TIE
    found = np.zeros(len(scores), np.int64)
    product = torch.empty(_TILE_QUERIES * _TILE_ROWS)
    reaches = np.empty(len(product), bool)
    for start, block in blocks:
        for low in range(start, start + len(block), _TILE_ROWS):
            rows = torch.from_numpy(block[low - start : low - start + _TILE_ROWS])
            here = slice(*np.searchsorted(hidden_row, [low, low + len(rows)]))
            by_place = np.argsort(hidden_place[here], kind="stable")
            tile_place, tile_row = hidden_place[here][by_place], hidden_row[here][by_place] - low
            for first in range(0, len(asked), _TILE_QUERIES):
                some = slice(first, min(first + _TILE_QUERIES, len(asked)))
                out = product[: (some.stop - first) * len(rows)].view(some.stop - first, len(rows))
                high = torch.mm(asking[some], rows.T, out=out).numpy()
                mine = slice(*np.searchsorted(tile_place, [first, some.stop]))
                high[tile_place[mine] - first, tile_row[mine]] = -np.inf
                _count_tile(high, counts[some], offsets[some], thresholds, reaches, found)
        if on_rows:
            on_rows(start + len(block), blocks.total)
    return found


def _count_tile(
    scores: np.ndarray,
    counts: np.ndarray,
    offsets: np.ndarray,
    thresholds: np.ndarray,
    reaches: np.ndarray,
    found: np.ndarray,
) -> None:
    """Add to `found` [r] how many scores [b, n] reach the thresholds [r] of each query; counts [b] must be falling."""
    many = int(np.count_nonzero(counts > _FEW))
    for row, count, offset in zip(scores[:many], counts, offsets, strict=False):
        mine = slice(offset, offset + count)
        found[mine] += len(row) - np.searchsorted(np.sort(row), thresholds[mine], "left")
    reaches = reaches[: scores.size].reshape(scores.shape)  # memory made once
    for j in range(min(_FEW, int(counts[0]))):
        having = slice(many, int(np.count_nonzero(counts > j)))
        pairs = offsets[having] + j
        np.greater_equal(scores[having], thresholds[pairs, None], out=reaches[having])
        found[pairs] += np.add.reduce(reaches[having].view(np.int8), axis=1, dtype=np.int32)


@dataclass(frozen=True)
class RetrievalScores:
    """Measures for each query, float64 [q]; NaN where a query has no relevant row.

    Recall@k is what biometrics calls the cumulative match characteristic at rank k and search teams the hit rate:
    whether *a* relevant row is among the first k. For the share of the relevant rows that are, see `share_found`.

    Attributes:
        recall_at_1: Whether a relevant row comes first: 0 or 1.
        recall_at_5: Whether one is among the first five.
        recall_at_10: Whether one is among the first ten.
        average_precision: Mean over the relevant rows of the precision at their rank, over the full ranking.
        reciprocal_rank: One over the rank of the first relevant row.
        precision_at_10: Share of the first ten rows that are relevant; of all rows the query may see where they are
            fewer than ten.
        ndcg_at_10: Discounted cumulative gain of the first ten rows over that of the best ranking there could be:
            the grade (1 where there are none) of each over log2(rank + 1), Järvelin & Kekäläinen, "Cumulated gain-based
            evaluation of IR techniques", ACM TOIS 2002. Others gain 2^grade - 1; give that as the grade for theirs.
    """

    recall_at_1: np.ndarray
    recall_at_5: np.ndarray
    recall_at_10: np.ndarray
    average_precision: np.ndarray
    reciprocal_rank: np.ndarray
    precision_at_10: np.ndarray
    ndcg_at_10: np.ndarray


def retrieval_scores(ranks: np.ndarray, relevance: Relevance, *, gallery_rows: int | None = None) -> RetrievalScores:
    """Measures for each query from the ranks of its relevant rows.

    Args:
        ranks: Ranks int64 [r], as `relevant_ranks` finds them.
        relevance: Which rows they are the ranks of.
        gallery_rows: Rows in the gallery; None where every query may see ten or more.

    Example:
        >>> relevance = Relevance(np.array([4, 7]), np.array([0, 2]), np.array([-1]))
        >>> retrieval_scores(np.array([1, 4]), relevance).average_precision  # (1/1 + 2/4) / 2
        array([0.75])
    """
    query, found = relevance.queries, relevance.counts > 0
    best = first_ranks(ranks, relevance)
    in_order = np.lexsort((ranks, query))
    place = np.arange(len(ranks)) - relevance.offsets[query] + 1  # 1, 2, ... within each query
    seen = DEPTH if gallery_rows is None else np.clip(gallery_rows - (relevance.excluded >= 0), 1, DEPTH)

    def summed(values: np.ndarray) -> np.ndarray:
        return np.where(found, np.bincount(query, values, len(found)), np.nan)

    grades = np.ones(len(ranks)) if relevance.grades is None else relevance.grades
    ideal = np.lexsort((-grades, query))
    gain = summed(np.where(ranks <= DEPTH, grades / np.log2(ranks + 1.0), 0.0))
    most = summed(np.where(place <= DEPTH, grades[ideal] / np.log2(place + 1.0), 0.0))

    def hit(k: int) -> np.ndarray:
        return np.where(found, best <= k, np.nan)

    return RetrievalScores(
        recall_at_1=hit(1),
        recall_at_5=hit(5),
        recall_at_10=hit(10),
        average_precision=summed(place / ranks[in_order]) / np.maximum(relevance.counts, 1),
        reciprocal_rank=1.0 / best,
        precision_at_10=summed(ranks <= DEPTH) / seen,
        ndcg_at_10=np.minimum(gain / most, 1.0),  # sums in two orders differ by a rounding
    )


def first_ranks(ranks: np.ndarray, relevance: Relevance) -> np.ndarray:
    """Rank of each query's first relevant row, float64 [q]; NaN where it has none."""
    first = np.full(len(relevance.offsets) - 1, np.inf)
    np.minimum.at(first, relevance.queries, ranks)
    return np.where(relevance.counts > 0, first, np.nan)


def cmc(first: np.ndarray, depth: int) -> np.ndarray:
    """Cumulative match characteristic: share of queries with a relevant row at rank 1, 2, ... `depth`, float64 [depth].

    Args:
        first: Rank of each query's first relevant row, floats [q] (`first_ranks`). NaN is left out.
        depth: How far down.

    Returns:
        NaN where no query has a relevant row. Defined in ISO/IEC 19795-1.
    """
    first = first[~np.isnan(first)]
    if not len(first):
        return np.full(depth, np.nan)
    return np.searchsorted(np.sort(first), np.arange(1, depth + 1), "right") / len(first)


def share_found(ranks: np.ndarray, relevance: Relevance, k: int) -> np.ndarray:
    """Share of each query's relevant rows among the first k, float64 [q]; NaN where it has none."""
    within = np.bincount(relevance.queries, ranks <= k, len(relevance.offsets) - 1)
    return np.where(relevance.counts > 0, within / np.maximum(relevance.counts, 1), np.nan)
