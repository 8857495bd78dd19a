"""Networks to learn from, their embeddings stored or made as they are needed.

Shapes: b batch, n stored items, d embedding dimension, h and w pixels.
"""

import copy
from collections.abc import Sequence
from pathlib import Path
from typing import Protocol

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from backbones.checkpoint import CARD_FILE, load_card, tensor_digest, training_folder
from backbones.datasets.stored_vectors import EXPORT, open_vectors
from backbones.encoders.images import load_image_backbone
from backbones.encoders.preprocessing import Preprocessing


class Teacher(Protocol):
    """Whatever gives the embeddings that a student is to learn.

    Attributes:
        dim: d.
        digest: hexadecimal SHA-256 of what the embeddings depend on.
    """

    dim: int
    digest: str

    def embeddings(self, item_ids: Sequence[str], images: Tensor) -> Tensor:
        """Return float32 [b, d], on the images' device, without gradient.

        Args:
            item_ids: b ids.
            images: [b, 3, h, w] in RGB, uint8 or float in [-1, 1].
        """
        ...

    def known(self, item_ids: Sequence[str]) -> Tensor:
        """Say of which of b ids this teacher has embeddings, bool [b] on the CPU."""
        ...


class StoredTeacher:
    """Embeddings made beforehand, looked up by item id; `python -m stores.convert STORE FILE.npz` writes such a file.

    The vectors of an uncompressed archive are mapped, not read into memory.

    Args:
        path: an .npz archive with the arrays `vectors`, floats [n, d], and `item_id`, strings or integers [n].

    Attributes:
        dim: d.
        digest: hexadecimal SHA-256 over ids and vectors.

    Raises:
        FileNotFoundError: where there is no such file.
        ValueError: where it is damaged or lacks an array, or holds an id twice, or a vector that is zero or not finite.
    """

    def __init__(self, path: Path) -> None:
        stored = open_vectors(path)
        self.path = path
        self.dim = stored.vectors.shape[1]
        self.digest = stored.digest
        self._vectors = stored.vectors
        self._rows = {item_id: row for row, item_id in enumerate(stored.item_ids)}
        if len(self._rows) < len(stored.item_ids):
            again = next(i for row, i in enumerate(stored.item_ids) if self._rows[i] != row)
            raise ValueError(f"{path} holds the item id {again!r} twice, expected each once; export the teacher again")

    def __len__(self) -> int:
        return len(self._rows)

    def known(self, item_ids: Sequence[str]) -> Tensor:
        """Say which ids are stored, bool [b]."""
        return torch.tensor([item_id in self._rows for item_id in item_ids], dtype=torch.bool)

    def embeddings(self, item_ids: Sequence[str], images: Tensor) -> Tensor:
        """Return the stored vectors, float32 [b, d], on the images' device; the pixels are not looked at.

        Raises:
            ValueError: for ids that are not stored.
        """
        rows = [self._rows.get(item_id, -1) for item_id in item_ids]
        missing = [item_id for item_id, row in zip(item_ids, rows, strict=True) if row < 0]
        if missing:
            raise ValueError(
                f"the teacher {self.path} has no embedding of {missing[0]!r} and {len(missing) - 1} more of a batch of "
                f"{len(rows)}; embed the training images with the teacher"
            )
        return torch.from_numpy(np.asarray(self._vectors[rows], dtype=np.float32)).to(images.device)


class LiveTeacher:
    """A frozen network that embeds the very images that the student sees, at its own input size.

    Args:
        network: maps its preprocessing's images [b, 3, size, size] to [b, d]; a frozen copy is kept, in evaluation
            mode.
        preprocessing: of the network; its flip averaging doubles the work.
        device: where to run; None leaves the network where it is.

    Attributes:
        dim: d; found by embedding one blank image.
        digest: the fingerprint of the teacher's embedding space.
    """

    def __init__(self, network: nn.Module, preprocessing: Preprocessing, *, device: torch.device | None = None) -> None:
        self.network = copy.deepcopy(network).eval().requires_grad_(False)
        if device is not None:
            self.network.to(device)
        self.preprocessing = preprocessing
        self.digest = preprocessing.fingerprint(tensor_digest(self.network.state_dict()))
        self._device = next(self.network.parameters(), torch.empty(0)).device
        blank = torch.zeros(1, 3, preprocessing.size, preprocessing.size)
        self.dim = self.embeddings([""], blank).shape[1]

    def known(self, item_ids: Sequence[str]) -> Tensor:
        """Return true for every id, bool [b]."""
        return torch.ones(len(item_ids), dtype=torch.bool)

    @torch.no_grad()
    def embeddings(self, item_ids: Sequence[str], images: Tensor) -> Tensor:
        """Embed images [b, 3, h, w], RGB, uint8 or float in [-1, 1], of any size; return float32 [b, d].

        Raises:
            ValueError: where there are more or fewer ids than images.
        """
        if len(item_ids) != len(images):
            raise ValueError(f"got {len(item_ids)} item ids and {len(images)} images, expected one id for each image")
        images, device = images.to(self._device), images.device
        pixels = images if images.dtype == torch.uint8 else (images.float() + 1.0) * 127.5
        size = self.preprocessing.size
        if tuple(pixels.shape[2:]) != (size, size):
            pixels = F.interpolate(pixels.float(), size=(size, size), mode="bilinear", antialias=True)
        return self.preprocessing.embed(self.network, pixels).to(device)


def load_teacher(path: Path, device: torch.device) -> Teacher:
    """Open a teacher: vectors by item id from an `.npz`, or the network of a finished training.

    Args:
        path: the archive; or the folder of the training, or its model file.
        device: where the network is to run.

    Raises:
        FileNotFoundError: where there is neither.
        ValueError: where it is damaged.
    """
    if path.suffix == ".npz":
        return StoredTeacher(path)
    folder = training_folder(path)
    if not (folder / CARD_FILE).is_file():
        found = "has no card.json" if path.exists() else "not found"
        raise FileNotFoundError(
            f"teacher {path} {found}, expected the folder or model file of a training, or an .npz of vectors; of a "
            f"store, {EXPORT}"
        )
    backbone = load_image_backbone(load_card(folder)["arch"], folder)
    return LiveTeacher(backbone.network, backbone.preprocessing, device=device)
