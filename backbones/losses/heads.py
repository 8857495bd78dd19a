"""Classification heads, most of which ask for a margin between identities; they are needed in training only.

Every head has the same face: `weight` [classes, d], `scores` (the largest is the prediction), and `logits`, which makes
of the scores what the cross-entropy loss compares, label smoothing (`torch.nn.functional.cross_entropy`) included.

Shapes: b batch, d embedding dimension.
"""

import math
from typing import ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F


class Head(nn.Module):
    """One weight vector per identity, and what the loss is told about an embedding and each of them.

    Args:
        embedding_dim: d.
        classes: number of identities.
    """

    def __init__(self, embedding_dim: int, classes: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(classes, embedding_dim) * 0.01)

    def scores(self, embeddings: Tensor) -> Tensor:
        """Return how near every embedding [b, d] is to every class, float32 [b, classes]; the largest predicts."""
        raise NotImplementedError

    def logits(self, scores: Tensor, labels: Tensor) -> Tensor:
        """Turn scores [b, classes] into the logits [b, classes] of the cross-entropy loss, given labels int64 [b]."""
        raise NotImplementedError

    def forward(self, embeddings: Tensor, labels: Tensor) -> Tensor:
        """Return logits, float32 [b, classes], for the cross-entropy loss.

        Args:
            embeddings: [b, d], any floating type and any norm.
            labels: int64 [b], the index of each row's identity.
        """
        return self.logits(self.scores(embeddings), labels)


class Softmax(Head):
    """The plain classifier: a linear map whose values are scores and logits alike, with neither scale nor margin.

    It has no bias, which would tell identities apart by how often they were photographed.
    """

    def scores(self, embeddings: Tensor) -> Tensor:
        """Return the product of every embedding [b, d] and every class weight, float32 [b, classes]."""
        with torch.autocast(embeddings.device.type, enabled=False):
            return F.linear(embeddings.float(), self.weight.float())

    def logits(self, scores: Tensor, labels: Tensor) -> Tensor:
        """Return the scores [b, classes] as they are."""
        del labels
        return scores


class MarginHead(Head):
    """Scores are cosines; logits are cosines times a scale, made harder for the right class by a margin.

    Args:
        embedding_dim: d.
        classes: number of identities.
        scale: s.
        margin: m, from 0 to `LARGEST_MARGIN`; None is `PUBLISHED_MARGIN`.

    Raises:
        ValueError: for a margin out of range, or a scale that is not above 0.
    """

    PUBLISHED_MARGIN: ClassVar[float]
    LARGEST_MARGIN: ClassVar[float]
    MARGIN_UNIT: ClassVar[str]

    def __init__(self, embedding_dim: int, classes: int, *, scale: float = 64.0, margin: float | None = None) -> None:
        super().__init__(embedding_dim, classes)
        margin = self.PUBLISHED_MARGIN if margin is None else margin
        if not 0.0 <= margin <= self.LARGEST_MARGIN:
            raise ValueError(
                f"margin is {margin} {self.MARGIN_UNIT}, expected 0 to {self.LARGEST_MARGIN:.4g}; "
                f"{self.PUBLISHED_MARGIN} is usual"
            )
        if not scale > 0.0:
            raise ValueError(f"scale is {scale}, expected above 0; 64 is usual")
        self.scale = scale
        self.margin = margin

    def scores(self, embeddings: Tensor) -> Tensor:
        """Return the cosine of every embedding [b, d] to every class, float32 [b, classes]."""
        # bfloat16 has three digits: too few for an angle near zero once it is multiplied by the scale
        with torch.autocast(embeddings.device.type, enabled=False):
            return F.linear(F.normalize(embeddings.float()), F.normalize(self.weight.float()))


class ArcFace(MarginHead):
    """Logits s cos(theta), with an angular margin added to the angle of the right class.

    The target logit is s cos(theta + m). Where theta + m exceeds pi it would rise again as the angle grows, so
    s (cos(theta) - m sin(m)) stands in for it there, which keeps falling. The logits lie in [-s - m s sin(m), s].

    Source: Deng et al., "ArcFace: Additive Angular Margin Loss for Deep Face Recognition", CVPR 2019.
    """

    PUBLISHED_MARGIN = 0.5
    LARGEST_MARGIN = math.pi / 2
    MARGIN_UNIT = "radians"

    def logits(self, scores: Tensor, labels: Tensor) -> Tensor:
        """Turn cosines [b, classes] into logits [b, classes], with the margin at `labels` [b]."""
        target = add_angular_margin(scores.gather(1, labels[:, None]), self.margin)
        return self.scale * scores.scatter(1, labels[:, None], target)


