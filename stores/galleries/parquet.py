"""A gallery in one Parquet table: `item_id`, further columns, and `vector`, an array of d floats; card in FILE.json."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl

from stores.galleries.card import GalleryCard, readable, row_numbers, verified_card
from stores.galleries.gallery import row_ranges
from stores.galleries.spooled import SpooledTarget
from stores.space import EmbeddingSpace
from stores.store import Batch, EmbeddingStore

VECTOR = "vector"
_BLOCK_BYTES = 32 * 2**20  # of vectors in a row group


class ParquetSource:
    """Rows of a Parquet table, read a block at a time.

    Args:
        path: A table with a column `vector`: arrays of floats, or lists of floats that are all of one length.
        card: What the toolkit recorded when it wrote the file, if it did.

    Raises:
        ValueError: If the column is missing or of another type, or the table cannot be read.
    """

    def __init__(self, path: Path, card: GalleryCard | None) -> None:
        self._path = path
        with readable(path):
            self._table = pl.scan_parquet(path, glob=False)
            self._columns = self._table.collect_schema()
            self._rows: int = self._table.select(pl.len()).collect().item()
        self.space = card.space if card else None
        self.dim = self._read_dim()
        self.provenance = card.provenance if card else {}

    def __len__(self) -> int:
        return self._rows

    def scan(self, size: int, *, start: int = 0) -> Iterator[Batch]:
        """Rows start.. in row order; see `GallerySource`."""
        row_ranges(len(self), size, start)
        block = max(size, block_rows(self.dim) // size * size)
        for first, stop in row_ranges(len(self), block, start):
            with readable(self._path):
                table = self._table.slice(first, stop - first).collect()
            vectors = self._vectors(table[VECTOR], first)
            items = table.drop(VECTOR)
            if "item_id" not in items.columns:
                items = row_numbers(first, stop).hstack(items)
            for low, high in row_ranges(len(table), size, 0):
                yield Batch(items[low:high], vectors[low:high])

    def _read_dim(self) -> int:
        kind = self._columns.get(VECTOR)
        if isinstance(kind, pl.Array) and len(kind.shape) == 1 and kind.inner.is_float():
            return kind.shape[0]
        if isinstance(kind, pl.List) and kind.inner.is_float():
            with readable(self._path):
                first = self._table.select(pl.col(VECTOR).list.len()).head(1).collect()
            if len(first) and first.item():
                return first.item()
            raise ValueError(f"{self._path} does not tell the dimension: its first list is missing or empty; remove it")
        found = f"a column {VECTOR} of {kind}" if kind else f"the columns {', '.join(self._columns)}"
        raise ValueError(f"{self._path} has {found}, expected a column {VECTOR} with arrays or lists of floats")

    def _vectors(self, column: pl.Series, first: int) -> np.ndarray:
        lengths = column.list.len() if isinstance(column.dtype, pl.List) else None
        odd = column.is_null() if lengths is None else (lengths != self.dim).fill_null(True)
        if odd.any():
            raise ValueError(
                f"row {first + (odd.arg_max() or 0)} of {self._path} has no vector of {self.dim} floats; leave it out"
            )
        with np.errstate(over="ignore"):  # too large for float32 becomes infinite, which every target refuses
            return column.reshape((-1, self.dim)).to_numpy().astype(np.float32, copy=False)


def open_source(location: str) -> ParquetSource:
    """Open a table. Without a column `item_id` the ids are the row numbers.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If it is damaged or has no usable column `vector`.
    """
    path = Path(location)
    card = verified_card(path)
    return ParquetSource(path, card)


def open_target(location: str, space: EmbeddingSpace, provenance: dict[str, Any]) -> SpooledTarget:
    """Begin or go on with a table; see `SpooledTarget`."""
    return SpooledTarget(Path(location), space, provenance, _build, reserved=[VECTOR])


def block_rows(dim: int) -> int:
    """Rows in a row group, so that any reader needs about 32 MiB for one."""
    return max(1, _BLOCK_BYTES // (4 * dim))


def streamed_table(store: EmbeddingStore, size: int) -> pl.LazyFrame:
    """The item table of a store with its vectors as a column, read `size` rows at a time when it is written."""
    from polars.io.plugins import register_io_source

    kind = pl.Array(pl.Float32, store.space.dim)

    def tables(*_: object) -> Iterator[pl.DataFrame]:
        for batch in store.batches(size):
            yield batch.items.with_columns(pl.Series(VECTOR, batch.vectors, dtype=kind))

    return register_io_source(tables, schema={**store.items.schema, VECTOR: kind})


def _build(store: EmbeddingStore, path: Path) -> Sequence[Path]:
    size = block_rows(store.space.dim)
    table = streamed_table(store, size)
    with path.open("wb", buffering=0) as file:
        # Floats of an embedding barely compress.
        table.sink_parquet(file, compression="uncompressed", statistics=False, row_group_size=size)
        os.fsync(file.fileno())
    return [path]
