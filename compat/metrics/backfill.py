"""What search finds while a bridged gallery is replaced, item by item, by native embeddings of the new model.

At stage t the first t items of an order are native and the others are bridged. Searching anew at each of the g + 1
stages is not needed, because each item's score with a query changes only once. For one query the best relevant score is
a step function of the stage; within a step, a re-embedded irrelevant item stands in the way from its own stage on, and
a bridged one until then. So the stages at which the query finds what it should are one range for each step: up to the
first re-embedded item and after the last bridged one that scores as high. Those ranges are found in one pass over the
scores, O(q g), for any number of orders, and give the curve exactly.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from compat.metrics.relevance import Relevance
from compat.metrics.retrieval import TIE
from compat.metrics.sides import Calibration, Side, relevant_scores, score_blocks

POINTS = 201
"""A curve is written with at most so many points; its area and what it reaches come from all of them."""


@dataclass(frozen=True, eq=False)
class BackfillCurve:
    """Recall@1 at every stage of a backfill.

    Attributes:
        hits: Queries that find a relevant item first, int64 [g + 1], with 0, 1, ..., g items re-embedded.
        queries: Queries that have a relevant item.
    """

    hits: np.ndarray
    queries: int

    @property
    def fraction(self) -> np.ndarray:
        """Share of the gallery that is re-embedded at each stage, float64 [g + 1]."""
        return np.arange(len(self.hits)) / (len(self.hits) - 1)

    @property
    def recall_at_1(self) -> np.ndarray:
        """Share of queries whose first neighbour is relevant, ties against the query, float64 [g + 1]."""
        return self.hits / self.queries

    @property
    def area(self) -> float:
        """Mean of recall@1 over all g + 1 stages."""
        return float(self.recall_at_1.mean())

    def cost_to_reach(self, target: float) -> float | None:
        """The smallest fraction from which on the curve stays at or above a recall; None where it ends below.

        A curve may touch a target and fall again, so the first touch is not what a target costs.
        """
        below = np.flatnonzero(self.hits < target * self.queries - 1e-9)  # a target is a quotient, rounded
        first = int(below[-1]) + 1 if len(below) else 0
        return first / (len(self.hits) - 1) if first < len(self.hits) else None

    def to_dict(self) -> dict[str, Any]:
        """At most `POINTS` points of the curve, evenly spaced with both ends, and its area."""
        stages = np.unique(np.linspace(0, len(self.hits) - 1, POINTS).round().astype(np.int64))
        return {
            "fraction": self.fraction[stages].tolist(),
            "recall_at_1": self.recall_at_1[stages].tolist(),
            "area": self.area,
        }


def random_order(items: int, *, seed: int = 0) -> np.ndarray:
    """All rows in random order, int64 [items]."""
    return np.random.default_rng(seed).permutation(items)


def identity_order(labels: np.ndarray, *, seed: int = 0) -> np.ndarray:
    """Rows of whole identities one after the other, identities in random order, int64 [g], for codes [g]."""
    codes = np.unique(labels, return_inverse=True)[1]
    place = np.random.default_rng(seed).permutation(codes.max(initial=-1) + 1)
    return np.argsort(place[codes], kind="stable")


def uncertainty_order(uncertainty: np.ndarray) -> np.ndarray:
    """Rows whose bridged vector is least sure first, int64 [g], for floats [g]; equals stay in row order.

    Raises:
        ValueError: If one is NaN.
    """
    if np.isnan(uncertainty).any():
        raise ValueError(f"uncertainty of row {int(np.isnan(uncertainty).argmax())} is NaN; give every row a number")
    return np.argsort(-uncertainty, kind="stable")


def backfill_curves(
    native: Side,
    bridged: Side,
    relevance: Relevance,
    orders: Mapping[str, np.ndarray],
    *,
    calibration: Calibration | None = None,
) -> dict[str, BackfillCurve]:
    """Recall@1 at each number of re-embedded items, exact, for each order; a query's own item is not searched.

    Args:
        native: The new model's queries and its embeddings of the gallery.
        bridged: The same queries and items as they meet through the bridge. Where the map takes the gallery to the new
            space the queries are the same and scores compare; where it takes queries to the old gallery, or a
            correction is in an extra dimension, they do not, and want a calibration.
        relevance: Which rows are relevant; queries without any are left out.
        orders: Gallery rows in the order in which they are re-embedded, each a permutation, int64 [g], by name.
        calibration: Puts bridged scores on the scale of native ones (`calibrate`). None compares them as they are.

    Returns:
        A curve for each order.

    Raises:
        ValueError: If the sides or the relevance do not fit each other, an order is not a permutation of the rows, or
            no query has a relevant row.
    """
    queries = int((relevance.counts > 0).sum())
    if not queries:
        raise ValueError("no query has a relevant row in the gallery, so there is no curve")
    line = calibration or Calibration()
    scores = relevant_scores(native, relevance), _calibrated(relevant_scores(bridged, relevance), line)
    tracks = {name: _Track(name, order, len(native.gallery), relevance, *scores) for name, order in orders.items()}
    lowest = np.min([track.lowest for track in tracks.values()], axis=0, initial=np.inf)
    asking = relevance.queries
    for rows, start, (new, old) in score_blocks([native, bridged]):
        old = _calibrated(old, line)
        first, last = relevance.offsets[rows.start], relevance.offsets[rows.stop]
        for block in (new, old):  # what is left are the irrelevant items
            _hide(block, asking[first:last] - rows.start, relevance.rows[first:last] - start)
            _hide(block, np.arange(len(block)), relevance.excluded[rows] - start)
        for i, (news, olds) in enumerate(zip(new, old, strict=True), start=rows.start):
            # Few items come near what is relevant, whatever the stage.
            near_new, near_old = np.flatnonzero(news >= lowest[i]), np.flatnonzero(olds >= lowest[i])
            for track in tracks.values():
                track.meet_native(i, start + near_new, news[near_new])
                track.meet_bridged(i, start + near_old, olds[near_old])
    return {name: BackfillCurve(track.hits(), queries) for name, track in tracks.items()}


class _Track:
    """One order: the steps of every query's best relevant score, and at which stages nothing stands in their way."""

    def __init__(
        self, name: str, order: np.ndarray, rows: int, relevance: Relevance, native: np.ndarray, bridged: np.ndarray
    ) -> None:
        if len(order) != rows or not np.array_equal(np.sort(order), np.arange(rows)):
            raise ValueError(f"order {name!r} has {len(order)} entries; it must hold each of {rows} gallery rows once")
        self._rows = rows
        self._place = np.empty(rows, np.int64)
        self._place[order] = np.arange(rows)
        thresholds, first, counts = [np.empty(0, np.float32)], [np.empty(0, np.int64)], []
        for a, b in zip(relevance.offsets[:-1], relevance.offsets[1:], strict=True):
            step, best = _steps(self._place[relevance.rows[a:b]], native[a:b], bridged[a:b])
            thresholds.append(best - TIE)
            first.append(step)
            counts.append(len(step))
        self._offsets = np.concatenate([[0], np.cumsum(counts)]).astype(np.int64)
        self._thresholds, self._first = np.concatenate(thresholds), np.concatenate(first)
        self._clear_from = np.zeros(len(self._first), np.int64)
        self._clear_to = np.full(len(self._first), rows, np.int64)
        self.lowest = np.array(
            [self._thresholds[a:b].min(initial=np.inf) for a, b in zip(self._offsets, self._offsets[1:], strict=False)]
        )

    def meet_native(self, query: int, rows: np.ndarray, scores: np.ndarray) -> None:
        """Irrelevant items as they are once re-embedded: they stand in the way of every stage after their own."""
        steps = slice(self._offsets[query], self._offsets[query + 1])
        if not len(rows) or steps.start == steps.stop:
            return
        places = self._place[rows]
        places, highest = _highest_so_far(places, scores, places < self._clear_to[steps].max())
        found = np.searchsorted(highest, self._thresholds[steps], "left")
        self._clear_to[steps] = np.minimum(self._clear_to[steps], np.append(places, self._rows)[found])

    def meet_bridged(self, query: int, rows: np.ndarray, scores: np.ndarray) -> None:
        """Irrelevant items as they are until then: they stand in the way of every stage up to their own."""
        steps = slice(self._offsets[query], self._offsets[query + 1])
        if not len(rows) or steps.start == steps.stop:
            return
        places = self._place[rows]
        places, highest = _highest_so_far(-places, scores, places >= self._clear_from[steps].min())
        found = np.searchsorted(highest, self._thresholds[steps], "left")
        self._clear_from[steps] = np.maximum(self._clear_from[steps], np.append(1 - places, 0)[found])

    def hits(self) -> np.ndarray:
        """Queries that are right at each stage, int64 [g + 1]."""
        last = np.append(self._first[1:] - 1, self._rows)
        last[self._offsets[1:][np.diff(self._offsets) > 0] - 1] = self._rows
        start, stop = np.maximum(self._first, self._clear_from), np.minimum(last, self._clear_to) + 1
        right = start < stop
        size = self._rows + 2
        changes = np.bincount(start[right], minlength=size) - np.bincount(stop[right], minlength=size)
        return np.cumsum(changes)[: self._rows + 1]


