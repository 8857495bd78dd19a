"""A gallery in a CSV file: the item columns, then `vector_0`, `vector_1` and so on; item table and card beside it.

Floats are written as the shortest text that reads back as the same float32. Text cannot tell types: the whole item
table is in FILE.items.parquet, and the columns in the CSV file are for other readers.
"""

from __future__ import annotations

import io
import re
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl

from stores.chunks import DamagedStore
from stores.durable import write_atomically
from stores.galleries.card import (
    GalleryCard,
    digest_of_file,
    items_path,
    read_items,
    row_numbers,
    verified_card,
    write_items,
)
from stores.galleries.csv_blocks import Columns, blocks, parse, read_header
from stores.galleries.gallery import row_ranges
from stores.galleries.spooled import SpooledTarget
from stores.space import EmbeddingSpace
from stores.store import Batch, EmbeddingStore

JSON_COLUMN = "vector"
_PREFIX = "vector_"
_BLOCK_VALUES = 2**21


class CsvSource:
    """Rows of a CSV file, read a block at a time.

    Args:
        path: The file: with a header, commas, and UTF-8 text.
        card: What the toolkit recorded when it wrote the file, if it did.

    Raises:
        ValueError: If the header tells no vectors, or a row is damaged or of another length.
    """

    def __init__(self, path: Path, card: GalleryCard | None) -> None:
        self._path = path
        self._columns = read_header(path)
        self._vector_columns = _vector_columns(path, self._columns, card)
        if card is not None:
            self._items = read_items(path, card.rows)
        else:
            items = self._read_items()
            self._items = read_items(path, len(items)) if items_path(path).is_file() else items
        self.dim = card.space.dim if card else self._read_dim()
        self.space = card.space if card else None
        self.provenance = card.provenance if card else {}

    def __len__(self) -> int:
        return len(self._items)

    def scan(self, size: int, *, start: int = 0) -> Iterator[Batch]:
        """Rows start.. in row order; see `GallerySource`."""
        ranges = row_ranges(len(self), size, start)
        parts, seen = self._vectors(), 0
        waiting = np.empty((0, self.dim), np.float32)  # of the rows from number `seen` on
        for first, stop in ranges:
            while seen + len(waiting) < stop:
                part = next(parts, None)
                if part is None:
                    raise DamagedStore(f"{self._path} ends before row {stop}; it was altered, restore it from a copy")
                skipped = min(max(first - seen, 0), len(waiting))
                waiting, seen = np.concatenate([waiting[skipped:], part]), seen + skipped
            yield Batch(self._items[first:stop], waiting[first - seen : stop - seen])

    def _vectors(self) -> Iterator[np.ndarray]:
        first = 0
        in_json = self._vector_columns == [JSON_COLUMN]
        for block in blocks(self._path):
            table = parse(self._path, block, self._columns, self._vector_columns, first, floats=not in_json)
            vectors = _from_json(self._path, table.to_series(), self.dim, first) if in_json else _from_columns(table)
            odd = np.isnan(vectors).any(axis=1)
            if odd.any():
                raise ValueError(
                    f"row {first + int(odd.argmax())} of {self._path} has no vector of {self.dim} numbers; leave it out"
                )
            yield vectors
            first += len(vectors)

    def _read_items(self) -> pl.DataFrame:
        names = [name for name in self._columns if name not in set(self._vector_columns)]
        read = names or self._vector_columns[:1]  # some column, to count rows by
        parts, first = [], 0
        for block in blocks(self._path):
            parts.append(parse(self._path, block, self._columns, read, first, floats=False))
            first += len(parts[-1])
        table = pl.concat(parts) if parts else pl.DataFrame(schema=dict.fromkeys(read, pl.String))
        items = pl.DataFrame([_typed(table[name]) for name in names])
        return items if "item_id" in names else row_numbers(0, first).hstack(items)

    def _read_dim(self) -> int:
        if self._vector_columns != [JSON_COLUMN]:
            return len(self._vector_columns)
        for block in blocks(self._path):
            texts = parse(self._path, block, self._columns, self._vector_columns, 0, floats=False).to_series()
            dim = _decoded(self._path, texts.head(1), 0).list.len()[0]
            if dim:
                return dim
            break
        raise ValueError(f"{self._path} does not tell the dimension: its first vector is missing or empty; remove it")


def open_source(location: str) -> CsvSource:
    """Open a CSV file whose vectors are in numbered columns, or as JSON lists in the one column `vector`.

    Numbered columns are `vector_0, vector_1, ...`, or the only columns `NAME0, NAME1, ...`, counted from 0 or 1 and in
    order. Integer ids stay text unless each is written as the integer itself is (`7`, not `007`); without a column
    `item_id` they are the row numbers.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If it is damaged or no such table.
    """
    path = Path(location)
    card = verified_card(path)
    return CsvSource(path, card)


