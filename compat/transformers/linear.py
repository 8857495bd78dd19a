"""Affine maps of directions: what is mapped is a vector's direction from the origin or from a centre, not its length.

Shapes: n vectors, source dimension s, target dimension t.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import nn

_BLOCK_ROWS = 512
_LEAST, _MOST = 1e-30, 1e30
"""Squared norms within these can be trusted in float32."""


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
    """y = W z + b, where z is the direction of x from a centre c: u = x / |x|, z = (u - c) / |u - c|.

    With c = 0, z is u. Embeddings of one model share a mean direction that tells nothing about an item; seen from that
    mean, directions spread over the whole sphere.
    """

    centre: torch.Tensor

    def __init__(self, source_dim: int, target_dim: int) -> None:
        super().__init__()
        # Zeros until `from_arrays` or a state dict fill it: the usual start would move the caller's random state.
        empty = nn.Linear(source_dim, target_dim, device="meta").to_empty(device=torch.get_default_device())
        self.affine = empty.requires_grad_(False)
        nn.init.zeros_(self.affine.weight)
        nn.init.zeros_(self.affine.bias)
        self.register_buffer("centre", torch.zeros(source_dim))

    @classmethod
    def from_arrays(cls, weight: np.ndarray, bias: np.ndarray, centre: np.ndarray | None = None) -> LinearMap:
        """The map z -> weight^T z + bias, from weight [s, t], bias [t] and centre [s] (the origin where it is None)."""
        source_dim, target_dim = weight.shape
        linear = cls(source_dim, target_dim)
        linear.affine.weight.copy_(torch.from_numpy(weight.T.astype(np.float32)))
        linear.affine.bias.copy_(torch.from_numpy(bias.astype(np.float32)))
        if centre is not None:
            linear.centre.copy_(torch.from_numpy(centre.astype(np.float32)))
        return linear

    def scaled(self, factor: float) -> LinearMap:
        """The map whose outputs are `factor` times as long."""
        weight, bias, centre = self._arrays()
        return LinearMap.from_arrays(weight * factor, bias * factor, centre)

    def forward(self, vectors: torch.Tensor) -> torch.Tensor:
        """[n, s] to [n, t]; a zero vector has no direction, and what it is mapped to means nothing, but is finite."""
        norms = vectors.norm(dim=1, keepdim=True).clamp_min(torch.finfo(vectors.dtype).tiny)
        along = vectors @ self.centre[:, None] / norms
        distance = (1.0 - 2.0 * along + self.centre.square().sum()).clamp_min(torch.finfo(vectors.dtype).eps).sqrt()
        # W (x / |x| - c) as (W x) / |x| - W c: one pass over the product instead of two over the input.
        product = nn.functional.linear(vectors, self.affine.weight) / norms - self.affine.weight @ self.centre
        return product / distance + self.affine.bias

    def folded(self, *, unit: bool = False) -> FoldedLinear:
        """The same map in numpy, for applying it often; with `unit`, scaled to unit length."""
        return FoldedLinear(*self._arrays(), unit=unit)

    def _arrays(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        weight, bias = self.affine.weight.detach().cpu().numpy().T, self.affine.bias.detach().cpu().numpy()
        return weight, bias, self.centre.detach().cpu().numpy()


class FoldedLinear:
    """A `LinearMap` in numpy: one matrix product, and passes over its result while that is in the processor's cache.

    Args:
        weight: [s, t].
        bias: [t].
        centre: [s].
        unit: Whether to scale what comes out to unit length.
    """

    def __init__(self, weight: np.ndarray, bias: np.ndarray, centre: np.ndarray, *, unit: bool = False) -> None:
        self._weight = np.ascontiguousarray(weight, dtype=np.float32)
        self._bias = np.ascontiguousarray(bias, dtype=np.float32)
        self._centre = np.ascontiguousarray(centre, dtype=np.float32)
        self._mapped_centre = self._centre @ self._weight
        self._spread = float(self._centre @ self._centre)
        self._unit = unit

    def __call__(self, vectors: np.ndarray) -> np.ndarray:
        """Map vectors, floats [n, s], to a new float32 [n, t]."""
        out = np.empty((len(vectors), self._weight.shape[1]), np.float32)
        for start in range(0, len(vectors), _BLOCK_ROWS):
            block = np.ascontiguousarray(vectors[start : start + _BLOCK_ROWS], dtype=np.float32)
            self._map(block, out[start : start + _BLOCK_ROWS])
        return out

    def _map(self, vectors: np.ndarray, out: np.ndarray) -> None:
        np.matmul(vectors, self._weight, out=out)
        # y = (W x / |x| - W c) / |x / |x| - c| + b, where |u - c|^2 = 1 - 2 u c + |c|^2
        lengths = _lengths(vectors)
        if self._spread:
            distance = np.sqrt(
                np.maximum(1.0 - 2.0 * (vectors @ self._centre) / lengths + self._spread, np.finfo(np.float32).eps)
            )
            out *= (1.0 / (lengths * distance))[:, None]
            out -= (1.0 / distance)[:, None] * self._mapped_centre
        else:
            out *= (1.0 / lengths)[:, None]
        out += self._bias
        if self._unit:
            out *= (1.0 / _lengths(out))[:, None]


def _lengths(vectors: np.ndarray) -> np.ndarray:
    """Norms of rows, float32 [n]; 1 for a zero row."""
    squares = np.einsum("ij,ij->i", vectors, vectors)
    if not (squares.min(initial=1.0) > _LEAST and squares.max(initial=1.0) < _MOST):
        squares = np.einsum("ij,ij->i", vectors, vectors, dtype=np.float64)
        squares[squares == 0] = 1.0
    return np.sqrt(squares).astype(np.float32)