def _steps(places: np.ndarray, native: np.ndarray, bridged: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """First stage and height of each step of a query's best relevant score, from places [r] in the order."""
    if not len(places):
        return np.empty(0, np.int64), np.empty(0, np.float32)
    by_place = np.argsort(places)
    low = np.float32(-np.inf)
    done = np.append(low, np.maximum.accumulate(native[by_place]))
    ahead = np.append(np.maximum.accumulate(bridged[by_place][::-1])[::-1], low)
    best = np.maximum(done, ahead)
    changes = np.append(True, best[1:] != best[:-1])
    return np.append(0, places[by_place] + 1)[changes], best[changes]


def _highest_so_far(places: np.ndarray, scores: np.ndarray, wanted: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    places, scores = places[wanted], scores[wanted]
    order = np.argsort(places)
    return places[order], np.maximum.accumulate(scores[order])


def _hide(block: np.ndarray, queries: np.ndarray, rows: np.ndarray) -> None:
    here = (rows >= 0) & (rows < block.shape[1])
    block[queries[here], rows[here]] = -np.inf


def _calibrated(scores: np.ndarray, line: Calibration) -> np.ndarray:
    if line == Calibration():
        return scores
    scores *= np.float32(line.scale)
    scores += np.float32(line.shift)
    return scores
