"""Fitting the maps that have a closed form, in one pass over the pairs, with cross-validation for free.

Sums over disjoint folds add up, so what is fitted without a fold is a sum over the others: no pair is read again.
"""

from __future__ import annotations

from functools import cached_property
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import nn

from compat.neighbors import unit_rows
from compat.options import Direction, FitOptions
from compat.pairs import Pairs
from compat.training.candidates import Candidate, climb, solve
from compat.training.moments import Moments, NotFinite, Preparation, directions, total
from compat.training.selection import Distractors, HeldOutRetrieval, HeldOutScore, Map, Ranked, identity_folds
from compat.training.solutions import Solutions
from compat.transformers.linear import LinearMap

ONLY_FOLD_STRENGTH = 1.0
"""Strength where nothing can be held out to choose it by: as much penalty as the mean variance."""
ALL_QUERIES = 3000
"""Held-out queries asked, over all folds: they tell reciprocal ranks apart that differ by a hundredth."""
QUICK_QUERIES = 900
"""Held-out queries, in whole folds, that settings within a family are searched with."""
CENTRE_PAIRS = 10_000
"""The centre that directions are seen from is the mean of so many pairs at most; it need not be exact."""


MOMENT_ROWS = 8192
"""Pairs in a block, whose products are formed in float32."""


class Fitted(NamedTuple):
    """A fitted network and how it came about.

    Attributes:
        network: The map.
        held_out: Its score on held-out pairs; None where there were too few.
        facts: For the card.
        notes: What the user should know.
        family: The family it is of.
        correction: Strength of the hubness correction it is to be served with.
    """

    network: nn.Module
    held_out: HeldOutScore | None
    facts: dict[str, Any]
    notes: tuple[str, ...] = ()
    family: str = ""
    correction: float = 0.0


def as_map(network: nn.Module) -> Map:
    """A network as a function of arrays, float32 [n, d_source] to [n, d_target]."""
    if isinstance(network, LinearMap):
        return network.folded()

    def apply(vectors: np.ndarray) -> np.ndarray:
        network.eval()
        with torch.inference_mode():
            return network(torch.from_numpy(vectors)).numpy()

    return apply


def prepare(pairs: Pairs, options: FitOptions) -> Preparation:
    """How source vectors are read: `centred_unit` sees directions from the mean of a seeded sample of the pairs."""
    source = pairs.spaces(options.direction)[0]
    centre = np.zeros(source.dim, np.float32)
    if options.inputs == "centred_unit" and len(pairs) > 1:
        sample = np.sort(np.random.default_rng(options.seed).permutation(len(pairs))[:CENTRE_PAIRS])
        centre = unit_rows(pairs.take(sample, options.direction)[0]).mean(axis=0)
    return Preparation(centre, intercept=options.inputs != "raw")


class CrossValidation:
    """The closed forms fitted without each fold of the pairs, and judges that know what was left out.

    Args:
        pairs: All pairs.
        options: Direction, inputs, folds, seed.
        target: Whether whitened maps will be asked for.
        distractors: A gallery beyond the pairs, for the judges.

    Raises:
        ValueError: If a pair holds NaN or infinity.
    """

    def __init__(
        self, pairs: Pairs, options: FitOptions, *, target: bool, distractors: Distractors | None = None
    ) -> None:
        self.pairs, self.options, self.distractors = pairs, options, distractors
        one_fold = np.zeros(len(pairs), np.int64)  # where there is nothing to choose
        self.folds = one_fold if options.strength else identity_folds(pairs, options.folds, seed=options.seed)
        self._preparation = prepare(pairs, options)
        self._moments = fold_moments(pairs, self.folds, options.direction, self._preparation, target=target)

    @property
    def possible(self) -> bool:
        """Whether there are two folds at least."""
        return len(self._moments) > 1

    @cached_property
    def whole(self) -> Solutions:
        """Fitted to all pairs."""
        return Solutions(total(self._moments), self._preparation)

    @cached_property
    def without(self) -> list[Solutions]:
        """Fitted to all pairs but those of each fold."""
        parts = self._moments
        return [Solutions(total(parts[:f] + parts[f + 1 :]), self._preparation) for f in range(len(parts))]

    @cached_property
    def judges(self) -> list[HeldOutRetrieval]:
        """A judge for each fold, which share the queries that are asked."""
        most_queries = ALL_QUERIES // len(self._moments)
        return [self.judge(fold, most_queries=most_queries) for fold in range(len(self._moments))]

    def judge(self, fold: int, **limits: int) -> HeldOutRetrieval:
        """A judge of one fold, with other limits than usual."""
        held_out = np.flatnonzero(self.folds == fold)
        return HeldOutRetrieval(
            self.pairs,
            held_out,
            self.options.direction,
            seed=self.options.seed,
            distractors=self.distractors,
            **limits,
        )

    @cached_property
    def _quick_judges(self) -> list[HeldOutRetrieval]:
        judges, asked = [], 0
        while len(judges) < len(self._moments) and (len(judges) < 2 or asked < QUICK_QUERIES):
            judges.append(self.judge(len(judges), most_queries=500, most_distractors=4000, most_bank=1500))
            asked += judges[-1].asked
        return judges

    def rank(self, candidate: Candidate, corrections: tuple[float, ...], *, quick: bool = False) -> list[Ranked]:
        """Ranks of held-out queries, fold after fold, for each strength of correction; quick asks some folds only."""
        judges = self._quick_judges if quick else self.judges
        found = [
            judge.rank(as_map(candidate.solve(solutions)), corrections)
            for judge, solutions in zip(judges, self.without, strict=False)
        ]
        return [
            Ranked(*(np.concatenate(columns) for columns in zip(*(fold[place] for fold in found), strict=True)))
            for place in range(len(corrections))
        ]


