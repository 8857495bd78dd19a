"""Fitting the maps that have a closed form, in one pass over the pairs, with cross-validation for free.

Sums over disjoint folds add up, so what is fitted without a fold is a sum over the others: no pair is read again.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import nn

from compat.options import Direction, FitOptions
from compat.pairs import BLOCK_ROWS, Pairs
from compat.training.selection import HeldOutRetrieval, HeldOutScore, Map, average, identity_folds
from compat.transformers.linear import IdentityMap, Moments, RidgePath, fit_procrustes, total

ONLY_FOLD_STRENGTH = 1.0
"""Strength where nothing can be held out to choose it by: as much penalty as the mean variance."""
RIDGE_STRENGTHS = (1e-3, 3e-3, 1e-2, 3e-2, 0.1, 0.3, 1.0, 3.0, 10.0)


class Fitted(NamedTuple):
    """A fitted network, its score on held-out pairs (None when there were too few), facts for the card, warnings."""

    network: nn.Module
    held_out: HeldOutScore | None
    facts: dict[str, Any]
    notes: tuple[str, ...] = ()


def as_map(network: nn.Module) -> Map:
    """A network as a function of arrays, float32 [n, d_source] to [n, d_target]."""

    def apply(vectors: np.ndarray) -> np.ndarray:
        network.eval()
        with torch.inference_mode():
            return network(torch.from_numpy(vectors)).numpy()

    return apply


def fit_closed_form(pairs: Pairs, options: FitOptions) -> Fitted:
    """Fit identity, procrustes or ridge; ridge takes the strength of best held-out reciprocal rank."""
    folds = identity_folds(pairs, options.folds, seed=options.seed)
    moments = _fold_moments(pairs, folds, options)
    judges = [
        HeldOutRetrieval(pairs, np.flatnonzero(folds == fold), options.direction, seed=options.seed)
        for fold in range(len(moments))
    ]
    if len(moments) < 2:
        facts = {"strength": ONLY_FOLD_STRENGTH} if options.transformer == "ridge" else {}
        return Fitted(_solver(options, ONLY_FOLD_STRENGTH)(moments[0]), None, facts)
    rests = [total(moments[:fold] + moments[fold + 1 :]) for fold in range(len(moments))]
    if options.transformer != "ridge":
        solve = _solver(options, 0.0)
        scores = [judge.score(as_map(solve(rest))) for judge, rest in zip(judges, rests, strict=True)]
        return Fitted(solve(total(moments)), average(scores), {})
    paths = [RidgePath.of(rest) for rest in rests]
    by_strength = {
        strength: average([j.score(as_map(p.solve(strength))) for j, p in zip(judges, paths, strict=True)])
        for strength in RIDGE_STRENGTHS
    }
    best = max(by_strength, key=lambda strength: (by_strength[strength].mean_reciprocal_rank, strength))
    curve = [{"strength": s, **score.to_dict()} for s, score in by_strength.items()]
    network = RidgePath.of(total(moments)).solve(best)
    return Fitted(network, by_strength[best], {"strength": best, "strengths": curve})


def fit_ridge_on(pairs: Pairs, direction: Direction, strength: float = 0.1) -> nn.Module:
    """Ridge of one strength on all the pairs, without cross-validation."""
    source, target = pairs.spaces(direction)
    moments = Moments.zero(source.dim, target.dim)
    for x, y in pairs.blocks(direction):
        moments.add(x, y)
    return RidgePath.of(moments).solve(strength)


def _solver(options: FitOptions, strength: float) -> Callable[[Moments], nn.Module]:
    return {
        "identity": lambda m: IdentityMap(len(m.x_sum), len(m.y_sum)),
        "procrustes": fit_procrustes,
        "ridge": lambda m: RidgePath.of(m).solve(strength),
    }[options.transformer]


def _fold_moments(pairs: Pairs, folds: np.ndarray, options: FitOptions) -> list[Moments]:
    source, target = pairs.spaces(options.direction)
    moments = [Moments.zero(source.dim, target.dim) for _ in range(folds.max() + 1)]
    for start in range(0, len(pairs), BLOCK_ROWS):
        rows = np.arange(start, min(start + BLOCK_ROWS, len(pairs)))
        x, y = pairs.take(rows, options.direction)
        for fold in np.unique(folds[rows]):
            mine = folds[rows] == fold
            moments[fold].add(x[mine], y[mine])
    return moments
