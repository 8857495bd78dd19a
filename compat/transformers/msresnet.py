"""Multi-scale 1-D ResNet over the embedding, read as a signal of one channel.

Three branches of residual blocks with kernels 3, 5 and 7 see the signal at three scales; their pooled outputs are
concatenated and mapped to the target space by one fully connected layer. Source: Wang et al., "Intelligent fault
diagnosis method using multi-scale residual networks", 2019, in the form used for embeddings.
"""

from __future__ import annotations

import torch
from torch import nn

KERNELS = (3, 5, 7)
CHANNELS = (16, 32, 64)
POOLED = 8  # positions kept by each branch, whatever the embedding's length
LEAST_LENGTH = 17  # leaves two positions to the last normalisation, which cannot train on a batch of one otherwise


class ResidualBlock(nn.Module):
    """Two 1-D convolutions, the first of stride 2, beside a projected shortcut."""

    def __init__(self, channels_in: int, channels_out: int, kernel: int) -> None:
        super().__init__()
        padding = kernel // 2
        self.residual = nn.Sequential(
            nn.Conv1d(channels_in, channels_out, kernel, stride=2, padding=padding, bias=False),
            nn.BatchNorm1d(channels_out),
            nn.ReLU(),
            nn.Conv1d(channels_out, channels_out, kernel, padding=padding, bias=False),
            nn.BatchNorm1d(channels_out),
        )
        self.shortcut = nn.Sequential(
            nn.Conv1d(channels_in, channels_out, 1, stride=2, bias=False), nn.BatchNorm1d(channels_out)
        )

    def forward(self, signal: torch.Tensor) -> torch.Tensor:
        """[n, channels_in, length] to [n, channels_out, ceil(length / 2)]."""
        return torch.relu(self.residual(signal) + self.shortcut(signal))


class MSResNet(nn.Module):
    """Residual branches with kernels 3, 5, 7 over the embedding, one fully connected layer on top."""

    def __init__(self, source_dim: int, target_dim: int) -> None:
        super().__init__()
        self.source_dim = source_dim  # convolutions and pooling take any length
        self.stem = nn.Sequential(
            nn.BatchNorm1d(1),
            nn.Conv1d(1, CHANNELS[0], 7, stride=2, padding=3, bias=False),
            nn.BatchNorm1d(CHANNELS[0]),
            nn.ReLU(),
        )
        self.branches = nn.ModuleList(
            nn.Sequential(
                *(ResidualBlock(i, o, kernel) for i, o in zip((CHANNELS[0], *CHANNELS), CHANNELS, strict=False)),
                nn.AdaptiveAvgPool1d(POOLED),
                nn.Flatten(),
            )
            for kernel in KERNELS
        )
        self.output = nn.Linear(len(KERNELS) * CHANNELS[-1] * POOLED, target_dim)

    def forward(self, vectors: torch.Tensor) -> torch.Tensor:
        """[n, s] to [n, t]."""
        missing = max(0, LEAST_LENGTH - self.source_dim)
        signal = self.stem(nn.functional.pad(vectors, (0, missing))[:, None, :])
        return self.output(torch.cat([branch(signal) for branch in self.branches], dim=1))
