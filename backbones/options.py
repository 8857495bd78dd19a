"""Options of training. Only the standard library is imported, so that `--help` answers at once."""

import math
from dataclasses import dataclass, field, fields
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
        crop: largest share of the side that is cut off; the rest, anywhere within the image, is stretched to its size.
        mask: probability that a face mask is drawn over nose, mouth and jaw; for aligned faces.
        low_light: probability that the image is darkened as by too little light.
        low_light_gamma: largest exponent of the light in [0, 1] in a darkened image; 1 changes nothing.
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
    crop: float = 0.0
    mask: float = 0.0
    low_light: float = 0.0
    low_light_gamma: float = 3.0

    def __post_init__(self) -> None:
        shares = ("flip", "scale", "shift", "brightness", "contrast", "saturation", "occlusion", "blur", "mask")
        for name in (*shares, "low_light"):
            if not 0.0 <= getattr(self, name) <= 1.0:
                raise ValueError(f"augmentation {name} is {getattr(self, name)}, expected 0 to 1")
        for name in ("occlusion_side", "blur_factor"):
            if not 0.0 < getattr(self, name) <= 1.0:
                raise ValueError(f"augmentation {name} is {getattr(self, name)}, expected above 0 and at most 1")
        if not 0.0 <= self.crop < 1.0:
            raise ValueError(f"augmentation crop is {self.crop}, expected 0 to below 1")
        if not self.low_light_gamma >= 1.0:
            raise ValueError(f"augmentation low_light_gamma is {self.low_light_gamma}, expected at least 1")


# Liu et al., "Towards Flops-constrained Face Recognition", ICCV workshops 2019: flips, scale and shift within 1%,
# colour within 0.125.
PUBLISHED_AUGMENTATION = AugmentOptions(
    scale=0.01, shift=0.01, rotation=0.0, brightness=0.125, contrast=0.125, saturation=0.125, occlusion=0.0, blur=0.0
)

USUAL_WARMUP = 2  # epochs


