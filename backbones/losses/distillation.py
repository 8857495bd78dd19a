"""The angular distillation term: learning from another network's embeddings.

Shapes: b batch, d embedding dimension.
"""

import torch
from torch import Tensor
from torch.nn import functional as F


def angular_distillation(student: Tensor, teacher: Tensor, *, known: Tensor | None = None) -> Tensor:
    """Return the mean over the batch of |t/|t| - s/|s||^2 = 2 (1 - cos(t, s)), in [0, 4].

    It needs no labels: add it to a classification loss, with a weight of 9 in the source, or train on it alone.

    Source: the angular distillation of Duong et al., "ShrinkTeaNet", 2019, as a squared distance of directions.

    Args:
        student: [b, d], what learns.
        teacher: [b, d]; no gradient flows into it.
        known: bool [b], the rows to average over where the teacher does not know all; None takes all.

    Returns:
        A scalar, float32 (float64 for float64 students); 0 where no row is known.

    Raises:
        ValueError: where the shapes differ.
    """
    if student.shape != teacher.shape:
        raise ValueError(
            f"student embeddings are {list(student.shape)} and the teacher's {list(teacher.shape)}, expected the same; "
            f"train with embedding_dim {teacher.shape[-1]}, or take another teacher"
        )
    dtype = torch.promote_types(student.dtype, torch.float32)
    with torch.autocast(student.device.type, enabled=False):
        differences = F.normalize(student.to(dtype)) - F.normalize(teacher.detach().to(dtype))
        distances = differences.square().sum(dim=1)
        if known is None:
            known = torch.ones_like(distances, dtype=torch.bool)
        # rows without a teacher count 0 and stay part of the graph, so that a backward pass finds one
        return torch.where(known, distances, 0.0 * distances).sum() / known.sum().clamp_min(1)
