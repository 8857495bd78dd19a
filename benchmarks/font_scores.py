"""How well characters that no network was trained on are told apart, in designs that it has not seen either.

Legend: q queries, g gallery rows, d dimension.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from compat.evaluation.reached import DRAWS, identity_draws, reached_at
from compat.evaluation.verification import GROUPS
from compat.metrics.intervals import Bootstrap, Interval
from compat.metrics.relevance import Relevance
from compat.metrics.retrieval import ArrayRows, relevant_ranks, retrieval_scores
from compat.metrics.score_histogram import cross_histogram
from stores.space import Similarity

FARS = (1e-3, 1e-4)


@dataclass(frozen=True)
class Scores:
    """What a search and a comparison of all pairs came to.

    Attributes:
        recall_at_1: With its interval, over characters.
        tar_at_far: By false accept rate; None where impostor pairs are too few to show it.
        found: Whether each query's nearest gallery item is the same character, a digit 0 or 1 for each.
    """

    recall_at_1: Interval
    tar_at_far: dict[float, Interval | None]
    found: str

    def to_dict(self) -> dict[str, Any]:
        """Plain values."""
        tar = {str(far): share.to_dict() if share else None for far, share in self.tar_at_far.items()}
        return {"recall_at_1": self.recall_at_1.to_dict(), "tar_at_far": tar, "found": self.found}

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> Scores:
        """The inverse of `to_dict`."""
        tar = {float(far): Interval(**share) if share else None for far, share in values["tar_at_far"].items()}
        return cls(Interval(**values["recall_at_1"]), tar, values["found"])


def score(
    queries: np.ndarray,
    gallery: np.ndarray,
    query_labels: np.ndarray,
    gallery_labels: np.ndarray,
    *,
    similarity: Similarity = "cosine",
    seed: int = 0,
) -> Scores:
    """Search a gallery and compare all pairs.

    Args:
        queries: Floats [q, d].
        gallery: Floats [g, d], other items.
        query_labels: The character of each, integer codes [q].
        gallery_labels: Integer codes [g].
        similarity: How vectors are compared.
        seed: Of the intervals, which draw characters.
    """
    own = np.full(len(queries), -1)
    relevance = Relevance.by_label(query_labels, gallery_labels, own)
    ranks = relevant_ranks(queries, ArrayRows(gallery), relevance, similarity=similarity)
    found = retrieval_scores(ranks, relevance).recall_at_1
    generator = np.random.default_rng(seed)
    identity = np.unique(query_labels, return_inverse=True)[1].reshape(-1)
    identities = int(identity.max()) + 1
    groups = (generator.permutation(identities) % GROUPS)[identity]
    histogram = cross_histogram(
        queries, ArrayRows(gallery), query_labels, gallery_labels, own, similarity=similarity, groups=groups
    )
    weights = identity_draws(generator, int(groups.max()) + 1, DRAWS)
    draws = histogram.resampled_tar(weights, np.asarray(FARS))
    curve = histogram.curve()
    tar = {
        far: reached_at(curve, far, draws[:, i], identities, weights.shape[1], "impostor pairs").share
        for i, far in enumerate(FARS)
    }
    recall = Bootstrap(found[:, None], query_labels, seed=seed).proportion(0)
    return Scores(recall, tar, "".join("1" if hit else "0" for hit in found))


def difference(found: str, over: str, labels: np.ndarray) -> Interval:
    """Recall@1 of one system less that of another on the same queries [q], paired, over characters."""
    values = np.stack([np.frombuffer(digits.encode(), np.uint8) - ord("0") for digits in (found, over)], axis=1)
    return Bootstrap(values, labels).difference(0, 1)
