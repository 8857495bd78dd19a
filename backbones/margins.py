"""Classification heads that ask for a margin between identities; they are needed in training only."""

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F


class ArcFace(nn.Module):
    """Logits s cos(theta), with an angular margin added to the angle of the right class.

    The target logit is s cos(theta + m). Where theta + m exceeds pi it would rise again as the angle grows, so
    s (cos(theta) - m sin(m)) stands in for it there, which keeps falling.

    Source: Deng et al., "ArcFace: Additive Angular Margin Loss for Deep Face Recognition", CVPR 2019.

    Args:
        embedding_dim: d.
        classes: number of identities.
        scale: s; the logits lie in [-s - m s sin(m), s].
        margin: m in radians, in [0, pi / 2].
    """

    def __init__(self, embedding_dim: int, classes: int, scale: float = 64.0, margin: float = 0.5) -> None:
        super().__init__()
        if not 0.0 <= margin <= math.pi / 2:
            raise ValueError(f"margin is {margin} radians, expected 0 to pi/2; the paper uses 0.5")
        self.scale = scale
        self.margin = margin
        self.weight = nn.Parameter(torch.randn(classes, embedding_dim) * 0.01)

    def forward(self, embeddings: Tensor, labels: Tensor) -> Tensor:
        """Return logits, float32 [b, classes], for the cross-entropy loss.

        Args:
            embeddings: [b, d], any floating type and any norm.
            labels: int64 [b], the index of each row's identity.
        """
        return self.add_margin(self.cosines(embeddings), labels)

    def cosines(self, embeddings: Tensor) -> Tensor:
        """Return the cosine of every embedding [b, d] to every class, float32 [b, classes]."""
        # bfloat16 has three digits: too few for an angle near zero once it is multiplied by the scale
        with torch.autocast(embeddings.device.type, enabled=False):
            return F.linear(F.normalize(embeddings.float()), F.normalize(self.weight.float()))

    def add_margin(self, cosines: Tensor, labels: Tensor) -> Tensor:
        """Turn cosines [b, classes] into logits [b, classes], with the margin at `labels` [b]."""
        cosine = cosines.gather(1, labels[:, None])
        sine = (1.0 - cosine.square()).clamp_min(1e-12).sqrt()  # the clamp keeps the root's gradient finite
        with_margin = cosine * math.cos(self.margin) - sine * math.sin(self.margin)
        fallback = cosine - self.margin * math.sin(self.margin)
        target = torch.where(cosine > -math.cos(self.margin), with_margin, fallback)
        return self.scale * cosines.scatter(1, labels[:, None], target)


HEADS: dict[str, type[ArcFace]] = {"arcface": ArcFace}


def build_head(name: str, *, embedding_dim: int, classes: int, scale: float, margin: float) -> ArcFace:
    """Build the head called `name` with fresh class weights.

    Raises:
        ValueError: for a name that is not in `HEADS`.
    """
    if name not in HEADS:
        raise ValueError(f"unknown head {name!r}, expected one of {', '.join(HEADS)}")
    return HEADS[name](embedding_dim, classes, scale=scale, margin=margin)
