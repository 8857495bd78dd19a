"""Scores of the same queries with the same gallery items in several forms, block by block.

A gallery that is half re-embedded, or searched by one model and re-ranked by another, has two vectors for each item and
two for each query. Each pair of forms is a `Side`; what compares sides reads their scores together.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from compat.metrics.relevance import Relevance
from compat.neighbors import Rows, comparable_rows, require_finite
from stores.space import Similarity

QUERY_ROWS = 256
GALLERY_ROWS = 16_384
_PAIRS = 65_536


@dataclass(frozen=True, eq=False)
class Side:
    """Queries and a gallery in forms that can be compared.

    Attributes:
        queries: Floats [q, d].
        gallery: [g, d], read in blocks.
        similarity: How they are compared.
    """

    queries: np.ndarray
    gallery: Rows
    similarity: Similarity = "cosine"


@dataclass(frozen=True)
class Calibration:
    """A line from one side's scores to another's: score * scale + shift."""

    scale: float = 1.0
    shift: float = 0.0

    @classmethod
    def between(cls, scores: np.ndarray, wanted: np.ndarray) -> Calibration:
        """The rising line that gives scores [n] the mean and the standard deviation of the wanted ones [n]."""
        spread = float(scores.std(dtype=np.float64))
        # Scores that are all alike tell nothing of their scale.
        scale = float(wanted.std(dtype=np.float64)) / spread if spread > 1e-12 else 1.0
        scale = scale if scale > 0 else 1.0
        return cls(scale, float(wanted.mean(dtype=np.float64)) - scale * float(scores.mean(dtype=np.float64)))


def calibrate(side: Side, to: Side, *, queries: int = 256, rows: int = 1024, seed: int = 0) -> Calibration:
    """The line that puts one side's scores on the scale of another's, found without knowing what is relevant.

    Both sides score the same random queries with the same random items; mean and standard deviation are matched. It can
    be served: where results of two indexes are merged, one index's scores go through the line.

    Args:
        side: Whose scores are to be moved.
        to: Whose scale they are to be on.
        queries: How many queries are drawn.
        rows: How many gallery rows are drawn.
        seed: The same seed draws the same.

    Raises:
        ValueError: As `score_blocks`.
    """
    generator = np.random.default_rng(seed)
    asked, size = len(side.queries), len(side.gallery)
    _require_sides([side, to])
    drawn = np.sort(generator.choice(asked, min(queries, asked), replace=False))
    kept = np.sort(generator.choice(size, min(rows, size), replace=False))
    scores = []
    for one in (side, to):
        few = comparable_rows(one.queries[drawn], one.similarity)
        parts = [block[kept[(kept >= a) & (kept < a + len(block))] - a] for a, block in _gallery_blocks(one)]
        scores.append(few @ np.concatenate(parts).T)
    return Calibration.between(*scores)


def score_blocks(sides: Sequence[Side]) -> Iterator[tuple[slice, int, list[np.ndarray]]]:
    """Scores of every query with every gallery row on each side; each gallery is read once, in row order.

    Yields:
        The queries as a slice, the first gallery row, and the scores float32 [b, n] of each side, which the receiver
        may write into.

    Raises:
        ValueError: If the sides do not have the same numbers of queries and rows, dimensions differ within a side, or a
            vector holds NaN or infinity.
    """
    _require_sides(sides)
    asked = [_comparable(side.queries, side, "query", 0) for side in sides]
    for blocks in zip(*map(_gallery_blocks, sides), strict=True):
        for first in range(0, len(sides[0].queries), QUERY_ROWS):
            rows = slice(first, min(first + QUERY_ROWS, len(sides[0].queries)))
            yield rows, blocks[0][0], [q[rows] @ block.T for q, (_, block) in zip(asked, blocks, strict=True)]


def relevant_scores(side: Side, relevance: Relevance) -> np.ndarray:
    """Scores of the queries with their relevant rows alone, float32 [r] in the order of `relevance`.

    Raises:
        ValueError: As `score_blocks`, or if the relevance is for another number of queries.
    """
    if len(relevance.offsets) != len(side.queries) + 1:
        raise ValueError(f"relevance is for {len(relevance.offsets) - 1} queries, found {len(side.queries)}")
    _require_sides([side])
    queries = _comparable(side.queries, side, "query", 0)
    asking = relevance.queries
    by_row = np.argsort(relevance.rows, kind="stable")
    ordered = relevance.rows[by_row]
    scores = np.empty(len(relevance.rows), np.float32)
    for start, block in _gallery_blocks(side):
        first, last = np.searchsorted(ordered, [start, start + len(block)])
        for a in range(first, last, _PAIRS):
            some = by_row[a : min(a + _PAIRS, last)]
            scores[some] = np.einsum("ij,ij->i", queries[asking[some]], block[relevance.rows[some] - start])
    return scores


def _gallery_blocks(side: Side) -> Iterator[tuple[int, np.ndarray]]:
    for start in range(0, len(side.gallery), GALLERY_ROWS):
        block = side.gallery.rows(start, min(start + GALLERY_ROWS, len(side.gallery)))
        if block.shape[1] != side.queries.shape[1]:
            raise ValueError(f"queries are {side.queries.shape[1]}-D, the gallery {block.shape[1]}-D")
        yield start, _comparable(block, side, "gallery", start)


def _comparable(vectors: np.ndarray, side: Side, role: str, start: int) -> np.ndarray:
    require_finite(vectors, role, start)
    return comparable_rows(vectors, side.similarity)


def _require_sides(sides: Sequence[Side]) -> None:
    sizes = {(len(side.queries), len(side.gallery)) for side in sides}
    if len(sizes) > 1:
        found = " and ".join(f"{q} queries with {g} rows" for q, g in sorted(sizes))
        raise ValueError(f"every side must hold the same queries and items, found {found}")
    if not all(min(size) for size in sizes):
        raise ValueError("scores need at least one query and one gallery row")
