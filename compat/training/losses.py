"""What a transformer network learns from: weighted cosine and squared distance between mapped and wanted vectors.

Shapes: b pairs in a batch, dimension d of the target space.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple

import torch
from torch import nn

from compat.options import LossWeights

SWAMPED = 50.0
"""Times the other term's gradient from which a term leaves the other nothing to say."""


SHORTEST = 1e-8
"""Vectors shorter than this are taken to be so long, as torch's cosine does."""


class LossTerms(NamedTuple):
    """Means over a batch: the unweighted terms (scalars) and their weighted sum, which is what one minimises."""

    total: torch.Tensor
    cosine: torch.Tensor
    mse: torch.Tensor


class GradientNorms(NamedTuple):
    """2-norms of the gradients of cosine_weight * (1 - cos) and of mse_weight * squared distance."""

    cosine: float
    mse: float


def cosine_loss(
    predicted: torch.Tensor, target: torch.Tensor, pair_weights: torch.Tensor | None = None
) -> torch.Tensor:
    """Mean over the batch of 1 - cos(predicted, target), between 0 and 2, for [b, d] tensors; weighted by [b]."""
    return _mean(1 - nn.functional.cosine_similarity(predicted, target, dim=1), pair_weights)


def require_weights(predicted: torch.Tensor, pair_weights: torch.Tensor | None) -> None:
    """Make sure that there is one weight for each of the pairs [b, d], or none at all.

    Raises:
        ValueError: If there is not.
    """
    if pair_weights is not None and pair_weights.shape != predicted.shape[:1]:
        raise ValueError(
            f"pair_weights must be [{len(predicted)}], one for each pair, found {list(pair_weights.shape)}"
        )


def compatibility_loss(
    predicted: torch.Tensor, target: torch.Tensor, weights: LossWeights, pair_weights: torch.Tensor | None = None
) -> LossTerms:
    """cosine_weight * (1 - cos) + mse_weight * squared distance.

    The terms are `cosine_loss` and the squared distance summed over dimensions, made of the same three products of
    each row. On unit vectors the squared distance is 2 (1 - cos): the two terms are then one, and weighing them says
    nothing.

    Args:
        predicted: The map's raw output, float [b, d].
        target: The raw vectors wanted, float [b, d].
        weights: Weights of the two terms.
        pair_weights: How much each pair counts, float [b], not negative; all alike by default.

    Raises:
        ValueError: If the shapes differ or are not [b, d], or there is not one weight for each pair.
    """
    _require_pairs(predicted, target, pair_weights)
    cosine, mse = _ComparedRows.of(predicted, target, pair_weights).terms()
    return LossTerms(weights.cosine_weight * cosine + weights.mse_weight * mse, cosine, mse)


def compatibility_gradient(
    predicted: torch.Tensor, target: torch.Tensor, weights: LossWeights, pair_weights: torch.Tensor | None = None
) -> tuple[torch.Tensor, torch.Tensor]:
    """The unweighted terms of `compatibility_loss`, float [2], and the gradient of their weighted sum, float [b, d].

    Both are made of the same products and nothing is recorded for autograd: `predicted.backward(gradient)` does the
    rest. A step of a small network is shorter by that.

    Raises:
        ValueError: As `compatibility_loss` does.
    """
    _require_pairs(predicted, target, pair_weights)
    rows = _ComparedRows.of(predicted.detach(), target, pair_weights)
    return rows.terms(), rows.gradient(weights.cosine_weight, weights.mse_weight)


def _require_pairs(predicted: torch.Tensor, target: torch.Tensor, pair_weights: torch.Tensor | None) -> None:
    if predicted.ndim != 2 or predicted.shape != target.shape:
        raise ValueError(
            f"predicted and target must both be [b, d], found {list(predicted.shape)} and {list(target.shape)}"
        )
    require_weights(predicted, pair_weights)


