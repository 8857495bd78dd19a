"""The item table of a store: Parquet files with digests, read a part at a time."""

from __future__ import annotations

import hashlib
import io
from pathlib import Path

import polars as pl

from stores.chunks import DamagedStore
from stores.commit import ItemPart
from stores.durable import sha256_of, write_plainly

PART_ROWS = 65_536
"""Rows in every part but the last, which is rewritten when rows are added: the files do not depend on the commits."""
_GROUP_ROWS = 4096  # rows that can be read without the others of a part


def write_part(folder: Path, items: pl.DataFrame, first: int) -> ItemPart:
    """Write one file of the table, whose rows are numbers `first` and on; it is on disk for sure once it is flushed."""
    buffer = io.BytesIO()
    items.write_parquet(buffer, row_group_size=_GROUP_ROWS)
    part = ItemPart(
        f"{first:012d}-{first + len(items):012d}.parquet", len(items), hashlib.sha256(buffer.getbuffer()).hexdigest()
    )
    write_plainly(folder / part.name, [buffer.getbuffer()])
    return part


def read_part(folder: Path, part: ItemPart) -> pl.DataFrame:
    """Read one file of the table.

    Raises:
        DamagedStore: If it is missing, altered or of another length.
    """
    verify_part(folder, part)
    try:
        items = pl.read_parquet(folder / part.name)
    except FileNotFoundError:
        raise _missing(folder / part.name) from None
    if len(items) != part.rows:
        raise DamagedStore(f"item table {folder / part.name} has {len(items)} rows, expected {part.rows}")
    return items


def verify_part(folder: Path, part: ItemPart) -> None:
    """Compare one file of the table with its digest.

    Raises:
        DamagedStore: If it is missing or altered.
    """
    path = folder / part.name
    try:
        digest = sha256_of(path)
    except FileNotFoundError:
        raise _missing(path) from None
    if digest != part.sha256:
        raise DamagedStore(f"item table {path} does not match its digest: it was altered; restore it from a copy")


def read_part_rows(folder: Path, part: ItemPart, start: int, stop: int) -> pl.DataFrame:
    """Rows start..stop-1 of one file that `verify_part` found whole, read without the others."""
    try:
        return pl.scan_parquet(folder / part.name, glob=False).slice(start, stop - start).collect()
    except FileNotFoundError:
        raise _missing(folder / part.name) from None


def _missing(path: Path) -> DamagedStore:
    return DamagedStore(f"item table {path} is missing; restore it from a copy")
