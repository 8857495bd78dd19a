"""Terms that keep class weights apart, beside the classification loss.

Shapes: c classes, d embedding dimension.
"""

import torch
from torch import Tensor
from torch.nn import functional as F

BLOCK_ROWS = 4096  # bounds the cosines held at once to 4096 x c


def regular_face(weight: Tensor) -> Tensor:
    """Return the mean over classes of the largest cosine to another class's weight, in [-1, 1]; to be made small.

    Of every row of cosines only the largest is differentiated, so the memory does not grow with the square of c.

    Source: Zhao et al., "RegularFace: Deep Face Recognition via Exclusive Regularization", CVPR 2019.

    Args:
        weight: [c, d], the class weights of a head, of any norm and floating type.

    Returns:
        A scalar, float32 (float64 for a float64 weight); 0 for a single class, which has no other.
    """
    if len(weight) < 2:
        return torch.zeros((), dtype=torch.promote_types(weight.dtype, torch.float32), device=weight.device)
    with torch.autocast(weight.device.type, enabled=False):
        directions = F.normalize(weight.to(torch.promote_types(weight.dtype, torch.float32)))
        nearest = _nearest_other(directions.detach())
        return (directions * directions[nearest]).sum(dim=1).mean()


def _nearest_other(directions: Tensor) -> Tensor:
    blocks = []
    for start in range(0, len(directions), BLOCK_ROWS):
        cosines = directions[start : start + BLOCK_ROWS] @ directions.T
        rows = torch.arange(len(cosines), device=cosines.device)
        cosines[rows, rows + start] = -torch.inf
        blocks.append(cosines.argmax(dim=1))
    return torch.cat(blocks)
