"""Views of an item, and the rows of the item table that they get."""

from collections.abc import Callable, Sequence
from typing import Any, Literal

import numpy as np
import polars as pl
import torch

from backbones.augmentation.views import augmented_view, low_light_test
from backbones.datasets.items import Item, Items
from backbones.datasets.reading import Reading
from backbones.encoders.encoder import Backbone
from backbones.options import AugmentOptions

ImageTransform = Literal["none", "low-light"]


def view_reader(backbone: Backbone, *, views: int, seed: int, transform: ImageTransform) -> Callable[[Item], list[Any]]:
    """Return a function that reads an item as its views, of which the first is the item itself.

    Args:
        backbone: reads the item.
        views: how many.
        seed: chooses the further ones.
        transform: what is done to the image before.
    """

    def read(item: Item) -> list[Any]:
        content = transformed(backbone.read_item(item), transform)
        return [_view(content, item, view, seed) for view in range(views)]

    return read


def transformed(content: Any, transform: ImageTransform) -> Any:
    """Return an image, uint8 [h, w, 3], as a published test of robustness changes it; any content where it is none."""
    return low_light_test(torch.from_numpy(content)).numpy() if transform == "low-light" else content


def _view(content: Any, item: Item, view: int, seed: int) -> Any:
    if view == 0:
        return content
    return augmented_view(content, item_id=str(item.item_id), view=view, seed=seed, options=AugmentOptions())


def require_images(sample: Sequence[Any], options: str) -> None:
    """Raise ValueError, which names the options that need images, where the backbone reads something else."""
    if not all(isinstance(each, np.ndarray) and each.dtype == np.uint8 and each.ndim == 3 for each in sample):
        raise ValueError(f"{options} needs a backbone that reads images; this one does not: leave it out")


def item_rows(readings: Sequence[Reading[Item, list[Any]]], items: Items) -> pl.DataFrame:
    """Return the item table's rows of the readable items: item_id, label where the set has some, source_item, view."""
    columns: dict[str, list[Any]] = {"item_id": [], "label": [], "source_item": [], "view": []}
    for item, content, _ in readings:
        for view in range(len(content or ())):
            columns["item_id"].append(f"{item.item_id}#view{view}" if view else item.item_id)
            columns["label"].append(None if item.label == "" else item.label)
            columns["source_item"].append(item.item_id)
            columns["view"].append(view)
    ids = pl.Int64 if isinstance(next(iter(columns["item_id"]), ""), int) else pl.String
    # told by the whole set: the labels of a batch may all be missing
    labels = {int: pl.Int64, str: pl.String}.get(items.label_type) if items.label_type else None
    types = {"item_id": ids, "label": labels, "source_item": ids, "view": pl.Int64}
    schema = {name: kind for name, kind in types.items() if kind is not None}
    return pl.DataFrame({name: columns[name] for name in schema}, schema=schema)
