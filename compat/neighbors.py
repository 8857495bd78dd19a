"""Nearest neighbours by cosine: exact through FAISS, approximate through pynndescent."""

from __future__ import annotations

import numpy as np


def unit_rows(vectors: np.ndarray) -> np.ndarray:
    """Rows of vectors [n, d] scaled to unit length, a new float32 array; a zero row stays zero."""
    vectors = np.asarray(vectors, dtype=np.float32)
    norms = np.sqrt(np.einsum("ij,ij->i", vectors, vectors, dtype=np.float64))  # float32 squares would underflow
    return vectors / np.where(norms > 0, norms, 1.0).astype(np.float32)[:, None]


def nearest(queries: np.ndarray, gallery: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
    """The k gallery rows of largest cosine to each query, by exact search.

    Args:
        queries: Floats [q, d].
        gallery: Floats [g, d].
        k: Neighbours wanted; fewer come back where the gallery is smaller.

    Returns:
        Cosines, float32 [q, k], in falling order, and gallery rows, int64 [q, k].

    Raises:
        ValueError: If dimensions differ, the gallery is empty or k is not positive.
    """
    if queries.ndim != 2 or gallery.ndim != 2 or queries.shape[1] != gallery.shape[1]:
        raise ValueError(f"queries {list(queries.shape)} and gallery {list(gallery.shape)} need equal dimensions")
    if not len(gallery) or k < 1:
        raise ValueError(f"a search needs a gallery and k >= 1, found {len(gallery)} rows and k={k}")
    import torch  # noqa: F401  before faiss: with faiss first, forked workers that search can deadlock

    import faiss  # isort: skip

    index = faiss.IndexFlatIP(gallery.shape[1])
    index.add(unit_rows(gallery))  # pyright: ignore[reportCallIssue]
    scores, rows = index.search(unit_rows(queries), min(k, len(gallery)))  # pyright: ignore[reportCallIssue]
    return scores, rows


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
