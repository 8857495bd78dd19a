"""A fitted transformer: the map, its spaces and direction; saved as a folder of model.safetensors and card.json."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, get_args

import numpy as np
import torch
from torch import nn

from backbones.checkpoint import read_tensors, tensor_digest, write_tensors
from compat.neighbors import unit_rows
from compat.options import Direction
from compat.transformers import TRANSFORMERS, known_family
from stores.durable import sync_folder, write_atomically
from stores.sealed import seal, unseal
from stores.space import EmbeddingSpace

FORMAT_VERSION = 1
APPLY_ROWS = 16_384


class WrongSpace(ValueError):
    """Vectors of one space were offered where another was expected."""


@dataclass(frozen=True)
class Transformer:
    """A map from a source space to a target space.

    Attributes:
        family: One of `TRANSFORMERS`.
        direction: `new-to-old` maps queries into the old gallery's space, `old-to-new` maps the gallery.
        source: Space of the vectors that go in.
        target: Space of those that come out.
        network: [n, source.dim] to [n, target.dim].
        training: JSON values: options, the pairs' fingerprint and number, held-out scores, curves.
    """

    family: str
    direction: Direction
    source: EmbeddingSpace
    target: EmbeddingSpace
    network: nn.Module
    training: dict[str, Any] = field(default_factory=dict)

    def transform(self, vectors: np.ndarray) -> np.ndarray:
        """Map vectors [n, source.dim] of any float type to float32 [n, target.dim], of unit length where the target is.

        Raises:
            ValueError: If the dimension is not the source's.
        """
        if vectors.ndim != 2 or vectors.shape[1] != self.source.dim:
            raise ValueError(
                f"vectors have shape {list(vectors.shape)}, expected [n, {self.source.dim}]: "
                f"this transformer maps {self.source} to {self.target}"
            )
        self.network.eval()
        out = np.empty((len(vectors), self.target.dim), np.float32)
        with torch.inference_mode():
            for start in range(0, len(vectors), APPLY_ROWS):
                block = np.array(vectors[start : start + APPLY_ROWS], dtype=np.float32, order="C")
                out[start : start + APPLY_ROWS] = self.network(torch.from_numpy(block)).numpy()
        return unit_rows(out) if self.target.normalized else out

    def require(self, direction: Direction, source: EmbeddingSpace, target: EmbeddingSpace | None = None) -> None:
        """Make sure that this transformer maps these spaces in this direction.

        Raises:
            WrongSpace: If it does not.
        """
        if self.direction != direction:
            use = "maps queries into the old gallery's space" if direction == "old-to-new" else "maps the gallery"
            raise WrongSpace(
                f"this transformer's direction is {self.direction} (it {use}), expected {direction}; "
                f"train one with --direction {direction}"
            )
        for role, wanted, found in (("source", self.source, source), ("target", self.target, target)):
            if found is not None and wanted != found:
                raise WrongSpace(f"the transformer's {role} is {wanted}, the vectors given are in {found}")

    def digest(self) -> str:
        """Digest over the map's weights, spaces and direction, hexadecimal."""
        head = {
            "family": self.family,
            "direction": self.direction,
            "source": self.source.to_dict(),
            "target": self.target.to_dict(),
        }
        return tensor_digest(self.network.state_dict(), json.dumps(head, sort_keys=True))

    def save(self, folder: str | Path) -> None:
        """Write the artefact; card.json is written last, so a folder without it is not an artefact."""
        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "card.json").unlink(missing_ok=True)  # an older card must not describe the new weights
        write_tensors(folder / "model.safetensors", self.network.state_dict(), {})
        card = {
            "format_version": FORMAT_VERSION,
            "family": self.family,
            "direction": self.direction,
            "source": self.source.to_dict(),
            "target": self.target.to_dict(),
            "digest": self.digest(),
            "training": self.training,
        }
        write_atomically(folder / "card.json", [seal(card)])
        sync_folder(folder)


def load_transformer(folder: str | Path) -> Transformer:
    """Read an artefact that `Transformer.save` wrote.

    Raises:
        FileNotFoundError: If the folder holds no artefact.
        ValueError: If a file is damaged, or of an unknown family or format version.
    """
    folder = Path(folder)
    for name in ("card.json", "model.safetensors"):
        if not (folder / name).is_file():
            raise FileNotFoundError(
                f"no transformer at {folder}: {name} is missing; run compat.train_transformer first"
            )
    try:
        card = unseal(folder / "card.json", version=FORMAT_VERSION)
        if card["direction"] not in get_args(Direction):
            raise ValueError(f"direction {card['direction']!r}, expected one of {', '.join(get_args(Direction))}")
        source, target = (EmbeddingSpace.from_dict(card[role]) for role in ("source", "target"))
        with torch.device("meta"):  # what the card claims takes no memory until the tensors prove it
            network = TRANSFORMERS[known_family(card["family"])](source.dim, target.dim)
        network.load_state_dict(read_tensors(folder / "model.safetensors")[0], assign=True)
        transformer = Transformer(card["family"], card["direction"], source, target, network, card["training"])
    except (ValueError, KeyError, TypeError, RuntimeError) as error:
        raise ValueError(f"the transformer at {folder} cannot be read: {error}") from None
    if transformer.digest() != card["digest"]:
        raise ValueError(f"the transformer at {folder} does not match its digest: a file was altered; train it again")
    return transformer