def open_target(location: str, space: EmbeddingSpace, provenance: dict[str, Any]) -> SpooledTarget:
    """Begin or go on with a CSV file with a column for each dimension; see `SpooledTarget`."""
    names = _names(space.dim)
    return SpooledTarget(Path(location), space, provenance, _build, reserved=[JSON_COLUMN, *names])


digest = digest_of_file


def write_csv(store: EmbeddingStore, path: Path, columns: Callable[[np.ndarray], pl.DataFrame]) -> Sequence[Path]:
    """Write a store as a CSV file with its item table beside it.

    Args:
        store: The rows.
        path: The file.
        columns: Turns vectors float32 [b, d] into the columns, b rows, that hold them.
    """
    # What CSV has no words for is in the table beside it alone.
    kept = [name for name, dtype in store.items.schema.items() if not (dtype.is_nested() or dtype == pl.Binary)]

    def parts() -> Iterator[bytes]:
        yield _csv(store.items.select(kept).clear().hstack(columns(np.empty((0, store.space.dim), np.float32))), True)
        for batch in store.batches(max(1, _BLOCK_VALUES // store.space.dim)):
            yield _csv(batch.items.select(kept).hstack(columns(batch.vectors)), False)

    write_atomically(path, parts())
    return path, write_items(store.items, path)


def _csv(table: pl.DataFrame, header: bool) -> bytes:
    buffer = io.BytesIO()
    table.write_csv(buffer, include_header=header)
    return buffer.getvalue()


def _names(dim: int) -> list[str]:
    return [f"{_PREFIX}{number}" for number in range(dim)]


def _build(store: EmbeddingStore, path: Path) -> Sequence[Path]:
    names = _names(store.space.dim)
    return write_csv(store, path, lambda vectors: pl.DataFrame(vectors, schema=names, orient="row"))


def _vector_columns(path: Path, columns: Columns, card: GalleryCard | None) -> list[str]:
    if JSON_COLUMN in columns:
        return [JSON_COLUMN]
    if card is not None:
        return _names(card.space.dim)
    families: dict[str, list[tuple[int, str]]] = {}
    for name in columns:
        numbered = re.fullmatch(r"(.*?)(0|[1-9][0-9]{0,6})", name, flags=re.DOTALL)
        if numbered:
            families.setdefault(numbered[1], []).append((int(numbered[2]), name))
    found = families.get(_PREFIX) or (next(iter(families.values())) if len(families) == 1 else [])
    numbers = [number for number, _ in found]
    if not found or numbers not in (list(range(len(found))), list(range(1, len(found) + 1))):
        shown = ", ".join(columns[:8]) + (", ..." if len(columns) > 8 else "")
        raise ValueError(
            f"{path} has the columns {shown[:200]}; expected the vectors in columns {_PREFIX}0, {_PREFIX}1, ..., or in "
            f"one column {JSON_COLUMN} as JSON lists; rename those that are meant"
        )
    return [name for _, name in found]


def _from_columns(table: pl.DataFrame) -> np.ndarray:
    # An empty field becomes NaN.
    return np.ascontiguousarray(table.to_numpy(), dtype=np.float32)


def _from_json(path: Path, texts: pl.Series, dim: int, first: int) -> np.ndarray:
    lists = _decoded(path, texts, first)
    odd = (lists.list.len() != dim).fill_null(True)
    if odd.any():
        raise ValueError(f"row {first + (odd.arg_max() or 0)} of {path} has no vector of {dim} numbers; leave it out")
    with np.errstate(over="ignore"):  # too large for float32 becomes infinite, which every target refuses
        return lists.explode(empty_as_null=False).to_numpy().astype(np.float32).reshape(-1, dim)


def _decoded(path: Path, texts: pl.Series, first: int) -> pl.Series:
    # What polars says of a list that is none repeats its numbers, and embeddings belong in no message.
    try:
        return texts.str.json_decode(pl.List(pl.Float64))
    except pl.exceptions.PolarsError:
        pass
    for row, text in enumerate(texts.to_list(), start=first):
        try:
            pl.Series([text], dtype=pl.String).str.json_decode(pl.List(pl.Float64))
        except pl.exceptions.PolarsError:
            raise ValueError(f"row {row} of {path} has no JSON list of numbers as its vector; leave it out") from None
    raise ValueError(f"{path} has vectors that are no JSON lists of numbers; write them as [0.5, -1.25]")


def _typed(column: pl.Series) -> pl.Series:
    """A column of text as the numbers it stands for; what names something is text unless written as an integer is."""
    numbers = column.cast(pl.Int64, strict=False)
    if numbers.cast(pl.String).equals(column):
        return numbers
    if column.name in ("item_id", "label"):
        return column
    floats = column.cast(pl.Float64, strict=False)
    return floats if floats.null_count() == column.null_count() else column
