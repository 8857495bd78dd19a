"""What a store has committed: the one record, store.json, that decides which rows exist.

A store is written in the oldest format version that can say what it is, so that an older toolkit reads what it can:
version 1 has float32 vectors in files of one chunk, of which none was ever forgotten; version 2 has the other layouts,
forgotten rows, and folders of a later generation. This toolkit reads both.
"""

from __future__ import annotations

import base64
import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

from stores.chunks import DamagedStore, VectorChunks
from stores.durable import sync_folder, write_atomically
from stores.layout import CHECKSUM_BYTES, VectorLayout
from stores.sealed import seal, unseal
from stores.space import EmbeddingSpace

FORMAT_VERSION = 2
"""The newest format version, which `Commit.read` understands with all before it."""
COMMIT_FILE = "store.json"
COMPLETE = "complete"
"""The provenance entry of a store that a command writes: false until its last row is in."""
PART_NAME = re.compile(r"\d+-\d+\.parquet")
GENERATION_NAME = re.compile(r"(?:vectors|items)(?:-([1-9]\d*))?")


class ItemPart(NamedTuple):
    """A Parquet file of the item table: its name, rows and SHA-256."""

    name: str
    rows: int
    sha256: str


@dataclass(frozen=True)
class Commit:
    """The contents of store.json.

    Attributes:
        space: What the vectors are.
        rows: Rows on disk, forgotten ones included; the array may be longer while somebody appends.
        layout: How the vectors lie on disk.
        parts: The item table's files in order.
        provenance: JSON values that say where the vectors come from.
        forgotten: Ranges [start, stop) of rows on disk that were forgotten, in order, none touching the next.
        generation: How often the store was compacted; each time its files move to folders of that number.
        checksums: CRC-32C of the rows in each chunk, 4 bytes after 4 bytes, so that no file can stand in for another or
            for a later version of itself. None in what earlier releases wrote.
    """

    space: EmbeddingSpace
    rows: int
    layout: VectorLayout
    parts: tuple[ItemPart, ...]
    provenance: dict[str, Any]
    forgotten: tuple[tuple[int, int], ...] = field(default=())
    generation: int = 0
    checksums: bytes | None = b""

    @property
    def version(self) -> int:
        """The oldest format version that can say this."""
        plain = self.layout == VectorLayout(self.layout.dim, self.layout.chunk_rows)
        return 1 if plain and not self.forgotten and not self.generation else 2

    def vectors_folder(self, store: Path) -> Path:
        """The folder of the Zarr array."""
        return store / _of_generation("vectors", self.generation)

    def items_folder(self, store: Path) -> Path:
        """The folder of the item table's parts."""
        return store / _of_generation("items", self.generation)

    def chunks(self, store: Path) -> VectorChunks:
        """The Zarr array's chunks, as they were committed."""
        return VectorChunks(self.vectors_folder(store), self.layout, self.rows, self.checksums)

    @classmethod
    def read(cls, store: Path) -> Commit:
        """Read a store's commit.

        Raises:
            DamagedStore: If the file was altered, or holds what this class does not write.
            ValueError: If it is of a later format version.
        """
        path = store / COMMIT_FILE
        body = unseal(path, version=FORMAT_VERSION)
        try:
            space = EmbeddingSpace.from_dict(body["space"])
            commit = cls(
                space=space,
                rows=_count(body, "rows"),
                layout=VectorLayout(
                    space.dim,
                    _count(body, "chunk_rows"),
                    body.get("dtype", "float32"),
                    _count(body, "shard_chunks", 1),
                ),
                parts=tuple(ItemPart(part["file"], _count(part, "rows"), part["sha256"]) for part in body["items"]),
                provenance=body["provenance"],
                forgotten=tuple((start, stop) for start, stop in body.get("forgotten", ())),
                generation=_count(body, "generation", 0),
                checksums=base64.b64decode(body["checksums"]) if "checksums" in body else None,
            )
            commit._check()
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise DamagedStore(f"{path} is no record of a store ({error}); restore it from a copy") from None
        return commit

    def _check(self) -> None:
        """Refuse what no writer of ours writes: a file may be sealed and come from elsewhere."""
        if not isinstance(self.provenance, dict):
            raise ValueError("its provenance is no object")
        odd = [part.name for part in self.parts if not (PART_NAME.fullmatch(part.name) and part.rows)]
        if odd or sum(part.rows for part in self.parts) != self.rows:
            raise ValueError(f"item parts {', '.join(odd) or 'of another number of rows'}")
        ends = [0, *(end for each in self.forgotten for end in each), self.rows]
        ordered = all(isinstance(end, int) and not isinstance(end, bool) for end in ends) and ends == sorted(ends)
        if not ordered or len(set(ends[1:-1])) < len(ends) - 2:
            raise ValueError("the ranges of forgotten rows are not in order")
        chunks = -(-self.rows // self.layout.chunk_rows)
        if self.checksums is not None and len(self.checksums) != chunks * CHECKSUM_BYTES:
            raise ValueError(f"{len(self.checksums)} bytes of checksums for {chunks} chunks")

    def publish(self, store: Path) -> None:
        """Make this the store's commit, in one step that outlives a power cut."""
        body = {
            "format_version": self.version,
            "space": self.space.to_dict(),
            "rows": self.rows,
            "chunk_rows": self.layout.chunk_rows,
            "vectors": self.vectors_folder(store).name,
            "items_folder": self.items_folder(store).name,
            "items": [{"file": part.name, "rows": part.rows, "sha256": part.sha256} for part in self.parts],
            "provenance": self.provenance,
        }
        if self.checksums is not None:
            body["checksums"] = base64.b64encode(self.checksums).decode()
        if self.version > 1:
            body |= {
                "dtype": self.layout.dtype,
                "shard_chunks": self.layout.shard_chunks,
                "forgotten": self.forgotten,
                "generation": self.generation,
            }
        write_atomically(store / COMMIT_FILE, [seal(body)])
        sync_folder(store)


def _of_generation(name: str, generation: int) -> str:
    return f"{name}-{generation}" if generation else name


def _count(body: dict[str, Any], name: str, otherwise: int | None = None) -> int:
    """A field that counts something."""
    number = body.get(name, otherwise)
    if not isinstance(number, int) or isinstance(number, bool) or number < 0:
        raise ValueError(f"{name} is {number!r}")
    return number
