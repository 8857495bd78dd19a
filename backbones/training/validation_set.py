"""What a training is scored on after each epoch: images of other identities, or a list of pairs.

Shapes: n images, p pairs, d embedding dimension.
"""

import hashlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch

from backbones.datasets.decoding import IMAGE_SUFFIXES
from backbones.datasets.image_item import ImageItem
from backbones.datasets.image_set import SHOWN, ImageSet, require_disjoint
from backbones.datasets.pair_files import is_pair_file, read_pairs
from backbones.datasets.reading import map_ahead
from backbones.options import TrainOptions
from backbones.training.scores import (
    fold_accuracy,
    list_folds,
    nearest_neighbor_recall,
    pair_accuracy,
    pair_cosines,
    true_accept_rate,
)

FALSE_ACCEPT_RATES = {"1e-1": 1e-1, "1e-2": 1e-2, "1e-3": 1e-3, "1e-4": 1e-4, "1e-5": 1e-5}
READ_TOGETHER = 64  # images read ahead at a time when sets are compared
LEAST_FALSE_ACCEPTS = 3  # a rate that one or two pairs decide says little


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
        images: the readable images, n of them, each once. Only LFW's list says who they show.
        pairs: int64 [p, 2], places in `images`, in the file's order.
        same: bool [p], whether a pair shows one person.
        fold: int64 [p], the fold of each pair in the whole list, so that skipped pairs move no other.
        skipped: how many pairs were left out because an image is unreadable.

    Raises:
        OSError: where `data` is not there.
        ValueError: for a file that is damaged or of another form, more than `max_bad` unreadable images, or
            readable pairs in fewer than two folds, of which each is judged by the others.
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
        fold = list_folds(len(pairs), found.folds)[whole]
        if len(np.unique(fold)) < 2:
            raise ValueError(
                f"{data} has {len(fold)} pairs of readable images, all in one of its folds, expected some in two, for "
                "each is judged by the others; give more pairs"
            )
        self.fold = torch.from_numpy(fold)
        self.skipped = int((~whole).sum())

    def __len__(self) -> int:
        return len(self.pairs)


class ValidationSet(Protocol):
    """Images and the scores that their embeddings get.

    Attributes:
        images: n of them.
    """

    images: ImageSet

    def score(self, embeddings: np.ndarray) -> dict[str, float]:
        """Return scores in [0, 1] by name, of embeddings [n, d] in the order of the images."""
        ...

    def describe(self) -> dict[str, Any]:
        """Return what the card of a training says about this set."""
        ...


class IdentityValidation:
    """Images of identities that the training has not seen.

    Args:
        images: at least two of one identity, and two identities.
    """

    def __init__(self, images: ImageSet) -> None:
        self.images = images

    def score(self, embeddings: np.ndarray) -> dict[str, float]:
        """Return `pair_accuracy` and `recall_at_1` of embeddings [n, d]; see `backbones.training.scores`."""
        labels = self.images.labels.numpy()
        return {
            "pair_accuracy": pair_accuracy(embeddings, labels),
            "recall_at_1": nearest_neighbor_recall(embeddings, labels),
        }

    def describe(self) -> dict[str, Any]:
        """Return numbers of images and identities, and the digest."""
        return {
            "images": len(self.images),
            "identities": len(self.images.identities),
            "skipped": self.images.skipped,
            "digest": self.images.digest,
        }


class PairValidation:
    """A published list of pairs.

    Args:
        pairs: of the list.
    """

    def __init__(self, pairs: PairSet) -> None:
        self.pairs = pairs
        self.images: ImageSet = pairs.images

    def score(self, embeddings: np.ndarray) -> dict[str, float]:
        """Return `pair_accuracy` over the folds of the list, and `tar_at_far_R` for each rate R it can resolve."""
        pairs, same = self.pairs.pairs.numpy(), self.pairs.same.numpy()
        cosines = pair_cosines(embeddings, pairs)
        scores = {"pair_accuracy": fold_accuracy(cosines, same, self.pairs.fold.numpy())}
        for name, rate in FALSE_ACCEPT_RATES.items():
            if same.any() and rate * (~same).sum() >= LEAST_FALSE_ACCEPTS:
                scores[f"tar_at_far_{name}"] = true_accept_rate(cosines, same, rate)
        return scores

    def describe(self) -> dict[str, Any]:
        """Return numbers of images and pairs, and the digest."""
        return {
            "images": len(self.images),
            "pairs": len(self.pairs),
            "folds": len(torch.unique(self.pairs.fold)),
            "skipped": self.images.skipped,
            "skipped_pairs": self.pairs.skipped,
            "digest": self.images.digest,
        }


def open_validation(path: Path, options: TrainOptions, training: ImageSet) -> ValidationSet:
    """Open images of identities, or a list of pairs, and check that the training does not hold them.

    Identities are compared by name. Where either side does not tell them, the images themselves are compared: the
    people of a set that tells no names can be in the training on other images, which nothing here could see.

    Raises:
        OSError: where there is nothing at `path`.
        ValueError: for unusable data, or identities or images that the training holds too.
    """
    size, max_bad, memory, workers = options.input_size, options.max_bad, options.image_memory, options.workers
    root = options.validation_root
    if root is not None and path.suffix.lower() != ".txt":
        raise ValueError(f"validation_root is {root}, which belongs to lists (.txt), found {path}; leave it out")
    if is_pair_file(path, IMAGE_SUFFIXES):
        found = PairValidation(PairSet(path, size, max_bad=max_bad, memory=memory, workers=workers, root=root))
    else:
        found = IdentityValidation(ImageSet(path, size, max_bad=max_bad, memory=memory, workers=workers, root=root))
    require_disjoint(training, found.images)
    if not all(item.label for images in (training, found.images) for item in images.items):
        require_other_images(training.items, found.images.items, workers=workers)
    return found


def require_other_images(training: Sequence[ImageItem], evaluation: Sequence[ImageItem], *, workers: int) -> None:
    """Refuse to evaluate on images that were trained on: the same files, or files of the same bytes.

    Of the training only files as long as one of the evaluation's are read.

    Args:
        training: images that were trained on.
        evaluation: images to evaluate on.
        workers: threads that read.

    Raises:
        OSError: where an image cannot be read.
        ValueError: naming some of the shared images and how many there are.
    """
    lengths = {item.size for item in evaluation}
    alike = [item for item in training if item.size in lengths]
    wanted = {digest for digests in _digests(evaluation, workers) for digest in digests}
    found = [digest for digests in _digests(alike, workers) for digest in digests]
    shared = sorted({item.item_id for item, digest in zip(alike, found, strict=True) if digest in wanted})
    if shared:
        more = f" and {len(shared) - SHOWN} more" if len(shared) > SHOWN else ""
        raise ValueError(
            f"{len(shared)} of the {len(training)} training images are among the {len(evaluation)} to evaluate on: "
            f"{', '.join(shared[:SHOWN])}{more}; remove them, and the people they show, from one set"
        )


def _digests(items: Sequence[ImageItem], workers: int) -> Iterator[list[bytes]]:
    batches = (items[start : start + READ_TOGETHER] for start in range(0, len(items), READ_TOGETHER))
    return map_ahead(batches, lambda item: hashlib.blake2b(item.content(), digest_size=16).digest(), workers=workers)
