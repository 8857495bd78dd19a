"""Judging maps on pairs they were not fitted to, by retrieval; nothing here ever sees the queries under test."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import NamedTuple

import numpy as np
import torch

from compat.metrics.retrieval import TIE
from compat.neighbors import unit_rows
from compat.options import Direction
from compat.pairs import Pairs, of_one_type
from compat.transformers.hubness import Own, nearest_mean
from stores.store import EmbeddingStore

MOST_QUERIES = 2000
MOST_DISTRACTORS = 10_000
MOST_BANK = 4000
LOWEST = np.float32(-1)
"""The score of a wrong neighbour where there is none: no cosine is lower."""
LEAST_QUERY_LIKE = 50
"""Fewer query-like pairs are no judges: then all pairs are asked."""
ENOUGH_QUERY_LIKE = 500
"""From so many query-like pairs on, they alone show where hubs are; fewer tell less than all pairs do."""
SAME_RANK, SAME_MARGIN = 1e-9, 1e-6
"""Means that differ by less are the same; the order of a sum makes as much."""

Map = Callable[[np.ndarray], np.ndarray]


class Distractors(NamedTuple):
    """A gallery beyond the pairs, in the old space: float [g, d_old], none of them an item of the pairs.

    Labels are integer codes [g] as the pairs have them, negative where they know none, or None for no labels at all:
    then they cannot take part where relevance is by label, because nobody could say which of them are right.
    """

    vectors: np.ndarray
    labels: np.ndarray | None = None


def distractors_of(gallery: EmbeddingStore, pairs: Pairs, *, seed: int, most: int = MOST_DISTRACTORS) -> Distractors:
    """A seeded sample of a gallery's items beyond the pairs, with the pairs' label codes where it has labels.

    Raises:
        ValueError: If the gallery is not in the old space of the pairs.
    """
    if gallery.space != pairs.old.space:
        raise ValueError(
            f"the gallery {gallery.path} is in {gallery.space}, expected the old model's space, {pairs.old.space}"
        )
    rows = np.arange(len(gallery))
    if pairs.item_ids is not None:
        ids, known = of_one_type(gallery.items["item_id"], pairs.item_ids)
        rows = np.flatnonzero(~ids.is_in(known.unique().implode()).to_numpy())
    rows = np.sort(np.random.default_rng(seed).permutation(rows)[:most])
    labels = pairs.codes_of(gallery.items["label"].gather(rows)) if "label" in gallery.items.columns else None
    return Distractors(gallery.take(rows), labels)


class Ranked(NamedTuple):
    """One over the rank of the first right neighbour, float64 [q], the identity or item asked for, int64 [q], and the
    score of the first right neighbour less that of the first wrong one, float64 [q].
    """

    reciprocal_ranks: np.ndarray
    groups: np.ndarray
    margins: np.ndarray


@dataclass(frozen=True)
class HeldOutScore:
    """Retrieval of held-out pairs: mapped queries against all targets (or a sample), by item or by label.

    Attributes:
        relevance: `label` where identities repeat, else `item`.
        queries: Held-out queries asked.
        gallery: Target vectors searched.
        recall_at_1: Share of queries whose first neighbour is right.
        mean_reciprocal_rank: Mean of one over the rank of the first right neighbour.
        mean_margin: Mean of the first right neighbour's score less the first wrong one's.
    """

    relevance: str
    queries: int
    gallery: int
    recall_at_1: float
    mean_reciprocal_rank: float
    mean_margin: float = 0.0

    def beats(self, other: HeldOutScore) -> bool:
        """Whether the reciprocal rank is higher, or equal with a wider margin.

        Held-out identities are few and easily told apart: often all are found after a few epochs, and then ranks can no
        longer tell a better epoch from a worse one.
        """
        ahead = self.mean_reciprocal_rank - other.mean_reciprocal_rank
        return ahead > SAME_RANK or (ahead > -SAME_RANK and self.mean_margin > other.mean_margin + SAME_MARGIN)

    def to_dict(self) -> dict[str, object]:
        """The fields as plain values."""
        return asdict(self)


def identity_folds(pairs: Pairs, folds: int, *, seed: int) -> np.ndarray:
    """A fold number for each pair, int64 [n]; pairs of one label, or of one original item, share a fold.

    There are fewer folds where there are fewer such groups.
    """
    groups = np.arange(len(pairs)) if pairs.labels is None else np.unique(pairs.labels, return_inverse=True)[1]
    if pairs.originals is not None:
        # Views of one original go where its first identity goes: they may be unlabelled, each an identity of its own.
        originals = np.unique(pairs.originals, return_inverse=True)[1]
        first = np.full(originals.max(initial=-1) + 1, len(pairs))
        np.minimum.at(first, originals, groups)
        groups = np.unique(first[originals], return_inverse=True)[1]
    count = groups.max() + 1
    order = np.random.default_rng(seed).permutation(count)
    return (order % min(folds, count))[groups]


def judged_by(pairs: Pairs) -> str:
    """`label` where the labels of the pairs that are asked repeat, else `item`: every fold must answer this alike."""
    if pairs.labels is None:
        return "item"
    asked = np.unique(pairs.labels[_askable(pairs)], return_inverse=True)[1]
    repeats = np.bincount(asked)
    return "label" if repeats[repeats > 1].sum() >= len(asked) / 2 else "item"


def bank_pairs(pairs: Pairs, *, most: int, seed: int) -> np.ndarray:
    """Numbers of the pairs whose queries show where hubs are, int64 [m <= most], a seeded sample in rising order."""
    numbers = np.arange(len(pairs))
    if pairs.query_like is not None and pairs.query_like.sum() >= ENOUGH_QUERY_LIKE:
        numbers = np.flatnonzero(pairs.query_like)
    return np.sort(np.random.default_rng(seed).permutation(numbers)[:most])


class HeldOutRetrieval:
    """Scores maps on the held-out pairs: queries go through the map, or the gallery does, as the direction says.

    Of the views of one original item only the first takes part: finding another view of itself would prove nothing.
    Where enough pairs look like queries, only those are asked.

    Args:
        pairs: All pairs.
        held_out: Numbers of those that the maps were not fitted to, int64 [h]; queries come from them alone, while
            the gallery holds the other pairs' vectors too, as distractors.
        direction: Decides which side is mapped.
        seed: Chooses the samples where there is more than the limits below.
        distractors: A gallery beyond the pairs; the more there are to confuse, the finer maps are told apart.
        most_queries: Most queries asked.
        most_distractors: Most vectors searched.
        most_bank: Most queries that hubs are found by.
    """

    def __init__(
        self,
        pairs: Pairs,
        held_out: np.ndarray,
        direction: Direction,
        *,
        seed: int,
        distractors: Distractors | None = None,
        most_queries: int = MOST_QUERIES,
        most_distractors: int = MOST_DISTRACTORS,
        most_bank: int = MOST_BANK,
    ) -> None:
        generator = np.random.default_rng(seed)
        self.kind = judged_by(pairs)
        self._direction: Direction = direction
        by_label = self.kind == "label" and pairs.labels is not None
        codes = pairs.labels if by_label and pairs.labels is not None else np.arange(len(pairs))
        if distractors is None or (by_label and distractors.labels is None):
            distractors = Distractors(np.empty((0, pairs.old.space.dim), np.float32), np.empty(0, np.int64))
        held = np.zeros(len(pairs), bool)
        held[held_out] = True
        chosen = np.sort(generator.permutation(np.flatnonzero(held & _askable(pairs)))[:most_queries])
        rest = _firsts(pairs)
        rest[chosen] = False
        room = max(0, most_distractors - len(chosen))
        mates = rest & np.isin(codes, codes[chosen]) if by_label else np.zeros(len(pairs), bool)
        others = np.concatenate([generator.permutation(np.flatnonzero(rows)) for rows in (mates, rest & ~mates)])
        # Of one's own identity some are always there to be found; distractors get half of the room at least.
        others = np.concatenate([others[: mates.sum()][: room // 2], others[mates.sum() :]])
        beyond = min(len(distractors.vectors), max(room - len(others), room // 2))
        others = np.sort(others[: room - beyond])
        picked = np.sort(generator.permutation(len(distractors.vectors))[:beyond])
        fitted = np.flatnonzero(~held)
        bank = fitted[bank_pairs(pairs.select(fitted), most=most_bank, seed=seed)]
        inside = np.concatenate([chosen, others])
        self._queries, self._bank = (pairs.take(numbers, "new-to-old")[0] for numbers in (chosen, bank))
        self._gallery = np.concatenate(
            [pairs.take(inside, "new-to-old")[1], np.asarray(distractors.vectors[picked], np.float32)]
        )
        unknown = -2 - np.arange(beyond)
        known = distractors.labels[picked] if by_label and distractors.labels is not None else unknown
        gallery_codes = np.concatenate([codes[inside], np.where(known < 0, unknown, known)])
        self._relevant = codes[chosen][:, None] == gallery_codes[None, :]
        # Held-out items have no mates in the bank, so no other item's mates may count against it.
        own_codes = codes if by_label or pairs.originals is None else pairs.originals
        self._own = Own(np.concatenate([own_codes[inside], gallery_codes[len(inside) :]]), own_codes[bank])
        self._itself = np.arange(len(chosen)) if by_label else np.empty(0, np.int64)
        self._relevant[self._itself, self._itself] = False
        self._asked = self._relevant.any(axis=1)
        self._groups = codes[chosen]

    @property
    def asked(self) -> int:
        """Queries that have something to find."""
        return int(self._asked.sum())

    def rank(self, transform: Map, corrections: Sequence[float] = (0.0,)) -> list[Ranked]:
        """Ranks through a map of float32 [n, d_source] to [n, d_target], for each strength of hubness correction."""
        queries, gallery, bank = self._queries, self._gallery, self._bank
        if self._direction == "new-to-old":
            queries, bank = transform(queries), transform(bank) if any(corrections) else bank
        else:
            gallery = transform(gallery)
        gallery = unit_rows(gallery)
        product = (torch.from_numpy(unit_rows(queries)) @ torch.from_numpy(gallery).T).numpy()
        product[self._itself, self._itself] = -np.inf
        hubness = 0.0
        if any(corrections) and len(bank):
            hubness = nearest_mean(gallery, unit_rows(bank), own=self._own)
        found = []
        for strength in corrections:
            scores = product - np.float32(strength) * hubness if strength else product
            found.append(self._ranked(scores))
        return found

    def _ranked(self, scores: np.ndarray) -> Ranked:
        right = np.where(self._relevant, scores, -np.inf).max(axis=1, initial=-np.inf, keepdims=True)
        ahead = ((scores >= right - TIE) & ~self._relevant).sum(axis=1)  # ties go against the query
        wrong = np.where(self._relevant, LOWEST, scores).max(axis=1, initial=LOWEST)
        margins = right[:, 0].astype(np.float64) - wrong
        asked = self._asked
        return Ranked(1.0 / (1.0 + ahead[asked]), self._groups[asked], margins[asked])

    def score(self, transform: Map, correction: float = 0.0) -> HeldOutScore:
        """Retrieval through a map, with a strength of hubness correction."""
        return self.summary(self.rank(transform, (correction,)))

    def summary(self, ranked: Sequence[Ranked]) -> HeldOutScore:
        """The score of ranks found by this judge, or by judges of its kind for other folds."""
        ranks = np.concatenate([r.reciprocal_ranks for r in ranked])
        return HeldOutScore(
            relevance=self.kind,
            queries=len(ranks),
            gallery=len(self._gallery),
            recall_at_1=float((ranks == 1).mean()) if len(ranks) else 0.0,
            mean_reciprocal_rank=float(ranks.mean()) if len(ranks) else 0.0,
            mean_margin=float(np.concatenate([r.margins for r in ranked]).mean()) if len(ranks) else 0.0,
        )


def _firsts(pairs: Pairs) -> np.ndarray:
    """Which pairs are the first view of their original, bool [n]."""
    if pairs.originals is None:
        return np.ones(len(pairs), bool)
    firsts = np.zeros(len(pairs), bool)
    firsts[np.unique(pairs.originals, return_index=True)[1]] = True
    return firsts


def _askable(pairs: Pairs) -> np.ndarray:
    """Which pairs may be asked, bool [n]: the first views, of query-like pairs alone where there are enough."""
    firsts = _firsts(pairs)
    if pairs.query_like is None or pairs.query_like.sum() < LEAST_QUERY_LIKE:
        return firsts
    return firsts & pairs.query_like
