"""What embeds items: an encoder and a set, opened from options alone, so that every process opens the same ones."""

from __future__ import annotations

from collections.abc import Generator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import polars as pl

from backbones.datasets.item_sets import open_items
from backbones.datasets.items import Items
from backbones.datasets.reading import read_ahead
from backbones.encoders.encoder import Backbone, EngineName, Precision
from backbones.encoders.load import load_backbone
from compat.extraction.adaptation import adapt
from compat.extraction.views import ImageTransform, item_rows, require_images, transformed, view_reader

SAMPLE_ITEMS = 64  # that the precision is judged by; fixed, so that it does not depend on how the work is cut up


@dataclass(frozen=True, kw_only=True)
class Encoding:
    """What is embedded, and how; the fields are options of `compat.extract`.

    Attributes:
        backbone: A built-in network, `onnx:FILE` or `module:function`.
        data: The items.
        root: Folder that the paths of a list start from.
        weights: Of the network.
        flip_average: Whether to average over mirror images; None as the network was trained for.
        preprocessing: Of an ONNX file, fields of `Preprocessing`.
        precision: Number format of the network.
        engine: What runs it.
        views: Embeddings per item.
        view_seed: Chooses the augmented views.
        test_transform: What is done to the images first.
        adabn: Images that the norms are adapted to.
        adabn_images: How many of them at most.
        max_bad: Unreadable images among those that are left out.
        batch_size: Embeddings made at a time.
        readers: Threads that read and decode.
    """

    backbone: str
    data: Path
    root: Path | None
    weights: Path | None
    flip_average: bool | None
    preprocessing: dict[str, Any]
    precision: Precision
    engine: EngineName
    views: int
    view_seed: int
    test_transform: ImageTransform
    adabn: Path | None
    adabn_images: int
    max_bad: int
    batch_size: int
    readers: int

    @property
    def batch_items(self) -> int:
        """Items that are embedded at a time."""
        return max(1, self.batch_size // self.views)


class Embedded(NamedTuple):
    """What became of some items in a row.

    Attributes:
        items: How many they were.
        rows: The item table's rows of those that could be read; None where none could.
        vectors: Their embeddings, float32 [len(rows), dim].
        skipped: `item_id` and `reason` of the others.
    """

    items: int
    rows: pl.DataFrame | None
    vectors: np.ndarray
    skipped: list[dict[str, Any]]


class Embedder:
    """An encoder and the items it is for.

    Raises:
        FileNotFoundError: If data or weights are missing.
        ValueError: If the backbone is unknown or does not fit its weights, or cannot read the items.
        ImportError: If the backbone or engine needs a package that is not installed.
    """

    def __init__(self, encoding: Encoding) -> None:
        self.encoding = encoding
        self.backbone: Backbone = load_backbone(
            encoding.backbone,
            weights=encoding.weights,
            flip_average=encoding.flip_average,
            preprocessing=encoding.preprocessing,
            precision=encoding.precision,
            engine=encoding.engine,
            micro_batch=encoding.batch_size,
        )
        self.items: Items = open_items(encoding.data, self.backbone.suffixes, encoding.root)
        self.backbone.require_reads(self.items)
        self.adapted: dict[str, Any] | None = None
        if encoding.adabn is not None:
            self.adapted = adapt(
                self.backbone,
                encoding.adabn,
                images=encoding.adabn_images,
                workers=encoding.readers,
                max_bad=encoding.max_bad,
            )

    def prepare(self) -> dict[str, Any]:
        """Get ready for many items, by the first ones wherever the work begins; return facts of the run.

        Raises:
            ValueError: If an option needs images and the items are none.
        """
        encoding = self.encoding
        first = islice(self.items.since(0), SAMPLE_ITEMS)
        read = read_ahead(first, self.backbone.read_item, batch_size=SAMPLE_ITEMS, workers=encoding.readers)
        sample = [reading.content for readings in read for reading in readings if reading.content is not None]
        if encoding.views > 1:
            require_images(sample, f"--views {encoding.views}")
        if encoding.test_transform != "none":
            require_images(sample, f"--test-transform {encoding.test_transform}")
        sample = [transformed(content, encoding.test_transform) for content in sample]
        return self.backbone.prepare(sample) if sample else {}

    def embed(self, start: int, stop: int) -> Generator[Embedded, None, None]:
        """Embed the items start..stop-1 of the set, in order, a batch at a time."""
        encoding = self.encoding
        read = view_reader(
            self.backbone, views=encoding.views, seed=encoding.view_seed, transform=encoding.test_transform
        )
        chosen = islice(self.items.since(start), stop - start)
        for readings in read_ahead(chosen, read, batch_size=encoding.batch_items, workers=encoding.readers):
            skipped = [
                {"item_id": each.item.item_id, "reason": each.reason} for each in readings if each.content is None
            ]
            contents = [view for reading in readings if reading.content is not None for view in reading.content]
            if contents:
                yield Embedded(len(readings), item_rows(readings, self.items), self.backbone.embed(contents), skipped)
            else:
                yield Embedded(len(readings), None, np.empty((0, self.backbone.dim), np.float32), skipped)
