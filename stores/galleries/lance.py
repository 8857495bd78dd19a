"""A gallery in a table of LanceDB: `lance:FOLDER/TABLE?option=value`. Needs lancedb, the extra `lance`.

Options: `dtype=float16` keeps half the bytes and three digits, `index=ivf_pq|hnsw` builds an index when every row is in
(of 5,000 rows or more; fewer are searched exactly); `id=` and `vector=` name the columns of somebody else's table.

Rows are read in the table's order at one version, whatever is written meanwhile, unless somebody removes that version.
A table in a bucket has no lock and no checksums; two writers of one are noticed at the next commit, not before.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from typing import Any

import numpy as np
import polars as pl

from stores.chunks import DamagedStore
from stores.galleries.batching import of_size
from stores.galleries.card import row_numbers
from stores.galleries.gallery import row_ranges
from stores.galleries.lance_live import discard, erase, erasing, put, remove, residue, serve, served
from stores.galleries.lance_location import LanceLocation, no_table, open_table, parse_location, reported
from stores.galleries.lance_table import ITEM_ID, ROW, VECTOR, read_card, require_complete, verify_files
from stores.galleries.lance_target import HALF_NOTE, LanceTarget
from stores.space import EmbeddingSpace
from stores.store import Batch

__all__ = [
    "digest",
    "discard",
    "erase",
    "erasing",
    "open_source",
    "open_target",
    "put",
    "remove",
    "residue",
    "serve",
    "served",
]

_BLOCK_BYTES = 32 * 2**20  # of vectors that Lance hands over at a time


class LanceSource:
    """Rows of a table at the version it had when it was opened.

    Args:
        location: The table.

    Raises:
        FileNotFoundError: If there is none.
        ValueError: If it is unfinished or damaged, or has no usable column of vectors or ids.
        ImportError: If lancedb is missing.
    """

    def __init__(self, location: LanceLocation) -> None:
        table = open_table(location)
        if table is None:
            raise no_table(location)
        self._location = location
        card = read_card(location, table)
        if card is not None:
            require_complete(location, card)
            verify_files(location, card)
        self._version = table.version
        with reported(location):
            self._rows: int = table.count_rows()
        self._vector = _vector_column(location, table.schema)
        self._id = _id_column(location, table.schema)
        own = (ROW,) if card is not None else ()
        self._columns = [name for name in table.schema.names if name not in (self._vector, *own)]
        kind = table.schema.field(self._vector).type
        self.space = card.space if card else None
        self.dim: int = kind.list_size
        self.provenance: dict[str, Any] = card.provenance if card else {}
        self.notes = (HALF_NOTE,) if str(kind.value_type) == "halffloat" else ()

    def __len__(self) -> int:
        return self._rows

    def scan(self, size: int, *, start: int = 0) -> Iterator[Batch]:
        """Rows start.. in the table's order; see `GallerySource`."""
        if not list(row_ranges(min(len(self), start + 1), size, start)):
            row_ranges(len(self), size, start)
            return
        yield from of_size(self._pieces(start), size)

    def _pieces(self, start: int) -> Iterator[Batch]:
        table = open_table(self._location, version=self._version)
        if table is None:
            raise DamagedStore(f"{self._location} is gone; it was removed while it was read")
        rows = max(1, _BLOCK_BYTES // (4 * self.dim))
        with reported(self._location):
            columns = list(dict.fromkeys([*self._columns, self._vector]))
            query = table.search().select(columns).offset(start).limit(len(self) - start)
            for block in query.to_batches(rows):
                yield self._batch(block, start)
                start += block.num_rows

    def _batch(self, block: Any, first: int) -> Batch:
        import pyarrow as pa

        column = block.column(block.schema.get_field_index(self._vector))
        values = column.flatten().to_numpy(zero_copy_only=False)
        if column.null_count or len(values) != len(column) * self.dim:
            raise ValueError(f"{self._location} has a row near {first} without a vector; remove it")
        with np.errstate(over="ignore"):  # too large for float32 becomes infinite, which every target refuses
            vectors = np.ascontiguousarray(values.reshape(-1, self.dim), dtype=np.float32)
        items = row_numbers(first, first + len(vectors))
        if self._columns:
            table = pl.from_arrow(pa.Table.from_batches([block]).select(self._columns))
            assert isinstance(table, pl.DataFrame)
            if self._id is None:
                items = pl.concat([items, table], how="horizontal")
            else:
                items = table.rename({self._id: ITEM_ID}) if self._id != ITEM_ID else table
        return Batch(items, vectors)


def _vector_column(location: LanceLocation, schema: Any) -> str:
    import pyarrow as pa

    def is_vector(kind: Any) -> bool:
        return pa.types.is_fixed_size_list(kind) and pa.types.is_floating(kind.value_type)

    usable = [column.name for column in schema if is_vector(column.type)]
    wanted = location.vector or (VECTOR if VECTOR in usable else None)
    if wanted is None and len(usable) == 1:
        wanted = usable[0]
    if wanted not in usable:
        raise ValueError(
            f"{location} has {len(usable)} columns of vectors ({', '.join(usable) or 'none'}), expected one called "
            f"{wanted or VECTOR}; name it by ?vector="
        )
    return str(wanted)


def _id_column(location: LanceLocation, schema: Any) -> str | None:
    if location.id is not None and location.id not in schema.names:
        raise ValueError(f"{location} has no column {location.id}, found {', '.join(schema.names)}; correct ?id=")
    return location.id or (ITEM_ID if ITEM_ID in schema.names else None)


def open_source(location: str) -> LanceSource:
    """Open a table; see `LanceSource`. Without a column of ids the ids are the row numbers."""
    return LanceSource(parse_location(location))


def open_target(location: str, space: EmbeddingSpace, provenance: dict[str, Any]) -> LanceTarget:
    """Begin or go on with a table; see `LanceTarget`."""
    return LanceTarget(parse_location(location), space, provenance)


def digest(location: str) -> str:
    """A name that a table keeps whatever its rows, hexadecimal.

    Raises:
        FileNotFoundError: If there is no such table.
    """
    place = parse_location(location)
    if open_table(place) is None:
        raise no_table(place)
    where = str(place.path.resolve()) if place.path is not None else str(place)
    return hashlib.sha256(f"lance:{where}".encode()).hexdigest()
