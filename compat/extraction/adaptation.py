"""Norms adapted to the images of a set before the extraction (AdaBN)."""

import sys
from collections.abc import Iterator
from itertools import compress
from pathlib import Path
from typing import Any

import numpy as np

from backbones.datasets.item_sets import open_items
from backbones.datasets.items import Item, Items
from backbones.datasets.reading import read_ahead
from backbones.encoders.adabn import require_space
from backbones.encoders.encoder import Backbone
from backbones.encoders.images import ImageBackbone

BATCH_IMAGES = 64
MOST_UNSAID = 500_000_000  # bytes of temporary files that need no mention


def adapt(backbone: Backbone, data: Path, *, images: int, workers: int, max_bad: int) -> dict[str, Any]:
    """Adapt the norms of a network to images of a set; say on standard error where that takes much disk.

    Args:
        backbone: an `ImageBackbone`.
        data: the set.
        images: how many of it are taken at most, evenly spaced in its order.
        workers: threads that read and decode.
        max_bad: unreadable images that are left out; one more is an error.

    Returns:
        What the store's provenance says of it.

    Raises:
        OSError: where the temporary disk is too small, or the data cannot be read.
        ValueError: for another backbone, or too many unreadable images.
    """
    if not isinstance(backbone, ImageBackbone):
        raise ValueError(f"--adabn adapts networks that `backbones.train` wrote, {backbone.name} is none; leave it out")
    target = open_items(data, backbone.suffixes)
    taken = min(images, target.count)
    needed = taken * backbone.adaptation_bytes()
    if needed > MOST_UNSAID:
        told = f"adapting to {taken} of {target.count} images takes up to {needed / 1e9:.1f} GB of temporary files"
        print(f"note: {told}", file=sys.stderr)
    require_space(needed)
    bad: dict[str, str] = {}

    class Pass:
        """One pass over the images, each time it is iterated over."""

        def __iter__(self) -> Iterator[list[np.ndarray]]:
            batches = read_ahead(_evenly(target, taken), backbone.read_item, batch_size=BATCH_IMAGES, workers=workers)
            for readings in batches:
                bad.update({str(r.item.item_id): r.reason for r in readings if r.content is None})
                require_few_bad(bad, max_bad)
                yield [r.content for r in readings if r.content is not None]

    statistics = backbone.adapt_norms(Pass())
    return {**statistics.to_dict(), "items": taken, "items_sha256": target.digest, "skipped": len(bad)}


def _evenly(items: Items, count: int) -> Iterator[Item]:
    """Yield `count` items of a set, evenly spaced, so that no identity is left out for being late in the order."""
    chosen = ((number + 1) * count // items.count > number * count // items.count for number in range(items.count))
    return compress(items.since(0), chosen)


def require_few_bad(bad: dict[str, str], most: int) -> None:
    """Raise ValueError, which names the first, where more than `most` items are unreadable; reasons by item id."""
    if len(bad) > most:
        name, reason = next(iter(bad.items()))
        raise ValueError(f"{len(bad)} items are unreadable, --max-bad allows {most}; the first is {name}: {reason}")
