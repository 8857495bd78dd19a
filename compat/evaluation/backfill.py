"""What it takes to replace a bridge: recall while the gallery is re-embedded, and with candidates re-ranked instead."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np

from compat.metrics.backfill import (
    BackfillCurve,
    backfill_curves,
    identity_order,
    random_order,
    uncertainty_order,
)
from compat.metrics.intervals import Bootstrap, Interval
from compat.metrics.reranking import DEPTHS, reranked_recall
from compat.metrics.retrieval import Relevance
from compat.metrics.sides import Calibration, Side, calibrate

MOST_QUERIES = 2000
"""A sample of so many shows a curve well; its standard error is below 0.012."""
LEAST_QUERIES = 100
MOST_SCORES = 2_000_000_000
"""Queries by gallery rows, on each side: some minutes of one processor core. A larger gallery gets fewer queries."""
SHARE_OF_NEW = 0.99


class TakesRows(Protocol):
    """Vectors read by row number, such as an `EmbeddingStore`."""

    def take(self, rows: np.ndarray) -> np.ndarray:
        """The vectors of row numbers [b], floats [b, d]."""
        ...


@dataclass(frozen=True, eq=False)
class ReorderedRows:
    """A gallery read in another's order of items.

    Attributes:
        gallery: Where the vectors are.
        order: Row of the gallery that is row i of the other, int64 [g].
    """

    gallery: TakesRows
    order: np.ndarray

    def __len__(self) -> int:
        return len(self.order)

    def rows(self, start: int, stop: int) -> np.ndarray:
        """Vectors start..stop-1 in the other's order, floats [stop - start, d]."""
        return self.gallery.take(self.order[start:stop])


@dataclass(frozen=True)
class Reranked:
    """Recall@1 where one index proposes candidates and the new model ranks them."""

    proposed_by: str
    candidates: int
    recall_at_1: Interval

    def to_dict(self) -> dict[str, Any]:
        """As plain values."""
        recall = self.recall_at_1.to_dict()
        return {"proposed_by": self.proposed_by, "candidates": self.candidates, "recall_at_1": recall}


@dataclass(frozen=True)
class BackfillSection:
    """Recall@1 while a bridged gallery is re-embedded.

    Attributes:
        gallery_rows: Items of the gallery.
        queries: How many the figures come from.
        targets: Recall@1 to be reached, by name, on the same queries.
        curves: By name of the order in which items are re-embedded.
        calibrated: Whether bridged scores were moved to the scale of native ones.
        reranked: What re-ranking candidates reaches without any backfill of the index.
        reason: Why there is nothing of this.
    """

    gallery_rows: int
    queries: int = 0
    targets: Mapping[str, float] = field(default_factory=dict)
    curves: Mapping[str, BackfillCurve] = field(default_factory=dict)
    calibrated: bool = False
    reranked: tuple[Reranked, ...] = ()
    reason: str = ""

    def to_dict(self) -> dict[str, Any]:
        """As plain values, curves thinned."""
        return {
            "gallery_rows": self.gallery_rows,
            "queries": self.queries,
            "targets": [{"name": name, "recall_at_1": recall} for name, recall in self.targets.items()],
            "orders": {name: self._order(curve) for name, curve in self.curves.items()},
            "calibrated": self.calibrated,
            "reranked": [row.to_dict() for row in self.reranked],
            "reason": self.reason,
        }

    def _order(self, curve: BackfillCurve) -> dict[str, Any]:
        reaches = [{"target": name, "fraction": curve.cost_to_reach(recall)} for name, recall in self.targets.items()]
        return {**curve.to_dict(), "reaches": reaches}


def backfill_orders(
    rows: int,
    *,
    labels: np.ndarray | None = None,
    uncertainty: np.ndarray | None = None,
    given: np.ndarray | None = None,
    seed: int = 0,
) -> dict[str, np.ndarray]:
    """The orders that can be formed: random; whole identities; least sure first; one that was given.

    Args:
        rows: Of the gallery, g.
        labels: Identity codes int64 [g].
        uncertainty: How little is known of each item's bridged vector, floats [g].
        given: Gallery rows in the order in which they will be re-embedded, int64 [g].
        seed: Of the random ones.
    """
    orders = {"random": random_order(rows, seed=seed)}
    if labels is not None:
        orders["per_identity"] = identity_order(labels, seed=seed)
    if uncertainty is not None:
        orders["uncertainty"] = uncertainty_order(uncertainty)
    if given is not None:
        orders["given"] = given
    return orders


