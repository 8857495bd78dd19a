"""Multi-scale 1-D ResNet over the embedding, read as a signal of one channel.

Three branches of residual blocks with kernels 3, 5 and 7 see the signal at three scales; their pooled outputs are
concatenated and mapped to the target space by one fully connected layer. Source: Wang et al., "Intelligent fault
diagnosis method using multi-scale residual networks", 2019, in the form used for embeddings.

The modules hold the weights and say what is computed; `MSResNet.forward` computes it with few large operations. Branch
by branch, time goes into the many passes over small signals. So the three branches are one signal of three groups of
channels: convolutions of one place in the branches are one grouped convolution, kernels padded with zeros to the widest
(which the matrix units of a processor that multiplies bf16 do not notice), norms of one place are one norm, and
channels lie side by side in memory (channels last), where convolutions are matrix products. When the network is
applied, each norm is part of the convolution before it, and rows come in batches whose signals stay in the cache.

Legend: n vectors, c channels of all branches together, length l of the signal.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple, cast

import torch
from torch import nn
from torch.nn import functional

KERNELS = (3, 5, 7)
CHANNELS = (16, 32, 64)
POOLED = 8  # positions kept by each branch, whatever the embedding's length
CACHED_ROWS = 256  # of 512-D, applied on a CPU: half the seconds of 4,096 at once
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
        """[n, s] to [n, t]: `output` of the concatenated `branches` of the `stem`."""
        if self.training or vectors.device.type != "cpu" or len(vectors) <= CACHED_ROWS:
            return self._mapped(vectors)
        return torch.cat([self._mapped(rows) for rows in vectors.split(CACHED_ROWS)])

    def _mapped(self, vectors: torch.Tensor) -> torch.Tensor:
        missing = max(0, LEAST_LENGTH - self.source_dim)
        padded = functional.pad(vectors, (0, missing))[:, None, :]
        signal = torch.relu(_joined(self.stem[0](padded)[:, :, None, :], [_Layer.of(self.stem, 1)], groups=1))
        for depth in range(len(CHANNELS)):
            blocks = [cast(ResidualBlock, cast(nn.Sequential, branch)[depth]) for branch in self.branches]
            signal = _blocks(blocks, signal, groups=len(KERNELS) if depth else 1)  # all branches read the one stem
        return self.output(_pooled(signal[:, :, 0]))


class _Layer(NamedTuple):
    """A convolution and the norm of what it gives."""

    convolution: nn.Conv1d
    norm: nn.BatchNorm1d

    @classmethod
    def of(cls, sequence: nn.Sequential, first: int = 0) -> _Layer:
        """The two that stand at `first` and after it."""
        return cls(cast(nn.Conv1d, sequence[first]), cast(nn.BatchNorm1d, sequence[first + 1]))


def _blocks(blocks: Sequence[ResidualBlock], signal: torch.Tensor, *, groups: int) -> torch.Tensor:
    """The residual blocks of one depth on a signal [n, c, 1, l] of so many groups; one group is read by all of them."""
    residual = torch.relu(_joined(signal, [_Layer.of(block.residual) for block in blocks], groups))
    residual = _joined(residual, [_Layer.of(block.residual, 3) for block in blocks], len(blocks))
    return torch.relu(residual + _joined(signal, [_Layer.of(block.shortcut) for block in blocks], groups))


def _joined(signal: torch.Tensor, layers: Sequence[_Layer], groups: int) -> torch.Tensor:
    """Convolution and norm of several branches in one: [n, c, 1, l] to [n, c', 1, ceil(l / stride)]."""
    norms = [layer.norm for layer in layers]
    kernels = [layer.convolution.kernel_size[0] for layer in layers]
    widest, stride = max(kernels), layers[0].convolution.stride[0]
    weight = torch.cat(
        [
            functional.pad(layer.convolution.weight, ((widest - kernel) // 2,) * 2)
            for layer, kernel in zip(layers, kernels, strict=True)
        ]
    )
    scale, shift, mean, variance = (
        torch.cat([getattr(norm, name) for norm in norms]) for name in ("weight", "bias", "running_mean", "running_var")
    )
    training, epsilon, bias = norms[0].training, norms[0].eps, None
    momentum = cast(float, norms[0].momentum)
    if not training:
        scale = scale * torch.rsqrt(variance + epsilon)
        weight, bias = weight * scale[:, None, None], shift - mean * scale
    convolved = functional.conv2d(
        signal.contiguous(memory_format=torch.channels_last),
        weight[:, :, None, :].contiguous(memory_format=torch.channels_last),
        bias,
        stride=(1, stride),
        padding=(0, widest // 2),
        groups=groups,
    )
    if not training:
        return convolved
    normed = functional.batch_norm(convolved, mean, variance, scale, shift, True, momentum, epsilon)
    with torch.no_grad():  # `mean` and `variance` are copies, which have moved on now
        sizes = [norm.num_features for norm in norms]
        for norm, moved_mean, moved_variance in zip(norms, mean.split(sizes), variance.split(sizes), strict=True):
            for buffer, moved in ((norm.running_mean, moved_mean), (norm.running_var, moved_variance)):
                cast(torch.Tensor, buffer).copy_(moved)
            cast(torch.Tensor, norm.num_batches_tracked).add_(1)
    return normed


def _pooled(signal: torch.Tensor) -> torch.Tensor:
    """Means of POOLED stretches of a signal, [n, c, l] to [n, c * POOLED], as a matrix product of any length."""
    length = signal.shape[2]
    means = functional.adaptive_avg_pool1d(torch.eye(length, dtype=signal.dtype, device=signal.device), POOLED)
    return (signal @ means).flatten(1)
