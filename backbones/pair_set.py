"""Image pairs to verify: their images decoded once each, and which pairs show one person.

Shapes: n images, p pairs.
"""

from pathlib import Path

import numpy as np
import torch

from backbones.image_set import ImageSet
from backbones.pair_files import read_pairs


class PairSet:
    """The pairs of a file whose images can be read.

    Args:
        data: what `read_pairs` reads.
        size: side of the images in pixels.
        max_bad: how many unreadable images are skipped, with their pairs, before it is an error.
        memory: megabytes up to which the decoded images are kept.
        workers: threads that decode.
        root: folder that a list's paths start from; None is the list's own.

    Attributes:
        images: the readable images, n of them, each once. Their labels are not to be used: who they show is unknown.
        pairs: int64 [p, 2], places in `images`, in the file's order, which its folds go by.
        same: bool [p], whether a pair shows one person.
        skipped: how many pairs were left out because an image is unreadable.

    Raises:
        OSError: where `data` is not there.
        ValueError: for a file that is damaged or of another form, more than `max_bad` unreadable images, no pair left.
    """

    def __init__(
        self, data: Path, size: int, *, max_bad: int, memory: int, workers: int, root: Path | None = None
    ) -> None:
        found = read_pairs(data, root)
        self.images = ImageSet(found.items, size, max_bad=max_bad, memory=memory, workers=workers)
        place = {item.item_id: index for index, item in enumerate(self.images.items)}
        moved = np.array([place.get(item.item_id, -1) for item in found.items], dtype=np.int64)
        pairs = moved[found.pairs]
        whole = (pairs >= 0).all(axis=1)
        if not whole.any():
            raise ValueError(f"{data} has no pair of readable images among {len(pairs)}; are the images where it says?")
        self.pairs = torch.from_numpy(pairs[whole])
        self.same = torch.from_numpy(found.same[whole])
        self.skipped = int((~whole).sum())

    def __len__(self) -> int:
        return len(self.pairs)
