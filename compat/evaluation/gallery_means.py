"""Search in a gallery of one mean vector for each label, beside the gallery of single items."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from compat.evaluation.searched import Searched
from compat.metrics.intervals import Bootstrap, Interval
from compat.metrics.label_means import mean_ranks
from compat.metrics.retrieval import retrieval_scores


@dataclass(frozen=True)
class GalleryMeans:
    """Recall@1 in the gallery of means, by setting.

    Attributes:
        labels: How many means there are.
        recall_at_1: By setting.
    """

    labels: int
    recall_at_1: Mapping[str, Interval]

    def to_dict(self) -> dict[str, Any]:
        """Plain values."""
        return {"labels": self.labels, "recall_at_1": {n: value.to_dict() for n, value in self.recall_at_1.items()}}


def gallery_means(
    settings: Mapping[str, Searched],
    query_labels: np.ndarray,
    gallery_labels: np.ndarray,
    own: np.ndarray,
    *,
    seed: int = 0,
) -> GalleryMeans:
    """Search in the means of all labels, a query's own item taken out of its label's mean.

    Args:
        settings: By name.
        query_labels: Integer codes [q].
        gallery_labels: Integer codes [g] of the common gallery.
        own: The common gallery's row that is the query's own item, or -1, int64 [q].
        seed: Of the bootstrap over labels.
    """
    found: dict[str, Interval] = {}
    for name, searched in settings.items():
        labels, mine = searched.moved(gallery_labels, own)
        ranks, relevance = mean_ranks(
            searched.queries, query_labels, searched.gallery, labels, mine, similarity=searched.similarity
        )
        asked = relevance.counts > 0
        if asked.any():
            right = retrieval_scores(ranks, relevance).recall_at_1[asked, None]
            found[name] = Bootstrap(right, query_labels[asked], seed=seed).proportion(0)
    return GalleryMeans(len(np.unique(gallery_labels)), found)
