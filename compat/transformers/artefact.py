"""A fitted transformer: the map, its spaces and direction, and perhaps a hubness correction.

Saved as a folder of model.safetensors, hubness.safetensors where there is a correction, familiarity.safetensors where
it is known which queries are strange to the map, and card.json.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any, get_args

import numpy as np
import torch
from torch import nn

from backbones.checkpoint import read_tensors, tensor_digest, write_tensors
from compat.neighbors import unit_rows
from compat.options import Direction
from compat.transformers import build_network
from compat.transformers.familiarity import Familiarity
from compat.transformers.hubness import HubnessCorrection, lift_gallery, lift_queries, lifted_space
from compat.transformers.linear import FoldedLinear, LinearMap
from stores.durable import sync_folder, write_atomically
from stores.sealed import seal, unseal
from stores.space import EmbeddingSpace

FORMAT_VERSION = 2
HUBNESS = "hubness.safetensors"
FAMILIARITY = "familiarity.safetensors"
NO_FAMILIARITY = (
    "the transformer does not know which queries are strange to it: it was fitted to too few pairs, or by a former "
    "version; fit it again, to 100 pairs or more"
)
APPLY_ROWS = 4096
"""Few enough for a block and its result to stay in the processor's cache between passes."""


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
        correction: What is taken off the scores of gallery vectors that are near to every query; None where nothing.
        familiarity: Which queries are strange to the map; None where too few pairs told, or a former version fitted it.
            It changes no vector, so it is no part of the digest.
    """

    family: str
    direction: Direction
    source: EmbeddingSpace
    target: EmbeddingSpace
    network: nn.Module
    training: dict[str, Any] = field(default_factory=dict, repr=False)
    correction: HubnessCorrection | None = field(default=None, repr=False)  # arrays of training embeddings
    familiarity: Familiarity | None = field(default=None, repr=False)

    @cached_property
    def _folded(self) -> FoldedLinear | None:
        return self.network.folded(unit=self.target.normalized) if isinstance(self.network, LinearMap) else None

    def __post_init__(self) -> None:
        if self.familiarity is not None and self.familiarity.dim != self.query_space.dim:
            raise ValueError(
                f"the familiarity is of {self.familiarity.dim} dimensions, expected {self.query_space.dim} as queries "
                "have: it belongs to another transformer"
            )
        if self.correction is None:
            return
        found = (self.correction.bank.shape[1], self.correction.old_bank.shape[1])
        expected = (self.target.dim, self.gallery_space.dim)
        if found != expected:
            raise ValueError(
                f"the hubness correction holds vectors of {found[0]} and {found[1]} dimensions, "
                f"expected {expected[0]} and {expected[1]}: it belongs to another transformer"
            )

    @property
    def query_space(self) -> EmbeddingSpace:
        """Space of the new model's raw queries."""
        return self.source if self.direction == "new-to-old" else self.target

    @property
    def gallery_space(self) -> EmbeddingSpace:
        """Space of the old model's gallery."""
        return self.target if self.direction == "new-to-old" else self.source

    @property
    def served_space(self) -> EmbeddingSpace:
        """Where queries and gallery meet: the target space, with a dimension more where there is a correction."""
        return lifted_space(self.target, self._digest) if self.correction else self.target

    def without_correction(self) -> Transformer:
        """The same map alone."""
        return replace(self, correction=None) if self.correction else self

    def mapping_galleries(self) -> Transformer:
        """The same map for a whole gallery of its source space, whichever side its direction maps; without familiarity.

        One half of a unified transformer maps queries, and items that the new model enrols go the same way.
        """
        if self.direction == "old-to-new":
            return self
        return replace(self, direction="old-to-new", correction=None, familiarity=None)

    def known_offsets(self, gallery_digest: str, rows: int) -> np.ndarray | None:
        """Offsets float32 [rows] that the correction brings for the gallery of this digest, or None.

        Raises:
            ValueError: If there are not as many as the gallery has rows.
        """
        offsets = self.correction.galleries.get(gallery_digest) if self.correction else None
        if offsets is not None and offsets.shape != (rows,):
            raise ValueError(f"the transformer brings offsets {list(offsets.shape)} for a gallery of {rows} rows")
        return offsets

    def serve_queries(self, queries: np.ndarray) -> np.ndarray:
        """The new model's queries, floats [q, d_new], as they search: float32 [q, served_space.dim]."""
        mapped = self.transform(queries) if self.direction == "new-to-old" else self._target_rows(queries)
        return lift_queries(mapped) if self.correction else mapped

    def serve_gallery(
        self, gallery: np.ndarray, item_ids: Iterable[str | int] | None = None, *, offsets: np.ndarray | None = None
    ) -> np.ndarray:
        """The old model's gallery, floats [g, d_old], as it is searched: float32 [g, served_space.dim].

        Args:
            gallery: The vectors, or a block of them: each is treated on its own.
            item_ids: Their ids [g], which keep an item's own training pair from counting against it.
            offsets: float32 [g] where they are known already.
        """
        mapped = self.transform(gallery) if self.direction == "old-to-new" else self._target_rows(gallery)
        if self.correction is None:
            return mapped
        return lift_gallery(mapped, self.correction.offsets(mapped, item_ids) if offsets is None else offsets)

    def strangeness(self, queries: np.ndarray) -> np.ndarray:
        """How likely the map fails each query, as a percentile among held-out pairs, float64 [q] in 0..1.

        At 0.9 a query is stranger than nine tenths of what the map was fitted on. Either direction takes the new
        model's raw queries: what is strange is the query, whichever side is mapped.

        Args:
            queries: Floats [q, query_space.dim].

        Raises:
            ValueError: If the dimension is not the query space's, or the transformer does not know.
        """
        if self.familiarity is None:
            raise ValueError(NO_FAMILIARITY)
        if queries.ndim != 2 or queries.shape[1] != self.query_space.dim:
            raise ValueError(
                f"queries have shape {list(queries.shape)}, expected [q, {self.query_space.dim}]: {self.query_space}"
            )
        return self.familiarity.strangeness(queries)

    def _target_rows(self, vectors: np.ndarray) -> np.ndarray:
        if vectors.ndim != 2 or vectors.shape[1] != self.target.dim:
            raise ValueError(
                f"vectors have shape {list(vectors.shape)}, expected [n, {self.target.dim}]: {self.target}"
            )
        return np.asarray(vectors, dtype=np.float32)

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
        if self._folded is not None:
            return self._folded(vectors)
        if len(vectors) <= APPLY_ROWS:
            return self._apply(vectors)
        out = np.empty((len(vectors), self.target.dim), np.float32)
        for start in range(0, len(vectors), APPLY_ROWS):
            out[start : start + APPLY_ROWS] = self._apply(vectors[start : start + APPLY_ROWS])
        return out

    def _apply(self, vectors: np.ndarray) -> np.ndarray:
        block = np.ascontiguousarray(vectors, dtype=np.float32)
        self.network.eval()
        with torch.inference_mode():
            # torch warns of arrays that it must not write to, mapped files among them
            mapped = self.network(torch.from_numpy(block if block.flags.writeable else block.copy())).numpy()
        return unit_rows(mapped) if self.target.normalized else mapped

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
        """Digest over the map's weights, spaces, direction and correction, hexadecimal."""
        return self._digest

    @cached_property
    def _digest(self) -> str:
        head: dict[str, Any] = {
            "family": self.family,
            "direction": self.direction,
            "source": self.source.to_dict(),
            "target": self.target.to_dict(),
        }
        tensors = dict(self.network.state_dict())
        if self.correction:
            head["correction"] = self.correction.to_dict()
            bank = self.correction.without_galleries()  # whose offsets follow from the bank
            tensors |= {f"hubness.{name}": tensor for name, tensor in bank.tensors().items()}
        return tensor_digest(tensors, json.dumps(head, sort_keys=True))

    def save(self, folder: str | Path) -> None:
        """Write the artefact; card.json is written last, so a folder without it is not an artefact."""
        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "card.json").unlink(missing_ok=True)  # an older card must not describe the new weights
        write_tensors(folder / "model.safetensors", self.network.state_dict(), {})
        (folder / HUBNESS).unlink(missing_ok=True)
        if self.correction:
            write_tensors(folder / HUBNESS, self.correction.tensors(), {})
        (folder / FAMILIARITY).unlink(missing_ok=True)
        if self.familiarity:
            write_tensors(folder / FAMILIARITY, self.familiarity.tensors(), {})
        card = {
            "format_version": FORMAT_VERSION,
            "family": self.family,
            "direction": self.direction,
            "source": self.source.to_dict(),
            "target": self.target.to_dict(),
            "width": getattr(self.network, "width", None),
            "digest": self.digest(),
            "training": self.training,
            "correction": self.correction.to_dict() if self.correction else None,
            "familiarity": _described(self.familiarity) if self.familiarity else None,
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
            network = build_network(card["family"], source.dim, target.dim, card.get("width"))
        tensors = read_tensors(folder / "model.safetensors")[0]
        if card["format_version"] == 1:
            tensors = _from_version_1(card, tensors, network)
        network.load_state_dict(tensors, assign=True)
        correction = None
        if card.get("correction"):
            correction = HubnessCorrection.from_tensors(card["correction"], read_tensors(folder / HUBNESS)[0])
        familiarity = None
        if card.get("familiarity"):  # which cards of earlier releases do not have
            familiarity = Familiarity.from_tensors(card["familiarity"], read_tensors(folder / FAMILIARITY)[0])
            if _described(familiarity) != card["familiarity"]:
                raise ValueError(f"{FAMILIARITY} belongs to another transformer; fit it again")
        facts = card["training"]
        transformer = Transformer(
            card["family"], card["direction"], source, target, network, facts, correction, familiarity
        )
    except (ValueError, KeyError, TypeError, RuntimeError, FileNotFoundError) as error:
        raise ValueError(f"the transformer at {folder} cannot be read: {error}") from None
    if card["format_version"] > 1 and transformer.digest() != card["digest"]:
        raise ValueError(f"the transformer at {folder} does not match its digest: a file was altered; train it again")
    return transformer


def _from_version_1(
    card: dict[str, Any], tensors: dict[str, torch.Tensor], network: torch.nn.Module
) -> dict[str, torch.Tensor]:
    """The tensors of a first-version artefact, whose affine maps had no centre, as this version names them.

    Raises:
        ValueError: If they do not match the card's digest.
    """
    head = {key: card[key] for key in ("family", "direction", "source", "target")}
    if tensor_digest(tensors, json.dumps(head, sort_keys=True)) != card["digest"]:
        raise ValueError("it does not match its digest: a file was altered; train it again")
    expected = network.state_dict()
    return tensors | {
        name: torch.zeros(tensor.shape) for name, tensor in expected.items() if name == "centre" and name not in tensors
    }


def _described(familiarity: Familiarity) -> dict[str, Any]:
    return {**familiarity.to_dict(), "digest": tensor_digest(familiarity.tensors(), "")}
