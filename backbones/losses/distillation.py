"""The angular distillation term: learning from another network's embeddings.

Shapes: b batch, d embedding dimension.
"""

import torch
from torch import Tensor
from torch.nn import functional as F


def angular_distillation(student: Tensor, teacher: Tensor) -> Tensor:
    """Return the mean over the batch of |t/|t| - s/|s||^2 = 2 (1 - cos(t, s)), in [0, 4].

    It needs no labels: add it to a classification loss, with a weight of 9 in the source, or train on it alone.

    Source: the angular distillation of Duong et al., "ShrinkTeaNet", 2019, as a squared distance of directions.

    Args:
        student: [b, d], what learns.
        teacher: [b, d]; no gradient flows into it.

    Returns:
        A scalar, float32 (float64 for float64 students).

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
        return differences.square().sum(dim=1).mean()