class _ComparedRows(NamedTuple):
    """What both terms of a batch and their gradient are made of. With shares s of the pairs in the mean, p predicted,
    y wanted and c their cosine:

    d/dp (s (1 - c)) = s (c p / |p|^2 - y / (|p| |y|)),    d/dp (s |p - y|^2) = 2 s (p - y).

    Attributes:
        predicted: [b, d].
        target: [b, d].
        pair_weights: [b] or None.
        length: |p|, [b].
        reciprocal: 1 / (|p| |y|), [b].
        cosine: [b].
        distance: |p - y|^2, [b].
    """

    predicted: torch.Tensor
    target: torch.Tensor
    pair_weights: torch.Tensor | None
    length: torch.Tensor
    reciprocal: torch.Tensor
    cosine: torch.Tensor
    distance: torch.Tensor

    @classmethod
    def of(cls, predicted: torch.Tensor, target: torch.Tensor, pair_weights: torch.Tensor | None) -> _ComparedRows:
        dot = (predicted * target).sum(dim=1)
        length = torch.linalg.vector_norm(predicted, dim=1)
        wanted = torch.linalg.vector_norm(target, dim=1)
        reciprocal = 1 / (length.clamp_min(SHORTEST) * wanted.clamp_min(SHORTEST))
        distance = (length.square() - 2 * dot + wanted.square()).clamp_min(0)  # rounding may leave it just below
        return cls(predicted, target, pair_weights, length, reciprocal, dot * reciprocal, distance)

    def terms(self) -> torch.Tensor:
        """Means of 1 - cos and of the squared distance, [2]."""
        return _mean(torch.stack([1 - self.cosine, self.distance]), self.pair_weights)

    def gradient(self, by_cosine: float, by_distance: float) -> torch.Tensor:
        """The gradient at `predicted`, [b, d], of so much of each term."""
        share = 1 / len(self.cosine) if self.pair_weights is None else _shares(self.pair_weights)
        cosine_share, distance_share = by_cosine * share, 2 * by_distance * share
        turning = torch.where(self.length > SHORTEST, self.cosine / self.length.square(), 0)
        along = cosine_share * turning + distance_share
        across = -cosine_share * self.reciprocal - distance_share
        return (self.predicted * along[:, None]).addcmul_(self.target, across[:, None])


def gradient_norms(
    predicted: torch.Tensor,
    target: torch.Tensor,
    weights: LossWeights,
    parameters: Iterable[torch.Tensor],
    pair_weights: torch.Tensor | None = None,
) -> GradientNorms:
    """How strongly each weighted term pulls at the parameters.

    The parameters are where the terms compete: the gradient at the output can be large in directions that no
    parameter follows. The graph is kept, so that another loss of the same output can still be differentiated.

    Args:
        predicted: The map's raw output, float [b, d].
        target: The raw vectors wanted, float [b, d].
        weights: Weights of the two terms.
        parameters: What `predicted` was computed from; those that do not require a gradient are left out.
        pair_weights: How much each pair counts, float [b].

    Raises:
        ValueError: As `compatibility_loss` does.
    """
    _require_pairs(predicted, target, pair_weights)
    trained = [parameter for parameter in parameters if parameter.requires_grad]
    rows = _ComparedRows.of(predicted.detach(), target, pair_weights)

    def norm(by_cosine: float, by_distance: float) -> float:
        if by_cosine == by_distance == 0:
            return 0.0
        slope = rows.gradient(by_cosine, by_distance)
        found = torch.autograd.grad(predicted, trained, slope, retain_graph=True, materialize_grads=True)
        return float(torch.stack([gradient.norm() for gradient in found]).norm())

    return GradientNorms(norm(weights.cosine_weight, 0.0), norm(0.0, weights.mse_weight))


def imbalance(norms: GradientNorms, weights: LossWeights) -> str:
    """A line that says which term swamps the other and which weight would balance them; empty where neither does."""
    if min(norms) <= 0 or max(norms) <= SWAMPED * min(norms):
        return ""
    ratio = norms.mse / norms.cosine
    larger, smaller, times = (
        ("squared distance", "cosine", ratio) if ratio > 1 else ("cosine", "squared distance", 1 / ratio)
    )
    return (
        f"the {larger} swamps the {smaller}: its weighted gradient is {times:.0f} times as long; "
        f"set loss.mse_weight to about {weights.mse_weight / ratio:.1g} (it is {weights.mse_weight:g}) to balance them"
    )


def _mean(values: torch.Tensor, pair_weights: torch.Tensor | None) -> torch.Tensor:
    """Means over the pairs, which are the last dimension."""
    if pair_weights is None:
        return values.mean(dim=-1)
    return (values * _shares(pair_weights)).sum(dim=-1)


def _shares(pair_weights: torch.Tensor) -> torch.Tensor:
    """How much each of the pairs counts in their mean."""
    total = pair_weights.sum()
    # a batch may consist of pairs that count for nothing: it then has no gradient, rather than NaN
    return pair_weights / (total + (total == 0))
