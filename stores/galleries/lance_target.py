"""Writing a gallery to a table of LanceDB. What is between two commits waits in memory and becomes one fragment."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import numpy as np
import polars as pl

from stores.durable import StoreLocked, WriterLock
from stores.galleries.fitting_rows import fitting_rows
from stores.galleries.lance_location import LanceLocation, connect, open_table, reported, require_lancedb
from stores.galleries.lance_table import (
    ITEM_ID,
    RESERVED,
    VECTOR,
    LanceCard,
    arrow_table,
    build_index,
    item_schema,
    read_card,
    table_schema,
    update_card,
)
from stores.galleries.origin import already_finished, require_same_origin
from stores.known_ids import KnownIds
from stores.space import EmbeddingSpace
from stores.store import Batch

HALF_NOTE = "the table keeps float16, about three digits of each number"


class LanceTarget:
    """A table that is filled commit by commit and complete with its card.

    A commit is one version of Lance's, which is there or is not; so rows are never lost or doubled by a killed process.

    Args:
        location: The table: new, or left by an interrupted or finished run with the same space and provenance.
        space: What the vectors are.
        provenance: JSON values that say where the vectors come from.

    Raises:
        FileExistsError: If something else is there.
        StoreLocked: If another process is writing it.
        ImportError: If lancedb is missing.
    """

    def __init__(self, location: LanceLocation, space: EmbeddingSpace, provenance: dict[str, Any]) -> None:
        require_lancedb()
        self._location = location
        self._dtype = location.dtype or "float32"
        self.notes = (HALF_NOTE,) if self._dtype == "float16" else ()
        self._waiting: list[Batch] = []
        self._known: KnownIds | None = None
        self._lock: WriterLock | None = None
        card = LanceCard(space, json.loads(json.dumps(provenance)), location.index)
        found = open_table(location)
        if found is None and location.path is not None and location.path.exists():
            left = [entry for entry in location.path.iterdir() if entry.name != ".lock"]
            if left or location.path.is_file():  # a creator that died leaves no more than its lock
                raise FileExistsError(f"{location.path} already exists and is no Lance table; name another target")
        if found is not None:
            self._card = self._same_work(found, card)
            if self._card.complete:
                self._take(found)
                return
        if location.path is not None:
            location.path.mkdir(parents=True, exist_ok=True)
            self._lock = WriterLock(location.path)
            self._lock.acquire()
        try:
            self._card = card
            with reported(location, writing=True):
                table = open_table(location)  # somebody may have been faster
                if table is None:
                    schema = table_schema(space, None, self._dtype, card)
                    table = connect(location).create_table(location.table, schema=schema)
                else:
                    self._card = self._same_work(table, card)
                self._take(table)
        except BaseException:
            self.close()
            raise

    def _same_work(self, table: Any, card: LanceCard) -> LanceCard:
        found = read_card(self._location, table)
        if found is None:
            raise FileExistsError(f"{self._location} already exists; name another target, or remove it")
        require_same_origin(str(self._location), found.space, found.provenance, card.space, card.provenance)
        kept = "float16" if str(table.schema.field(VECTOR).type.value_type) == "halffloat" else "float32"
        if (kept, found.index) != (self._dtype, card.index):
            raise FileExistsError(
                f"{self._location} already exists with dtype={kept}&index={found.index}, expected "
                f"dtype={self._dtype}&index={card.index}; go on with those, or name another target"
            )
        return found

    def _take(self, table: Any) -> None:
        self._table = table
        self._version = table.version
        self._committed: int = table.count_rows()
        self._schema = item_schema(table.schema)

    @property
    def rows_committed(self) -> int:
        """Rows that survive an interruption."""
        return self._committed

    @property
    def finished(self) -> bool:
        """Whether every row is in."""
        return self._card.complete

    def write(self, batch: Batch) -> None:
        """Add rows, which wait in memory for the commit; see `GalleryTarget`."""
        self._require_open()
        if not len(batch.vectors):
            return
        if self._known is None:
            self._known = KnownIds(self._ids())
        fitting = fitting_rows(
            batch,
            self._card.space,
            schema=self._schema,
            known=self._known,
            number=np.dtype(self._dtype),
            reserved=RESERVED,
        )
        if self._schema is None:
            table_schema(self._card.space, fitting.items, self._dtype, self._card)  # refuses types that do not last
        self._waiting.append(Batch(fitting.items, np.array(fitting.vectors)))
        self._known.add(fitting.items[ITEM_ID])
        self._schema = fitting.items.schema

    def commit(self) -> None:
        """Make what was written outlive an interruption, in one version of the table."""
        import pyarrow as pa

        self._require_open()
        if not self._waiting:
            return
        with reported(self._location, writing=True):
            if self._table.schema.names == list(RESERVED):  # nothing but the card is there
                schema = table_schema(self._card.space, self._waiting[0].items, self._dtype, self._card)
            else:
                schema = self._table.schema
            first, pieces = self._committed, []
            for batch in self._waiting:
                pieces.append(arrow_table(schema, batch, first))
                first += len(batch.vectors)
            rows = pa.concat_tables(pieces)
            self._require_unchanged()
            if self._table.schema.names == list(RESERVED):
                table = connect(self._location).create_table(
                    self._location.table, data=rows, schema=schema, mode="overwrite"
                )
            else:
                table = self._table
                table.add(rows)
            self._table, self._version, self._committed = table, table.version, first
        self._waiting = []

    def finish(self) -> None:
        """Commit, build the index and record that every row is in."""
        if self.finished:
            return
        self.commit()
        with reported(self._location, writing=True):
            if self._schema is None:  # an empty gallery still has ids
                items = pl.DataFrame(schema={ITEM_ID: pl.String})
                schema = table_schema(self._card.space, items, self._dtype, self._card)
                self._table = connect(self._location).create_table(
                    self._location.table, schema=schema, mode="overwrite"
                )
            build_index(self._table, self._card)
            done = replace(self._card, complete=True)
            update_card(self._location, self._table, done)
        self._card = done
        self.close()

    def close(self) -> None:
        """Let others write; what was not committed is lost."""
        self._waiting = []
        if self._lock is not None:
            self._lock.release()
            self._lock = None

    def _ids(self) -> pl.Series:
        if self._schema is None:
            return pl.Series([], dtype=pl.String)
        with reported(self._location):
            found = pl.from_arrow(self._table.search().select([ITEM_ID]).limit(self._committed).to_arrow())
        assert isinstance(found, pl.DataFrame)
        return found[ITEM_ID]

    def _require_open(self) -> None:
        if self.finished:
            raise already_finished(str(self._location))
        if self._location.path is not None:
            if self._lock is None:
                raise ValueError(f"{self._location} is closed")
            self._lock.require_held()

    def _require_unchanged(self) -> None:
        # A bucket has no lock; whoever finds a version that is not his own stops.
        latest = open_table(self._location)
        if latest is None or latest.version != self._version:
            raise StoreLocked(f"{self._location} was written by another process meanwhile; let one of the two end")
