"""Where a unified transformer starts: the axes that both models agree about, in closed form."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from compat.options import FitOptions
from compat.pairs import Pairs
from compat.training.closed_form import fold_moments, prepare
from compat.training.moments import Centred
from compat.training.solutions import NO_VARIANCE, Spectrum
from compat.transformers.linear import LinearMap

SHRINKAGES = (0.01, 0.03, 0.1, 0.3, 1.0)
"""Penalties tried, in units of the mean variance along a dimension."""

Start = tuple[LinearMap, LinearMap]


def canonical_starts(pairs: Pairs, options: FitOptions, dim: int) -> dict[float, Start]:
    """Linear maps (old, new) into one space of `dim` dimensions, by shrinkage.

    Axis i of the space is the pair of directions, one of each model, whose coordinates correlate the i-th most over
    the pairs; both coordinates are scaled by that correlation, so that what the models disagree about counts little.
    Fewer dimensions keep the first axes; those beyond the smaller model's are zero.

    Args:
        pairs: What is fitted to, and nothing that is held out.
        options: `inputs` says how old vectors are read.
        dim: Dimensions of the space.

    Source: Hotelling, "Relations between two sets of variates", Biometrika 28 (1936), with both covariances shrunk as
    in Vinod, "Canonical ridge and econometrics of joint production", 1976.
    """
    preparation = prepare(pairs, replace(options, direction="old-to-new"))
    moments = fold_moments(pairs, np.zeros(len(pairs), np.int64), "old-to-new", preparation, target=True)[0]
    centred = moments.centred(intercept=preparation.intercept)
    assert centred.yy is not None  # as target=True makes it
    sides = Spectrum.of(centred.xx), Spectrum.of(centred.yy)
    starts: dict[float, Start] = {}
    for shrinkage in SHRINKAGES:
        old, new = _canonical_axes(centred, *sides, shrinkage, dim)
        starts[shrinkage] = (
            LinearMap.from_arrays(old, -centred.x_mean @ old, preparation.centre),
            LinearMap.from_arrays(new, -centred.y_mean @ new),
        )
    return starts


def _canonical_axes(
    centred: Centred, old: Spectrum, new: Spectrum, shrinkage: float, dim: int
) -> tuple[np.ndarray, np.ndarray]:
    roots = [_inverse_root(side, shrinkage) for side in (old, new)]
    left, correlations, right = np.linalg.svd(roots[0] @ centred.xy @ roots[1], full_matrices=False)
    kept = min(dim, len(correlations))
    axes = roots[0] @ left[:, :kept] * correlations[:kept], roots[1] @ right[:kept].T * correlations[:kept]
    first, second = (np.pad(side, ((0, 0), (0, dim - kept))) for side in axes)
    return first, second


def _inverse_root(side: Spectrum, shrinkage: float) -> np.ndarray:
    if side.values.sum() <= NO_VARIANCE:  # all vectors the same: there is no axis to find
        return np.zeros((len(side.values), len(side.values)))
    shrunk = side.values + shrinkage * side.values.mean()
    return side.vectors / np.sqrt(shrunk) @ side.vectors.T