@dataclass(frozen=True, kw_only=True)
class TrainOptions:
    """Options of training.

    Attributes:
        data: training images: a folder with one folder per identity, a .rec or .tar file, or a list of files; with head
            none also a folder of images, or a .bin file or list of pairs.
        out: folder for the model, its head, its card, the metrics and the checkpoint; run again to resume there.
        root: folder that the paths of a list given as data or unlabelled start from; left out, the list's own.
        unlabelled: further images, in any form, whose identities are not looked at: they learn from the teacher alone.
        arch: network; `python -m backbones.list` shows them.
        head: classification head: softmax, arcface, cosface, arcnegface; none learns from the teacher alone.
        validation: other identities, scored after each epoch: a folder, or a .bin file or list of pairs.
        validation_root: folder that the paths of a list given as validation start from; left out, the list's own.
        input_size: side of the square input, in pixels.
        embedding_dim: dimension of the embedding.
        keep_fraction: share of each identity's images that is used, at least one, and of those without an identity.
        epochs: number of epochs.
        passes_per_epoch: how often an epoch walks through the images, each time varied anew.
        batch_size: images per step; the rest of an epoch that fills no batch is left out.
        accumulate: micro-batches a step is computed in, one after the other; see `backbones.training.learner`.
        optimizer: sgd, adamw, or lars (layer-wise rates for large batches; needs the extra `optimizers`).
        learning_rate: highest learning rate.
        schedule: how it falls: cosine and polynomial to zero at the end, multistep at the milestones, or constant.
        warmup_epochs: epochs in which the learning rate rises linearly from zero, fewer than there are; left out, 2, or
            half of one or two epochs.
        milestones: of multistep, epochs since the start of the training; fractions are allowed.
        milestone_factor: what multistep multiplies the learning rate with at each milestone.
        power: of polynomial; 1 falls along a line.
        momentum: of sgd and lars.
        nesterov: whether the momentum of sgd and lars looks ahead.
        trust_coefficient: of lars, the size of a layer's step in shares of its norm at a learning rate of 1.
        weight_decay: applied to convolutions, projections and class weights, not to norms and slopes.
        gradient_clip: largest norm of the gradient; 0 leaves the gradient as it is.
        scale: scale of the logits.
        margin: of the head, radians for arcface and arcnegface; left out, the value its paper uses.
        label_smoothing: share of the target that is spread over all classes.
        regular_face: weight of the term that keeps each class weight away from its nearest other one.
        dropout: probability of dropping an input of the projection.
        stochastic_depth: probability of skipping the last residual branch; those before it are skipped less often.
        checkpoint_activations: compute activations again in the backward pass instead of keeping them in memory.
        finetune_from: folder of an earlier training whose weights this one starts from.
        anchors: start each class weight as the mean feature of its identity; needs finetune_from.
        teacher: what to imitate: the folder or model file of a training, or an .npz of vectors by item id.
        distillation_weight: of the distance between the unit vectors of network and teacher.
        compatible_with: folder of an old training, with whose embeddings the new ones shall stay comparable.
        influence_weight: of the old head's loss on the new embeddings.
        average: weights to end with: those of the last step, or their exponential (ema) or equal (swa) average.
        average_decay: of ema, the share of the average that is kept at a step; less in the first steps.
        average_start: epoch from which swa averages; left out, the last quarter. ema begins at once.
        augmentation: how far the images are varied.
        flip_average: embed as the mean of the image and its mirror image (recorded as preprocessing).
        precision: auto, bf16, fp16 (with a scaled loss; slow on CPUs) or fp32; auto takes bf16 where it is native.
        seed: of weights, order and variation.
        max_bad: how many unreadable images are tolerated and skipped.
        image_memory: megabytes up to which decoded images are kept in memory; larger sets are decoded per batch.
        checkpoint_every: epochs between two checkpoints.
        log_every: steps between two lines of steps.jsonl; 0 writes none.
        tensorboard: write curves for TensorBoard under out/tensorboard too; needs the extra `tensorboard`.
        workers: threads that decode images.
    """

    data: Path
    out: Path
    root: Path | None = None
    unlabelled: Path | None = None
    arch: str = "iresnet18"
    head: str = "arcface"
    validation: Path | None = None
    validation_root: Path | None = None
    input_size: int = 112
    embedding_dim: int = 512
    keep_fraction: float = 1.0
    epochs: int = 24
    passes_per_epoch: int = 1
    batch_size: int = 64
    accumulate: int = 1
    optimizer: Literal["sgd", "adamw", "lars"] = "sgd"
    learning_rate: float = 0.03
    schedule: Literal["cosine", "multistep", "polynomial", "constant"] = "cosine"
    warmup_epochs: float | None = None
    milestones: list[float] = field(default_factory=list)
    milestone_factor: float = 0.1
    power: float = 2.0
    momentum: float = 0.9
    nesterov: bool = False
    trust_coefficient: float = 0.001
    weight_decay: float = 5e-4
    gradient_clip: float = 5.0
    scale: float = 64.0
    margin: float | None = None
    label_smoothing: float = 0.0
    regular_face: float = 0.0
    dropout: float = 0.0
    stochastic_depth: float = 0.0
    checkpoint_activations: bool = False
    finetune_from: Path | None = None
    anchors: bool = False
    teacher: Path | None = None
    distillation_weight: float = 9.0
    compatible_with: Path | None = None
    influence_weight: float = 1.0
    average: Literal["none", "ema", "swa"] = "none"
    average_decay: float = 0.999
    average_start: float | None = None
    augmentation: AugmentOptions = field(default_factory=AugmentOptions)
    flip_average: bool = True
    precision: Literal["auto", "bf16", "fp16", "fp32"] = "auto"
    seed: int = 0
    max_bad: int = 10
    image_memory: int = 1024
    checkpoint_every: int = 1
    log_every: int = 0
    tensorboard: bool = False
    workers: int = 2

    def __post_init__(self) -> None:
        at_least_one = ("epochs", "passes_per_epoch", "embedding_dim", "checkpoint_every", "workers", "accumulate")
        least = dict.fromkeys(at_least_one, 1) | {"batch_size": 2, "input_size": 16}
        zero = ("max_bad", "image_memory", "log_every", "gradient_clip", "regular_face", "power", "weight_decay")
        least |= dict.fromkeys(zero, 0)
        for name in (each.name for each in fields(self)):
            if isinstance(getattr(self, name), float) and not math.isfinite(getattr(self, name)):
                raise ValueError(f"{name} is {getattr(self, name)}, expected a finite number")
        for name, value in least.items():
            if not getattr(self, name) >= value:
                raise ValueError(f"{name} is {getattr(self, name)}, expected at least {value}")
        for name in ("scale", "trust_coefficient", "distillation_weight", "influence_weight"):
            if not getattr(self, name) > 0:
                raise ValueError(f"{name} is {getattr(self, name)}, expected above 0")
        if not 0.0 < self.milestone_factor < 1.0:
            raise ValueError(f"milestone_factor is {self.milestone_factor}, expected above 0 and below 1")
        if self.warmup_epochs is not None and not 0 <= self.warmup_epochs < self.epochs:
            raise ValueError(
                f"warmup_epochs is {self.warmup_epochs} and epochs {self.epochs}, expected fewer, from 0 on, or the "
                "learning rate never comes to its highest; lower warmup_epochs"
            )
        for name in ("momentum", "label_smoothing", "dropout", "stochastic_depth", "average_decay"):
            if not 0.0 <= getattr(self, name) < 1.0:
                raise ValueError(f"{name} is {getattr(self, name)}, expected at least 0 and below 1")
        if not 0.0 < self.keep_fraction <= 1.0:
            raise ValueError(f"keep_fraction is {self.keep_fraction}, expected above 0 and at most 1")
        if not self.learning_rate > 0:
            raise ValueError(f"learning_rate is {self.learning_rate}, expected above 0; 0.03 suits sgd, 0.001 adamw")
        self._check_combinations()
        self._check_idle()

    def warmup_steps(self, steps: int) -> float:
        """Return how many steps the learning rate rises, where an epoch has `steps`."""
        if self.warmup_epochs is not None:
            return self.warmup_epochs * steps
        return USUAL_WARMUP * steps if self.epochs > USUAL_WARMUP else self.epochs * steps // 2

    def _check_combinations(self) -> None:
        """Refuse options that would silently do nothing, or cannot work, beside each other."""
        if self.batch_size % self.accumulate or self.batch_size // self.accumulate < 2:
            raise ValueError(
                f"batch_size is {self.batch_size} and accumulate {self.accumulate}, expected micro-batches of equal "
                "size and at least 2 images; change one of them"
            )
        if (self.schedule == "multistep") != bool(self.milestones):
            raise ValueError(
                f"schedule is {self.schedule} and milestones {self.milestones}; milestones belong to multistep, which "
                "needs at least one"
            )
        if sorted(self.milestones) != self.milestones or any(milestone <= 0 for milestone in self.milestones):
            raise ValueError(f"milestones are {self.milestones}, expected rising epochs above 0")
        if self.nesterov and (self.optimizer == "adamw" or self.momentum == 0):
            raise ValueError(f"nesterov needs sgd or lars with a momentum, found {self.optimizer}, {self.momentum}")
        if self.anchors and self.finetune_from is None:
            raise ValueError("anchors are mean features of a trained network; name it by finetune_from")
        if self.head == "none":
            self._check_without_head()
        if self.unlabelled is not None and self.teacher is None:
            raise ValueError(
                "images without identities learn from a teacher; name one by teacher, or leave unlabelled out"
            )
        if self.average_start is not None and not (self.average == "swa" and 0 <= self.average_start < self.epochs):
            raise ValueError(
                f"average_start is {self.average_start} with average {self.average} and {self.epochs} epochs; it "
                "belongs to swa, from 0 to below the number of epochs"
            )

    def _check_idle(self) -> None:
        """Refuse an option that was changed although what it belongs to is not asked for."""
        owners = {
            "distillation_weight": ("teacher", self.teacher is not None),
            "influence_weight": ("compatible_with", self.compatible_with is not None),
            "milestone_factor": ("schedule multistep", self.schedule == "multistep"),
            "power": ("schedule polynomial", self.schedule == "polynomial"),
            "trust_coefficient": ("optimizer lars", self.optimizer == "lars"),
            "momentum": ("optimizer sgd or lars", self.optimizer != "adamw"),
            "average_decay": ("average ema", self.average == "ema"),
            "scale": ("a head with a margin", self.head not in ("none", "softmax")),
            "validation_root": ("validation", self.validation is not None),
        }
        defaults = {each.name: each.default for each in fields(self)}
        for name, (owner, there) in owners.items():
            if not there and getattr(self, name) != defaults[name]:
                raise ValueError(
                    f"{name} is {getattr(self, name)} and would do nothing, for it belongs to {owner}; "
                    "leave it out or ask for both"
                )

    def _check_without_head(self) -> None:
        if self.teacher is None:
            raise ValueError("head none learns from a teacher alone; name one by teacher")
        for name in ("anchors", "label_smoothing", "regular_face", "margin"):
            if getattr(self, name):
                raise ValueError(f"{name} is {getattr(self, name)}, which needs a head, and head is none; choose one")
