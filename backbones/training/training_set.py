"""The images of a training: with identities, without, or some of both.

Shapes: n images.
"""

import hashlib
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from backbones.datasets.image_item import ImageItem
from backbones.datasets.image_set import ImageSet
from backbones.datasets.item_sets import image_items
from backbones.options import TrainOptions

UNLABELLED = -1
"""The label of an image whose identity is unknown."""


class Classes(NamedTuple):
    """The identities of a training.

    Attributes:
        identities: sorted; the class of a label is its place here.
        labels: int64 [n], the class of each image, or `UNLABELLED`.
    """

    identities: list[str]
    labels: Tensor


def list_training(options: TrainOptions) -> list[ImageItem]:
    """List the images of `options.data`, then those of `options.unlabelled` without their identities; none is decoded.

    Raises:
        OSError: where either is not there.
        ValueError: for a set that is damaged or empty, images without identities where a head needs them, or an item id
            that both sets have.
    """
    items = image_items(options.data, options.root if _is_list(options.data) else None)
    if options.root is not None and not any(_is_list(path) for path in (options.data, options.unlabelled) if path):
        raise ValueError(
            f"root is {options.root}, which belongs to lists (.txt), and data is {options.data}; leave it out"
        )
    if options.head != "none" and not all(item.label for item in items):
        bare = next(item.item_id for item in items if not item.label)
        raise ValueError(
            f"{options.data} does not tell the identity of {bare}, which the head {options.head} needs; expected a "
            "folder or a line with the identity of each image, or learn from a teacher alone: --head none --teacher"
        )
    if options.unlabelled is None:
        return items
    known = {item.item_id for item in items}
    further = image_items(options.unlabelled, options.root if _is_list(options.unlabelled) else None)
    both = next((item.item_id for item in further if item.item_id in known), None)
    if both is not None:
        raise ValueError(
            f"{options.data} and {options.unlabelled} both hold {both}; remove or rename it in one of them"
        )
    return items + [item._replace(label="") for item in further]


def listing_digest(items: Sequence[ImageItem]) -> str:
    """Return a SHA-256 in hexadecimal over ids, identities and sizes in bytes of images; nothing is decoded."""
    digest = hashlib.sha256()
    for item in items:
        digest.update(f"{item.item_id}\t{item.label}\t{item.size}\n".encode("utf-8", "surrogatepass"))
    return digest.hexdigest()


def read_training(options: TrainOptions, items: Sequence[ImageItem]) -> ImageSet:
    """Decode the listed images once; see `ImageSet`."""
    return ImageSet(
        items,
        options.input_size,
        max_bad=options.max_bad,
        memory=options.image_memory,
        workers=options.workers,
        keep_fraction=options.keep_fraction,
        seed=options.seed,
    )


def classes_of(images: ImageSet) -> Classes:
    """Return the identities that the images tell, and each image's."""
    identities = sorted({item.label for item in images.items} - {""})
    places = {label: place for place, label in enumerate(identities)} | {"": UNLABELLED}
    return Classes(identities, torch.tensor([places[item.label] for item in images.items], dtype=torch.int64))


def _is_list(path: object) -> bool:
    return str(path).lower().endswith(".txt")
