"""What a search inside an engine comes to."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import NamedTuple

import numpy as np


class Neighbours(NamedTuple):
    """Nearest items of each query in falling order of score.

    An approximate index may find fewer than were asked for; a list is then shorter, and its row of scores ends in -inf.

    Attributes:
        item_ids: q lists of at most k ids.
        scores: float32 [q, k]: the cosine or the inner product.
    """

    item_ids: list[list[str | int]]
    scores: np.ndarray


def neighbours(found: Iterable[Sequence[tuple[str | int, float]]], k: int) -> Neighbours:
    """Lists of at most k (item id, score), one a query, as `Neighbours`; each is put into falling order."""
    item_ids: list[list[str | int]] = []
    rows: list[np.ndarray] = []
    for pairs in found:
        scores = np.full(k, -np.inf, np.float32)
        scores[: len(pairs)] = [score for _, score in pairs]
        scores[np.isnan(scores)] = 0.0  # the cosine with a vector of zeros, which some engines have no number for
        order = np.argsort(-scores, kind="stable")
        item_ids.append([pairs[place][0] for place in order[: len(pairs)]])
        rows.append(scores[order])
    return Neighbours(item_ids, np.stack(rows) if rows else np.empty((0, k), np.float32))


def require_searchable(queries: np.ndarray, k: int) -> np.ndarray:
    """Queries as engines take them, float32 [q, d].

    Raises:
        ValueError: If they are no matrix, hold NaN or infinity, or k is not positive.
    """
    queries = np.asarray(queries, np.float32)
    if queries.ndim != 2:
        raise ValueError(f"queries have shape {list(queries.shape)}, expected [q, d]")
    bad = np.flatnonzero(~np.isfinite(queries).all(axis=1))
    if len(bad):
        raise ValueError(f"query row {bad[0]} holds NaN or infinity; leave it out")
    if k < 1:
        raise ValueError(f"k is the number of neighbours wanted, found {k}; take 1 or more")
    return queries
