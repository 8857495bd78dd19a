"""Activation checkpointing: layers whose activations are computed again in the backward pass instead of being kept.

Source: Chen et al., "Training Deep Nets with Sublinear Memory Cost", 2016.
"""

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext

from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint


def checkpointed(module: nn.Module, features: Tensor) -> Tensor:
    """Return `module(features)`, keeping nothing but `features` for the backward pass.

    The second pass sees the random numbers and the autocast settings of the first one, and leaves the running
    statistics of norms alone: gradients and statistics are those of a plain call, bit for bit.
    """

    def contexts() -> tuple[AbstractContextManager[None], AbstractContextManager[None]]:
        return nullcontext(), _statistics_kept(module)

    return checkpoint(module, features, use_reentrant=False, preserve_rng_state=True, context_fn=contexts)


@contextmanager
def _statistics_kept(module: nn.Module) -> Iterator[None]:
    # Each pass in training moves a norm's statistics by its momentum, and the second one is of the same batch. They
    # stay part of the computation (with momentum 0), as autograd expects the same graph again.
    norms = [layer for layer in module.modules() if isinstance(layer, nn.modules.batchnorm._BatchNorm)]
    kept = [(norm, norm.momentum, norm.num_batches_tracked) for norm in norms]
    for norm in norms:
        norm.momentum, norm.num_batches_tracked = 0.0, None
    try:
        yield
    finally:
        for norm, momentum, batches in kept:
            norm.momentum, norm.num_batches_tracked = momentum, batches
