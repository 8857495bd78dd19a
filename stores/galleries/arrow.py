"""A gallery in one Arrow IPC file (Feather version 2): the same table as in `parquet`, with its card in FILE.json."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import polars as pl

from stores.chunks import DamagedStore
from stores.galleries.card import GalleryCard, readable, verified_card
from stores.galleries.parquet import VECTOR, ParquetSource, block_rows, streamed_table
from stores.galleries.spooled import SpooledTarget
from stores.space import EmbeddingSpace
from stores.store import Batch, EmbeddingStore

_MAGIC = b"ARROW1"


class ArrowSource(ParquetSource):
    """Rows of an Arrow IPC file, read a block at a time.

    Args:
        path: A table with a column `vector`: arrays of floats, or lists of floats that are all of one length.
        card: What the toolkit recorded when it wrote the file, if it did.

    Raises:
        ValueError: If the column is missing or of another type, or the table cannot be read.
    """

    def __init__(self, path: Path, card: GalleryCard | None) -> None:
        self._path = path
        with path.open("rb") as file:
            start = file.read(len(_MAGIC))
        if start != _MAGIC:
            raise ValueError(f"{path} is no Arrow IPC file (Feather version 2); save the table by write_ipc")
        with _legible(path):
            self._table = pl.scan_ipc(path, glob=False)
            self._columns = self._table.collect_schema()
            self._rows: int = self._table.select(pl.len()).collect().item()
            self.dim = self._read_dim()
        if self.dim < 1:
            raise ValueError(f"{path} has vectors of {self.dim} floats, expected 1 or more; write it again")
        self.space = card.space if card else None
        self.provenance = card.provenance if card else {}

    def scan(self, size: int, *, start: int = 0) -> Iterator[Batch]:
        """Rows start.. in row order; see `GallerySource`."""
        with _legible(self._path):
            yield from super().scan(size, start=start)


def open_source(location: str) -> ArrowSource:
    """Open a table. Without a column `item_id` the ids are the row numbers.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If it is damaged or has no usable column `vector`.
    """
    path = Path(location)
    card = verified_card(path)
    return ArrowSource(path, card)


def open_target(location: str, space: EmbeddingSpace, provenance: dict[str, Any]) -> SpooledTarget:
    """Begin or go on with a table; see `SpooledTarget`."""
    return SpooledTarget(Path(location), space, provenance, _build, reserved=[VECTOR])


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
    size = block_rows(store.space.dim)
    table = streamed_table(store, size)
    with path.open("wb", buffering=0) as file:
        # The oldest layout of strings, which every Arrow library reads.
        table.sink_ipc(file, compression="uncompressed", record_batch_size=size, compat_level=pl.CompatLevel.oldest())
        os.fsync(file.fileno())
    return [path]
