"""Search in two steps: one model's index proposes candidates, another model's vectors put them in order."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from compat.metrics.relevance import Relevance
from compat.metrics.retrieval import TIE
from compat.metrics.sides import Side, score_blocks

DEPTHS = (10, 50, 100)


def reranked_recall(
    proposing: Side, ranking: Side, relevance: Relevance, depths: Sequence[int] = DEPTHS
) -> dict[int, np.ndarray]:
    """Recall@1 of each query after re-ranking, by number of candidates.

    Only the candidates need embeddings of the new model, so this tells what re-embedding on demand is worth. Ties go
    against the query in both steps: a relevant item is proposed behind every irrelevant one within `TIE` of it; where
    equals compete for the last places, those irrelevant ones go in that the second model likes best, and those relevant
    ones that it likes least; and the first of the re-ranked candidates must be ahead of every irrelevant one by more
    than `TIE`. With one candidate this is recall@1 of the first step, with as many as rows that of the second model.

    Args:
        proposing: Who proposes: old queries in the old gallery, or bridged ones.
        ranking: The same queries and items as the new model sees them.
        relevance: Which rows are relevant; a query's own item is never proposed.
        depths: Numbers of candidates.

    Returns:
        For each depth 0 or 1 for each query, float64 [q]; NaN where it has no relevant row.

    Raises:
        ValueError: If the sides or the relevance do not fit each other, or a depth is not positive.
    """
    if not depths or min(depths) < 1:
        raise ValueError(f"numbers of candidates must be at least 1, found {list(depths)}")
    if len(relevance.offsets) != len(proposing.queries) + 1:
        raise ValueError(f"relevance is for {len(relevance.offsets) - 1} queries, found {len(proposing.queries)}")
    queries, most = len(proposing.queries), max(depths)
    empty = np.empty(0, np.float32)
    lists = [(empty, empty, np.empty(0, bool))] * queries
    asking = relevance.queries
    for rows, start, (proposed, ranked) in score_blocks([proposing, ranking]):
        right = np.zeros(proposed.shape, bool)
        first, last = relevance.offsets[rows.start], relevance.offsets[rows.stop]
        asked, columns = asking[first:last] - rows.start, relevance.rows[first:last] - start
        here = (columns >= 0) & (columns < proposed.shape[1])
        right[asked[here], columns[here]] = True
        proposed[right] = np.nextafter(proposed[right] - TIE, np.float32(-np.inf))
        own = relevance.excluded[rows] - start
        mine = np.flatnonzero((own >= 0) & (own < proposed.shape[1]))
        proposed[mine, own[mine]] = ranked[mine, own[mine]] = -np.inf
        for i, found in enumerate(zip(proposed, ranked, right, strict=True), start=rows.start):
            lists[i] = _best(lists[i], found, most)
    recalls = {depth: np.full(queries, np.nan) for depth in depths}
    for i in np.flatnonzero(relevance.counts > 0):
        _, scores, right = lists[i]
        wrong_best = np.maximum.accumulate(np.where(right, -np.inf, scores))
        right_best = np.maximum.accumulate(np.where(right, scores - TIE, -np.inf))
        for depth in depths:
            end = min(depth, len(scores)) - 1
            recalls[depth][i] = wrong_best[end] < right_best[end]
    return recalls


_Candidates = tuple[np.ndarray, np.ndarray, np.ndarray]
"""Proposing score, ranking score and relevance of some items, each [n]."""


def _best(best: _Candidates, found: _Candidates, most: int) -> _Candidates:
    """The first `most` of two lists of candidates, in order."""
    if len(best[0]) == most:
        near = np.flatnonzero(found[0] >= best[0][-1])
        if not len(near):
            return best
        found = found[0][near], found[1][near], found[2][near]
    key, score, right = (np.concatenate(pair) for pair in zip(best, found, strict=True))
    if len(key) > most:
        near = np.flatnonzero(key >= np.partition(key, len(key) - most)[-most])
        key, score, right = key[near], score[near], right[near]
    order = np.lexsort((np.where(right, score, -score), -key))[:most]
    return key[order], score[order], right[order]
