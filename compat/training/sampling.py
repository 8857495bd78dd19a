"""Which items of a gallery to embed with the other model too: the central item of each of as many clusters as wanted.

Central items stand for many others and are seldom flukes. Greedy experimental design (V-optimal) wins more where
vectors hold little noise, and does harm where they hold much; equal numbers of each label, or a share of each of a few
clusters, do no better than chance or worse. `python benchmarks/bench_sample.py --data DIR` compares them on real pairs.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np

from compat.metrics.retrieval import Rows
from compat.neighbors import unit_rows

BLOCK_ROWS = 8192
BLOCK_COSINES = 2**23
"""Most cosines of rows with centroids in memory at a time: 32 MiB."""
SAMPLE_ROWS = 50_000
ITERATIONS = 15


class Picked(NamedTuple):
    """Row numbers, rising, int64 [wanted]; `clusters` of them are the central item of one, the others random."""

    rows: np.ndarray
    clusters: int


def pick_rows(vectors: Rows, wanted: int, *, sample_rows: int = SAMPLE_ROWS, seed: int = 0) -> Picked:
    """Pick the row nearest to the centroid of each of `wanted` clusters of a gallery, among the cluster's own rows.

    The clusters are those of spherical k-means on a sample of the rows; then every row is assigned, block by block.
    Memory holds a block, the sample and the centroids. Clusters that stay empty, as where rows repeat, are made up for
    by random rows.

    Args:
        vectors: The gallery in the old model's space, [n, d] of any norms, read twice in blocks of at most
            `BLOCK_ROWS`. Rows of zeros have no direction and are never picked.
        wanted: How many rows to pick.
        sample_rows: Rows that the centroids are found on, drawn at random where the gallery has more; never fewer than
            `wanted`.
        seed: The same seed picks the same rows.

    Raises:
        ValueError: If `wanted`, `sample_rows` or `seed` is out of range, or fewer rows than `wanted` can be picked.

    Source: Dhillon and Modha, "Concept decompositions for large sparse text data using clustering", Machine Learning
    42 (2001), for the clusters.
    """
    for name, value, least in (("wanted", wanted, 1), ("sample_rows", sample_rows, 1), ("seed", seed, 0)):
        if value < least:
            raise ValueError(f"{name} must be at least {least}, found {value}")
    generator = np.random.default_rng(seed)
    filled, sample = _gather(vectors, max(sample_rows, wanted), generator)
    if filled.sum() < wanted:
        raise ValueError(f"{filled.sum()} rows can be picked (not all zeros), expected {wanted} or more; ask for fewer")
    central = _central_rows(vectors, filled, _centroids(sample, wanted, seed))
    rows = central[central >= 0]
    others = filled.copy()
    others[rows] = False
    made_up = generator.choice(np.flatnonzero(others), wanted - len(rows), replace=False)
    return Picked(np.sort(np.concatenate([rows, made_up])), len(rows))


def _centroids(sample: np.ndarray, clusters: int, seed: int) -> np.ndarray:
    """Unit centroids, float32 [clusters, d], of unit rows [s, d]."""
    import torch  # noqa: F401  before faiss, see compat.neighbors

    import faiss  # isort: skip

    means = faiss.Kmeans(
        sample.shape[1],
        clusters,
        niter=ITERATIONS,
        spherical=True,
        min_points_per_centroid=1,  # as many clusters as rows are asked for where nearly all are picked
        seed=seed % 2**31,
    )
    means.train(sample)
    assert means.centroids is not None  # train sets them
    return means.centroids


def _blocks(vectors: Rows, size: int) -> Iterator[tuple[int, np.ndarray]]:
    for start in range(0, len(vectors), size):
        yield start, unit_rows(vectors.rows(start, min(start + size, len(vectors))))


def _gather(vectors: Rows, sample_rows: int, generator: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """Which rows are not all zeros, bool [n], and unit rows of up to `sample_rows` of them, float32 [s, d]."""
    count = len(vectors)
    # Zeros are found on the way, so they may be drawn too; a gallery that fits in whole loses nothing by it.
    drawn = np.sort(generator.choice(count, sample_rows, replace=False)) if sample_rows < count else np.arange(count)
    filled, kept = np.zeros(count, dtype=bool), []
    for start, block in _blocks(vectors, BLOCK_ROWS):
        mine = np.any(block, axis=1)
        filled[start : start + len(block)] = mine
        here = drawn[np.searchsorted(drawn, start) : np.searchsorted(drawn, start + len(block))] - start
        kept.append(block[here[mine[here]]])
    return filled, np.concatenate(kept) if kept else np.empty((0, 1), np.float32)


def _central_rows(vectors: Rows, filled: np.ndarray, centroids: np.ndarray) -> np.ndarray:
    """The row nearest to each centroid among those nearest to no other centroid, or -1, int64 [clusters]."""
    best = np.full(len(centroids), -np.inf, np.float32)
    central = np.full(len(centroids), -1, np.int64)
    for start, block in _blocks(vectors, max(1, min(BLOCK_ROWS, BLOCK_COSINES // len(centroids)))):
        rows = start + np.flatnonzero(filled[start : start + len(block)])
        cosines = block[rows - start] @ centroids.T
        cluster = cosines.argmax(axis=1)
        cosine = cosines[np.arange(len(rows)), cluster]
        order = np.lexsort((-rows, cosine, cluster))  # each cluster's best last, the earlier row where they tie
        last = order[np.flatnonzero(np.diff(cluster[order], append=-1))]
        better = last[cosine[last] > best[cluster[last]]]
        best[cluster[better]] = cosine[better]
        central[cluster[better]] = rows[better]
    return central
