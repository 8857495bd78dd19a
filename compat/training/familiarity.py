"""Learning, at fit time, which queries a map will fail and how strange a query may be; see
`compat.transformers.familiarity`.

A seeded sample of the pairs is divided, identities kept together: half teaches where directions lie and a ridge map, a
quarter is asked through that map and teaches which queries fail, and a quarter that neither saw gives the percentiles.
The ridge map stands in for any other: what is hard is hard for all of them, and asking it costs a second at any size.
"""

from __future__ import annotations

import numpy as np
import torch

from compat.metrics.retrieval import TIE
from compat.neighbors import unit_rows
from compat.options import Direction
from compat.pairs import Pairs
from compat.training.closed_form import fit_ridge_on
from compat.training.selection import identity_folds, judged_by
from compat.transformers.familiarity import Calibration, Familiarity, Percentiles, PrincipalAxes, log_odds

MOST_PAIRS = 6000
LEAST_HELD_OUT = 20
"""Fewer held-out pairs give no percentiles worth the name: 0.95 needs twenty."""
LEAST_OUTCOMES = 5
"""Failures, and successes, that a regression needs to be learned from; it must prove itself on the held-out part."""
HARDEST = 0.2
"""With fewer of either, this share of the pairs, those found by the least margin, stands for the failures."""
LEAST_QUERY_LIKE = 200
"""From so many query-like pairs on, a quarter of which is held out, percentiles are taken among them alone."""
STRENGTH = 0.3
PENALTIES = (100.0, 1.0)
"""Of the squared weights of the coordinates, which are many, and of the two distances, which few pairs can teach."""
STEPS = 25
FIFTHS = 5
_QUERY_ROWS = 128


def fit_familiarity(pairs: Pairs, direction: Direction, *, seed: int = 0) -> Familiarity | None:
    """What the map knows of queries like these pairs; None where there are too few of them to hold any out.

    Args:
        pairs: What the map is fitted to; `MOST_PAIRS` of them at most are read.
        direction: Of the map.
        seed: Of the sample and its division.
    """
    pairs = pairs.select(_sample(pairs, seed=seed))
    parts = identity_folds(pairs, 4, seed=seed)
    asked = np.ones(len(pairs), bool)
    if pairs.query_like is not None and pairs.query_like.sum() >= LEAST_QUERY_LIKE:
        asked = pairs.query_like
    fitted, taught, held = (np.flatnonzero(rows) for rows in (parts < 2, (parts == 2) & asked, (parts == 3) & asked))
    if len(held) < LEAST_HELD_OUT:
        return None
    weights = None if pairs.weights is None else pairs.weights[fitted]
    axes = PrincipalAxes.of(pairs.take(fitted, "new-to-old")[0], weights)
    new = pairs.take(np.concatenate([taught, held]), "new-to-old")[0]
    features = axes.features(new)
    novelty = Percentiles.of(features[len(taught) :, -2].astype(np.float64)).levels
    independent = len(held) if pairs.labels is None else len(np.unique(pairs.labels[held]))
    plain = Familiarity(axes, novelty, None, None, Calibration(len(held), independent))
    margins = _margins(pairs, fitted, np.concatenate([taught, held]), direction)
    return _with_failures(plain, features, margins, len(taught))


def _with_failures(plain: Familiarity, features: np.ndarray, margins: np.ndarray, taught: int) -> Familiarity:
    limit = float(TIE)
    failed = int((margins[:taught] <= limit).sum())
    if min(failed, taught - failed) < LEAST_OUTCOMES:  # all found, or none: then learn which were the hardest to find
        limit = float(np.quantile(margins[:taught], HARDEST))
    hard = margins <= limit
    if hard[:taught].all():
        return plain
    penalties = np.repeat(PENALTIES, (features.shape[1] - 2, 2))
    weights = logistic_weights(features[:taught], hard[:taught], penalties)
    odds, right = log_odds(features[taught:], weights), margins[taught:] > float(TIE)
    area = discrimination(odds, hard[taught:])
    if area is None or area <= 0.5:
        return plain
    fifths = np.array_split(right[np.argsort(odds, kind="stable")], FIFTHS)
    calibration = Calibration(
        plain.calibration.pairs,
        plain.calibration.independent,
        float(right.mean()),
        tuple(float(part.mean()) for part in fifths),
        area,
    )
    return Familiarity(plain.axes, plain.novelty_levels, weights, Percentiles.of(odds).levels, calibration)


