"""What a transformer network learns from: weighted cosine and squared distance between mapped and wanted vectors."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import nn

from compat.options import LossWeights


class LossTerms(NamedTuple):
    """Means over a batch: the unweighted terms (scalars) and their weighted sum, which is what one minimises."""

    total: torch.Tensor
    cosine: torch.Tensor
    mse: torch.Tensor


def cosine_loss(predicted: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
    """Mean over the batch of 1 - cos(predicted, target), between 0 and 2, for [b, d] tensors."""
    return 1.0 - nn.functional.cosine_similarity(predicted, target, dim=1).mean()


def squared_distance_loss(predicted: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
    """Mean over the batch of the squared 2-norm of predicted - target, summed over dimensions, for [b, d] tensors."""
    return (predicted - target).square().sum(dim=1).mean()


def compatibility_loss(predicted: torch.Tensor, target: torch.Tensor, weights: LossWeights) -> LossTerms:
    """cosine_weight * (1 - cos) + mse_weight * squared distance.

    On unit vectors the squared distance is 2 (1 - cos): the two terms are then one, and weighing them says nothing.

    Args:
        predicted: The map's raw output, float [b, d].
        target: The raw vectors wanted, float [b, d].
        weights: Weights of the two terms.

    Raises:
        ValueError: If the shapes differ or are not [b, d].
    """
    if predicted.ndim != 2 or predicted.shape != target.shape:
        raise ValueError(
            f"predicted and target must both be [b, d], found {list(predicted.shape)} and {list(target.shape)}"
        )
    cosine, mse = cosine_loss(predicted, target), squared_distance_loss(predicted, target)
    return LossTerms(weights.cosine_weight * cosine + weights.mse_weight * mse, cosine, mse)
