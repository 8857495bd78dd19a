"""Drawing an identity's mapped embeddings together, until a gallery of means can be searched.

The centre that a mapped embedding is drawn to is the mean *target* of its identity: a fixed vector of the space that is
mapped to. A centre of the batch's own mapped embeddings, or one that is learned beside the network, would move with
them: shrinking everything to a point would then make the term zero, and a batch would have to hold several items of
each identity, which a stream in a store's order does not. A fixed centre cannot collapse, is the vector that a gallery
of means will hold, and costs one pass over the pairs.

The pull towards a class centre is the center loss of Wen et al., "A discriminative feature learning approach for deep
face recognition", ECCV 2016, whose centres are learned; here they are known beforehand and compared by their cosine.

Legend: n pairs, b pairs of a batch, i identities, dimension d of the target space.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch

from compat.options import Direction
from compat.pairs import Pairs
from compat.training.losses import cosine_loss, require_weights
from compat.transformers.linear import tensor_to_read


@dataclass(frozen=True)
class IdentityCentres:
    """The mean target vector of each pair's identity.

    Attributes:
        centres: float32 [i, d], means of raw vectors; this is all the memory that is kept, 4 bytes x i x d.
        identities: int64 [n], the row of `centres` that belongs to each pair.
    """

    centres: np.ndarray
    identities: np.ndarray

    def take(self, numbers: np.ndarray) -> np.ndarray:
        """Centres of pair numbers [b], a new float32 [b, d] array."""
        return self.centres[self.identities[numbers]]


def identity_centres(pairs: Pairs, direction: Direction) -> IdentityCentres:
    """Mean target vectors of identities, in one pass over the pairs; weighted where the pairs are.

    Sums are kept in float64, i x d x 8 bytes while the pass lasts. An identity whose pairs all weigh nothing has a
    centre of zeros, which draws nothing anywhere.

    Args:
        pairs: Pairs with labels.
        direction: Decides which side is the target.

    Raises:
        ValueError: If the pairs have no labels, or no label repeats.
    """
    labels = require_identities(pairs)
    known, identities = np.unique(labels, return_inverse=True)
    weights = None if pairs.weights is None else torch.from_numpy(pairs.weights.astype(np.float64))
    mass = np.bincount(identities, pairs.weights, minlength=len(known))
    sums = torch.zeros(len(known), pairs.spaces(direction)[1].dim, dtype=torch.float64)
    numbers = torch.from_numpy(identities)
    start = 0
    for _, target in pairs.blocks(direction):
        here = slice(start, start + len(target))
        rows = tensor_to_read(target).double()
        # index_add_ takes a twentieth of the time of numpy's add.at, and adds in the rows' order like it
        sums.index_add_(0, numbers[here], rows if weights is None else rows * weights[here, None])
        start += len(target)
    sums /= torch.from_numpy(np.where(mass > 0, mass, 1.0))[:, None]
    return IdentityCentres(sums.float().numpy(), identities)


def require_identities(pairs: Pairs) -> np.ndarray:
    """The labels of the pairs, int64 [n].

    Raises:
        ValueError: If there are none, or all differ: each pair's centre is then its own target, and the term the cosine
            loss again.
    """
    remedy = "or set loss.compactness_weight to 0"
    if pairs.labels is None:
        raise ValueError(
            "the pairs have no labels, and compactness draws each identity's embeddings together; give the stores a "
            f"column label, {remedy}"
        )
    if len(np.unique(pairs.labels)) == len(pairs):
        raise ValueError(
            f"all {len(pairs)} pairs differ in label, and compactness draws those of one label together; give labels "
            f"that repeat, {remedy}"
        )
    return pairs.labels


def compactness_loss(
    predicted: torch.Tensor, centres: torch.Tensor, pair_weights: torch.Tensor | None = None
) -> torch.Tensor:
    """Mean over the batch of 1 - cos(predicted, centre of the pair's identity), a scalar between 0 and 2.

    Args:
        predicted: The map's raw output, float [b, d].
        centres: `IdentityCentres.take` of the same pairs, float [b, d]; of a synthetic pair the mixture of its
            parents' centres.
        pair_weights: How much each pair counts, float [b], not negative; all alike by default.

    Raises:
        ValueError: If the shapes differ or are not [b, d], or there is not one weight for each pair.
    """
    if predicted.ndim != 2 or predicted.shape != centres.shape:
        raise ValueError(
            f"predicted and centres must both be [b, d], found {list(predicted.shape)} and {list(centres.shape)}; take "
            "the centres by the batch's pair numbers"
        )
    require_weights(predicted, pair_weights)
    return cosine_loss(predicted, centres, pair_weights)
