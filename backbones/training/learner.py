"""The moving parts of one backbone training, and one step and one epoch of it.

A step sees `batch_size` images in `accumulate` micro-batches of equal size, one after the other. Its gradient is the
sum, in that order, of the gradients of each micro-batch's loss divided by their number: that of the mean loss. Batch
norms see one micro-batch at a time, and each image is varied as it would be without accumulation, but for the state of
the random numbers.

Shapes: b batch, s side in pixels, d embedding dimension.
"""

import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import islice
from typing import Any

import torch
from torch import Tensor, nn

from backbones.augmentation.views import augment
from backbones.command_line import progress
from backbones.datasets.image_set import ImageSet
from backbones.encoders.inference import default_device, multiplies_bf16
from backbones.encoders.preprocessing import Preprocessing
from backbones.networks.iresnet import build_architecture
from backbones.options import TrainOptions
from backbones.training.averaging import WeightAverage
from backbones.training.finetuning import anchor_weights, load_pretrained, set_anchors
from backbones.training.objective import Batch, Objective
from backbones.training.optimization import build_optimizer, schedule
from backbones.training.training_set import UNLABELLED, classes_of
from backbones.training.validation_set import ValidationSet

IDS_NAMED = 5
NORM_IMAGES = 10_000  # what an average's batch norms are measured on


class NotFinite(ValueError):
    """A loss or gradient that is no number, before it has spoilt the weights; or weights that it has.

    Args:
        message: what is no number.
        item_ids: of the images of the batch it was met in; none where a weight is.

    Attributes:
        item_ids: as given.
    """

    def __init__(self, message: str, item_ids: Sequence[str] = ()) -> None:
        super().__init__(message)
        self.item_ids = tuple(item_ids)


