"""Optimisers and learning rates of backbone training."""

import math
from collections.abc import Sequence

from torch import nn
from torch.optim import SGD, AdamW, Optimizer

from backbones.options import TrainOptions


def schedule(step: int, *, warmup: float, total: int) -> float:
    """Return the share of the highest learning rate at `step`: a linear rise, then half a cosine down to zero."""
    if step < warmup:
        return (step + 1) / (warmup + 1)
    return 0.5 * (1.0 + math.cos(math.pi * (step - warmup) / max(1.0, total - warmup)))


def build_optimizer(options: TrainOptions, parameters: Sequence[nn.Parameter]) -> Optimizer:
    """Build SGD or AdamW; norms, slopes and biases, which are vectors, do not decay."""
    groups = [
        {"params": [value for value in parameters if value.ndim > 1], "weight_decay": options.weight_decay},
        {"params": [value for value in parameters if value.ndim <= 1], "weight_decay": 0.0},
    ]
    if options.optimizer == "adamw":
        return AdamW(groups, lr=options.learning_rate)
    return SGD(groups, lr=options.learning_rate, momentum=options.momentum)
