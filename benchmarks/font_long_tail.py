"""A long-tailed set made of one that is not: few identities of many samples, many of few. A list, not copies."""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from font_files import file_digest, replace_file

from backbones.options import AugmentOptions


def long_tail(item_ids: Sequence[str], *, most: int, seed: int) -> list[tuple[str, int]]:
    """Samples (item id, view) of a long-tailed set: the identity of rank r has most * r^-a of them, the last has one.

    An identity's items are taken in an order drawn by the seed, first as they are (view 0), then as their augmented
    views 1, 2, ...: what `backbones.augmentation.views.augmented_view` makes and `compat.extract --views` embeds, there
    as item `ITEM#view1`. Nothing is copied.

    Args:
        item_ids: `identity/file`, of all items.
        most: Samples of the commonest identity.
        seed: Which identity has which rank, and the order of items.

    Source: a Zipf law, Zipf, "Human Behavior and the Principle of Least Effort", 1949.
    """
    items: dict[str, list[str]] = {}
    for item_id in sorted(item_ids):
        items.setdefault(item_id.split("/")[0], []).append(item_id)
    generator = np.random.default_rng(seed)
    ranked = [sorted(items)[i] for i in generator.permutation(len(items))]
    exponent = math.log(most) / math.log(len(ranked)) if len(ranked) > 1 else 0.0
    samples = []
    for rank, name in enumerate(ranked, start=1):
        own = [items[name][i] for i in generator.permutation(len(items[name]))]
        count = max(1, round(most * rank**-exponent))
        samples += [(own[i % len(own)], i // len(own)) for i in range(count)]
    return samples


def sample_images(
    images: Mapping[str, np.ndarray], samples: Iterable[tuple[str, int]], options: AugmentOptions, *, seed: int
) -> Iterator[tuple[str, str, np.ndarray]]:
    """Make the samples: their id (`ITEM` or `ITEM#view1`, as `compat.extract` names them), identity and image.

    Args:
        images: uint8 [s, s, 3] by item id.
        samples: Item ids and views.
        options: How far to vary; characters should not be mirrored (flip=0).
        seed: Chooses the views; `--view-seed` of `compat.extract`.
    """
    from backbones.augmentation.views import augmented_view  # torch

    for item_id, view in samples:
        image = augmented_view(images[item_id], item_id=item_id, view=view, seed=seed, options=options)
        yield f"{item_id}#view{view}" if view else item_id, item_id.split("/")[0], image


def read_long_tail(path: Path) -> list[tuple[str, int]]:
    """The samples (item id, view) of a list written by `write_long_tail`."""
    with path.open(newline="") as file:
        return [(row["item_id"], int(row["view"])) for row in csv.DictReader(file)]


def write_long_tail(path: Path, samples: Sequence[tuple[str, int]]) -> dict[str, Any]:
    """Write a list of samples as CSV with the columns item_id and view; return what the manifest says of it."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerows(_rows(samples))
    replace_file(path, text.getvalue().encode())
    views = max((view for _, view in samples), default=0) + 1
    return {"file": path.name, "sha256": file_digest(path), "samples": len(samples), "views": views}


def _rows(samples: Sequence[tuple[str, int]]) -> Iterator[tuple[str, str]]:
    yield "item_id", "view"
    for item_id, view in samples:
        yield item_id, str(view)
