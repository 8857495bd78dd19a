"""Starting a training from the weights or features of another.

Shapes: c channels or classes, d embedding dimension, s side of the last feature map, n images.
"""

import math
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from backbones.checkpoint import MODEL_FILE, load_card, read_tensors, training_folder
from backbones.networks.iresnet import IResNet
from backbones.options import TrainOptions

PROJECTION = "head.projection.weight"


def load_pretrained(folder: Path, network: IResNet, options: TrainOptions) -> None:
    """Fill `network` with the weights of a finished training of the same architecture.

    An input of another size is allowed: every weight but the projection's fits as it is. See `resample_projection`.

    Raises:
        FileNotFoundError: where there is no finished training.
        ValueError: where it has another architecture or embedding dimension, or is damaged.
    """
    folder = training_folder(folder)
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


def anchor_weights(features: Tensor, labels: Tensor, classes: int) -> Tensor:
    """Return a class weight per identity, the direction of the mean of its features: where finetuning starts.

    Every feature counts alike, whatever its norm. The same weights extend an old head to identities it was not trained
    on, from their old features.

    Source: Liu et al., "Towards Flops-constrained Face Recognition", ICCV workshops 2019 (anchor finetuning).

    Args:
        features: [n, d], of a converged network.
        labels: int64 [n], in [0, classes).
        classes: c.

    Returns:
        Float32 [c, d] of unit length, on the features' device.

    Raises:
        ValueError: where an identity has no feature, or its features cancel out or are not finite, or a label is out
            of range.
    """
    if len(labels) and not (int(labels.min()) >= 0 and int(labels.max()) < classes):
        raise ValueError(
            f"labels lie in {int(labels.min())} to {int(labels.max())}, expected 0 to {classes - 1}; "
            "give the labels of this training"
        )
    counts = torch.bincount(labels, minlength=classes)
    if empty := (counts == 0).nonzero().flatten().tolist():
        raise ValueError(
            f"{len(empty)} of {classes} identities have no feature, the first is label {empty[0]}; "
            "give at least one image of each"
        )
    sums = torch.zeros(classes, features.shape[1], dtype=torch.float64, device=features.device)
    sums.index_add_(0, labels, F.normalize(features.double()))
    lengths = sums.norm(dim=1, keepdim=True)
    unusable = ~(lengths / counts[:, None] > 1e-6)[:, 0]  # true for NaN as well
    if bad := unusable.nonzero().flatten().tolist():
        raise ValueError(
            f"the features of {len(bad)} of {classes} identities cancel out or are not finite, as of label {bad[0]}; "
            "train the network further before its features become weights"
        )
    return (sums / lengths).float()


@torch.no_grad()
def set_anchors(weight: nn.Parameter, anchors: Tensor) -> None:
    """Set class weights [classes, d] to `anchors` of unit length, each at the length a fresh weight has on average.

    The angles are what the margin heads see; the length decides how fast an angle turns at a given learning rate.
    """
    length = weight.norm(dim=1).mean()
    weight.copy_(anchors.to(weight) * length)
