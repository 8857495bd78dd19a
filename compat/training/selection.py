"""Judging a map on pairs it was not fitted to, by retrieval; nothing here ever sees the queries under test."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass

import numpy as np

from compat.metrics.retrieval import ArrayRows, Relevance, relevant_ranks, retrieval_scores
from compat.options import Direction
from compat.pairs import Pairs

MOST_QUERIES = 2000
MOST_DISTRACTORS = 10_000

Map = Callable[[np.ndarray], np.ndarray]


@dataclass(frozen=True)
class HeldOutScore:
    """Retrieval of held-out pairs: mapped queries against all targets (or a sample), by item or by label.

    Attributes:
        relevance: `label` where identities repeat, else `item`.
        queries: Held-out queries asked.
        gallery: Target vectors searched.
        recall_at_1: Share of queries whose first neighbour is right.
        mean_reciprocal_rank: Mean of one over the rank of the first right neighbour.
    """

    relevance: str
    queries: int
    gallery: int
    recall_at_1: float
    mean_reciprocal_rank: float

    def to_dict(self) -> dict[str, object]:
        """The fields as plain values."""
        return asdict(self)


def identity_folds(pairs: Pairs, folds: int, *, seed: int) -> np.ndarray:
    """A fold number for each pair, int64 [n]; pairs of one label, or of one original item, share a fold.

    There are fewer folds where there are fewer such groups.
    """
    kept_together = pairs.labels if pairs.labels is not None else pairs.originals
    groups = np.arange(len(pairs)) if kept_together is None else np.unique(kept_together, return_inverse=True)[1]
    count = groups.max() + 1
    order = np.random.default_rng(seed).permutation(count)
    return (order % min(folds, count))[groups]


class HeldOutRetrieval:
    """Scores maps on the held-out pairs: queries go through the map, or the gallery does, as the direction says.

    Of the views of one original item only the first takes part: finding another view of itself would prove nothing.

    Args:
        pairs: All pairs.
        held_out: Numbers of those that the maps were not fitted to, int64 [h]; queries come from them alone, while
            the gallery holds the other pairs' vectors too, as distractors.
        direction: Decides which side is mapped.
        seed: Chooses the sample where there are more than `MOST_QUERIES` or `MOST_DISTRACTORS`.
    """

    def __init__(self, pairs: Pairs, held_out: np.ndarray, direction: Direction, *, seed: int) -> None:
        generator = np.random.default_rng(seed)
        firsts = np.arange(len(pairs))
        if pairs.originals is not None:
            firsts = np.unique(pairs.originals, return_index=True)[1]
        chosen = np.sort(generator.permutation(np.intersect1d(held_out, firsts))[:MOST_QUERIES])
        others = np.setdiff1d(firsts, chosen)
        others = np.sort(generator.permutation(others)[: max(0, MOST_DISTRACTORS - len(chosen))])
        gallery = np.concatenate([chosen, others])
        own = np.arange(len(chosen))
        self._direction = direction
        self._queries = pairs.take(chosen, "new-to-old")[0]
        self._gallery = pairs.take(gallery, "new-to-old")[1]
        self._relevance, self.kind = Relevance.by_item(own), "item"
        if pairs.labels is not None:
            # Labels that hardly repeat would leave almost no query to ask. Every fold must answer this alike.
            repeats = np.bincount(np.unique(pairs.labels[firsts], return_inverse=True)[1])
            if repeats[repeats > 1].sum() >= len(firsts) / 2:
                self.kind = "label"
                self._relevance = Relevance.by_label(pairs.labels[chosen], pairs.labels[gallery], own)

    def score(self, transform: Map) -> HeldOutScore:
        """Retrieval through a map of float32 [n, d_source] to [n, d_target]."""
        queries, gallery = self._queries, self._gallery
        if self._direction == "new-to-old":
            queries = transform(queries)
        else:
            gallery = transform(gallery)
        ranks = relevant_ranks(queries, ArrayRows(gallery), self._relevance)
        scores = retrieval_scores(ranks, self._relevance)
        asked = self._relevance.counts > 0
        return HeldOutScore(
            relevance=self.kind,
            queries=int(asked.sum()),
            gallery=len(gallery),
            recall_at_1=float(scores.recall_at_1[asked].mean()) if asked.any() else 0.0,
            mean_reciprocal_rank=float(scores.reciprocal_rank[asked].mean()) if asked.any() else 0.0,
        )


def average(scores: list[HeldOutScore]) -> HeldOutScore:
    """The mean over folds, weighted by their queries."""
    queries = np.array([score.queries for score in scores])
    return HeldOutScore(
        relevance=scores[0].relevance,
        queries=int(queries.sum()),
        gallery=scores[0].gallery,
        recall_at_1=float(np.average([s.recall_at_1 for s in scores], weights=queries)),
        mean_reciprocal_rank=float(np.average([s.mean_reciprocal_rank for s in scores], weights=queries)),
    )
