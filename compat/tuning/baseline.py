"""What a plain linear map reaches on the same held-out pairs, with its penalty chosen by them as trials are."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from compat.options import FitOptions
from compat.pairs import Pairs
from compat.training.closed_form import as_map, fold_moments, prepare, require_finite
from compat.training.selection import Distractors, HeldOutRetrieval, HeldOutScore, identity_folds
from compat.training.solutions import Solutions

STRENGTHS = tuple(10 ** (step / 2) for step in range(-6, 5))
"""Penalties in units of the mean variance along a dimension."""


def ridge_scores(
    pairs: Pairs, options: FitOptions, gallery: Distractors | None, strengths: Sequence[float] = STRENGTHS
) -> dict[float, HeldOutScore]:
    """Ridge of each strength, fitted to the folds that a network with these options trains on, judged by the other.

    Raises:
        ValueError: If the pairs cannot be divided, or one holds NaN or infinity.
    """
    require_finite(pairs)
    folds = identity_folds(pairs, options.folds, seed=options.seed)
    if folds.max() < 1:
        raise ValueError(
            f"a study judges by pairs held out, but all {len(pairs)} pairs are of one identity; give more identities"
        )
    judge = HeldOutRetrieval(
        pairs, np.flatnonzero(folds == 0), options.direction, seed=options.seed, distractors=gallery
    )
    if not judge.asked:
        raise ValueError("a study judges by pairs held out, but none of them has another to find; give more pairs")
    training = pairs.select(np.flatnonzero(folds != 0))
    preparation = prepare(training, options)
    moments = fold_moments(training, np.zeros(len(training), np.int64), options.direction, preparation)
    solutions = Solutions(moments[0], preparation)
    return {strength: judge.score(as_map(solutions.ridge(strength))) for strength in strengths}


def best_ridge(pairs: Pairs, options: FitOptions, gallery: Distractors | None) -> dict[str, float]:
    """The strength of ridge that retrieves the held-out pairs best, its recall@1 and its reciprocal rank."""
    scores = ridge_scores(pairs, options, gallery)
    strength = max(scores, key=lambda each: (scores[each].mean_reciprocal_rank, each))  # of equals the tamer
    return {
        "strength": strength,
        "recall_at_1": scores[strength].recall_at_1,
        "mean_reciprocal_rank": scores[strength].mean_reciprocal_rank,
    }


def ridge_elsewhere(
    pairs: Pairs, options: FitOptions, gallery: Distractors | None, strength: float, seeds: Sequence[int]
) -> list[float]:
    """Reciprocal ranks of ridge of one strength on the divisions of other seeds."""
    return [
        ridge_scores(pairs, replace(options, seed=seed), gallery, (strength,))[strength].mean_reciprocal_rank
        for seed in seeds
    ]
