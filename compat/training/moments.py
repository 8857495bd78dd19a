"""Sums over pairs that every closed form is made from, so that any number of pairs streams through in one pass.

Shapes: n pairs, source dimension s, target dimension t.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterable
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch

from compat.neighbors import unit_rows

_LEAST, _MOST = 1e-15, 1e15
"""Lengths within these are sound in float32."""


@dataclass(frozen=True)
class Preparation:
    """How a source vector is read: its direction from a centre, as `compat.transformers.linear.LinearMap` does.

    Attributes:
        centre: float32 [s]; zeros leave the direction from the origin.
        intercept: Whether the map may shift; without, it is a regression through the origin.
    """

    centre: np.ndarray
    intercept: bool = True

    def __call__(self, vectors: np.ndarray) -> np.ndarray:
        """Unit rows float32 [n, s] of vectors [n, s]."""
        rows = directions(vectors)
        if self.centre.any():
            rows = directions((torch.from_numpy(rows) - torch.from_numpy(self.centre)).numpy())
        return rows


class NotFinite(ValueError):
    """A vector holds NaN or infinity; `row` says which."""

    def __init__(self, row: int) -> None:
        super().__init__(f"row {row} holds NaN or infinity; leave it out")
        self.row = row


def directions(vectors: np.ndarray) -> np.ndarray:
    """Rows of vectors, float32 [n, d], scaled to unit length: `unit_rows` on all cores.

    Raises:
        NotFinite: If a vector holds NaN or infinity.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # a store's vectors are read-only, and are only read here
        rows = torch.from_numpy(np.ascontiguousarray(vectors, dtype=np.float32))
    lengths = torch.linalg.vector_norm(rows, dim=1, keepdim=True)
    if len(rows) and float(lengths.min()) > _LEAST and float(lengths.max()) < _MOST:  # false for NaN too
        return (rows * (1.0 / lengths)).numpy()
    bad = np.flatnonzero(~np.isfinite(vectors).all(axis=1))
    if len(bad):
        raise NotFinite(int(bad[0]))
    return unit_rows(vectors)


class Centred(NamedTuple):
    """Mean of x [s] and y [t], covariance of x [s, s], cross-covariance [s, t], covariance of y [t, t] or None."""

    x_mean: np.ndarray
    y_mean: np.ndarray
    xx: np.ndarray
    xy: np.ndarray
    yy: np.ndarray | None


@dataclass
class Moments:
    """Weighted sums over pairs of prepared x [s] and unit-length y [t], in float64. Those of disjoint pairs add up.

    Attributes:
        weight: Sum of the pairs' weights.
        x_sum: Sum of x, [s].
        y_sum: Sum of y, [t].
        xx: Sum of x x^T, [s, s].
        xy: Sum of x y^T, [s, t].
        yy: Sum of y y^T, [t, t], or None where no map asks for it.
    """

    weight: float
    x_sum: np.ndarray
    y_sum: np.ndarray
    xx: np.ndarray
    xy: np.ndarray
    yy: np.ndarray | None

    @classmethod
    def zero(cls, source_dim: int, target_dim: int, *, target: bool = False) -> Moments:
        """Moments of no pairs; `target` asks for yy too, half as much work again."""
        return cls(
            0.0,
            np.zeros(source_dim),
            np.zeros(target_dim),
            np.zeros((source_dim, source_dim)),
            np.zeros((source_dim, target_dim)),
            np.zeros((target_dim, target_dim)) if target else None,
        )

    def add(self, x: np.ndarray, y: np.ndarray, weights: np.ndarray | None = None) -> None:
        """Take in a block of pairs, unit rows float32 [n, s] and [n, t], and their weights [n] (1 where None).

        Products are formed in float32 within the block and summed in float64 over blocks: keep blocks to some
        thousand rows.
        """
        # All in torch: numpy's products run on threads of their own, and two pools in turn wait for each other.
        source, target = torch.from_numpy(x), torch.from_numpy(y)
        if weights is None:
            self.weight += len(x)
            self.x_sum += source.sum(dim=0).numpy()
            self.y_sum += target.sum(dim=0).numpy()
        else:
            self.weight += float(weights.sum())
            self.x_sum += weights @ x
            self.y_sum += weights @ y
            root = torch.from_numpy(np.sqrt(weights).astype(np.float32))[:, None]
            source, target = source * root, target * root
        self.xx += (source.T @ source).numpy()
        self.xy += (source.T @ target).numpy()
        if self.yy is not None:
            self.yy += (target.T @ target).numpy()

    def __add__(self, other: Moments) -> Moments:
        return Moments(
            self.weight + other.weight,
            self.x_sum + other.x_sum,
            self.y_sum + other.y_sum,
            self.xx + other.xx,
            self.xy + other.xy,
            None if self.yy is None or other.yy is None else self.yy + other.yy,
        )

    def centred(self, *, intercept: bool = True) -> Centred:
        """Means and covariances; without an intercept the means count as zero.

        Raises:
            ValueError: If there are no pairs.
        """
        if not self.weight > 0:
            raise ValueError("a map cannot be fitted to 0 pairs; at least 1 is needed")
        x_mean, y_mean = self.x_sum / self.weight, self.y_sum / self.weight
        if not intercept:
            x_mean, y_mean = np.zeros_like(x_mean), np.zeros_like(y_mean)
        yy = None if self.yy is None else self.yy / self.weight - np.outer(y_mean, y_mean)
        xx = self.xx / self.weight - np.outer(x_mean, x_mean)
        return Centred(x_mean, y_mean, xx, self.xy / self.weight - np.outer(x_mean, y_mean), yy)


def total(moments: Iterable[Moments]) -> Moments:
    """The sum of some moments, one at least."""
    first, *rest = moments
    for other in rest:
        first = first + other
    return first
