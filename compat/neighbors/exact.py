"""Exact search among vectors in memory, or in a gallery that is read block by block and never held.

A score is the products of the coordinates in float32, summed in float64 and rounded to float32. The answer is the k
rows with the highest score whatever the blocks, threads or device: equal vectors tie exactly, and among equal scores
the lower row comes first.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

import numpy as np

from compat.neighbors.best_rows import BestRows
from compat.neighbors.rows import ArrayRows, Rows, comparable_rows, require_finite
from stores.space import Similarity

BLOCK_ROWS = 16_384
"""Gallery rows compared at a time: 32 MiB of 512-D vectors."""
OnRows = Callable[[int, int], None]


class ExactIndex:
    """Exact search among vectors added block by block; they are kept in memory as float32, of unit length for cosine.

    Args:
        dim: Length of a vector.
        similarity: What neighbours are near by.
    """

    def __init__(self, dim: int, similarity: Similarity = "cosine") -> None:
        self._dim = dim
        self._similarity: Similarity = similarity
        self._blocks: list[np.ndarray] = []  # BLOCK_ROWS each, the last one filled so far as `_rows` says
        self._rows = 0

    def __len__(self) -> int:
        return self._rows

    def add(self, vectors: np.ndarray) -> None:
        """Add vectors, floats [n, dim]; they get the next row numbers.

        Raises:
            ValueError: If the dimension differs or a vector holds NaN.
        """
        if vectors.ndim != 2 or vectors.shape[1] != self._dim:
            raise ValueError(f"vectors are {list(vectors.shape)}, expected [n, {self._dim}] as the index has")
        require_finite(vectors, "gallery", self._rows)
        done = 0
        while done < len(vectors):
            filled = self._rows % BLOCK_ROWS
            if not filled:
                self._blocks.append(np.empty((BLOCK_ROWS, self._dim), np.float32))
            taken = vectors[done : done + BLOCK_ROWS - filled]
            self._blocks[-1][filled : filled + len(taken)] = comparable_rows(taken, self._similarity)
            self._rows += len(taken)
            done += len(taken)

    def search(self, queries: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
        """The k rows most similar to each query; among equals the lower row comes first.

        Args:
            queries: Floats [q, dim].
            k: Neighbours wanted; fewer come back where there are fewer rows.

        Returns:
            Similarities, float32 [q, k], in falling order, and row numbers, int64 [q, k].

        Raises:
            ValueError: If the dimension differs, a query holds NaN, nothing was added or k is not positive.
        """
        best = BestRows(queries, self._dim, k, len(self), self._similarity)
        for number, block in enumerate(self._blocks):
            best.look(block[: self._rows - number * BLOCK_ROWS], number * BLOCK_ROWS)
        return best.found()


def search_rows(
    queries: np.ndarray,
    rows: Rows,
    k: int,
    *,
    similarity: Similarity = "cosine",
    block: int = BLOCK_ROWS,
    on_rows: OnRows | None = None,
) -> tuple[np.ndarray, np.ndarray]:
    """`ExactIndex.search` in a gallery of any size, read once, `block` rows at a time, and never held in memory.

    Args:
        queries: Floats [q, d].
        rows: The gallery, [g, d].
        k: Neighbours wanted; fewer come back where there are fewer rows.
        similarity: What neighbours are near by.
        block: Gallery rows held at a time.
        on_rows: Called with the number of rows done and of all rows after each block.

    Returns:
        Similarities, float32 [q, k], in falling order, and row numbers, int64 [q, k]; the lower of equals first.

    Raises:
        ValueError: If dimensions differ, a vector holds NaN, the gallery is empty or k or block is not positive.
    """
    if block < 1:
        raise ValueError(f"block is the number of gallery rows held at a time, found {block}; take 1 or more")
    best: BestRows | None = None
    for start, vectors in _blocks(rows, block):
        best = best or BestRows(queries, vectors.shape[1], k, len(rows), similarity)
        require_finite(vectors, "gallery", start)
        best.look(comparable_rows(vectors, similarity), start)
        if on_rows:
            on_rows(start + len(vectors), len(rows))
    return (best or BestRows(queries, queries.shape[-1], k, 0, similarity)).found()


def nearest(queries: np.ndarray, gallery: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
    """The k rows of a gallery, floats [g, d], nearest to each query, floats [q, d]; see `ExactIndex.search`."""
    return search_rows(queries, ArrayRows(gallery), k)


def _blocks(rows: Rows, block: int) -> Iterator[tuple[int, np.ndarray]]:
    for start in range(0, len(rows), block):
        yield start, rows.rows(start, min(start + block, len(rows)))
