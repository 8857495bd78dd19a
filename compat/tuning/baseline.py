"""What a plain linear map reaches on the same held-out pairs, with its penalty chosen by them as trials are."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from compat.options import FitOptions
from compat.pairs import Pairs
from compat.training.closed_form import as_map, fold_moments, prepare, require_finite
from compat.training.selection import Distractors, HeldOutRetrieval, HeldOutScore, Map, identity_folds
from compat.training.solutions import Solutions

STRENGTHS = tuple(10 ** (step / 2) for step in range(-6, 5))
"""Penalties in units of the mean variance along a dimension."""


class TooFew(ValueError):
    """Too few pairs to hold some out and ask for them."""


@dataclass(frozen=True)
class Ridges:
    """Ridge of several strengths, fitted to the folds that a network with the same options trains on.

    Attributes:
        solutions: What solves for a strength.
        scores: How each strength retrieves the fold that is left, by which that network stops early.
    """

    solutions: Solutions
    scores: dict[float, HeldOutScore]

    @property
    def best(self) -> float:
        """The strength that retrieves best; of equals the tamer."""
        return max(self.scores, key=lambda each: (self.scores[each].mean_reciprocal_rank, each))

    def map_of(self, strength: float) -> Map:
        """Ridge of a strength, as a function of arrays."""
        return as_map(self.solutions.ridge(strength))


def fit_ridges(
    pairs: Pairs, options: FitOptions, gallery: Distractors | None, strengths: Sequence[float] = STRENGTHS
) -> Ridges:
    """Ridge of each strength.

    Raises:
        TooFew: If the pairs cannot be divided.
        ValueError: If one holds NaN or infinity.
    """
    require_finite(pairs)
    folds = identity_folds(pairs, options.folds, seed=options.seed)
    if folds.max() < 1:
        raise TooFew(
            f"a study judges by pairs held out, but all {len(pairs)} pairs are of one identity; give more identities"
        )
    judge = HeldOutRetrieval(
        pairs, np.flatnonzero(folds == 0), options.direction, seed=options.seed, distractors=gallery
    )
    if not judge.asked:
        raise TooFew("a study judges by pairs held out, but none of them has another to find; give more pairs")
    training = pairs.select(np.flatnonzero(folds != 0))
    preparation = prepare(training, options)
    moments = fold_moments(training, np.zeros(len(training), np.int64), options.direction, preparation)
    solutions = Solutions(moments[0], preparation)
    return Ridges(solutions, {strength: judge.score(as_map(solutions.ridge(strength))) for strength in strengths})


def best_ridge(pairs: Pairs, options: FitOptions, gallery: Distractors | None) -> dict[str, float]:
    """The strength of ridge that retrieves the held-out pairs best, its recall@1 and its reciprocal rank."""
    ridges = fit_ridges(pairs, options, gallery)
    score = ridges.scores[ridges.best]
    return {
        "strength": ridges.best,
        "recall_at_1": score.recall_at_1,
        "mean_reciprocal_rank": score.mean_reciprocal_rank,
    }
