"""An affine map plus a small network that learns what the affine map leaves over."""

from __future__ import annotations

import copy

import torch
from torch import nn

from compat.transformers.linear import LinearMap

WIDEST = 1024


class ResidualMLP(nn.Module):
    """y = affine(x) + W2 gelu(W1 z + b1), with z = sqrt(s) x / |x|.

    W2 starts at zero, so an untrained network is its affine map exactly, and training can only move away from that
    solution where the loss asks for it. z has components of order one whatever the length of x: hidden units see the
    same scale from any model. A residual block as in He et al., "Deep residual learning for image recognition", CVPR
    2016, with an affine shortcut in place of the identity, which unequal dimensions do not have; GELU after Hendrycks
    and Gimpel, 2016.

    Attributes:
        affine: The map that it starts at. Its parameters are trained too.
        width: Hidden units.
    """

    def __init__(self, source_dim: int, target_dim: int, width: int | None = None) -> None:
        super().__init__()
        self.source_dim = source_dim
        self.width = width or min(WIDEST, max(source_dim, target_dim))
        self.affine = LinearMap(source_dim, target_dim).requires_grad_(True)  # a LinearMap alone is never trained
        self.hidden = nn.Linear(source_dim, self.width)
        self.output = nn.Linear(self.width, target_dim, bias=False)  # the affine map has the bias
        nn.init.zeros_(self.output.weight)

    @classmethod
    def starting_at(cls, linear: LinearMap, width: int | None = None) -> ResidualMLP:
        """A network that maps as `linear` does (which is copied); W1 and b1 come from torch's random state."""
        target_dim, source_dim = linear.affine.weight.shape
        network = cls(source_dim, target_dim, width)
        network.affine = copy.deepcopy(linear).requires_grad_(True)
        return network

    def forward(self, vectors: torch.Tensor) -> torch.Tensor:
        """[n, s] to [n, t]."""
        scaled = nn.functional.normalize(vectors, dim=1) * self.source_dim**0.5
        return self.affine(vectors) + self.output(nn.functional.gelu(self.hidden(scaled)))
