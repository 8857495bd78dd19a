"""Rows on their way into a store: files beyond what is committed, and the item rows that belong to them."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl

from stores.chunks import VectorChunks
from stores.commit import Commit, ItemPart
from stores.durable import BackgroundSync
from stores.item_parts import PART_ROWS, read_part, write_part
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
        self._tail = [chunks.tail()]  # rows of the file that is not yet full
        self._parts: tuple[ItemPart, ...] | None = None  # as they will be, once there is anything new
        self._items: list[pl.DataFrame] = []  # rows of the part that is not yet full
        self._flushing = BackgroundSync()

    @property
    def pending(self) -> bool:
        """Whether rows were added that no commit holds."""
        return self._rows > self._commit.rows

    def close(self) -> None:
        """Stop flushing what no commit will hold."""
        self._flushing.stop()
        self._chunks.close()

    def append(self, items: pl.DataFrame, vectors: np.ndarray) -> None:
        """Add rows that fit: `items` [n] and `vectors` [n, dim] of the layout's type.

        Raises:
            OSError: If the disk refuses; then none of them counts.
        """
        self._add_vectors(vectors)  # first, so that nothing is counted when the disk refuses
        self._rows += len(vectors)
        if self._parts is None:
            self._begin_items()
        self._items.append(items)
        if sum(map(len, self._items)) >= PART_ROWS:
            self._write_whole_parts()

    def publish(self, provenance: dict[str, Any] | None) -> Commit:
        """Make all rows durable and then visible, and return the commit that holds them.

        Raises:
            OSError: If the disk refuses; the commit before stays readable, and this may be tried again.
        """
        parts = self._commit.parts
        if self._parts is not None:
            file, tail = self._rows // self._commit.layout.file_rows, np.concatenate(self._tail)
            self._checksums = self._up_to(file)
            if len(tail):
                self._checksums += self._write(file, tail)
            rest = pl.concat(self._items, rechunk=True)
            parts = (*self._parts, self._write_part(rest)) if len(rest) else self._parts
            self._chunks.set_rows(self._rows)
            self._flushing.wait()
        self._chunks.sync()
        commit = replace(
            self._commit,
            rows=self._rows,
            parts=parts,
            provenance=self._commit.provenance if provenance is None else dict(provenance),
            checksums=self._checksums,
        )
        try:
            commit.publish(self._path)
        except BaseException:
            if Commit.read(self._path) == commit:  # it is in force, only perhaps not yet on disk
                self._go_on_from(commit)
            raise
        self._go_on_from(commit)
        return commit

    def _go_on_from(self, commit: Commit) -> None:
        superseded = set(self._commit.parts) - set(commit.parts)
        self._commit, self._parts, self._items = commit, None, []
        self._chunks.expect(commit.rows, commit.checksums)
        for part in superseded:
            (commit.items_folder(self._path) / part.name).unlink(missing_ok=True)

    def _add_vectors(self, vectors: np.ndarray) -> None:
        size = self._commit.layout.file_rows
        if self._rows % size + len(vectors) < size:
            self._tail.append(np.array(vectors))
            return
        file = self._rows // size
        tail = [piece for piece in self._tail if len(piece)]
        pending = np.concatenate([*tail, vectors]) if tail else vectors
        whole = len(pending) - len(pending) % size
        written = [self._write(file + start // size, pending[start : start + size]) for start in range(0, whole, size)]
        self._checksums = self._up_to(file) + b"".join(written)
        self._tail = [np.array(pending[whole:])]

    def _begin_items(self) -> None:
        parts = self._commit.parts
        if parts and parts[-1].rows < PART_ROWS:
            self._items = [read_part(self._commit.items_folder(self._path), parts[-1])]
            parts = parts[:-1]
        self._parts = parts

    def _write_whole_parts(self) -> None:
        assert self._parts is not None
        table = pl.concat(self._items, rechunk=True)
        whole = len(table) - len(table) % PART_ROWS
        for start in range(0, whole, PART_ROWS):
            self._parts += (self._write_part(table[start : start + PART_ROWS]),)
        self._items = [table[whole:]]

    def _write_part(self, table: pl.DataFrame) -> ItemPart:
        """Write the part that follows those there are; nobody sees it before a commit names it."""
        first = sum(part.rows for part in self._parts or ())
        folder = self._commit.items_folder(self._path)
        part = write_part(folder, table, first)
        self._flushing.add(folder / part.name)
        return part

    def _up_to(self, file: int) -> bytes:
        """The checksums of the chunks in the files before this one."""
        return self._checksums[: file * self._commit.layout.shard_chunks * CHECKSUM_BYTES]

    def _write(self, file: int, rows: np.ndarray) -> bytes:
        return self._chunks.write(file, rows, replace=file * self._commit.layout.file_rows < self._commit.rows)
