"""The networks of font_identities: which are trained on what and how, and about how long that takes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from font_set import BuildOptions

from backbones.options import AugmentOptions, TrainOptions

TRAINED_PER_SECOND = {"iresnet18": 130.0, "irse18": 120.0, "iresnet50": 55.0}
"""Images of 32 px on two quiet cores in bf16; for the estimate alone."""
EMBEDDED_PER_SECOND = {"iresnet18": 430.0, "irse18": 400.0, "iresnet50": 150.0}

SMOOTHING = 0.1
REGULARITY = 1.0


@dataclass(frozen=True, kw_only=True)
class Cell:
    """One network.

    Attributes:
        name: Of the folder and of the row.
        arch: Architecture.
        data: Name of the tar of training images.
        epochs: Passes over it.
        batch_size: Images a step.
        recipe: Fields of `TrainOptions` beside those that all networks share.
        teacher: Name of an earlier cell whose stored embeddings are imitated.
        compatible_with: Name of an earlier cell whose head judges the new embeddings too.
    """

    name: str
    arch: str
    data: str
    epochs: int
    batch_size: int
    recipe: Mapping[str, Any] = field(default_factory=dict)
    teacher: str = ""
    compatible_with: str = ""

    def training(self, folder: Path, side: int, seed: int) -> TrainOptions:
        """The options of training, with the set in `folder`/set and networks in `folder`/networks.

        Characters have a right and a left side, so nothing is mirrored.
        """
        given: dict[str, Any] = dict(self.recipe)
        if self.teacher:
            given["teacher"] = stored_teacher(folder, self)
        if self.compatible_with:
            given["compatible_with"] = folder / "networks" / self.compatible_with
        return TrainOptions(
            data=folder / "set" / f"{self.data}.tar",
            out=folder / "networks" / self.name,
            arch=self.arch,
            input_size=side,
            epochs=self.epochs,
            batch_size=self.batch_size,
            warmup_epochs=0.5,
            augmentation=AugmentOptions(flip=0.0),
            flip_average=False,
            seed=seed,
            **given,
        )


@dataclass(frozen=True, kw_only=True)
class Sizes:
    """How much is drawn and trained.

    Attributes:
        build: The image set; its two subsets are the many and the few characters to train on.
        many_epochs: On the many characters.
        head_epochs: For comparing heads on the few.
        compatibility_epochs: For distillation and compatibility on the few.
    """

    build: BuildOptions
    many_epochs: int = 4
    head_epochs: int = 3
    compatibility_epochs: int = 4


def smoke_sizes(build: BuildOptions) -> Sizes:
    """Enough to see everything run, and nothing to learn from."""
    small = {"kanji_step": 40, "train_characters": 40, "subsets": (30, 16), "test_characters": 20, "train_designs": 6}
    return Sizes(build=BuildOptions(**{**vars(build), **small}), many_epochs=1, head_epochs=1, compatibility_epochs=1)


def stored_teacher(folder: Path, cell: Cell) -> Path:
    """Where the teacher's embeddings of a cell's training images are."""
    return folder / "vectors" / f"{cell.teacher}-{cell.data}.npz"


def identity_cells(sizes: Sizes) -> list[Cell]:
    """Two sizes of network on many characters."""
    many = f"train-{sizes.build.subsets[0]}"
    return [
        Cell(name=f"{arch}-{sizes.build.subsets[0]}", arch=arch, data=many, epochs=sizes.many_epochs, batch_size=64)
        for arch in ("iresnet18", "iresnet50")
    ]


def head_cells(sizes: Sizes) -> list[Cell]:
    """Heads and terms, one changed at a time, on few characters; the first is what others are compared with."""
    changes: dict[str, tuple[str, dict[str, Any]]] = {
        "arcface": ("iresnet18", {}),
        "softmax": ("iresnet18", {"head": "softmax"}),
        "cosface": ("iresnet18", {"head": "cosface"}),
        "arcnegface": ("iresnet18", {"head": "arcnegface"}),
        "label-smoothing": ("iresnet18", {"label_smoothing": SMOOTHING}),
        "regular-face": ("iresnet18", {"regular_face": REGULARITY}),
        "squeeze-excitation": ("irse18", {}),
    }
    few = f"train-{sizes.build.subsets[1]}"
    return [
        Cell(name=name, arch=arch, data=few, epochs=sizes.head_epochs, batch_size=32, recipe=recipe)
        for name, (arch, recipe) in changes.items()
    ]


OLD, NEW, DISTILLED, COMPATIBLE = "old-iresnet18", "new-iresnet50", "distilled-iresnet18", "compatible-iresnet50"


def compatibility_cells(sizes: Sizes) -> list[Cell]:
    """An old and a new network, a student of the new one, and a new one made to fit the old gallery."""
    shared: dict[str, Any] = {
        "data": f"train-{sizes.build.subsets[1]}",
        "epochs": sizes.compatibility_epochs,
        "batch_size": 32,
    }
    return [
        Cell(name=OLD, arch="iresnet18", **shared),
        Cell(name=NEW, arch="iresnet50", **shared),
        Cell(name=DISTILLED, arch="iresnet18", teacher=NEW, **shared),
        Cell(name=COMPATIBLE, arch="iresnet50", compatible_with=OLD, **shared),
    ]


def all_cells(sizes: Sizes) -> list[Cell]:
    """In an order in which each finds what it builds on."""
    return [*identity_cells(sizes), *head_cells(sizes), *compatibility_cells(sizes)]


def estimated_minutes(cells: Sequence[Cell], sizes: Sizes) -> dict[str, float]:
    """Minutes of each cell, training and embedding the test images, on two quiet cores."""
    build = sizes.build
    area = (build.side / 32) ** 2
    minutes = {}
    for cell in cells:
        trained = int(cell.data.removeprefix("train-")) * build.train_designs * cell.epochs
        tested = build.test_characters * build.test_images
        seconds = trained / TRAINED_PER_SECOND[cell.arch] + tested / EMBEDDED_PER_SECOND[cell.arch]
        minutes[cell.name] = area * seconds / 60
    return minutes