class CosFace(MarginHead):
    """Logits s cos(theta), with a margin taken off the cosine of the right class: s (cos(theta) - m).

    Source: Wang et al., "CosFace: Large Margin Cosine Loss for Deep Face Recognition", CVPR 2018. The margin of 0.4 is
    the one in use for training on millions of faces; the paper's own experiments take 0.35.
    """

    PUBLISHED_MARGIN = 0.4
    LARGEST_MARGIN = 1.0
    MARGIN_UNIT = "of cosine"

    def logits(self, scores: Tensor, labels: Tensor) -> Tensor:
        """Turn cosines [b, classes] into logits [b, classes], with the margin at `labels` [b]."""
        target = scores.gather(1, labels[:, None]) - self.margin
        return self.scale * scores.scatter(1, labels[:, None], target)


class ArcNegFace(MarginHead):
    """ArcFace whose wrong classes count the more, the nearer their cosine comes to the target's.

    With a = cos(theta_y + m), as ArcFace has it, the target logit is s a. Every other class j has
    s (t_j cos(theta_j) + t_j - 1), where t_j = alpha exp(-(cos(theta_j) - a - mu)^2 / (2 sigma)) is taken for a
    constant: no gradient flows through it.

    Source: Liu et al., "Towards Flops-constrained Face Recognition", ICCV workshops 2019, with its alpha, mu and sigma.
    """

    PUBLISHED_MARGIN = 0.5
    LARGEST_MARGIN = math.pi / 2
    MARGIN_UNIT = "radians"
    ALPHA, MU, SIGMA = 1.2, 0.0, 1.0

    def logits(self, scores: Tensor, labels: Tensor) -> Tensor:
        """Turn cosines [b, classes] into logits [b, classes], with the margin at `labels` [b]."""
        target = add_angular_margin(scores.gather(1, labels[:, None]), self.margin)
        with torch.no_grad():
            weights = self.ALPHA * (-(scores - target - self.MU).square() / (2.0 * self.SIGMA)).exp()
        negatives = weights * scores + weights - 1.0
        return self.scale * negatives.scatter(1, labels[:, None], target)


def add_angular_margin(cosines: Tensor, margin: float) -> Tensor:
    """Return cos(theta + margin) of cos(theta), or where that angle exceeds pi, cos(theta) - margin sin(margin)."""
    sine = (1.0 - cosines.square()).clamp_min(1e-12).sqrt()  # the clamp keeps the root's gradient finite
    with_margin = cosines * math.cos(margin) - sine * math.sin(margin)
    fallback = cosines - margin * math.sin(margin)
    return torch.where(cosines > -math.cos(margin), with_margin, fallback)


HEADS: dict[str, type[Head]] = {
    "softmax": Softmax,
    "arcface": ArcFace,
    "cosface": CosFace,
    "arcnegface": ArcNegFace,
}


def build_head(
    name: str, *, embedding_dim: int, classes: int, scale: float = 64.0, margin: float | None = None
) -> Head:
    """Build the head called `name` with fresh class weights.

    Args:
        name: a key of `HEADS`.
        embedding_dim: d.
        classes: number of identities.
        scale: of the logits; softmax has none and leaves it unused.
        margin: None takes the head's published one.

    Raises:
        ValueError: for a name that is not in `HEADS`, a margin out of range, or a margin for softmax.
    """
    if name not in HEADS:
        raise ValueError(
            f"unknown head {name!r}, expected one of {', '.join(HEADS)}, or for a training from a teacher alone none"
        )
    head = HEADS[name]
    if issubclass(head, MarginHead):
        return head(embedding_dim, classes, scale=scale, margin=margin)
    if margin:
        raise ValueError(f"margin is {margin}, and the head {name} has none; leave it out or take another head")
    return head(embedding_dim, classes)
