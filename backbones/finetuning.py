"""Starting a training from the weights of another.

Shapes: c channels, d embedding dimension, s side of the last feature map, n images.
"""

import math
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from backbones.checkpoint import MODEL_FILE, load_card, read_tensors
from backbones.iresnet import IResNet
from backbones.options import TrainOptions

PROJECTION = "head.projection.weight"


def load_pretrained(folder: Path, network: IResNet, options: TrainOptions) -> None:
    """Fill `network` with the weights of a finished training of the same architecture.

    An input of another size is allowed: every weight but the projection's fits as it is. See `resample_projection`.

    Raises:
        FileNotFoundError: where there is no finished training.
        ValueError: where it has another architecture or embedding dimension, or is damaged.
    """
    card = load_card(folder)
    for name, wanted in (("arch", options.arch), ("embedding_dim", options.embedding_dim)):
        if card.get(name) != wanted:
            raise ValueError(
                f"the training in {folder} has {name} {card.get(name)}, expected {wanted}; "
                f"give --{name.replace('_', '-')} {card.get(name)}"
            )
    tensors, _ = read_tensors(folder / MODEL_FILE)
    wanted_shape = network.state_dict()[PROJECTION].shape
    if PROJECTION in tensors and tensors[PROJECTION].shape != wanted_shape:
        channels = len(tensors["head.norm.weight"])
        tensors[PROJECTION] = resample_projection(tensors[PROJECTION], channels, wanted_shape[1] // channels)
    try:
        network.load_state_dict(tensors)
    except RuntimeError as error:
        raise ValueError(f"{folder / MODEL_FILE} does not fit {options.arch}: {str(error).splitlines()[-1]}") from error


def resample_projection(weight: Tensor, channels: int, positions: int) -> Tensor:
    """Return the projection that sees a feature map of another size as the old one would see it once resized.

    Resizing (bilinear, with antialiasing) is linear, so that it and the old projection are one matrix.

    Args:
        weight: [d, c * s * s].
        channels: c.
        positions: s * s of the new map.

    Returns:
        [d, c * positions].
    """
    side, new_side = math.isqrt(weight.shape[1] // channels), math.isqrt(positions)
    basis = torch.eye(positions, dtype=weight.dtype).reshape(positions, 1, new_side, new_side)
    resize = F.interpolate(basis, (side, side), mode="bilinear", antialias=True).reshape(positions, side * side)
    return (weight.reshape(len(weight), channels, side * side) @ resize.T).reshape(len(weight), -1)


@torch.no_grad()
def set_anchors(weight: nn.Parameter, anchors: Tensor) -> None:
    """Set class weights [classes, d] to `anchors` of unit length, each at the length a fresh weight has on average.

    The angles are what the margin heads see; the length decides how fast an angle turns at a given learning rate.
    """
    length = weight.norm(dim=1).mean()
    weight.copy_(anchors.to(weight) * length)
