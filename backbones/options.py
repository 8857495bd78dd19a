"""Options of training. Only the standard library is imported, so that `--help` answers at once."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal


@dataclass(frozen=True, kw_only=True)
class AugmentOptions:
    """How far training images are varied; lengths are fractions of the image's side, so they fit every input size.

    The defaults suit small sets (ten images per identity). `PUBLISHED_AUGMENTATION` is the weak variation reported for
    sets of millions of aligned faces.

    Attributes:
        flip: probability of a left-right flip.
        scale: largest change of size, as a fraction.
        shift: largest shift, as a fraction of the side.
        rotation: largest turn, in degrees.
        brightness: largest relative change of brightness.
        contrast: largest relative change of contrast.
        saturation: largest relative change of saturation.
        occlusion: probability that a rectangle of random colour covers part of the image.
        occlusion_side: largest side of that rectangle, as a fraction of the side.
        blur: probability that the image is sampled down and up again.
        blur_factor: smallest resolution it is sampled down to, as a fraction.
    """

    flip: float = 0.5
    scale: float = 0.1
    shift: float = 0.06
    rotation: float = 8.0
    brightness: float = 0.2
    contrast: float = 0.2
    saturation: float = 0.125
    occlusion: float = 0.25
    occlusion_side: float = 0.4
    blur: float = 0.1
    blur_factor: float = 0.5

    def __post_init__(self) -> None:
        for name in ("flip", "scale", "shift", "brightness", "contrast", "saturation", "occlusion", "blur"):
            if not 0.0 <= getattr(self, name) <= 1.0:
                raise ValueError(f"augmentation {name} is {getattr(self, name)}, expected 0 to 1")
        for name in ("occlusion_side", "blur_factor"):
            if not 0.0 < getattr(self, name) <= 1.0:
                raise ValueError(f"augmentation {name} is {getattr(self, name)}, expected above 0 and at most 1")


# Liu et al., "Towards Flops-constrained Face Recognition", ICCV workshops 2019: flips, scale and shift within 1%,
# colour within 0.125.
PUBLISHED_AUGMENTATION = AugmentOptions(
    scale=0.01, shift=0.01, rotation=0.0, brightness=0.125, contrast=0.125, saturation=0.125, occlusion=0.0, blur=0.0
)


@dataclass(frozen=True, kw_only=True)
class TrainOptions:
    """Options of training.

    Attributes:
        data: folder of training images, one folder per identity.
        out: folder for the model, its card, the metrics and the checkpoint; run again to resume there.
        arch: network, one of iresnet18, iresnet34, iresnet50, iresnet100.
        head: classification head, arcface.
        validation: folder of other identities, scored after each epoch.
        input_size: side of the square input, in pixels.
        embedding_dim: dimension of the embedding.
        epochs: number of epochs.
        passes_per_epoch: how often an epoch walks through the images, each time varied anew.
        batch_size: images per step; the rest of an epoch that fills no batch is left out.
        optimizer: sgd or adamw.
        learning_rate: highest learning rate; it falls to zero along a cosine.
        warmup_epochs: epochs in which the learning rate rises linearly from zero.
        momentum: of sgd.
        weight_decay: applied to convolutions, projections and class weights, not to norms and slopes.
        gradient_clip: largest norm of the gradient.
        scale: scale of the logits.
        margin: angular margin in radians.
        dropout: probability of dropping an input of the projection.
        augmentation: how far the images are varied.
        flip_average: embed as the mean of the image and its mirror image (recorded as preprocessing).
        precision: auto, bf16 or fp32; auto takes bf16 where the processor multiplies it natively.
        seed: of weights, order and variation.
        max_bad: how many unreadable images are tolerated and skipped.
        image_memory: megabytes up to which decoded images are kept in memory; larger sets are decoded per batch.
        checkpoint_every: epochs between two checkpoints.
        workers: threads that decode images.
    """

    data: Path
    out: Path
    arch: str = "iresnet18"
    head: str = "arcface"
    validation: Path | None = None
    input_size: int = 112
    embedding_dim: int = 512
    epochs: int = 24
    passes_per_epoch: int = 1
    batch_size: int = 64
    optimizer: Literal["sgd", "adamw"] = "sgd"
    learning_rate: float = 0.03
    warmup_epochs: float = 2.0
    momentum: float = 0.9
    weight_decay: float = 5e-4
    gradient_clip: float = 5.0
    scale: float = 64.0
    margin: float = 0.5
    dropout: float = 0.0
    augmentation: AugmentOptions = field(default_factory=AugmentOptions)
    flip_average: bool = True
    precision: Literal["auto", "bf16", "fp32"] = "auto"
    seed: int = 0
    max_bad: int = 10
    image_memory: int = 1024
    checkpoint_every: int = 1
    workers: int = 2

    def __post_init__(self) -> None:
        at_least_one = ("epochs", "passes_per_epoch", "embedding_dim", "checkpoint_every", "workers")
        least = dict.fromkeys(at_least_one, 1) | {"batch_size": 2, "input_size": 16, "max_bad": 0, "image_memory": 0}
        for name, value in least.items():
            if getattr(self, name) < value:
                raise ValueError(f"{name} is {getattr(self, name)}, expected at least {value}")
        if not self.learning_rate > 0:
            raise ValueError(f"learning_rate is {self.learning_rate}, expected above 0; 0.03 suits sgd, 0.001 adamw")
