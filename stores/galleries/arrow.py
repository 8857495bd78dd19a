"""A gallery in one Arrow IPC file (Feather version 2): the same table as in `parquet`, with its card in FILE.json."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import polars as pl

from stores.chunks import DamagedStore
from stores.galleries.card import digest_of_file, readable, verified_card
from stores.galleries.gallery import row_ranges
from stores.galleries.spooled import SpooledTarget
from stores.galleries.vector_table import VECTOR, TableSource
from stores.space import EmbeddingSpace
from stores.store import EmbeddingStore

_MAGIC = b"ARROW1"
_BLOCK_BYTES = 32 * 2**20  # of vectors in a record batch


class ArrowTable:
    """An Arrow IPC file, read a block at a time.

    Raises:
        DamagedStore: If it cannot be read.
        ValueError: If it is no such file.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        with path.open("rb") as file:
            start = file.read(len(_MAGIC))
        if start != _MAGIC:
            raise ValueError(f"{path} is no Arrow IPC file (Feather version 2); save the table by write_ipc")
        with _legible(path):
            self._table = pl.scan_ipc(path, glob=False)
            self._columns = self._table.collect_schema()
            self._rows: int = self._table.select(pl.len()).collect().item()

    def __len__(self) -> int:
        return self._rows

    @property
    def columns(self) -> pl.Schema:
        """Its columns."""
        return self._columns

    def blocks(self, start: int, size: int) -> Iterator[pl.DataFrame]:
        """Rows start.. in order; see `TableReader`."""
        for first, stop in row_ranges(len(self), size, start):
            with _legible(self._path):
                table = self._table.slice(first, stop - first).collect()
            yield table


def open_source(location: str) -> TableSource:
    """Open a table. Without a column `item_id` the ids are the row numbers.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If it is damaged or has no usable column `vector`.
    """
    path = Path(location)
    card = verified_card(path)
    return TableSource(path, card, ArrowTable(path), _BLOCK_BYTES)


def open_target(location: str, space: EmbeddingSpace, provenance: dict[str, Any]) -> SpooledTarget:
    """Begin or go on with a table; see `SpooledTarget`."""
    return SpooledTarget(Path(location), space, provenance, _build, reserved=[VECTOR])


digest = digest_of_file


@contextmanager
def _legible(path: Path) -> Iterator[None]:
    # polars passes on what decompression says of damaged bytes as an OSError without a file name.
    try:
        with readable(path):
            yield
    except OSError as error:
        if error.filename is not None:
            raise
        reason = str(error).strip().split("\n")[0]
        raise DamagedStore(f"{path} cannot be read ({reason}); restore it from a copy") from None


def _build(store: EmbeddingStore, path: Path) -> Sequence[Path]:
    size = max(1, _BLOCK_BYTES // (4 * store.space.dim))
    table = _streamed_table(store, size)
    with path.open("wb", buffering=0) as file:
        # The oldest layout of strings, which every Arrow library reads.
        table.sink_ipc(file, compression="uncompressed", record_batch_size=size, compat_level=pl.CompatLevel.oldest())
        os.fsync(file.fileno())
    return [path]


def _streamed_table(store: EmbeddingStore, size: int) -> pl.LazyFrame:
    """The item table of a store with its vectors as a column, read `size` rows at a time when it is written."""
    from polars.io.plugins import register_io_source

    kind = pl.Array(pl.Float32, store.space.dim)

    def tables(*_: object) -> Iterator[pl.DataFrame]:
        for batch in store.batches(size):
            yield batch.items.with_columns(pl.Series(VECTOR, batch.vectors, dtype=kind))

    return register_io_source(tables, schema={**store.items.schema, VECTOR: kind})
