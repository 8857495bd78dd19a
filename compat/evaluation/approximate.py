"""A setting searched through an approximate index, beside exact search."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from compat.evaluation.searched import Searched
from compat.metrics.intervals import Bootstrap, Interval
from compat.metrics.relevance import Relevance
from compat.neighbors import ApproximateIndex, recall_against, search_rows, take_rows
from stores.space import Similarity

NEIGHBOURS = 10
TRAINED_ON = 100_000
_BLOCK_ROWS = 16_384


@dataclass(frozen=True)
class ApproximateRow:
    """What an approximate index finds.

    Attributes:
        setting: What was searched.
        factory: The index in FAISS's words.
        recall_at_1: Share of queries whose first neighbour is right.
        exact: The same by exact search, whose ties go to the lower row as an index's do.
        agreement: Share of the exact ten nearest neighbours that were found.
    """

    setting: str
    factory: str
    recall_at_1: Interval
    exact: float
    agreement: float

    def to_dict(self) -> dict[str, Any]:
        """Plain values."""
        return {
            "setting": self.setting,
            "factory": self.factory,
            "recall_at_1": self.recall_at_1.to_dict(),
            "exact_recall_at_1": self.exact,
            "agreement": self.agreement,
        }


def search_approximately(
    name: str,
    searched: Searched,
    factory: str,
    relevance: Relevance,
    clusters: np.ndarray | None = None,
    *,
    seed: int = 0,
) -> ApproximateRow:
    """Build an approximate index of a setting's gallery and search it; a query's own item is passed over.

    Args:
        name: Of the setting.
        searched: The setting.
        factory: Of FAISS, for example `HNSW32`, perhaps with how hard to search: `IVF256,Flat;nprobe=16`.
        relevance: What is right in the common gallery.
        clusters: Codes int64 [q] of queries that are not independent of each other; None where all are.
        seed: Of the sample that the index is trained on, and of the bootstrap.

    Raises:
        ValueError: If FAISS does not know the factory string, or the gallery is too small to train it.
    """
    relevance = relevance if searched.rows is None else relevance.moved(searched.rows)
    index = made_index(searched.queries.shape[1], factory, searched.similarity)
    gallery, rows = searched.gallery, len(searched.gallery)
    sample = np.sort(np.random.default_rng(seed).permutation(rows)[:TRAINED_ON])
    index.train(take_rows(gallery, sample))
    for start in range(0, rows, _BLOCK_ROWS):
        index.add(gallery.rows(start, min(start + _BLOCK_ROWS, rows)))
    asked = np.flatnonzero(relevance.counts > 0)
    queries, wanted = searched.queries[asked], NEIGHBOURS + 1  # the own item may be one of them
    found = index.search(queries, wanted)[1]
    truth = search_rows(queries, gallery, wanted, similarity=searched.similarity)[1]
    found, truth = (_passed_over(side, relevance.excluded[asked]) for side in (found, truth))
    right, exact = (_first_is_right(side, relevance, asked) for side in (found, truth))
    recall = Bootstrap(right[:, None], None if clusters is None else clusters[asked], seed=seed).proportion(0)
    agreement = float(recall_against(truth, found).mean())
    return ApproximateRow(name, factory, recall, float(exact.mean()), agreement)


def _first_is_right(found: np.ndarray, relevance: Relevance, asked: np.ndarray) -> np.ndarray:
    bounds = relevance.offsets
    firsts = zip(asked, found[:, 0], strict=True)
    return np.array([first in relevance.rows[bounds[query] : bounds[query + 1]] for query, first in firsts], float)


def made_index(dim: int, factory: str, similarity: Similarity) -> ApproximateIndex:
    """An empty index of a factory string and, after a semicolon, settings of its search.

    Raises:
        ValueError: If FAISS does not know them.
    """
    kind, _, settings = factory.partition(";")
    return ApproximateIndex(dim, kind, similarity, settings=settings)


def _passed_over(rows: np.ndarray, own: np.ndarray) -> np.ndarray:
    """Neighbours without the query's own item, the first `NEIGHBOURS` left of them, int64 [q, k]."""
    order = np.argsort(rows == own[:, None], axis=1, kind="stable")  # the own item goes last
    kept = np.take_along_axis(rows, order, axis=1)
    return kept[:, : min(NEIGHBOURS, max(1, rows.shape[1] - 1))]