def _sample(pairs: Pairs, *, seed: int) -> np.ndarray:
    # Whole identities, and of query-like pairs, of which there may be few, as many as fit into half of the room.
    if len(pairs) <= MOST_PAIRS:
        return np.arange(len(pairs))
    shares = -(-len(pairs) // MOST_PAIRS)
    groups = pairs.labels if pairs.labels is not None else pairs.originals
    if groups is None:
        chosen = np.random.default_rng(seed).permutation(len(pairs))[:MOST_PAIRS]
    else:
        codes = np.unique(groups, return_inverse=True)[1]
        order = np.random.default_rng(seed).permutation(codes.max() + 1)
        chosen = np.flatnonzero(order[codes] < max(1, len(order) // shares))[: 2 * MOST_PAIRS]
    if pairs.query_like is not None:
        like = np.flatnonzero(pairs.query_like)
        like = np.random.default_rng(seed).permutation(like)[: MOST_PAIRS // 2]
        chosen = np.union1d(chosen[: MOST_PAIRS // 2], like)
    return np.sort(chosen)


def _margins(pairs: Pairs, fitted: np.ndarray, asked: np.ndarray, direction: Direction) -> np.ndarray:
    # By how much each asked pair's query prefers its own to all other pairs, through a map of the fitted ones.
    apply = fit_ridge_on(pairs.select(fitted), direction, STRENGTH).folded(unit=True)
    queries, _ = pairs.take(asked, "new-to-old")
    gallery = pairs.take(np.arange(len(pairs)), "new-to-old")[1]
    if direction == "new-to-old":
        queries, gallery = apply(queries), unit_rows(gallery)
    else:
        queries, gallery = unit_rows(queries), apply(gallery)
    by_label = judged_by(pairs) == "label"
    codes = pairs.labels if by_label else pairs.originals
    _, codes, samples = np.unique(
        np.arange(len(pairs)) if codes is None else codes, return_inverse=True, return_counts=True
    )
    # An item is no answer to itself, unless its identity has no other: then it is all that can be asked for.
    hidden = (samples[codes[asked]] > 1) & by_label
    columns, every = torch.from_numpy(gallery).T, torch.from_numpy(codes)
    margins = np.empty(len(asked), np.float32)
    for start in range(0, len(asked), _QUERY_ROWS):
        mine = asked[start : start + _QUERY_ROWS]
        scores = torch.from_numpy(queries[start : start + _QUERY_ROWS]) @ columns
        own = np.flatnonzero(hidden[start : start + _QUERY_ROWS])
        scores[own, mine[own]] = -torch.inf
        relevant = every[mine][:, None] == every[None, :]
        right = scores.masked_fill(~relevant, -torch.inf).amax(dim=1)
        wrong = scores.masked_fill_(relevant, -torch.inf).amax(dim=1)
        margins[start : start + _QUERY_ROWS] = (right - wrong).numpy()
    return margins


def logistic_weights(features: np.ndarray, positive: np.ndarray, penalties: np.ndarray) -> np.ndarray:
    """Weights of a logistic regression with a ridge penalty on standardised features, by Newton's method.

    Args:
        features: Floats [n, f].
        positive: bool [n], both kinds present.
        penalties: [f]; half of each times the squared weight of its feature, scaled to unit variance, is added to the
            negative log likelihood. The constant is not penalised.

    Returns:
        float64 [f + 1] for features as they come, the constant last.
    """
    mean, deviation = features.mean(axis=0, dtype=np.float64), features.std(axis=0, dtype=np.float64)
    deviation[deviation < 1e-9] = np.inf  # what does not vary says nothing
    x = np.concatenate([(features - mean) / deviation, np.ones((len(features), 1))], axis=1)
    ridge = np.append(penalties, 1e-9)
    share = positive.mean()
    weights = np.append(np.zeros(features.shape[1]), np.log(share / (1 - share)))
    for _ in range(STEPS):
        chance = 1 / (1 + np.exp(-np.clip(x @ weights, -30, 30)))
        slope = x.T @ (chance - positive) + ridge * weights
        curvature = (x.T * (chance * (1 - chance))) @ x
        curvature[np.diag_indices_from(curvature)] += ridge
        step = np.linalg.solve(curvature, slope)
        weights -= step
        if np.abs(step).max() < 1e-6:
            break
    scaled = weights[:-1] / deviation
    return np.append(scaled, weights[-1] - scaled @ mean)


def discrimination(scores: np.ndarray, positive: np.ndarray) -> float | None:
    """Chance that a positive scores higher than a negative, ties half: the area under the ROC curve; None for one kind.

    Args:
        scores: Floats [n].
        positive: bool [n].
    """
    count = int(positive.sum())
    if count in (0, len(positive)):
        return None
    _, place, repeats = np.unique(scores, return_inverse=True, return_counts=True)
    ranks = (np.cumsum(repeats) - (repeats - 1) / 2)[place]
    return float((ranks[positive].sum() - count * (count + 1) / 2) / (count * (len(positive) - count)))
