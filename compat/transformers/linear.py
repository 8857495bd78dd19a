"""Affine maps of directions: what is mapped is a vector's direction from the origin or from a centre, not its length.

Shapes: n vectors, source dimension s, target dimension t.
"""

from __future__ import annotations

import math
import warnings

import numpy as np
import torch
from torch import nn

_BLOCK_ROWS = 4096
_LEAST, _MOST = 1e-15, 1e15
"""Lengths within these can be trusted in float32."""
_EPS = float(np.finfo(np.float32).eps)


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
        """The same map for arrays, to be applied often; with `unit`, scaled to unit length."""
        return FoldedLinear(*self._arrays(), unit=unit)

    def _arrays(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        weight, bias = self.affine.weight.detach().cpu().numpy().T, self.affine.bias.detach().cpu().numpy()
        return weight, bias, self.centre.detach().cpu().numpy()


class FoldedLinear:
    """A `LinearMap` for arrays: one matrix product and few passes over its result, nothing built for each call.

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
        if len(vectors) == 1:
            return self._map_one(np.asarray(vectors[0], dtype=np.float32))[None, :]
        out = np.empty((len(vectors), self._weight.shape[1]), np.float32)
        for start in range(0, len(vectors), _BLOCK_ROWS):
            block = vectors[start : start + _BLOCK_ROWS]
            self._map(tensor_to_read(block), torch.from_numpy(out[start : start + _BLOCK_ROWS]))
        return out

    # y = (W x / |x| - W c) / |x / |x| - c| + b, where |u - c|^2 = 1 - 2 u c + |c|^2. Blocks go through torch, whose
    # passes over the product run on all cores; for one query its overhead would cost more than the product.

    def _map(self, vectors: torch.Tensor, out: torch.Tensor) -> None:
        torch.mm(vectors, torch.from_numpy(self._weight), out=out)
        lengths = _lengths(vectors)
        if self._spread:
            along = torch.mv(vectors, torch.from_numpy(self._centre)) / lengths
            nearness = (1.0 - 2.0 * along + self._spread).clamp_min(_EPS).rsqrt()
            out.mul_((nearness / lengths)[:, None])
            shifts = torch.stack([-nearness, torch.ones_like(nearness)], dim=1)
            out.addmm_(shifts, torch.from_numpy(np.stack([self._mapped_centre, self._bias])))
        else:
            torch.addcmul(torch.from_numpy(self._bias), out, (1.0 / lengths)[:, None], out=out)
        if self._unit:
            out.mul_((1.0 / _lengths(out))[:, None])

    def _map_one(self, vector: np.ndarray) -> np.ndarray:
        mapped = vector @ self._weight
        length = _length(vector)
        if self._spread:
            along = float(vector @ self._centre) / length
            nearness = 1.0 / math.sqrt(max(1.0 - 2.0 * along + self._spread, _EPS))
            mapped *= np.float32(nearness / length)
            mapped -= np.float32(nearness) * self._mapped_centre
        else:
            mapped *= np.float32(1.0 / length)
        mapped += self._bias
        if self._unit:
            mapped *= np.float32(1.0 / _length(mapped))
        return mapped


def tensor_to_read(vectors: np.ndarray) -> torch.Tensor:
    """Vectors [n, d] as a float32 tensor, without a copy where they are float32, which nobody may write to."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # mapped files are read-only
        return torch.from_numpy(np.ascontiguousarray(vectors, dtype=np.float32))


def _lengths(vectors: torch.Tensor) -> torch.Tensor:
    """Norms of rows, float32 [n]; 1 for a zero row."""
    lengths = torch.linalg.vector_norm(vectors, dim=1)
    if len(lengths) and not (float(lengths.min()) > _LEAST and float(lengths.max()) < _MOST):
        lengths = torch.linalg.vector_norm(vectors, dim=1, dtype=torch.float64)
        lengths = torch.where(lengths > 0, lengths, 1.0).float()
    return lengths


def _length(vector: np.ndarray) -> float:
    length = math.sqrt(float(vector @ vector))
    if not _LEAST < length < _MOST:
        length = float(np.linalg.norm(vector.astype(np.float64)))
    return length or 1.0
