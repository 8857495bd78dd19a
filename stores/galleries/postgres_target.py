"""Writing a gallery to a table of PostgreSQL: `row`, `item_id`, further columns, `embedding`.

Rows are copied into a table without indexes, which takes half the time; the key, the uniqueness of ids and the index of
vectors come in one transaction with the mark that the gallery is complete.
"""

from __future__ import annotations

import json
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TYPE_CHECKING, Any

import numpy as np
import polars as pl

from stores.galleries.postgres_card import (
    PostgresCard,
    lock_writer,
    make_cards,
    read_card,
    schema_of,
    update_card,
    write_card,
)
from stores.galleries.postgres_copy import VECTORS, Column
from stores.galleries.postgres_layout import (
    complete,
    copy_statement,
    count_rows,
    create_table,
    encoded_rows,
    fitting,
    require_writable,
)
from stores.galleries.postgres_location import PostgresLocation, connect, reported
from stores.galleries.postgres_source import HALF_NOTE
from stores.galleries.postgres_stream import begin_copy, end_copy, send_rows
from stores.galleries.postgres_table import EMBEDDING, ITEM_ID, columns_of, find_table, kept_columns, vector_schema
from stores.galleries.zarr_store import already_finished, require_same_origin
from stores.known_ids import KnownIds
from stores.space import EmbeddingSpace
from stores.store import Batch

if TYPE_CHECKING:
    import psycopg


class PostgresTarget:
    """A table that is filled in transactions and complete with its card.

    Args:
        location: The table: new, or left by an interrupted or finished run with the same space and provenance.
        space: What the vectors are.
        provenance: JSON values that say where the vectors come from.

    Raises:
        FileExistsError: If something else is there.
        StoreLocked: If another process is writing it.
        ValueError: If the vectors are too long for the table or its index.
    """

    def __init__(self, location: PostgresLocation, space: EmbeddingSpace, provenance: dict[str, Any]) -> None:
        require_writable(location, space)
        self._location = location
        self._number = np.dtype(VECTORS[location.type].newbyteorder("="))
        self.notes = (HALF_NOTE,) if location.type == "halfvec" else ()
        self._space = space
        self._recent = KnownIds(pl.Series([], dtype=pl.String))
        self._columns: list[Column] | None = None
        self._sender = ThreadPoolExecutor(1, thread_name_prefix="rows")
        self._sending: Future[None] | None = None
        self._copying = False
        self._connection: psycopg.Connection[Any] | None = connect(location)
        try:
            with reported(location):
                self._schema, card = begin_card(self._connection, location, space, provenance, None)
                if card.part_rows is not None and not card.complete:
                    raise FileExistsError(f"{location} was begun by several workers; go on with several, or remove it")
                if not card.complete:
                    lock_writer(self._connection, location, self._schema)
                    card = read_card(self._connection, location, self._schema, location.table) or card
                    table = find_table(self._connection, location)
                    self._columns = columns_of(table) if table else None
                self.rows_committed, self.finished = card.rows, card.complete
                if card.complete:
                    self.rows_committed = count_rows(self._connection, self._schema, location.table)
        except BaseException:
            self.close()
            raise
        self._rows = self.rows_committed
        self._open_transaction = False

    def write(self, batch: Batch) -> None:
        """Add rows; see `GalleryTarget`. They are sent while the caller goes on.

        What only the server can find fault with (a text with a NUL, a full disk) is raised by `commit`.
        """
        connection = self._begun()
        items, vectors = fitting(batch, self._space, self._columns, self._recent, self._number)
        with reported(self._location):
            if not self._open_transaction:
                connection.execute("BEGIN")
                self._open_transaction = True
            if self._columns is None:
                columns = kept_columns(items.schema)
                create_table(connection, self._location, self._schema, columns, self._space)
                self._columns = columns
            if len(items):
                encoded = encoded_rows(self._location, self._columns, items, vectors, self._rows)
                self._wait()
                if not self._copying:
                    begin_copy(connection, copy_statement(self._location, self._schema, self._columns))
                    self._copying = True
                self._sending = self._sender.submit(send_rows, connection, encoded)
        self._recent.add(items[ITEM_ID])
        self._rows += len(items)

    def commit(self) -> None:
        """Make what was written outlive an interruption."""
        connection = self._begun()
        if not self._open_transaction:
            return
        with reported(self._location):
            self._wait()
            if self._copying:
                self._copying = False
                end_copy(connection)
            update_card(connection, self._schema, self._location.table, self._rows, complete=False)
            connection.execute("COMMIT")
        self._open_transaction = False
        self.rows_committed = self._rows
        self._recent = KnownIds(pl.Series([], dtype=pl.String))

    def finish(self) -> None:
        """Commit, and build the key and the indexes in one transaction with the mark that the gallery is complete."""
        if self.finished:
            return
        self.commit()
        connection = self._begun()
        with reported(self._location), connection.transaction():
            if self._columns is None:
                columns = kept_columns(pl.Schema({ITEM_ID: pl.String()}))
                create_table(connection, self._location, self._schema, columns, self._space)
            complete(connection, self._location, self._schema, self._space, self._rows)
        self.finished = True

    def close(self) -> None:
        """Let others write; what was not committed is lost."""
        if self._connection is not None:
            if self._sending is not None:
                self._sending.exception()  # nobody else may use a connection that is closed
            self._sender.shutdown()
            self._connection.close()
            self._connection = None

    def _wait(self) -> None:
        sending, self._sending = self._sending, None
        if sending is not None:
            sending.result()

    def __repr__(self) -> str:
        return f"PostgresTarget({self._location})"

    def _begun(self) -> psycopg.Connection[Any]:
        if self.finished:
            raise already_finished(str(self._location))
        if self._connection is None:
            raise ValueError(f"{self._location} is closed")
        return self._connection


def begin_card(
    connection: psycopg.Connection[Any],
    location: PostgresLocation,
    space: EmbeddingSpace,
    provenance: dict[str, Any],
    part_rows: int | None,
) -> tuple[str, PostgresCard]:
    """The schema and the card of a table that is begun now, or was by the same work.

    Raises:
        FileExistsError: If something else is there.
        ValueError: If there is no such schema, or no pgvector.
    """
    from psycopg import errors

    vector_schema(connection, location)
    schema = schema_of(connection, location)
    provenance = json.loads(json.dumps(provenance))
    card = read_card(connection, location, schema, location.table)
    if card is None:
        if find_table(connection, location) is not None:
            raise FileExistsError(f"{location} already exists; name another target, or remove it")
        make_cards(connection, schema)
        card = PostgresCard(space, provenance, 0, False, part_rows)
        try:
            write_card(connection, schema, location.table, card)
        except errors.UniqueViolation:  # somebody else has begun it in between
            card = read_card(connection, location, schema, location.table) or card
    table = find_table(connection, location)
    require_same_origin(str(location), card.space, card.provenance, space, provenance)
    if table is not None:
        found = table.columns.get(EMBEDDING)
        if found is None or (found.kind, found.size) != (location.type, space.dim):
            kept = f"{found.kind} of {found.size}" if found else "no column embedding"
            raise FileExistsError(
                f"{location} already exists with {kept}, expected {location.type} of {space.dim}; go on with that, or "
                "name another target"
            )
    elif card.rows:
        raise FileExistsError(f"{location} lost its table, which had {card.rows} rows; name another target")
    return schema, card
