"""Nearest neighbours by cosine: exact through FAISS, approximate through pynndescent."""

from __future__ import annotations

import numpy as np

from stores.space import Similarity

_LEAST_SQUARE, _MOST_SQUARE = 1e-30, 1e30
"""Sums of squares within these are sound in float32."""


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


class ExactIndex:
    """Exact search among vectors added block by block; they are kept in memory as float32, of unit length for cosine.

    Args:
        dim: Length of a vector.
        similarity: What neighbours are near by.
    """

    def __init__(self, dim: int, similarity: Similarity = "cosine") -> None:
        import torch  # noqa: F401  before faiss: with faiss first, forked workers that search can deadlock

        import faiss  # isort: skip

        self._index = faiss.IndexFlatIP(dim)
        self._similarity: Similarity = similarity

    def __len__(self) -> int:
        return self._index.ntotal

    def add(self, vectors: np.ndarray) -> None:
        """Add vectors, floats [n, dim]; they get the next row numbers."""
        self._index.add(comparable_rows(vectors, self._similarity))  # pyright: ignore[reportCallIssue]

    def search(self, queries: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
        """The k rows most similar to each query.

        Args:
            queries: Floats [q, dim].
            k: Neighbours wanted; fewer come back where there are fewer rows.

        Returns:
            Similarities, float32 [q, k], in falling order, and row numbers, int64 [q, k].

        Raises:
            ValueError: If the dimension differs, a query holds NaN, nothing was added or k is not positive.
        """
        if queries.ndim != 2 or queries.shape[1] != self._index.d:
            raise ValueError(f"queries are {list(queries.shape)}, expected [q, {self._index.d}] as the gallery has")
        if not len(self) or k < 1:
            raise ValueError(f"a search needs a gallery and k >= 1, found {len(self)} rows and k={k}")
        bad = np.flatnonzero(~np.isfinite(queries).all(axis=1))
        if len(bad):
            raise ValueError(f"query row {bad[0]} holds NaN or infinity; leave it out")
        return self._index.search(comparable_rows(queries, self._similarity), min(k, len(self)))  # pyright: ignore[reportCallIssue]


def nearest(queries: np.ndarray, gallery: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
    """The k rows of a gallery, floats [g, d], nearest to each query, floats [q, d]; see `ExactIndex.search`."""
    index = ExactIndex(gallery.shape[1])
    index.add(gallery)
    return index.search(queries, k)


def nearest_approximate(vectors: np.ndarray, k: int, *, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Like `nearest` of vectors [n, d] among themselves, each row itself included, found by descent on a graph.

    Worth its compile time (tens of seconds at the first call) only for many rows; about 90,000 on two cores.

    Raises:
        ImportError: If pynndescent is not installed.
    """
    try:
        import pynndescent
    except ImportError:
        raise ImportError(
            "approximate neighbours need pynndescent: pip install 'embedding-compat[neighbors]'"
        ) from None
    index = pynndescent.NNDescent(unit_rows(vectors), metric="cosine", n_neighbors=k, random_state=seed)
    graph = index.neighbor_graph
    assert graph is not None  # only an index that was compressed or is still empty has none
    rows, distances = graph
    return 1.0 - distances.astype(np.float32), rows.astype(np.int64)