def backfill_section(
    native: Side,
    bridged: Side,
    relevance: Relevance,
    orders: Mapping[str, np.ndarray],
    *,
    old: Side | None = None,
    ranker: Side | None = None,
    clusters: np.ndarray | None = None,
    calibrated: bool | None = None,
    seed: int = 0,
) -> BackfillSection:
    """Curves of a backfill in several orders, what they reach at which cost, and re-ranking of candidates beside them.

    Galleries are read in blocks and nothing of the size of queries by gallery is held. Of many queries a random sample
    is asked, fewer the larger the gallery is.

    Args:
        native: New queries, and the gallery re-embedded by the new model; rows of all galleries are of the same items.
        bridged: The same as they meet through the bridge, as it is served.
        relevance: Which rows are relevant.
        orders: See `backfill_orders`.
        old: The same queries and items as the old model sees them. They set the target `old_to_old`, and propose
            candidates.
        ranker: What re-ranks candidates, where that is not `native`: the new model's plain embeddings, where those that
            join the index are corrected.
        clusters: Codes int64 [q] of queries that are not independent of each other; None where all are.
        calibrated: Whether bridged scores are put on the scale of native ones, by mean and spread of unlabelled scores.
            Not given: wherever the queries or the similarity of the two sides differ, because a gallery half native and
            half bridged is then two indexes whose scores do not compare. Within one space scores compare as they are,
            and matching their spread does harm: it undoes that mapped items, being less sure, score lower.
        seed: Of the sample of queries, the calibration and the bootstrap.

    Raises:
        ValueError: If sides, relevance and orders do not fit each other.
    """
    rows = len(native.gallery)
    asked = np.flatnonzero(relevance.counts > 0)
    most = min(MOST_QUERIES, MOST_SCORES // max(rows, 1))
    if not len(asked):
        return BackfillSection(rows, reason="no query has anything relevant in the gallery")
    if most < min(LEAST_QUERIES, len(asked)):
        return BackfillSection(rows, reason=f"the gallery of {rows:,} rows is too large; evaluate a sample of it")
    if len(asked) > most:
        asked = np.sort(np.random.default_rng(seed).choice(asked, most, replace=False))
    if calibrated is None:
        alike = native.queries.shape == bridged.queries.shape and np.array_equal(native.queries, bridged.queries)
        calibrated = native.similarity != bridged.similarity or not alike
    relevance = _of_queries(relevance, asked)
    plain = ranker is None
    ranker = _asking(native if ranker is None else ranker, asked)
    native, bridged = _asking(native, asked), _asking(bridged, asked)
    line = calibrate(bridged, native, seed=seed) if calibrated else Calibration()
    curves = backfill_curves(native, bridged, relevance, orders, calibration=line)

    proposers = {"old queries": _asking(old, asked)} if old else {}
    proposers["bridged queries"] = bridged
    kin = None if clusters is None else clusters[asked]
    targets, reranked = {}, []
    for name, side in proposers.items():
        found = reranked_recall(side, ranker, relevance, (1, *DEPTHS))
        if name == "old queries":
            targets["old_to_old"] = float(found[1].mean())  # the first of one candidate is what the old index finds
        bootstrap = Bootstrap(np.stack([found[depth] for depth in DEPTHS], axis=1), kin, seed=seed)
        reranked += [Reranked(name, depth, bootstrap.proportion(column)) for column, depth in enumerate(DEPTHS)]
    for curve in list(curves.values())[:1]:  # every order ends in the same gallery
        end = "new_to_new" if plain else "new_to_new, corrected"
        targets[f"{SHARE_OF_NEW:.0%} of {end}"] = SHARE_OF_NEW * float(curve.recall_at_1[-1])
    return BackfillSection(rows, len(asked), targets, curves, calibrated, tuple(reranked))


def _asking(side: Side, queries: np.ndarray) -> Side:
    return Side(side.queries[queries], side.gallery, side.similarity)


def _of_queries(relevance: Relevance, queries: np.ndarray) -> Relevance:
    bounds = relevance.offsets
    rows = [relevance.rows[bounds[query] : bounds[query + 1]] for query in queries]
    offsets = np.concatenate([[0], np.cumsum([len(row) for row in rows])])
    return Relevance(np.concatenate(rows), offsets, relevance.excluded[queries])
