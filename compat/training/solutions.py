"""The maps that have a closed form, from the moments of the pairs.

Each family trades how well it fits the pairs against how much it must learn from them. `strength` is always a penalty
in units of the mean variance along a dimension, so that one grid serves any embedding.
"""

from __future__ import annotations

from functools import cached_property
from typing import NamedTuple

import numpy as np

from compat.training.moments import Moments, Preparation
from compat.transformers.linear import LinearMap

NO_VARIANCE = 1e-4
"""Variance of unit vectors, summed over dimensions, below which there is little but float32 rounding."""


class Spectrum(NamedTuple):
    """Eigenvalues [d] of a covariance, none negative, and its eigenvectors [d, d] as columns."""

    values: np.ndarray
    vectors: np.ndarray

    @classmethod
    def of(cls, covariance: np.ndarray) -> Spectrum:
        """Decompose a symmetric [d, d] matrix."""
        values, vectors = np.linalg.eigh(covariance)
        return cls(np.maximum(values, 0.0), vectors)

    @property
    def empty(self) -> bool:
        """Whether the vectors were all the same."""
        return bool(self.values.sum() <= NO_VARIANCE)

    def shrunk(self, strength: float) -> np.ndarray:
        """One over (eigenvalue + penalty), [d]."""
        return 1.0 / (self.values + strength * self.values.mean())


class Solutions:
    """Every closed form of one set of pairs, each at the price of a matrix product once its decomposition is made.

    Args:
        moments: Of the pairs, x prepared.
        preparation: How x was prepared; the maps carry it.
    """

    def __init__(self, moments: Moments, preparation: Preparation) -> None:
        self._centred = moments.centred(intercept=preparation.intercept)
        self._preparation = preparation
        self._axes_of_predictions: dict[float, np.ndarray] = {}  # [t, t] by strength

    @property
    def dims(self) -> tuple[int, int]:
        """Source and target dimension."""
        return len(self._centred.x_mean), len(self._centred.y_mean)

    @cached_property
    def _source(self) -> Spectrum:
        return Spectrum.of(self._centred.xx)

    @cached_property
    def _target(self) -> Spectrum:
        if self._centred.yy is None:
            raise ValueError("a whitened map needs moments made with target=True")
        return Spectrum.of(self._centred.yy)

    @cached_property
    def _cross(self) -> np.ndarray:
        return self._source.vectors.T @ self._centred.xy  # [s, t], rows along the source's axes

    @cached_property
    def _cross_of_axes(self) -> np.ndarray:
        return self._cross @ self._target.vectors  # [s, t], columns along the target's axes

    @cached_property
    def _rotation(self) -> np.ndarray:
        xx, xy = self._centred.xx, self._centred.xy
        left, singular, right = np.linalg.svd(xy, full_matrices=False)
        rotation = left @ right
        # |R^T (x - mean)|^2 is the whole variance of x only where R keeps every dimension.
        variance = np.einsum("ij,ij->", rotation, xx @ rotation)
        return rotation * (singular.sum() / variance if variance > NO_VARIANCE else 1.0)

    @cached_property
    def _rotation_of_axes(self) -> np.ndarray:
        return self._source.vectors.T @ self._rotation

    def procrustes(self) -> LinearMap:
        """Centred orthogonal Procrustes with a scale: y = a R (x - mean x) + mean y, R orthogonal, least squares.

        With unequal dimensions R is what padding the smaller side with zeros gives: orthonormal rows or columns.

        Source: Schoenemann, "A generalized solution of the orthogonal Procrustes problem", Psychometrika 31 (1966).
        """
        return self._map(self._rotation)

    def ridge(self, strength: float) -> LinearMap:
        """Ridge regression: least squares with a penalty on the weights.

        Source: Hoerl and Kennard, "Ridge regression: biased estimation for nonorthogonal problems", 1970.
        """
        return self._map(self._ridge(strength))

    def shrunk(self, strength: float) -> LinearMap:
        """Ridge regression whose penalty is on the distance to the Procrustes map, not to zero.

        Few pairs leave many directions unseen; there this map rotates, where a ridge would give up.
        """
        if self._source.empty:
            return self._map(self._ridge(strength))
        penalty = strength * self._source.values.mean()
        inner = (self._cross + penalty * self._rotation_of_axes) * self._source.shrunk(strength)[:, None]
        return self._map(self._source.vectors @ inner)

    def blend(self, share: float, strength: float) -> LinearMap:
        """`share` of the Procrustes map and the rest of a ridge, output by output."""
        return self._map(share * self._rotation + (1.0 - share) * self._ridge(strength))

    def reduced_rank(self, rank: int, strength: float) -> LinearMap:
        """The ridge's predictions on their first `rank` principal axes, those that the pairs support best.

        Source: Izenman, "Reduced-rank regression for the multivariate linear model", 1975.
        """
        weight = self._ridge(strength)
        if strength not in self._axes_of_predictions:
            self._axes_of_predictions.clear()  # a search changes the rank first
            self._axes_of_predictions[strength] = np.linalg.eigh(weight.T @ self._centred.xx @ weight)[1]
        axes = self._axes_of_predictions[strength][:, -rank:]
        return self._map(weight @ axes @ axes.T)

    def whitened(self, strength: float, whitening: float) -> LinearMap:
        """Ridge regression, its prediction divided by the (shrunk) covariance of the target.

        A product with such a vector weighs each target axis by how rarely vectors differ along it, as a Gaussian model
        of both spaces says one should when asking which target belongs to x; a plain prediction of the target spends
        itself on the few axes along which everything varies. It predicts no target vector: it finds it. Its outputs
        have a mean square length of one. A large `whitening` leaves the ridge's prediction, seen from its mean.

        Source: the bilinear score of canonical correlation analysis, Hotelling 1936, with both covariances shrunk.
        """
        if self._source.empty or self._target.empty:
            return self._map(self._ridge(strength))
        inner = self._source.shrunk(strength)[:, None] * self._cross_of_axes * self._target.shrunk(whitening)
        weight = self._source.vectors @ inner @ self._target.vectors.T
        power = np.einsum("ij,ij->", weight, self._centred.xx @ weight)
        weight /= np.sqrt(power) if power > 0 else 1.0
        return self._map(weight, y_mean=np.zeros(weight.shape[1]))

    def _ridge(self, strength: float) -> np.ndarray:
        if self._source.empty:  # one pair, or all the same: only the mean is known
            return np.zeros(self._centred.xy.shape)
        return self._source.vectors @ (self._cross * self._source.shrunk(strength)[:, None])

    def _map(self, weight: np.ndarray, y_mean: np.ndarray | None = None) -> LinearMap:
        bias = (self._centred.y_mean if y_mean is None else y_mean) - self._centred.x_mean @ weight
        return LinearMap.from_arrays(weight, bias, self._preparation.centre)
