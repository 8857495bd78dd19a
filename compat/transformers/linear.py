"""Affine maps and the closed forms that fit them from sums over the pairs, so that any number of pairs streams through.

Both sides are scaled to unit length first, because that is how they are compared at search. Shapes: n pairs, source
dimension s, target dimension t.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
import torch
from torch import nn

from compat.neighbors import unit_rows

NO_VARIANCE = 1e-4
"""Variance of unit vectors, summed over dimensions, below which there is little but float32 rounding."""


class IdentityMap(nn.Module):
    """The sanity check: vectors as they are, cut off or padded with zeros where the dimensions differ."""

    def __init__(self, source_dim: int, target_dim: int) -> None:
        super().__init__()
        self.source_dim, self.target_dim = source_dim, target_dim

    def forward(self, vectors: torch.Tensor) -> torch.Tensor:
        """[n, s] to [n, t]."""
        kept = vectors[:, : self.target_dim]
        return nn.functional.pad(kept, (0, self.target_dim - kept.shape[1]))


class LinearMap(nn.Module):
    """y = W x / |x| + b."""

    def __init__(self, source_dim: int, target_dim: int) -> None:
        super().__init__()
        # Zeros until `from_arrays` or a state dict fill it: the usual start would move the caller's random state.
        self.affine = nn.Linear(source_dim, target_dim, device="meta").to_empty(device="cpu").requires_grad_(False)
        nn.init.zeros_(self.affine.weight)
        nn.init.zeros_(self.affine.bias)

    @classmethod
    def from_arrays(cls, weight: np.ndarray, bias: np.ndarray) -> LinearMap:
        """The map x -> weight^T x / |x| + bias, from weight [s, t] and bias [t]."""
        source_dim, target_dim = weight.shape
        linear = cls(source_dim, target_dim)
        linear.affine.weight.copy_(torch.from_numpy(weight.T.astype(np.float32)))
        linear.affine.bias.copy_(torch.from_numpy(bias.astype(np.float32)))
        return linear

    def forward(self, vectors: torch.Tensor) -> torch.Tensor:
        """[n, s] to [n, t]."""
        # (W x) / |x| instead of W (x / |x|): one pass over the smaller result. A zero vector maps to the bias.
        norms = vectors.norm(dim=1, keepdim=True).clamp_min(torch.finfo(vectors.dtype).tiny)
        return nn.functional.linear(vectors, self.affine.weight) / norms + self.affine.bias


@dataclass
class Moments:
    """Sums over pairs of unit-length vectors x [s] and y [t], in float64. Moments of disjoint pairs add up.

    Attributes:
        count: Pairs seen.
        x_sum: Sum of x, [s].
        y_sum: Sum of y, [t].
        xx: Sum of x x^T, [s, s].
        xy: Sum of x y^T, [s, t].
    """

    count: int
    x_sum: np.ndarray
    y_sum: np.ndarray
    xx: np.ndarray
    xy: np.ndarray

    @classmethod
    def zero(cls, source_dim: int, target_dim: int) -> Moments:
        """Moments of no pairs."""
        return cls(
            0,
            np.zeros(source_dim),
            np.zeros(target_dim),
            np.zeros((source_dim, source_dim)),
            np.zeros((source_dim, target_dim)),
        )

    def add(self, source: np.ndarray, target: np.ndarray) -> None:
        """Take in a block of pairs, float32 [n, s] and [n, t].

        Products are formed in float32 within the block and summed in float64 over blocks: keep blocks to some
        thousand rows.
        """
        x, y = unit_rows(source), unit_rows(target)
        self.count += len(x)
        self.x_sum += x.sum(axis=0, dtype=np.float64)
        self.y_sum += y.sum(axis=0, dtype=np.float64)
        self.xx += x.T @ x
        self.xy += x.T @ y

    def __add__(self, other: Moments) -> Moments:
        return Moments(
            self.count + other.count,
            self.x_sum + other.x_sum,
            self.y_sum + other.y_sum,
            self.xx + other.xx,
            self.xy + other.xy,
        )

    def centred(self) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
        """Mean of x [s], mean of y [t], covariance of x [s, s] and cross-covariance [s, t].

        Raises:
            ValueError: If there are no pairs.
        """
        if not self.count:
            raise ValueError("a map cannot be fitted to 0 pairs; at least 1 is needed")
        x_mean, y_mean = self.x_sum / self.count, self.y_sum / self.count
        xx = self.xx / self.count - np.outer(x_mean, x_mean)
        xy = self.xy / self.count - np.outer(x_mean, y_mean)
        return x_mean, y_mean, xx, xy


def total(moments: Iterable[Moments]) -> Moments:
    """The sum of some moments, one at least."""
    first, *rest = moments
    for other in rest:
        first = first + other
    return first


def fit_procrustes(moments: Moments) -> LinearMap:
    """Centred orthogonal Procrustes with a scale: y = a R (x - mean x) + mean y, R orthogonal, least squares.

    With unequal dimensions R is what padding the smaller side with zeros gives: orthonormal rows or columns.

    Source: Schoenemann, "A generalized solution of the orthogonal Procrustes problem", Psychometrika 31 (1966).
    """
    x_mean, y_mean, xx, xy = moments.centred()
    left, singular, right = np.linalg.svd(xy, full_matrices=False)
    rotation = left @ right
    # |R^T (x - mean)|^2 is the whole variance of x only where R keeps every dimension.
    variance = np.trace(rotation.T @ xx @ rotation)
    scale = singular.sum() / variance if variance > NO_VARIANCE else 1.0
    weight = scale * rotation
    return LinearMap.from_arrays(weight, y_mean - x_mean @ weight)


@dataclass(frozen=True)
class RidgePath:
    """Ridge solutions of one problem for any strength, at the price of one eigendecomposition."""

    x_mean: np.ndarray
    y_mean: np.ndarray
    eigenvalues: np.ndarray
    eigenvectors: np.ndarray
    projected: np.ndarray

    @classmethod
    def of(cls, moments: Moments) -> RidgePath:
        """Prepare the solutions for these pairs."""
        x_mean, y_mean, xx, xy = moments.centred()
        eigenvalues, eigenvectors = np.linalg.eigh(xx)
        return cls(x_mean, y_mean, np.maximum(eigenvalues, 0.0), eigenvectors, eigenvectors.T @ xy)

    def solve(self, strength: float) -> LinearMap:
        """Centred ridge regression; `strength` is the penalty in units of the mean variance of x along a dimension.

        Source: Hoerl and Kennard, "Ridge regression: biased estimation for nonorthogonal problems", 1970.
        """
        if self.eigenvalues.sum() <= NO_VARIANCE:  # one pair, or all the same: only the mean is known
            weight = np.zeros((len(self.x_mean), len(self.y_mean)))
        else:
            penalty = strength * self.eigenvalues.mean()
            weight = self.eigenvectors @ (self.projected / (self.eigenvalues + penalty)[:, None])
        return LinearMap.from_arrays(weight, self.y_mean - self.x_mean @ weight)
