"""What one training minimises: the head's loss and the terms beside it, added up.

Shapes: b batch, d embedding dimension, s side in pixels.
"""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from backbones.checkpoint import HEAD_FILE, MODEL_FILE, load_card, load_weights, training_folder
from backbones.losses.distillation import angular_distillation
from backbones.losses.heads import Head, build_head
from backbones.losses.influence import InfluenceLoss, match_classes
from backbones.losses.regular_face import regular_face
from backbones.options import TrainOptions
from backbones.training.teachers import load_teacher
from backbones.training.training_set import UNLABELLED


@dataclass(frozen=True)
class Batch:
    """Images of one micro-batch.

    Attributes:
        item_ids: of the b images.
        labels: int64 [b]; `UNLABELLED` where the identity is unknown.
        images: float32 [b, 3, s, s], varied, in [-1, 1].
    """

    item_ids: Sequence[str]
    labels: Tensor
    images: Tensor


@dataclass(frozen=True)
class Outcome:
    """What the objective says about one micro-batch.

    Attributes:
        loss: the sum of all terms, a scalar to differentiate.
        terms: mean value of each term beside the head's, before its weight, detached.
        hits: how many of the images with an identity were nearest to their own class; None without a head.
        labelled: how many images have an identity.
    """

    loss: Tensor
    terms: dict[str, Tensor] = field(default_factory=dict)
    hits: Tensor | None = None
    labelled: int = 0


class Objective:
    """The head's cross-entropy, plus RegularFace, angular distillation and influence loss where they are asked for.

    Args:
        options: of the training.
        identities: of the training, in the order of its labels.
        device: where to compute.

    Attributes:
        head: to be trained; None where the teacher is all there is.

    Raises:
        FileNotFoundError: where the teacher or the old training is missing.
        ValueError: where either does not fit this training.
    """

    def __init__(self, options: TrainOptions, identities: Sequence[str], device: torch.device) -> None:
        self.options = options
        self.head: Head | None = None
        if options.head != "none":
            self.head = build_head(
                options.head,
                embedding_dim=options.embedding_dim,
                classes=len(identities),
                scale=options.scale,
                margin=options.margin,
            ).to(device)
        self.teacher = None if options.teacher is None else load_teacher(options.teacher, device)
        if self.teacher is not None and self.teacher.dim != options.embedding_dim:
            raise ValueError(
                f"the teacher {options.teacher} has {self.teacher.dim} dimensions and the network "
                f"{options.embedding_dim}, expected the same; give --embedding-dim {self.teacher.dim}"
            )
        self.influence: InfluenceLoss | None = None
        if options.compatible_with is not None:
            self.influence = _influence(options.compatible_with, options, identities).to(device)

    @property
    def teacher_digest(self) -> dict[str, str]:
        """The SHA-256 of what the teacher's embeddings depend on, under the name of its option."""
        return {} if self.teacher is None else {"teacher": self.teacher.digest}

    def lessons(self, batch: Batch) -> Tensor | None:
        """Return the teacher's embeddings of a micro-batch, [b, d], where there is a teacher."""
        return None if self.teacher is None else self.teacher.embeddings(batch.item_ids, batch.images)

    def __call__(self, embeddings: Tensor, batch: Batch, lessons: Tensor | None) -> Outcome:
        """Judge the embeddings [b, d] of a micro-batch, beside the teacher's.

        The head and the influence loss see the rows with an identity, and take the mean over these.
        """
        options = self.options
        loss = torch.zeros((), device=embeddings.device)
        terms: dict[str, Tensor] = {}
        hits: Tensor | None = None
        known = batch.labels != UNLABELLED
        labelled = int(known.sum())
        named, labels = embeddings, batch.labels
        if labelled < len(labels):
            named, labels = embeddings[known], labels[known]
        if self.head is not None:
            hits = torch.zeros((), dtype=torch.int64, device=embeddings.device)
            if labelled:
                scores = self.head.scores(named)
                logits = self.head.logits(scores, labels)
                loss = F.cross_entropy(logits, labels, label_smoothing=options.label_smoothing)
                hits = (scores.argmax(dim=1) == labels).sum()
            if options.regular_face:
                terms["regular_face"] = regular_face(self.head.weight)
                loss = loss + options.regular_face * terms["regular_face"]
        if lessons is not None:
            terms["distillation"] = angular_distillation(embeddings, lessons)
            loss = loss + options.distillation_weight * terms["distillation"]
        if self.influence is not None:
            terms["influence"] = self.influence(named, labels)
            loss = loss + options.influence_weight * terms["influence"]
        return Outcome(loss, {name: value.detach() for name, value in terms.items()}, hits, labelled)


def load_head(folder: Path) -> tuple[Head, list[str]]:
    """Read the head of a finished training and the identities of its classes.

    Raises:
        FileNotFoundError: where there is no finished training.
        ValueError: where it kept no head, or a file of it is damaged.
    """
    folder = training_folder(folder)
    card = load_card(folder)
    described: dict[str, Any] | None = card.get("head")
    if described is None:
        raise ValueError(
            f"the training in {folder} kept no head, which compatible training needs; give one trained by this "
            "release with a head other than none"
        )
    identities = described["identities"]
    head = build_head(
        described["name"],
        embedding_dim=card["embedding_dim"],
        classes=len(identities),
        scale=described["scale"],
        margin=described["margin"],
    )
    load_weights(folder / HEAD_FILE, head)
    return head, identities


def describe_head(head: Head, name: str, identities: Sequence[str]) -> dict[str, Any]:
    """Return what `load_head` needs to know, for the card."""
    return {
        "name": name,
        "scale": getattr(head, "scale", 1.0),
        "margin": getattr(head, "margin", None),  # softmax has neither
        "identities": list(identities),
    }


def origins(options: TrainOptions) -> dict[str, str]:
    """Return a SHA-256 in hexadecimal of the weights this training starts from or stays compatible with, by option.

    Raises:
        FileNotFoundError: where they are missing.
    """
    files = {
        "finetune_from": (options.finetune_from, MODEL_FILE),
        "compatible_with": (options.compatible_with, HEAD_FILE),
    }
    return {
        name: _file_digest(training_folder(path) / file) for name, (path, file) in files.items() if path is not None
    }


def _file_digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _influence(folder: Path, options: TrainOptions, identities: Sequence[str]) -> InfluenceLoss:
    head, old_identities = load_head(folder)
    dim = head.weight.shape[1]
    if dim != options.embedding_dim:
        raise ValueError(
            f"the old training in {folder} has {dim} dimensions and this one {options.embedding_dim}, expected the "
            f"same; give --embedding-dim {dim}"
        )
    return InfluenceLoss(head, match_classes(identities, old_identities), label_smoothing=options.label_smoothing)
