"""CSV files in blocks of whole rows, so that one larger than memory is read once from front to back."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterator
from pathlib import Path
from typing import IO

import polars as pl

Columns = list[str]

_BLOCK_BYTES = 16 * 2**20
_MOST_BYTES = 64 * 2**20  # of one row: several million numbers
_BOM = b"\xef\xbb\xbf"


def read_header(path: Path) -> Columns:
    """The names of the columns.

    Raises:
        ValueError: If there is no header, or a name occurs twice.
    """
    with path.open("rb") as file:
        row = next(_rows(path, file, 2**16), b"")
    row = row[: _cut(row, first=True) or None]
    try:
        columns = next(csv.reader(io.StringIO(row.decode(), newline=""), strict=True), [])
    except (csv.Error, UnicodeDecodeError):
        raise ValueError(f"{path} has a header that is no CSV in UTF-8; save it again as such") from None
    if not columns or len(set(columns)) < len(columns):
        again = sorted({name for name in columns if columns.count(name) > 1})[:3] if len(columns) < 10_000 else []
        what = "names columns twice" + (f" ({', '.join(again)[:80]})" if again else "") if columns else "is empty"
        raise ValueError(f"the header of {path} {what}, expected a name for each column; write one")
    return columns


def blocks(path: Path) -> Iterator[bytes]:
    """The rows below the header, about 16 MiB of them at a time, never cut within a row.

    Raises:
        ValueError: If a row has no end.
    """
    with path.open("rb") as file:
        header = True
        for block in _rows(path, file, _BLOCK_BYTES):
            rows = block[_cut(block, first=True) :] if header else block
            header = False
            if rows.strip(b"\r\n"):
                yield rows


def parse(path: Path, block: bytes, columns: Columns, wanted: list[str], first: int, *, floats: bool) -> pl.DataFrame:
    """Some columns of a block, as float32 or as text.

    Args:
        path: The file, for errors.
        block: Whole rows.
        columns: The names of all columns.
        wanted: The names of those to return.
        first: Number of the block's first row.
        floats: Whether the columns are numbers.

    Raises:
        ValueError: If a row has more or fewer fields than the header, or what should be a number is none.
    """
    schema = dict.fromkeys(columns, pl.String) | dict.fromkeys(wanted, pl.Float32 if floats else pl.String)
    try:
        # All columns: of a row with too many fields polars tells only then.
        table = pl.read_csv(block, has_header=False, schema=schema)
    except (pl.exceptions.PolarsError, pl.exceptions.PanicException):
        # What polars says repeats the field, and embeddings belong in no message.
        _require_equal_rows(path, block, columns, first)
        expected = "a number" if floats else "text in UTF-8"
        raise ValueError(f"{path} holds, from row {first} on, a field that is not {expected}; correct it") from None
    if table[columns[-1]].null_count():  # polars takes missing fields for empty ones
        _require_equal_rows(path, block, columns, first)
    return table.select(wanted)


def _require_equal_rows(path: Path, block: bytes, columns: Columns, first: int) -> None:
    reader = csv.reader(io.StringIO(block.decode(errors="replace"), newline=""))
    try:
        for row, fields in enumerate(reader, start=first):
            if len(fields) != len(columns):
                raise ValueError(
                    f"row {row} of {path} has {len(fields)} fields, expected {len(columns)} as its header; correct it"
                )
    except csv.Error as error:
        raise ValueError(f"{path} is no CSV near row {first} ({error}); save it again") from None


def _rows(path: Path, file: IO[bytes], size: int) -> Iterator[bytes]:
    rest = file.read(size).removeprefix(_BOM)
    while rest:
        # A row that is long already is doubled: to add a little to it again and again would copy it each time.
        more = file.read(max(size, min(len(rest), _MOST_BYTES + 1 - len(rest))))
        if not more:
            yield rest.rstrip(b"\r\n") + b"\n"  # empty lines at the end are no rows
            return
        end = _cut(rest, first=False)
        if end:
            yield rest[:end]
        rest = rest[end:] + more
        if len(rest) > _MOST_BYTES:
            raise ValueError(f"{path} has a row of more than {_MOST_BYTES >> 20} MiB, or a quote that never ends")


def _cut(block: bytes, *, first: bool) -> int:
    """Where a row ends: just past the first or the last line feed outside quotes, 0 if there is none."""
    if first:
        place, quotes = block.find(b"\n"), 0
        start = 0
        while place >= 0:
            quotes += block.count(b'"', start, place)
            if quotes % 2 == 0:
                return place + 1
            start, place = place, block.find(b"\n", place + 1)
        return 0
    place = block.rfind(b"\n")
    quotes = block.count(b'"', 0, max(place, 0))
    while place >= 0:
        if quotes % 2 == 0:
            return place + 1
        before = block.rfind(b"\n", 0, place)
        quotes -= block.count(b'"', max(before, 0), place)
        place = before
    return 0
