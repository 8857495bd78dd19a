"""What a store has committed: the one record, store.json, that decides which rows exist."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from stores.durable import sync_folder, write_atomically
from stores.sealed import seal, unseal
from stores.space import EmbeddingSpace

FORMAT_VERSION = 1
COMMIT_FILE = "store.json"


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
        rows: Rows that exist; the array may be longer while somebody appends.
        chunk_rows: Rows in a chunk file.
        parts: The item table's files in order.
        provenance: JSON values that say where the vectors come from.
    """

    space: EmbeddingSpace
    rows: int
    chunk_rows: int
    parts: tuple[ItemPart, ...]
    provenance: dict[str, Any]

    @classmethod
    def read(cls, store: Path) -> Commit:
        """Read a store's commit.

        Raises:
            DamagedStore: If the file was altered.
            ValueError: If it is of another format version.
        """
        body = unseal(store / COMMIT_FILE, version=FORMAT_VERSION)
        return cls(
            space=EmbeddingSpace.from_dict(body["space"]),
            rows=body["rows"],
            chunk_rows=body["chunk_rows"],
            parts=tuple(ItemPart(part["file"], part["rows"], part["sha256"]) for part in body["items"]),
            provenance=body["provenance"],
        )

    def publish(self, store: Path) -> None:
        """Make this the store's commit, in one step that outlives a power cut."""
        body = {
            "format_version": FORMAT_VERSION,
            "space": self.space.to_dict(),
            "rows": self.rows,
            "chunk_rows": self.chunk_rows,
            "vectors": "vectors",
            "items": [{"file": part.name, "rows": part.rows, "sha256": part.sha256} for part in self.parts],
            "provenance": self.provenance,
        }
        write_atomically(store / COMMIT_FILE, [seal(body)])
        sync_folder(store)
