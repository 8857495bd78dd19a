"""Optimisers and learning rates of backbone training."""

import bisect
import math
from collections.abc import Sequence
from typing import Any

from torch import nn
from torch.optim import SGD, AdamW, Optimizer

from backbones.options import TrainOptions

INSTALL = "pip install 'embedding-compat[optimizers]'"


def schedule(
    step: int,
    *,
    warmup: float,
    total: int,
    shape: str = "cosine",
    milestones: Sequence[float] = (),
    factor: float = 0.1,
    power: float = 2.0,
) -> float:
    """Return the share of the highest learning rate at `step`: a linear rise, then the fall that `shape` names.

    With t the share of the steps after the rise that are done: cosine is (1 + cos(pi t)) / 2 (Loshchilov and Hutter,
    "SGDR", ICLR 2017, without restarts), polynomial (1 - t)^power, and multistep `factor` to the number of milestones
    reached. The rise is that of Goyal et al., "Accurate, Large Minibatch SGD", 2017, but from zero.

    Args:
        step: from 0.
        warmup: steps of the rise.
        total: steps of the training, the rise among them.
        shape: cosine, multistep, polynomial or constant.
        milestones: of multistep, rising, in steps since the start of the training.
        factor: of multistep.
        power: of polynomial.

    Raises:
        ValueError: for another shape.
    """
    if step < warmup:
        return (step + 1) / (warmup + 1)
    done = (step - warmup) / max(1.0, total - warmup)
    shares = {
        "cosine": 0.5 * (1.0 + math.cos(math.pi * done)),
        "multistep": factor ** bisect.bisect_right(list(milestones), step),
        "polynomial": max(0.0, 1.0 - done) ** power,
        "constant": 1.0,
    }
    if shape not in shares:
        raise ValueError(f"unknown schedule {shape!r}, expected one of {', '.join(shares)}")
    return shares[shape]


def build_optimizer(options: TrainOptions, parameters: Sequence[nn.Parameter]) -> Optimizer:
    """Build SGD, AdamW or LARS; norms, slopes and biases, which are vectors, do not decay.

    LARS scales each layer's step by trust_coefficient |w| / (|g| + decay |w|), vectors take plain SGD steps; source:
    You et al., "Large Batch Training of Convolutional Networks", 2017.

    Raises:
        ImportError: where LARS is asked for and the package that has it is missing.
    """
    groups: list[dict[str, Any]] = [
        {"params": [value for value in parameters if value.ndim > 1], "weight_decay": options.weight_decay},
        {"params": [value for value in parameters if value.ndim <= 1], "weight_decay": 0.0},
    ]
    if options.optimizer == "adamw":
        return AdamW(groups, lr=options.learning_rate)
    if options.optimizer == "sgd":
        return SGD(groups, lr=options.learning_rate, momentum=options.momentum, nesterov=options.nesterov)
    try:
        from pytorch_optimizer import LARS
    except ImportError as error:
        raise ImportError(f"the optimizer lars needs pytorch_optimizer ({error}); {INSTALL}") from error
    return LARS(
        groups,
        lr=options.learning_rate,
        momentum=options.momentum,
        nesterov=options.nesterov,
        trust_coefficient=options.trust_coefficient,
    )
