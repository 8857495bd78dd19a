"""Two maps into one new space: old to unified and new to unified, trained together, each used alone.

Shapes: n vectors, source dimension s, unified dimension t.
"""

from __future__ import annotations

import copy
import json

import torch
from torch import nn

from backbones.checkpoint import tensor_digest
from compat.transformers.linear import LinearMap
from stores.space import EmbeddingSpace

BLOCKS = 2
WIDEST = 1024


class ResidualBottleneck(nn.Module):
    """x + W2 gelu(W1 x + b1). W2 starts at zero, so a new block changes nothing."""

    def __init__(self, dim: int, width: int) -> None:
        super().__init__()
        self.hidden = nn.Linear(dim, width)
        self.output = nn.Linear(width, dim, bias=False)
        nn.init.zeros_(self.output.weight)

    def forward(self, signal: torch.Tensor) -> torch.Tensor:
        """[n, t] to [n, t]."""
        return signal + self.output(nn.functional.gelu(self.hidden(signal)))


class UnifiedMap(nn.Module):
    """One side of a unified transformer: a linear projection, then residual bottleneck blocks in the unified space.

    The projection stands there for equal dimensions too: two models that were trained apart share no axes. What it
    gives is scaled to components of order one, whatever the length of x, before the first block. An untrained map
    points where its projection points.

    Source: Wang et al., "Unified representation learning for cross model compatibility", BMVC 2020, for the residual
    bottleneck blocks and for training two maps together.

    Attributes:
        affine: The projection that it starts at. Its parameters are trained too.
        width: Hidden units of a block.
    """

    def __init__(self, source_dim: int, target_dim: int, width: int | None = None) -> None:
        super().__init__()
        self.target_dim = target_dim
        self.width = width or min(WIDEST, max(1, target_dim // 2))
        self.affine = LinearMap(source_dim, target_dim).requires_grad_(True)  # a LinearMap alone is never trained
        self.blocks = nn.ModuleList(ResidualBottleneck(target_dim, self.width) for _ in range(BLOCKS))

    @classmethod
    def starting_at(cls, linear: LinearMap, width: int | None = None) -> UnifiedMap:
        """A map that points where `linear` (which is copied) does; W1 and b1 come from torch's random state."""
        target_dim, source_dim = linear.affine.weight.shape
        network = cls(source_dim, target_dim, width)
        network.affine = copy.deepcopy(linear).requires_grad_(True)
        return network

    def forward(self, vectors: torch.Tensor) -> torch.Tensor:
        """[n, s] to [n, t]."""
        signal = nn.functional.normalize(self.affine(vectors), dim=1) * self.target_dim**0.5
        for block in self.blocks:
            signal = block(signal)
        return signal


def unified_space(old: EmbeddingSpace, new: EmbeddingSpace, old_map: UnifiedMap, new_map: UnifiedMap) -> EmbeddingSpace:
    """The space in which two maps that were trained together meet; its fingerprint is a digest over both.

    Maps of two trainings, or of two epochs of one, give vectors that must never be compared: their spaces differ.
    """
    tensors = {f"old.{name}": value for name, value in old_map.state_dict().items()}
    tensors |= {f"new.{name}": value for name, value in new_map.state_dict().items()}
    sources = json.dumps([old.to_dict(), new.to_dict()], sort_keys=True)
    digest = tensor_digest(tensors, sources)
    return EmbeddingSpace(f"unified({old.name}, {new.name})", digest, old_map.target_dim, True)
