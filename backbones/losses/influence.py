"""Training a new network whose embeddings an old gallery understands.

Shapes: b batch, c classes, d embedding dimension.
"""

import copy
from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from backbones.losses.heads import Head

UNKNOWN = -1
"""Stands for an identity that the old head does not know."""


def match_classes(identities: Sequence[str], old_identities: Sequence[str]) -> Tensor:
    """Return, for every identity of the new training, its class in the old head, or `UNKNOWN`: int64 [c].

    Args:
        identities: of the new training, in the order of its labels.
        old_identities: of the old training, in the order of its head's classes.
    """
    classes = {identity: index for index, identity in enumerate(old_identities)}
    return torch.tensor([classes.get(identity, UNKNOWN) for identity in identities], dtype=torch.int64)


class InfluenceLoss(nn.Module):
    """The old classifier's loss on the new network's features: what pulls them into the old embedding space.

    Added to the new classifier's own loss. The old weights do not learn; rows of identities that they do not know are
    left out.

    Source: Shen et al., "Towards Backward-Compatible Representation Learning", CVPR 2020.

    Args:
        old_head: with the weights, scale and margin of the old training; a copy is kept, frozen.
        old_classes: int64 [c], the old head's class of every new label, or `UNKNOWN`; see `match_classes`.
        label_smoothing: as `torch.nn.functional.cross_entropy` takes it.

    Raises:
        ValueError: where the old head knows none of the identities, or has no class of such a number.
    """

    old_classes: Tensor

    def __init__(self, old_head: Head, old_classes: Tensor, *, label_smoothing: float = 0.0) -> None:
        super().__init__()
        known = len(old_head.weight)
        if len(old_classes) and not (int(old_classes.min()) >= UNKNOWN and int(old_classes.max()) < known):
            raise ValueError(
                f"old_classes lie in {int(old_classes.min())} to {int(old_classes.max())}, expected {UNKNOWN} to "
                f"{known - 1}, the classes of the old head; match them with its own list of identities"
            )
        if not bool((old_classes != UNKNOWN).any()):
            raise ValueError(
                f"none of the {len(old_classes)} identities is among the {known} of the old head, expected some; "
                "train on identities that the old network was trained on too"
            )
        self.old_head = copy.deepcopy(old_head).requires_grad_(False)
        self.register_buffer("old_classes", old_classes.to(torch.int64))
        self.label_smoothing = label_smoothing

    def forward(self, embeddings: Tensor, labels: Tensor) -> Tensor:
        """Return the mean loss over the rows whose identity the old head knows; 0 where there are none.

        Args:
            embeddings: [b, d], of the new network.
            labels: int64 [b], of the new training.

        Returns:
            A float32 scalar.

        Raises:
            ValueError: where d differs from the old head's.
        """
        dim = self.old_head.weight.shape[1]
        if embeddings.shape[1] != dim:
            raise ValueError(
                f"the new embeddings have {embeddings.shape[1]} dimensions and the old head {dim}, expected the same; "
                f"train with embedding_dim {dim}"
            )
        classes = self.old_classes[labels]
        known = classes != UNKNOWN
        if not bool(known.any()):
            return embeddings.sum(dtype=torch.float32) * 0.0  # part of the graph, so that a backward pass finds one
        logits = self.old_head(embeddings[known], classes[known])
        return F.cross_entropy(logits, classes[known], label_smoothing=self.label_smoothing)
