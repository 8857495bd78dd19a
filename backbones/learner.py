"""The moving parts of one backbone training, and one step and one epoch of it.

Shapes: b batch, s side in pixels, d embedding dimension.
"""

import time
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from backbones.augment import augment
from backbones.backbone import default_device
from backbones.command_line import progress
from backbones.image_set import ImageSet
from backbones.inference import multiplies_bf16
from backbones.iresnet import build_architecture
from backbones.margins import build_head
from backbones.optimization import build_optimizer, schedule
from backbones.options import TrainOptions
from backbones.preprocessing import Preprocessing
from backbones.validation import nearest_neighbor_recall, pair_accuracy


class Learner:
    """Network, head, optimiser and sources of random numbers; torch's default generator serves weights and dropout.

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
        )
        self.network = network.to(device=self.device, memory_format=torch.channels_last)  # pyright: ignore[reportCallIssue]
        self.head = build_head(
            options.head,
            embedding_dim=options.embedding_dim,
            classes=len(images.identities),
            scale=options.scale,
            margin=options.margin,
        ).to(self.device)
        self.labels = images.labels.to(self.device)
        self.modules: dict[str, nn.Module] = {"network": self.network, "head": self.head}
        self.parameters = [*self.network.parameters(), *self.head.parameters()]
        self.optimizer = build_optimizer(options, self.parameters)
        self.order = torch.Generator().manual_seed(options.seed)
        self.variation = torch.Generator().manual_seed(options.seed + 1)
        self.generators = {"order": self.order, "variation": self.variation, "dropout": torch.default_generator}
        self.bf16 = options.precision == "bf16" or (options.precision == "auto" and multiplies_bf16(self.device))
        total = len(images) * options.passes_per_epoch
        self.batch_size = min(options.batch_size, total)
        self.steps = total // self.batch_size

    def train_epoch(self, epoch: int) -> dict[str, Any]:
        """Walk `passes_per_epoch` times through the images in random order; return the epoch's record."""
        options = self.options
        self.network.train()
        passes = [torch.randperm(len(self.images), generator=self.order) for _ in range(options.passes_per_epoch)]
        batches = torch.cat(passes).split(self.batch_size)[: self.steps]
        loss_sum = torch.zeros((), device=self.device)
        right = torch.zeros((), device=self.device)
        started, learning_rate = time.monotonic(), 0.0
        stream = progress(self.images.batches(batches), f"epoch {epoch + 1}/{options.epochs}", total=self.steps)
        for step, (rows, pixels) in enumerate(stream, start=epoch * self.steps):
            learning_rate = self.set_learning_rate(step)
            loss, hits = self.train_step(rows, augment(pixels.to(self.device), options.augmentation, self.variation))
            loss_sum += loss
            right += hits
        seconds = time.monotonic() - started
        seen = self.steps * self.batch_size
        return {
            "epoch": epoch + 1,
            "loss": float(loss_sum) / self.steps,
            "learning_rate": learning_rate,
            "accuracy": float(right) / seen,
            "seconds": round(seconds, 3),
            "images_per_second": round(seen / seconds, 1),
        }

    def train_step(self, rows: Tensor, images: Tensor) -> tuple[Tensor, Tensor]:
        """Take one step on images float32 [b, 3, s, s]; return the loss and how many were nearest to their class."""
        labels = self.labels[rows.to(self.device)]
        images = images.contiguous(memory_format=torch.channels_last)
        with torch.autocast(self.device.type, dtype=torch.bfloat16, enabled=self.bf16):
            embeddings = self.network(images)
        cosines = self.head.cosines(embeddings)
        loss = F.cross_entropy(self.head.add_margin(cosines, labels), labels)
        if not torch.isfinite(loss):
            ids = ", ".join(self.images.items[row].item_id for row in rows.tolist())
            raise ValueError(
                f"the loss is {loss.item()}; lower learning_rate (now {self.options.learning_rate}): {ids}"
            )
        self.optimizer.zero_grad(set_to_none=True)
        loss.backward()
        nn.utils.clip_grad_norm_(self.parameters, self.options.gradient_clip)
        self.optimizer.step()
        return loss.detach(), (cosines.argmax(dim=1) == labels).sum()

    def set_learning_rate(self, step: int) -> float:
        """Set the optimiser's learning rate for `step`, counted from the start of the training, and return it."""
        warmup = self.options.warmup_epochs * self.steps
        rate = self.options.learning_rate * schedule(step, warmup=warmup, total=self.options.epochs * self.steps)
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        return rate

    def validate(self, images: ImageSet) -> dict[str, float]:
        """Score the network on the images of other identities."""
        self.network.eval()
        settings = preprocessing(self.options)
        with torch.inference_mode(), torch.autocast(self.device.type, dtype=torch.bfloat16, enabled=self.bf16):
            batches = images.batches(torch.arange(len(images)).split(self.options.batch_size))
            blocks = [settings.embed(self.network, pixels.to(self.device)).cpu() for _, pixels in batches]
        embeddings = torch.cat(blocks).numpy()
        labels = images.labels.numpy()
        return {
            "pair_accuracy": pair_accuracy(embeddings, labels),
            "recall_at_1": nearest_neighbor_recall(embeddings, labels),
        }


def preprocessing(options: TrainOptions) -> Preprocessing:
    """Return the preprocessing that embeddings of the trained network need."""
    return Preprocessing(size=options.input_size, flip_average=options.flip_average)
