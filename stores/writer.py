"""Rows on their way into a store: files beyond what is committed, and the item rows that belong to them."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl

from stores.chunks import VectorChunks
from stores.commit import Commit
from stores.item_parts import PART_ROWS, read_part, write_parts
from stores.layout import CHECKSUM_BYTES


class StoreWriter:
    """Adds rows to what a commit holds; whoever makes one has the store's lock.

    Args:
        path: The store's folder.
        commit: What is there.
        chunks: The array that belongs to it.
    """

    def __init__(self, path: Path, commit: Commit, chunks: VectorChunks) -> None:
        self._path = path
        self._commit = commit
        self._chunks = chunks
        self._rows = commit.rows
        self._checksums = chunks.checksums()
        self._items: list[pl.DataFrame] = []
        self._tail = self._committed_tail()  # rows of the file that is not yet full

    @property
    def pending(self) -> bool:
        """Whether rows were added that no commit holds."""
        return bool(self._items)

    def append(self, items: pl.DataFrame, vectors: np.ndarray) -> None:
        """Add rows that fit: `items` [n] and `vectors` [n, dim] of the layout's type.

        Raises:
            OSError: If the disk refuses; then none of them counts.
        """
        size = self._commit.layout.file_rows
        file = self._rows // size
        pending = np.concatenate([self._tail, vectors]) if len(self._tail) else vectors
        whole = len(pending) - len(pending) % size
        written = [self._write(file + start // size, pending[start : start + size]) for start in range(0, whole, size)]
        self._checksums = self._up_to(file) + b"".join(written)
        self._tail = np.array(pending[whole:])
        self._rows += len(vectors)
        self._items.append(items)

    def publish(self, provenance: dict[str, Any] | None) -> Commit:
        """Make all rows durable and then visible, and return the commit that holds them.

        Raises:
            OSError: If the disk refuses; the commit before stays readable.
        """
        folder = self._commit.items_folder(self._path)
        parts = self._commit.parts
        superseded: list[str] = []
        if self._items:
            fresh = pl.concat(self._items, rechunk=True)
            if parts and parts[-1].rows < PART_ROWS:
                fresh = pl.concat([read_part(folder, parts[-1]), fresh], rechunk=True)
                superseded.append(parts[-1].name)
                parts = parts[:-1]
            file = self._rows // self._commit.layout.file_rows
            self._checksums = self._up_to(file)
            if len(self._tail):
                self._checksums += self._write(file, self._tail)
            self._chunks.set_rows(self._rows)
            self._chunks.sync()
            parts += write_parts(folder, fresh, self._rows - len(fresh))
        commit = replace(
            self._commit,
            rows=self._rows,
            parts=parts,
            provenance=self._commit.provenance if provenance is None else dict(provenance),
            checksums=self._checksums,
        )
        commit.publish(self._path)
        self._chunks.expect(commit.rows, commit.checksums)
        self._commit = commit
        self._items = []
        for name in superseded:
            (folder / name).unlink(missing_ok=True)
        return commit

    def _up_to(self, file: int) -> bytes:
        """The checksums of the chunks in the files before this one."""
        return self._checksums[: file * self._commit.layout.shard_chunks * CHECKSUM_BYTES]

    def _write(self, file: int, rows: np.ndarray) -> bytes:
        return self._chunks.write(file, rows, replace=file * self._commit.layout.file_rows < self._commit.rows)

    def _committed_tail(self) -> np.ndarray:
        layout, rows = self._commit.layout, self._commit.rows
        first = rows - rows % layout.file_rows
        chunks = range(first // layout.chunk_rows, -(-rows // layout.chunk_rows))
        blocks = [self._chunks.block(chunk) for chunk in chunks]
        return np.concatenate([np.empty((0, layout.dim), layout.number), *blocks])[: rows - first]
