"""Images in memory, or decoded batch by batch where they do not fit.

Shapes: n images, b batch, s side in pixels.
"""

import hashlib
from collections import defaultdict
from collections.abc import Iterator, Sequence
from contextlib import closing
from functools import partial
from itertools import chain
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from backbones.datasets.decoding import read_item, stack_images
from backbones.datasets.image_item import ImageItem
from backbones.datasets.item_sets import image_items
from backbones.datasets.reading import map_ahead, read_ahead

MEGABYTE = 1 << 20
READ_TOGETHER = 16  # images per thread at a time at the start
SHOWN = 5  # names of a long list that an error tells


class ImageSet:
    """The readable images of a set and their classes.

    Every image is decoded once at the start, so that unreadable ones are known, and counted, before the training.

    Args:
        data: what `image_items` lists, or such items themselves.
        size: s.
        max_bad: how many unreadable images are skipped before it is an error.
        memory: megabytes up to which the decoded images are kept.
        workers: threads that decode.
        keep_fraction: share of each identity's images that is used; see `keep_share`.
        seed: of the choice of these.
        labels_needed: False takes sets that tell no identities too, for trainings that need none.
        root: folder that the paths of a list start from; None is the list's own.

    Attributes:
        items: the readable images, n of them.
        identities: sorted; the class of a label is its place here. None where the set tells none.
        labels: int64 [n], the class of each image; zeros where the set tells none.
        skipped: item ids of unreadable images.
        pixels: uint8 [n, 3, s, s], or None where the images do not fit.
        digest: hexadecimal SHA-256 over the item ids, identities and pixels of the readable images. Whether the pixels
            are kept and which decoder read them is no part of it: all give the same pixels.

    Raises:
        OSError: where `data` is not there.
        ValueError: for a set without images, or without identities where they are needed, or more than `max_bad`
            unreadable images.
    """

    def __init__(
        self,
        data: Path | Sequence[ImageItem],
        size: int,
        *,
        max_bad: int,
        memory: int,
        workers: int,
        keep_fraction: float = 1.0,
        seed: int = 0,
        labels_needed: bool = True,
        root: Path | None = None,
    ) -> None:
        listed = _listed(data, root, labels_needed=labels_needed) if isinstance(data, Path) else data
        found = keep_share(listed, keep_fraction, seed)
        self.size = size
        self.workers = workers
        keep = len(found) * size * size * 3 <= memory * MEGABYTE
        pixels: list[np.ndarray] = []
        self.items: list[ImageItem] = []
        self.skipped: list[str] = []
        digest = hashlib.sha256()
        read = partial(_read_and_digest, size=size)
        with closing(read_ahead(found, read, batch_size=READ_TOGETHER * workers, workers=workers)) as batches:
            for item, content, reason in chain.from_iterable(batches):
                if content is None:
                    self.skipped.append(item.item_id)
                    if len(self.skipped) > max_bad:
                        raise ValueError(f"{len(self.skipped)} unreadable images, --max_bad allows {max_bad}: {reason}")
                    continue
                image, image_digest = content
                self.items.append(item)
                digest.update(f"{image_digest}\t{item.item_id}\t{item.label}\n".encode("utf-8", "surrogatepass"))
                if keep:
                    pixels.append(image)
        labels = sorted({item.label for item in self.items})
        place = {label: index for index, label in enumerate(labels)}
        self.identities = [] if labels == [""] else labels
        self.labels = torch.tensor([place[item.label] for item in self.items], dtype=torch.int64)
        self.pixels = stack_images(pixels) if pixels else None
        self.digest = digest.hexdigest()

    def __len__(self) -> int:
        return len(self.items)

    def batches(self, batches_of_rows: Sequence[Tensor]) -> Iterator[tuple[Tensor, Tensor]]:
        """Yield (rows int64 [b], images uint8 [b, 3, s, s]) for each of `batches_of_rows`, decoding ahead."""
        if self.pixels is not None:
            for rows in batches_of_rows:
                yield rows, self.pixels[rows]
            return
        items = ([self.items[row] for row in rows.tolist()] for rows in batches_of_rows)
        decoded = map_ahead(items, partial(read_item, size=self.size), workers=self.workers)
        for rows, images in zip(batches_of_rows, decoded, strict=True):
            yield rows, stack_images(images)


def _read_and_digest(item: ImageItem, size: int) -> tuple[np.ndarray, str]:
    """Return the image and a digest of its pixels, taken here because hashing, like decoding, runs in many threads."""
    image = read_item(item, size)
    return image, hashlib.blake2b(image.tobytes(), digest_size=16).hexdigest()


def keep_share(items: Sequence[ImageItem], fraction: float, seed: int) -> list[ImageItem]:
    """Keep a share of each identity's images, at least one of each, in the order given.

    Each identity's images are ranked by a hash of the seed and the item id, and the first are kept: the choice hangs on
    nothing else, and a smaller share is part of a larger one.

    Args:
        items: the images.
        fraction: above 0 and at most 1; of n images the nearest whole number to `fraction * n` is kept.
        seed: another seed ranks otherwise.

    Raises:
        ValueError: for an impossible fraction.
    """
    if not 0.0 < fraction <= 1.0:
        raise ValueError(f"keep_fraction is {fraction}, expected above 0 and at most 1")
    if fraction == 1.0:
        return list(items)
    ranked: defaultdict[str, list[tuple[bytes, str]]] = defaultdict(list)
    for item in items:
        rank = hashlib.blake2b(f"{seed}/{item.item_id}".encode(), digest_size=8).digest()
        ranked[item.label].append((rank, item.item_id))
    kept = {
        item_id for ranks in ranked.values() for _, item_id in sorted(ranks)[: max(1, int(fraction * len(ranks) + 0.5))]
    }
    return [item for item in items if item.item_id in kept]


def require_disjoint(training: ImageSet, evaluation: ImageSet) -> None:
    """Refuse to evaluate on identities that were trained on, which flatters every network.

    Identities are compared by name. RecordIO and WebDataset sets often number theirs from 0, so that two such sets
    share names without sharing people.

    Raises:
        ValueError: naming some of the shared identities and how many there are.
    """
    shared = sorted(set(training.identities).intersection(evaluation.identities) - {""})
    if shared:
        more = f" and {len(shared) - SHOWN} more" if len(shared) > SHOWN else ""
        raise ValueError(
            f"{len(shared)} of the {len(evaluation.identities)} identities to evaluate on are in the training set: "
            f"{', '.join(shared[:SHOWN])}{more}; remove them from one set, or rename them where only the names agree"
        )


def _listed(data: Path, root: Path | None, *, labels_needed: bool) -> list[ImageItem]:
    items = image_items(data, root)
    if labels_needed and not any(item.label for item in items):
        raise ValueError(
            f"{data} tells no identities, only images or pairs of them; expected a folder per identity, or lines of "
            "`relative/path identity`"
        )
    return items
