"""Training images in memory, or decoded batch by batch where they do not fit.

Shapes: n images, b batch, s side in pixels.
"""

from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from backbones.checkpoint import tensor_digest
from backbones.images import ImageItem, UnreadableImage, read_image, scan_image_folder
from backbones.preprocessing import stack_images

MEGABYTE = 1 << 20
BATCHES_AHEAD = 2


class ImageSet:
    """The readable images of a folder and their classes.

    Every image is decoded once at the start, so that unreadable ones are known, and counted, before the training.

    Args:
        root: folder with one folder per identity.
        size: s.
        max_bad: how many unreadable images are skipped before it is an error.
        memory: megabytes up to which the decoded images are kept.
        workers: threads that decode.

    Attributes:
        items: the readable images, n of them.
        identities: sorted; the class of a label is its place here.
        labels: int64 [n], the class of each image.
        skipped: item ids of unreadable images.
        pixels: uint8 [n, 3, s, s], or None where the images do not fit.
        digest: hexadecimal SHA-256 over the item ids, which name the identities, and over the pixels where kept.

    Raises:
        OSError: where `root` is no folder.
        ValueError: for a folder without images, or more than `max_bad` unreadable ones.
    """

    def __init__(self, root: Path, size: int, *, max_bad: int, memory: int, workers: int) -> None:
        found = scan_image_folder(root)
        self.size = size
        self.workers = workers
        keep = len(found) * size * size * 3 <= memory * MEGABYTE
        pixels: list[np.ndarray] = []
        self.items: list[ImageItem] = []
        self.skipped: list[str] = []
        with ThreadPoolExecutor(workers) as pool:
            for item, image in zip(found, pool.map(lambda item: _read(item, size), found), strict=True):
                if isinstance(image, UnreadableImage):
                    self.skipped.append(item.item_id)
                    if len(self.skipped) > max_bad:
                        raise ValueError(f"{len(self.skipped)} unreadable images, --max_bad allows {max_bad}: {image}")
                    continue
                self.items.append(item)
                if keep:
                    pixels.append(image)
        self.identities = sorted({item.label for item in self.items})
        place = {label: index for index, label in enumerate(self.identities)}
        self.labels = torch.tensor([place[item.label] for item in self.items])
        self.pixels = stack_images(pixels) if pixels else None
        names = "\n".join(item.item_id for item in self.items)
        self.digest = tensor_digest({} if self.pixels is None else {"pixels": self.pixels}, names)

    def __len__(self) -> int:
        return len(self.items)

    def batches(self, batches_of_rows: Sequence[Tensor]) -> Iterator[tuple[Tensor, Tensor]]:
        """Yield (rows int64 [b], images uint8 [b, 3, s, s]) for each of `batches_of_rows`, decoding ahead."""
        if self.pixels is not None:
            for rows in batches_of_rows:
                yield rows, self.pixels[rows]
            return
        with ThreadPoolExecutor(self.workers) as pool:
            ahead: deque[tuple[Tensor, list[Future[np.ndarray]]]] = deque()
            for rows in batches_of_rows:
                ahead.append(
                    (rows, [pool.submit(read_image, self.items[row].path, self.size) for row in rows.tolist()])
                )
                if len(ahead) > BATCHES_AHEAD:
                    yield _collect(*ahead.popleft())
            while ahead:
                yield _collect(*ahead.popleft())


def _collect(rows: Tensor, images: list[Future[np.ndarray]]) -> tuple[Tensor, Tensor]:
    return rows, stack_images([image.result() for image in images])


def _read(item: ImageItem, size: int) -> np.ndarray | UnreadableImage:
    try:
        return read_image(item.path, size)
    except UnreadableImage as error:
        return error