def fit_closed_form(pairs: Pairs, options: FitOptions, distractors: Distractors | None = None) -> Fitted:
    """Fit a family that has a closed form, with the settings of best held-out reciprocal rank."""
    family, correction = options.transformer, options.correction or 0.0
    validation = CrossValidation(pairs, options, target=family == "whitened", distractors=distractors)
    dims = min(validation.whole.dims)
    if options.strength is not None or not validation.possible:
        settings: dict[str, Any] = {"strength": options.strength or ONLY_FOLD_STRENGTH}
        middle = {"blend": {"share": 0.5}, "reduced_rank": {"rank": max(1, dims // 2)}, "whitened": {"whitening": 1.0}}
        settings = {} if family in ("identity", "procrustes") else settings | middle.get(family, {})
        return Fitted(solve(family, validation.whole, **settings), None, settings, (), family, correction)
    search: dict[Candidate, float] = {}

    def score(candidate: Candidate) -> float:
        ranks = validation.rank(candidate, (correction,), quick=True)[0].reciprocal_ranks
        search[candidate] = float(ranks.mean()) if len(ranks) else 0.0
        return search[candidate]

    best = climb(family, score)
    facts: dict[str, Any] = best.settings(dims)
    if best.steps:
        facts["search"] = [{**c.settings(dims), "mean_reciprocal_rank": value} for c, value in search.items()]
    held_out = validation.judges[0].summary(validation.rank(best, (correction,)))
    return Fitted(best.solve(validation.whole), held_out, facts, (), family, correction)


def fit_ridge_on(pairs: Pairs, direction: Direction, strength: float = 0.1) -> LinearMap:
    """Ridge of one strength on all the pairs, without cross-validation."""
    options = FitOptions(transformer="ridge", direction=direction)
    preparation = prepare(pairs, options)
    moments = fold_moments(pairs, np.zeros(len(pairs), np.int64), direction, preparation)
    return Solutions(moments[0], preparation).ridge(strength)


def fold_moments(
    pairs: Pairs, folds: np.ndarray, direction: Direction, preparation: Preparation, *, target: bool = False
) -> list[Moments]:
    """Moments of each fold's pairs, in one pass.

    Args:
        pairs: [n].
        folds: The fold of each pair, int64 [n].
        direction: Which side is the source.
        preparation: How source vectors are read.
        target: Whether the target's own products are wanted.

    Raises:
        ValueError: If a vector holds NaN or infinity.
    """
    source, into = pairs.spaces(direction)
    moments = [Moments.zero(source.dim, into.dim, target=target) for _ in range(folds.max() + 1)]
    start = 0
    for raw_x, raw_y in pairs.blocks(direction, MOMENT_ROWS):
        rows = slice(start, start + len(raw_x))
        try:
            x, y = preparation(raw_x), directions(raw_y)
        except NotFinite as error:
            raise _named(pairs, start + error.row) from None
        weights = None if pairs.weights is None else pairs.weights[rows]
        here = folds[rows]
        start += len(raw_x)
        if here.min() == here.max():
            moments[here[0]].add(x, y, weights)
            continue
        for fold in np.unique(here):
            mine = here == fold
            moments[fold].add(x.select(mine), y.select(mine), None if weights is None else weights[mine])
    return moments


def require_finite(pairs: Pairs) -> None:
    """Make sure that no pair holds NaN or infinity.

    Raises:
        ValueError: If one does; the message names it.
    """
    start = 0
    for sides in pairs.blocks("new-to-old", MOMENT_ROWS):
        for side in sides:
            if not np.isfinite(side.sum()):
                bad = np.flatnonzero(~np.isfinite(side).all(axis=1))
                if len(bad):
                    raise _named(pairs, start + int(bad[0]))
        start += len(sides[0])


def _named(pairs: Pairs, pair: int) -> ValueError:
    name = "" if pairs.item_ids is None else f" (item {pairs.item_ids[pair]!r})"
    return ValueError(f"pair {pair}{name} holds NaN or infinity; leave that item out")
