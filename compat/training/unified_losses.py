"""What a unified transformer learns from: agreement of the two maps, identities that both tell apart, or a contrast.

Shapes: b pairs in a batch, unified dimension d, k training identities. `old` and `new` are mapped rows of unit length.
Source: Wang et al., "Unified representation learning for cross model compatibility", BMVC 2020, for the similarity
loss, the classification shared by both maps and the divergence between their posteriors.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import nn

from compat.options import UnifiedOptions

IDENTITY_SCALE = 16.0
"""Cosines are multiplied by this before the softmax over identities."""
CONTRAST_SCALE = 14.0
"""Cosines are multiplied by this before the softmax over a batch: a temperature of about 0.07."""


class UnifiedTerms(NamedTuple):
    """Means over a batch: the unweighted terms (scalars; zero where there is none) and their weighted sum."""

    total: torch.Tensor
    similarity: torch.Tensor
    classification: torch.Tensor
    kl: torch.Tensor
    contrast: torch.Tensor


def contrast_loss(
    old: torch.Tensor, new: torch.Tensor, codes: torch.Tensor | None = None, *, scale: float = CONTRAST_SCALE
) -> torch.Tensor:
    """Cross-entropy of finding each row's counterpart among all other rows of both sides, float [b].

    The others of its own side are there to be told apart too: that is what searching a gallery of both sides asks.
    Entry i is the mean of old row i's and new row i's.

    Args:
        old: Unit rows, float [b, d].
        new: Unit rows, float [b, d].
        codes: Identities, int64 [b]; others of one's own identity are no wrong answers and are left out.
        scale: One over the temperature.

    Source: NT-Xent, Chen et al., "A simple framework for contrastive learning of visual representations", ICML 2020,
    with the two models in place of two augmentations.
    """
    count = len(old)
    both = torch.cat([old, new])
    logits = scale * both @ both.T
    rows = torch.arange(2 * count, device=both.device)
    counterpart = (rows + count) % (2 * count)
    hidden = rows[:, None] == rows[None, :]
    if codes is not None:
        twice = torch.cat([codes, codes])
        hidden = (twice[:, None] == twice[None, :]) & (rows[None, :] != counterpart[:, None])
    found = nn.functional.cross_entropy(logits.masked_fill(hidden, -torch.inf), counterpart, reduction="none")
    return (found[:count] + found[count:]) / 2


class SharedClassifier(nn.Module):
    """A cosine softmax over training identities without a margin, shared by both maps.

    Args:
        weights: Where the identities' directions start, float [k, d].
    """

    def __init__(self, weights: torch.Tensor) -> None:
        super().__init__()
        self.weights = nn.Parameter(weights.clone())

    def forward(self, rows: torch.Tensor, *, scale: float = IDENTITY_SCALE) -> torch.Tensor:
        """Logits float [b, k] of unit rows [b, d]."""
        return scale * rows @ nn.functional.normalize(self.weights, dim=1).T


def posterior_losses(
    old_logits: torch.Tensor, new_logits: torch.Tensor, codes: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """Cross-entropy, the mean of both sides, and the symmetric Kullback-Leibler divergence of their posteriors.

    Args:
        old_logits: Float [b, k].
        new_logits: Float [b, k].
        codes: The right identities, int64 [b].

    Returns:
        Both float [b]; the divergence is the mean of the two directions.
    """
    old, new = old_logits.log_softmax(dim=1), new_logits.log_softmax(dim=1)
    right = codes[:, None]
    entropy = -(old.gather(1, right) + new.gather(1, right)).squeeze(1) / 2
    return entropy, ((old.exp() - new.exp()) * (old - new)).sum(dim=1) / 2


def loss_terms(identities: int) -> tuple[str, ...]:
    """Names of the terms that there are: with identities to learn no contrast, without them no classification."""
    return ("similarity", "classification", "kl") if identities else ("similarity", "contrast")


def require_losses(options: UnifiedOptions, identities: int) -> None:
    """Make sure that there is something to learn from, and that no weight was given to a term that there is not.

    Args:
        options: The weights.
        identities: How many the classifier tells apart; 0 without one.

    Raises:
        ValueError: If all weights of the terms that there are are zero, or a term that there is not was given one.
    """
    terms = loss_terms(identities)
    why = f"{identities} identities repeat" if identities else "no labels repeat"
    wanted = " or ".join(f"unified.{name}_weight" for name in terms)
    if not any(getattr(options, f"{name}_weight") for name in terms):
        raise ValueError(f"{why}, so that unified learns from {wanted}, found all of them zero; give one of them")
    for name in ("classification", "kl", "contrast"):
        given = getattr(options, f"{name}_weight")
        if name not in terms and given not in (0, getattr(UnifiedOptions, f"{name}_weight")):
            raise ValueError(
                f"unified.{name}_weight {given:g} does nothing where {why}; leave it out, or give {wanted}"
            )


def unified_loss(
    old: torch.Tensor,
    new: torch.Tensor,
    options: UnifiedOptions,
    *,
    classifier: SharedClassifier | None = None,
    codes: torch.Tensor | None = None,
    pair_weights: torch.Tensor | None = None,
) -> UnifiedTerms:
    """The weighted sum of the terms that there are: with a classifier no contrast, without one no identities.

    Args:
        old: What the old side maps to, float [b, d] of any lengths.
        new: What the new side maps to, float [b, d].
        options: Weights of the terms.
        classifier: Of the training identities, or None without labels.
        codes: Identities as the classifier numbers them, int64 [b]; needed with it.
        pair_weights: How much each pair counts, float [b], not negative; all alike by default.

    Raises:
        ValueError: If the shapes differ, or a classifier comes without codes.
    """
    if old.ndim != 2 or old.shape != new.shape:
        raise ValueError(f"both sides must be [b, d], found {list(old.shape)} and {list(new.shape)}")
    if classifier is not None and codes is None:
        raise ValueError("a classifier needs the identity of each pair, found no codes")
    old, new = nn.functional.normalize(old, dim=1), nn.functional.normalize(new, dim=1)
    nothing = old.new_zeros(())
    similarity = _mean(1.0 - (old * new).sum(dim=1), pair_weights)
    classification, kl, contrast = nothing, nothing, nothing
    if classifier is not None and codes is not None:
        entropy, divergence = posterior_losses(classifier(old), classifier(new), codes)
        classification, kl = _mean(entropy, pair_weights), _mean(divergence, pair_weights)
    else:
        contrast = _mean(contrast_loss(old, new, codes), pair_weights)
    total = (
        options.similarity_weight * similarity
        + options.classification_weight * classification
        + options.kl_weight * kl
        + options.contrast_weight * contrast
    )
    return UnifiedTerms(total, similarity, classification, kl, contrast)


def _mean(values: torch.Tensor, pair_weights: torch.Tensor | None) -> torch.Tensor:
    if pair_weights is None:
        return values.mean()
    total = pair_weights.sum()
    # a batch may consist of pairs that count for nothing: it then has no gradient, rather than NaN
    return (values * pair_weights).sum() / (total + (total == 0))
