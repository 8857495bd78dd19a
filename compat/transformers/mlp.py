"""The report's map: a fully connected layer on the raw embedding."""

from __future__ import annotations

import torch
from torch import nn


class MLP(nn.Module):
    """One fully connected layer from the source to the target space."""

    def __init__(self, source_dim: int, target_dim: int) -> None:
        super().__init__()
        self.layer = nn.Linear(source_dim, target_dim)

    def forward(self, vectors: torch.Tensor) -> torch.Tensor:
        """[n, s] to [n, t]."""
        return self.layer(vectors)
