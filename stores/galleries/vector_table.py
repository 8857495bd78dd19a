"""A gallery in one table: `item_id`, further columns, and `vector`, an array of d floats."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Protocol

import numpy as np
import polars as pl

from stores.galleries.batching import of_size
from stores.galleries.card import GalleryCard, row_numbers
from stores.galleries.gallery import row_ranges
from stores.store import Batch

VECTOR = "vector"
_EXPANSION = 100  # embeddings barely compress
_ALWAYS_ALLOWED = 64 * 2**20  # bytes, for small files of equal values


class TableReader(Protocol):
    """A table in a file, read a block of rows at a time."""

    @property
    def columns(self) -> pl.Schema:
        """Its columns."""
        ...

    def __len__(self) -> int:
        """Rows."""
        ...

    def blocks(self, start: int, size: int) -> Iterator[pl.DataFrame]:
        """Rows start.. in order, about `size` at a time.

        Raises:
            DamagedStore: If the file cannot be read.
        """
        ...


class TableSource:
    """Rows of a table, read a block at a time.

    Args:
        path: The file, for errors.
        card: What the toolkit recorded when it wrote the file, if it did.
        table: Its rows, with a column `vector`: arrays of floats, or lists of floats that are all of one length.
        block_bytes: How much of the vectors to read at a time.

    Raises:
        ValueError: If the column is missing or of another type, the table cannot be read, or it claims more vectors
            than a file of its size can hold.
    """

    def __init__(self, path: Path, card: GalleryCard | None, table: TableReader, block_bytes: int) -> None:
        self._path = path
        self._table = table
        self._block_bytes = block_bytes
        self.dim = self._read_dim()
        size, claimed = path.stat().st_size, 4 * len(table) * self.dim
        if claimed > _ALWAYS_ALLOWED + _EXPANSION * size:
            raise ValueError(
                f"{path} has {size} bytes and claims to hold {claimed} of vectors, more than is believable; write it "
                "with less compression"
            )
        self.space = card.space if card else None
        self.provenance = card.provenance if card else {}

    def __len__(self) -> int:
        return len(self._table)

    def scan(self, size: int, *, start: int = 0) -> Iterator[Batch]:
        """Rows start.. in row order; see `GallerySource`."""
        row_ranges(len(self), size, start)
        yield from of_size(self._blocks(size, start), size)

    def _blocks(self, size: int, start: int) -> Iterator[Batch]:
        # Whole batches, so that they need not be joined.
        block = max(size, max(1, self._block_bytes // (4 * self.dim)) // size * size)
        first = start
        for table in self._table.blocks(start, block):
            stop = first + len(table)
            vectors = self._vectors(table[VECTOR], first)
            items = table.drop(VECTOR)
            if "item_id" not in items.columns:
                items = row_numbers(first, stop).hstack(items)
            yield Batch(items, vectors)
            first = stop

    def _read_dim(self) -> int:
        columns = self._table.columns
        kind = columns.get(VECTOR)
        if isinstance(kind, pl.Array) and len(kind.shape) == 1 and kind.inner.is_float():
            if kind.shape[0] < 1:
                raise ValueError(
                    f"{self._path} has vectors of {kind.shape[0]} floats, expected 1 or more; write it again"
                )
            return kind.shape[0]
        if isinstance(kind, pl.List) and kind.inner.is_float():
            first = next(self._table.blocks(0, 1), None)
            if first is not None and len(first):
                dim = first[VECTOR].list.len()[0]
                if dim:
                    return dim
            raise ValueError(f"{self._path} does not tell the dimension: its first list is missing or empty; remove it")
        found = f"a column {VECTOR} of {kind}" if kind else f"the columns {', '.join(columns)}"
        raise ValueError(
            f"{self._path} has {found}, expected a column {VECTOR} with arrays or lists of floats; "
            "rename the one that holds them"
        )

    def _vectors(self, column: pl.Series, first: int) -> np.ndarray:
        lengths = column.list.len() if isinstance(column.dtype, pl.List) else None
        odd = column.is_null() if lengths is None else (lengths != self.dim).fill_null(True)
        if odd.any():
            raise ValueError(
                f"row {first + (odd.arg_max() or 0)} of {self._path} has no vector of {self.dim} floats; leave it out"
            )
        with np.errstate(over="ignore"):  # too large for float32 becomes infinite, which every target refuses
            return column.reshape((-1, self.dim)).to_numpy().astype(np.float32, copy=False)
