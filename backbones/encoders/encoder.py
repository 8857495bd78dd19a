"""The face of an encoder: read an item, embed a batch, say which embedding space the result lies in."""

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np

from backbones.datasets.items import Item, Items

Precision = Literal["auto", "bf16", "fp32"]
EngineName = Literal["torch", "openvino", "auto"]


class Backbone(ABC):
    """Any encoder of any modality. Subclass it and pass `--backbone module:function` to use your own.

    Attributes:
        name: for people.
        fingerprint: hexadecimal SHA-256 over weights and preprocessing; vectors are comparable only where it is equal.
            The precision and the engine that computed them are no part of it: whatever is faster than float32 is used
            only where its embeddings agree with float32's (cosine of at least 0.999 on real items), so it would tell
            spaces apart that are comparable. They are recorded beside the vectors instead.
        dim: dimension of the embeddings.
        normalized: whether they have unit length.
        suffixes: of the files `read` understands, lower case with the dot. With `.txt` among them the encoder reads
            texts, and is given the rows of a table or the lines of a file through `decode`.
        card: what its training wrote about it, where it wrote anything; see `backbones.checkpoint.load_card`.
        precision: number formats that `prepare` may choose among, set from `--precision`; None where it chooses none.
        engine_name: what `prepare` may choose to run it, set from `--engine`; None where it chooses nothing.
    """

    name: str
    fingerprint: str
    dim: int
    normalized: bool
    suffixes: frozenset[str]
    card: Mapping[str, Any] | None = None
    precision: Precision | None = None
    engine_name: EngineName | None = None

    @abstractmethod
    def read(self, path: Path) -> Any:
        """Decode one item; a ValueError says that this one cannot be read. Called from several threads."""

    def decode(self, content: bytes) -> Any:
        """Decode one item from its bytes, for sets whose items are no files of their own; errors as `read`."""
        raise NotImplementedError(f"{type(self).__name__} defines no decode(content)")

    @abstractmethod
    def embed(self, items: Sequence[Any]) -> np.ndarray:
        """Return the embeddings of what `read` returned, float32 [n, dim], in the same order."""

    def prepare(self, sample: Sequence[Any]) -> dict[str, Any]:
        """Get ready to embed many items like these; return facts that belong into the record of the run."""
        del sample
        return {}

    def read_item(self, item: Item) -> Any:
        """Decode one item of a set; errors as `read`."""
        return self.read(item.source) if isinstance(item.source, Path) else self.decode(item.content())

    def require_reads(self, items: Items) -> None:
        """Raise ValueError where the set has items that are no files and this encoder reads files only."""
        if not items.files and type(self).decode is Backbone.decode and type(self).read_item is Backbone.read_item:
            raise ValueError(
                f"{self.name} reads files only, and these items are parts of a file; "
                f"give {type(self).__name__} a method decode(content: bytes), or give a folder of files"
            )