class Learner:
    """Network, objective, optimiser and random numbers; torch's default generator serves weights and dropout.

    Args:
        options: of the training.
        images: the training images.
    """

    def __init__(self, options: TrainOptions, images: ImageSet) -> None:
        self.options = options
        self.images = images
        self.device = default_device()
        network = build_architecture(
            options.arch,
            embedding_dim=options.embedding_dim,
            input_size=options.input_size,
            dropout=options.dropout,
            stochastic_depth=options.stochastic_depth,
            checkpoint_activations=options.checkpoint_activations,
        )
        if options.finetune_from is not None:
            load_pretrained(options.finetune_from, network, options)
        self.network = network.to(device=self.device, memory_format=torch.channels_last)  # pyright: ignore[reportCallIssue]
        self.identities, self.class_labels = classes_of(images)
        self.objective = Objective(options, self.identities, self.device)
        self._check_teacher_knows()
        self.modules: dict[str, nn.Module] = {"network": self.network}
        if self.objective.head is not None:
            self.modules["head"] = self.objective.head
        self.labels = self.class_labels.to(self.device)
        self.parameters = [value for module in self.modules.values() for value in module.parameters()]
        self.optimizer = build_optimizer(options, self.parameters)
        self.order = torch.Generator().manual_seed(options.seed)
        self.variation = torch.Generator().manual_seed(options.seed + 1)
        self.generators = {"order": self.order, "variation": self.variation, "dropout": torch.default_generator}
        if self.device.type == "cuda":
            self.generators["device"] = torch.cuda.default_generators[torch.cuda.current_device()]
        self.precision = _precision(options, self.device)
        self.scaler = torch.amp.GradScaler(self.device.type, enabled=self.precision == "fp16")
        self.average = None if options.average == "none" else WeightAverage(options, self.modules)
        total = len(images) * options.passes_per_epoch
        self.micro_batch = min(options.batch_size, total) // options.accumulate
        if self.micro_batch < 2:
            raise ValueError(f"{total} images make no {options.accumulate} micro-batches of 2; lower accumulate")
        self.batch_size = self.micro_batch * options.accumulate
        self.steps = total // self.batch_size

    @property
    def state_modules(self) -> dict[str, nn.Module]:
        """All modules whose state a checkpoint needs, by name."""
        return self.modules | ({} if self.average is None else {"average": self.average.model})

    def set_anchors(self) -> None:
        """Start every class weight as the mean feature of its identity, over the images as they are."""
        if self.objective.head is not None:
            features = self._embed(self.network, self.images)
            known = self.class_labels != UNLABELLED
            anchors = anchor_weights(features[known], self.class_labels[known], len(self.identities))
            set_anchors(self.objective.head.weight, anchors)

    def train_epoch(self, epoch: int, on_step: Callable[[dict[str, Any]], object] | None = None) -> dict[str, Any]:
        """Walk `passes_per_epoch` times through the images in random order; return the epoch's record.

        Args:
            epoch: from 0.
            on_step: called with each step's record.
        """
        options = self.options
        self.network.train()
        tally = _Tally(self.device)
        stream = self.images.batches(self._draw_rows())
        started, learning_rate = time.monotonic(), 0.0
        for step in progress(range(self.steps), f"epoch {epoch + 1}/{options.epochs}"):
            learning_rate = self.set_learning_rate(epoch * self.steps + step)
            before = time.monotonic()
            loss, norm = self.train_step(islice(stream, options.accumulate), tally)
            if on_step is not None and options.log_every:
                on_step(
                    {
                        "step": epoch * self.steps + step + 1,
                        "epoch": epoch + 1,
                        "loss": float(loss),
                        "learning_rate": learning_rate,
                        "gradient_norm": float(norm) if torch.isfinite(norm) else None,
                        "images_per_second": round(self.batch_size / max(time.monotonic() - before, 1e-9), 1),
                    }
                )
        if self.average is not None:
            self.average.after_epoch(epoch + 1)
        seconds = time.monotonic() - started
        seen = self.steps * self.batch_size
        return {
            "epoch": epoch + 1,
            "loss": float(tally.sums["loss"]) / self.steps,
            "learning_rate": learning_rate,
            **({} if self.objective.head is None else {"accuracy": float(tally.sums["hits"]) / max(1, tally.labelled)}),
            **{name: float(tally.sums[name]) / self.steps for name in tally.sums if name not in ("loss", "hits")},
            "seconds": round(seconds, 3),
            "images_per_second": round(seen / seconds, 1),
        }

    def train_step(self, parts: Iterable[tuple[Tensor, Tensor]], tally: "_Tally") -> tuple[Tensor, Tensor]:
        """Take one step on micro-batches of rows and uint8 images; return the loss and the norm of the gradient.

        Raises:
            NotFinite: where either is no number; the weights are then still as they were.
        """
        self.optimizer.zero_grad(set_to_none=True)
        total = torch.zeros((), device=self.device)
        item_ids: list[str] = []
        for rows, pixels in parts:
            batch = self._batch(rows, pixels)
            with self._autocast():
                embeddings = self.network(batch.images)
                lessons = self.objective.lessons(batch)
            outcome = self.objective(embeddings, batch, lessons)
            loss = outcome.loss / self.options.accumulate
            item_ids += batch.item_ids
            if not torch.isfinite(loss):
                raise self._not_finite("loss", outcome.loss, batch.item_ids)
            self.scaler.scale(loss).backward()
            total += loss.detach()
            tally.add(outcome.terms, share=1 / self.options.accumulate)
            if outcome.hits is not None:
                tally.add({"hits": outcome.hits})
                tally.labelled += outcome.labelled
        self.scaler.unscale_(self.optimizer)
        norm = nn.utils.clip_grad_norm_(self.parameters, self.options.gradient_clip or torch.inf)
        # a scaled gradient that overflows is skipped, and the scale halved; without a scale left it is no number either
        if not torch.isfinite(norm) and not (self.scaler.is_enabled() and self.scaler.get_scale() > 1.0):
            raise self._not_finite("gradient", norm, item_ids)
        self.scaler.step(self.optimizer)
        self.scaler.update()
        if self.average is not None:
            self.average.after_step()
        tally.add({"loss": total})
        return total, norm

    def set_learning_rate(self, step: int) -> float:
        """Set the optimiser's learning rate for `step`, counted from the start of the training, and return it."""
        options = self.options
        share = schedule(
            step,
            warmup=options.warmup_steps(self.steps),
            total=options.epochs * self.steps,
            shape=options.schedule,
            milestones=[milestone * self.steps for milestone in options.milestones],
            factor=options.milestone_factor,
            power=options.power,
        )
        for group in self.optimizer.param_groups:
            group["lr"] = options.learning_rate * share
        return options.learning_rate * share

    def finished_modules(self) -> dict[str, nn.Module]:
        """Return network and head as they are to be used: the averages, where there are any, with their norms measured.

        Raises:
            NotFinite: where a weight is no number.
        """
        modules = self.modules
        average = self.average
        if average is not None and average.count:
            with self._autocast():
                average.estimate_norms(self._norm_batches, self.options.seed)
            modules = {name: average.module(name) for name in self.modules}
        self.check_finite(modules)
        return modules

    def check_finite(self, modules: dict[str, nn.Module] | None = None) -> None:
        """Raise NotFinite where a weight, by default of the modules being trained, is no number."""
        for owner, module in (modules or self.modules).items():
            for name, value in module.state_dict().items():
                if not torch.isfinite(value).all():
                    raise NotFinite(f"the weights {owner}.{name} are no numbers; lower {self._rate_now()}")

    def validate(self, validation: ValidationSet) -> dict[str, float]:
        """Score the network on images of other identities."""
        network = self.finished_modules()["network"]
        return validation.score(self._embed(network, validation.images).numpy())

    def _check_teacher_knows(self) -> None:
        """Refuse a teacher that lacks training images now, rather than in the middle of an epoch."""
        if self.objective.teacher is not None:
            item_ids = [item.item_id for item in self.images.items]
            missing = (~self.objective.teacher.known(item_ids)).nonzero().flatten().tolist()
            if missing:
                raise ValueError(
                    f"the teacher {self.options.teacher} has no embedding of {len(missing)} of {len(item_ids)} "
                    f"training images, the first is {item_ids[missing[0]]!r}; embed them with the teacher"
                )

    def _draw_rows(self) -> list[Tensor]:
        passes = self.options.passes_per_epoch
        rows = torch.cat([torch.randperm(len(self.images), generator=self.order) for _ in range(passes)])
        return list(rows.split(self.micro_batch)[: self.steps * self.options.accumulate])

    def _batch(self, rows: Tensor, pixels: Tensor) -> Batch:
        images = augment(pixels.to(self.device), self.options.augmentation, self.variation)
        return Batch(
            item_ids=[self.images.items[row].item_id for row in rows.tolist()],
            labels=self.labels[rows.to(self.device)],
            images=images.contiguous(memory_format=torch.channels_last),
        )

    def _autocast(self) -> torch.autocast:
        dtype = torch.float16 if self.precision == "fp16" else torch.bfloat16
        return torch.autocast(self.device.type, dtype=dtype, enabled=self.precision != "fp32")

    def _embed(self, network: nn.Module, images: ImageSet) -> Tensor:
        """Embed images in evaluation mode, float32 [n, d] on the CPU."""
        network.eval()
        settings = preprocessing(self.options)
        with torch.inference_mode(), self._autocast():
            batches = images.batches(torch.arange(len(images)).split(self.micro_batch))
            return torch.cat([settings.embed(network, pixels.to(self.device)).cpu() for _, pixels in batches])

    def _norm_batches(self) -> Iterator[Tensor]:
        """Yield varied training images, the same ones at every call, for the norms of an average."""
        generator = torch.Generator().manual_seed(self.options.seed + 2)
        rows = torch.randperm(len(self.images), generator=generator)[:NORM_IMAGES]
        for _, pixels in self.images.batches(rows.split(self.micro_batch)):
            if len(pixels) > 1:  # the values of one image have no variance
                yield augment(pixels.to(self.device), self.options.augmentation, generator)

    def _not_finite(self, what: str, value: Tensor, item_ids: Sequence[str]) -> NotFinite:
        named = ", ".join(item_ids[:IDS_NAMED])
        more = f" and {len(item_ids) - IDS_NAMED} more" if len(item_ids) > IDS_NAMED else ""
        message = f"the {what} is {value.item()} in the batch of {named}{more}; lower {self._rate_now()}"
        return NotFinite(message, item_ids)

    def _rate_now(self) -> str:
        return f"learning_rate (now {self.options.learning_rate}) in a new out"


class _Tally:
    """Sums over an epoch, kept on the device so that no step waits for them."""

    def __init__(self, device: torch.device) -> None:
        self.sums: dict[str, Tensor] = {name: torch.zeros((), device=device) for name in ("loss", "hits")}
        self.labelled = 0

    def add(self, values: dict[str, Tensor], *, share: float = 1.0) -> None:
        for name, value in values.items():
            self.sums[name] = self.sums.get(name, torch.zeros_like(self.sums["loss"])) + value * share


def preprocessing(options: TrainOptions) -> Preprocessing:
    """Return the preprocessing that embeddings of the trained network need."""
    return Preprocessing(size=options.input_size, flip_average=options.flip_average)


def _precision(options: TrainOptions, device: torch.device) -> str:
    if options.precision == "auto":
        return "bf16" if multiplies_bf16(device) else "fp32"
    return options.precision
