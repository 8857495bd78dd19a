"""Vectors as a search reads them: by range, and made comparable by their inner product."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import numpy as np

from stores.space import Similarity

_LEAST_SQUARE, _MOST_SQUARE = 1e-30, 1e30
"""Sums of squares within these are sound in float32."""


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


def unit_rows(vectors: np.ndarray) -> np.ndarray:
    """Rows of vectors [n, d] scaled to unit length, a new float32 array; a zero row stays zero."""
    vectors = np.asarray(vectors, dtype=np.float32)
    squares = np.einsum("ij,ij->i", vectors, vectors)
    if not (squares.min(initial=1.0) > _LEAST_SQUARE and squares.max(initial=1.0) < _MOST_SQUARE):
        squares = np.einsum("ij,ij->i", vectors, vectors, dtype=np.float64)
        squares[squares == 0] = 1.0
    return vectors / np.sqrt(squares).astype(np.float32)[:, None]


def comparable_rows(vectors: np.ndarray, similarity: Similarity) -> np.ndarray:
    """Vectors [n, d] whose inner products are the similarity: unit rows for the cosine, float32 [n, d]."""
    return unit_rows(vectors) if similarity == "cosine" else np.asarray(vectors, dtype=np.float32)


def require_finite(vectors: np.ndarray, role: str, first: int = 0) -> None:
    """Make sure that vectors [n, d] can be compared.

    Args:
        vectors: Floats [n, d].
        role: What a row is called in the message: `query` or `gallery`.
        first: Number of the first row.

    Raises:
        ValueError: If a row holds NaN or infinity.
    """
    with np.errstate(over="ignore", invalid="ignore"):
        suspicious = not np.isfinite(vectors.sum())  # one pass; only a sum that is not finite is worth a closer look
    if suspicious:
        bad = np.flatnonzero(~np.isfinite(vectors).all(axis=1))
        if len(bad):
            raise ValueError(f"{role} row {first + bad[0]} holds NaN or infinity; leave it out")


def take_rows(rows: Rows, numbers: np.ndarray, *, block: int = 16_384) -> np.ndarray:
    """Vectors of row numbers [n] in any order, float32 [n, d], from rows that are read by range, block by block."""
    order = np.argsort(numbers, kind="stable")
    ordered = numbers[order]
    taken = np.empty((len(numbers), rows.rows(0, 1).shape[1]), np.float32)
    for start in range(0, len(rows), block):
        first, last = np.searchsorted(ordered, [start, start + block])
        if last > first:
            taken[order[first:last]] = rows.rows(start, min(start + block, len(rows)))[ordered[first:last] - start]
    return taken
