"""Approximate neighbours: any FAISS index by its factory string, or descent on a graph with pynndescent."""

from __future__ import annotations

import contextlib

import numpy as np

from compat.neighbors.rows import comparable_rows, require_finite, unit_rows
from stores.space import Similarity

EXAMPLES = ("HNSW32", "IVF256,Flat", "IVF256,PQ32x4fs,RFlat")


class ApproximateIndex:
    """A FAISS index made from a factory string, on all GPUs where FAISS sees any and knows the index there.

    Say how much it finds beside exact search (`recall_against`): a factory string alone promises nothing.

    Args:
        dim: Length of a vector.
        factory: What to build in FAISS's words (https://github.com/facebookresearch/faiss/wiki/The-index-factory), for
            example `HNSW32`, `IVF256,Flat` or `IVF256,PQ32x4fs,RFlat`.
        similarity: What neighbours are near by.
        settings: How hard to search, in FAISS's words: `nprobe=16`, `efSearch=64`, `nprobe=16,k_factor_rf=4`.

    Raises:
        ValueError: If FAISS does not know the factory string or the settings.
    """

    def __init__(self, dim: int, factory: str, similarity: Similarity = "cosine", *, settings: str = "") -> None:
        import torch  # noqa: F401  before faiss: with faiss first, forked workers that search can deadlock

        import faiss  # isort: skip

        try:
            index = faiss.index_factory(dim, factory, faiss.METRIC_INNER_PRODUCT)
        except (RuntimeError, AssertionError):
            raise ValueError(
                f"FAISS makes no index of {dim} dimensions from {factory!r}; examples: {', '.join(EXAMPLES)}"
            ) from None
        if settings:
            try:
                faiss.ParameterSpace().set_index_parameters(index, settings)
            except (RuntimeError, AssertionError):
                raise ValueError(
                    f"an index {factory!r} has no settings {settings!r}; examples: nprobe=16 (IVF), efSearch=64 (HNSW)"
                ) from None
        if faiss.get_num_gpus() > 0:
            with contextlib.suppress(RuntimeError):  # not every index exists there; this one then stays where it is
                index = faiss.index_cpu_to_all_gpus(index)
        self._index = index
        self._factory = factory
        self._similarity: Similarity = similarity

    def __len__(self) -> int:
        return self._index.ntotal

    def train(self, vectors: np.ndarray) -> None:
        """Learn the index's cells and codes from a sample of the gallery, floats [n, dim]; a no-op for graphs.

        Raises:
            ValueError: If the sample is too small, holds NaN or has another dimension.
        """
        self._require(vectors, "gallery")
        try:
            self._index.train(comparable_rows(vectors, self._similarity))  # pyright: ignore[reportCallIssue]
        except RuntimeError as error:
            raise ValueError(
                f"{len(vectors)} vectors of {vectors.shape[1]} dimensions cannot train {self._factory!r}; give more, "
                f"or ask for fewer cells or dimensions ({_said(error)})"
            ) from None

    def add(self, vectors: np.ndarray) -> None:
        """Add vectors, floats [n, dim]; they get the next row numbers.

        Raises:
            ValueError: If the index has to be trained first, or the vectors hold NaN or have another dimension.
        """
        self._require(vectors, "gallery")
        if not self._index.is_trained:
            raise ValueError(f"an index {self._factory!r} is trained before vectors are added; call train")
        try:
            self._index.add(comparable_rows(vectors, self._similarity))  # pyright: ignore[reportCallIssue]
        except RuntimeError as error:
            raise ValueError(f"an index {self._factory!r} takes no plain vectors: {_said(error)}") from None

    def search(self, queries: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
        """About the k rows most similar to each query.

        Args:
            queries: Floats [q, dim].
            k: Neighbours wanted; fewer come back where there are fewer rows.

        Returns:
            Similarities, float32 [q, k], in falling order, and row numbers, int64 [q, k]; -1 where none was found.

        Raises:
            ValueError: If the dimension differs, a query holds NaN, nothing was added or k is not positive.
        """
        self._require(queries, "query")
        if not len(self) or k < 1:
            raise ValueError(f"a search needs a gallery and k >= 1, found {len(self)} rows and k={k}")
        return self._index.search(comparable_rows(queries, self._similarity), min(k, len(self)))  # pyright: ignore[reportCallIssue]

    def _require(self, vectors: np.ndarray, role: str) -> None:
        if vectors.ndim != 2 or vectors.shape[1] != self._index.d:
            raise ValueError(
                f"{role} vectors are {list(vectors.shape)}, expected [n, {self._index.d}] as the index has"
            )
        require_finite(vectors, role)


def _said(error: RuntimeError) -> str:
    """What FAISS complains of, without the place in its source."""
    return str(error).strip().rsplit("failed:", 1)[-1].strip()[:200]


def recall_against(exact_rows: np.ndarray, found_rows: np.ndarray) -> np.ndarray:
    """Share of each query's exact neighbours that another search found too, float64 [q].

    Args:
        exact_rows: Row numbers of the exact neighbours, int64 [q, k].
        found_rows: Row numbers found, int64 [q, m]; -1 is nobody.

    Raises:
        ValueError: If they are not of the same queries.
    """
    if len(exact_rows) != len(found_rows):
        raise ValueError(f"found neighbours of {len(found_rows)} queries, expected those of {len(exact_rows)}")
    # One sorted list of (query, row) numbers finds membership for all queries at once.
    span = int(max(exact_rows.max(initial=0), found_rows.max(initial=0))) + 2
    exact, found = (np.arange(len(rows))[:, None] * span + rows + 1 for rows in (exact_rows, found_rows))
    return np.isin(exact, found[found_rows >= 0]).mean(axis=1)


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
