"""Sums over pairs that every closed form is made from, so that any number of pairs streams through in one pass.

Shapes: n pairs, source dimension s, target dimension t.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch

from compat.neighbors import unit_rows
from compat.transformers.linear import tensor_to_read

_LEAST, _MOST = 1e-15, 1e15
"""Lengths within these are sound in float32."""


class NotFinite(ValueError):
    """A vector holds NaN or infinity; `row` says which."""

    def __init__(self, row: int) -> None:
        super().__init__(f"row {row} holds NaN or infinity; leave it out")
        self.row = row


class Directions(NamedTuple):
    """Directions of vectors from a centre, not written out: row i is scaled[i] - shifts[i] * centre.

    Attributes:
        scaled: float32 [n, d].
        shifts: float32 [n], or None where the centre is the origin.
        centre: float32 [d].
    """

    scaled: torch.Tensor
    shifts: torch.Tensor | None
    centre: np.ndarray

    def select(self, rows: np.ndarray) -> Directions:
        """Those of rows [m], numbers or a mask."""
        chosen = torch.from_numpy(rows)
        return Directions(self.scaled[chosen], None if self.shifts is None else self.shifts[chosen], self.centre)

    def written_out(self) -> np.ndarray:
        """Unit rows, float32 [n, d]."""
        if self.shifts is None:
            return self.scaled.numpy()
        return (self.scaled - torch.outer(self.shifts, torch.from_numpy(self.centre))).numpy()


@dataclass(frozen=True)
class Preparation:
    """How a source vector is read: its direction from a centre, as `compat.transformers.linear.LinearMap` does.

    Attributes:
        centre: float32 [s]; zeros leave the direction from the origin.
        intercept: Whether the map may shift; without, it is a regression through the origin.
    """

    centre: np.ndarray
    intercept: bool = True

    def __call__(self, vectors: np.ndarray) -> Directions:
        """Directions of vectors, float32 [n, s], in one pass over them.

        Raises:
            NotFinite: If a vector holds NaN or infinity.
        """
        return directions(vectors, self.centre)


def directions(vectors: np.ndarray, centre: np.ndarray | None = None) -> Directions:
    """Directions of vectors, float32 [n, d], from a centre [d], or from the origin.

    Raises:
        NotFinite: If a vector holds NaN or infinity.
    """
    rows = tensor_to_read(vectors)
    lengths = torch.linalg.vector_norm(rows, dim=1)
    if not len(rows) or not (float(lengths.min()) > _LEAST and float(lengths.max()) < _MOST):  # true for NaN too
        bad = np.flatnonzero(~np.isfinite(vectors).all(axis=1))
        if len(bad):
            raise NotFinite(int(bad[0]))
        rows = torch.from_numpy(unit_rows(vectors))  # of very long and very short ones, and zeros
        lengths = torch.ones(len(rows))
    if centre is None or not centre.any():
        return Directions(rows * (1.0 / lengths)[:, None], None, np.zeros(rows.shape[1], np.float32))
    along = torch.mv(rows, torch.from_numpy(centre)) / lengths
    spread = float(centre @ centre)
    distance = (1.0 - 2.0 * along + spread).clamp_min(torch.finfo(torch.float32).eps).sqrt()
    return Directions(rows * (1.0 / (lengths * distance))[:, None], 1.0 / distance, centre)


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

    def add(self, x: Directions, y: Directions, weights: np.ndarray | None = None) -> None:
        """Take in a block of pairs, [n, s] and [n, t] (seen from the origin), and their weights [n] (1 where None).

        Products are formed in float32 within the block and summed in float64 over blocks: keep blocks to some
        thousand rows.
        """
        # All in torch: numpy's products run on threads of their own, and two pools in turn wait for each other.
        source, target = x.scaled, y.scaled
        ones = torch.ones(len(source)) if weights is None else torch.from_numpy(weights.astype(np.float32))
        self.weight += len(source) if weights is None else float(weights.sum())
        x_sum, y_sum = (torch.mv(side.T, ones).double().numpy() for side in (source, target))
        weighted = source if weights is None else source * ones[:, None]
        xx, xy = (source.T @ weighted).numpy(), (weighted.T @ target).numpy()
        if x.shifts is not None:
            # Of z = x - t c the products are those of x with terms of rank one taken off: no z is written out.
            shifts = x.shifts * ones
            centre = x.centre.astype(np.float64)
            cross = np.outer(torch.mv(source.T, shifts).double().numpy(), centre)
            self.xx += np.outer(centre, centre) * float((shifts * x.shifts).double().sum()) - cross - cross.T
            self.xy -= np.outer(centre, torch.mv(target.T, shifts).double().numpy())
            x_sum = x_sum - float(shifts.double().sum()) * centre
        self.x_sum += x_sum
        self.y_sum += y_sum
        self.xx += xx
        self.xy += xy
        if self.yy is not None:
            self.yy += (target.T @ (target if weights is None else target * ones[:, None])).numpy()

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
