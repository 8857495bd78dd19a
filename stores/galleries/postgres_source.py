"""Reading a gallery from a table of PostgreSQL with a column of pgvector's `vector` or `halfvec`."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from stores.galleries.batching import of_size
from stores.galleries.gallery import row_ranges
from stores.galleries.postgres_card import complete_table
from stores.galleries.postgres_copy import MalformedRows, decode
from stores.galleries.postgres_location import PostgresLocation, connected
from stores.galleries.postgres_stream import ahead, copy_out
from stores.galleries.postgres_table import ROW, Table, select, vector_schema
from stores.store import Batch

if TYPE_CHECKING:
    import psycopg
    from psycopg.sql import Composable

_BLOCK_BYTES = 4 * 2**20
_BLOCK_ROWS = 8192  # short vectors may have long texts beside them
HALF_NOTE = "halfvec keeps three digits of each number"


class PostgresSource:
    """A table or view, read through binary COPY, a block at a time.

    Rows of the toolkit's own tables come in the order of `row`, those of others in the order of `?order=`, then of the
    id. Each scan sees the table as it is when the scan begins; `len` is what it was when the source was opened.

    Args:
        location: The table.

    Raises:
        FileNotFoundError: If there is none.
        ValueError: If it is unfinished, its columns do not tell which hold ids and vectors, or its dimension is not
            known because it has no rows.
    """

    def __init__(self, location: PostgresLocation) -> None:
        from psycopg.sql import SQL, Identifier

        self._location = location
        with connected(location) as connection:
            table, card = complete_table(connection, location)
            self._own = card is not None and ROW in table.columns
            self._selection = select(location, table, own=self._own)
            self._relation = Identifier(table.schema, table.name)
            self._keys = self._order(table)
            self._require_keys(connection, table)
            counted = connection.execute(SQL("SELECT count(*) FROM {}").format(self._relation)).fetchone()
            self._rows: int = counted[0] if counted else 0
            self.dim: int = card.space.dim if card else self._dimension(connection)
        self.space = card.space if card else None
        self.provenance: dict[str, Any] = card.provenance if card else {}
        self.notes = (HALF_NOTE,) if self._selection.vector[1].sent == "halfvec" else ()

    def __repr__(self) -> str:
        return f"PostgresSource({self._location})"

    def __len__(self) -> int:
        return self._rows

    def scan(self, size: int, *, start: int = 0) -> Iterator[Batch]:
        """Rows start.. in order; see `GallerySource`."""
        from psycopg.sql import SQL

        row_ranges(len(self), size, start)
        with connected(self._location) as connection:
            _begin_snapshot(connection)
            where = self._from(connection, start) if start else SQL("")
            if where is not None:
                yield from of_size(ahead(self._blocks(connection, where, size)), size)

    def _blocks(self, connection: psycopg.Connection[Any], where: Composable, size: int) -> Iterator[Batch]:
        from psycopg.sql import SQL

        selection = self._selection
        fields = [*selection.items, selection.vector]
        query = SQL("SELECT {} FROM {}{} ORDER BY {}").format(
            SQL(", ").join(expression for expression, _ in fields), self._relation, where, self._key()
        )
        columns = [column for _, column in selection.items]
        # Whole batches, so that they need not be joined.
        block = max(size, min(_BLOCK_ROWS, _BLOCK_BYTES // (4 * self.dim)) // size * size)
        for content, starts in copy_out(connection, query, block):
            try:
                items, vectors = decode(content, starts, columns, selection.vector[1], self.dim)
            except MalformedRows as error:
                raise ValueError(f"{self._location}: {error}") from None
            if items["item_id"].null_count():
                raise ValueError(
                    f"{self._location} has rows without a value in {selection.id!r}; fill them in, or leave them out"
                )
            yield Batch(items, vectors)

    def _key(self) -> Composable:
        from psycopg.sql import SQL, Identifier

        return SQL(", ").join(map(Identifier, self._keys))

    def _from(self, connection: psycopg.Connection[Any], start: int) -> Composable | None:
        """The condition of rows start.., found in the index of the key alone; None where there are none."""
        from psycopg.sql import SQL, Literal

        query = SQL("SELECT {key} FROM {table} ORDER BY {key} OFFSET {start} LIMIT 1").format(
            key=self._key(), table=self._relation, start=Literal(start)
        )
        found = connection.execute(query).fetchone()
        if found is None:
            return None
        return SQL(" WHERE ({}) >= ({})").format(self._key(), SQL(", ").join(map(Literal, found)))

    def _order(self, table: Table) -> list[str]:
        if self._location.order:
            return list(dict.fromkeys([self._location.order, self._selection.id]))
        if self._own:
            return [ROW]
        if table.key and self._location.id is None and self._selection.id not in table.key:
            return list(table.key)
        return [self._selection.id]

    def _require_keys(self, connection: psycopg.Connection[Any], table: Table) -> None:
        from psycopg.sql import SQL, Identifier

        for name in self._keys:
            if table.kind == "r" and table.columns[name].required:
                continue
            query = SQL("SELECT EXISTS (SELECT FROM {} WHERE {} IS NULL)").format(self._relation, Identifier(name))
            found = connection.execute(query).fetchone()
            if found and found[0]:
                raise ValueError(
                    f"{self._location} has rows without a value in {name!r}, and so no order; fill them in, or name "
                    "another column: ?order="
                )

    def _dimension(self, connection: psycopg.Connection[Any]) -> int:
        from psycopg.sql import SQL, Identifier

        if self._selection.size:
            return self._selection.size
        expression, column = self._selection.vector
        query = SQL("SELECT {2}({0}) FROM {1} WHERE {0} IS NOT NULL LIMIT 1").format(
            expression, self._relation, Identifier(vector_schema(connection, self._location), "vector_dims")
        )
        found = connection.execute(query).fetchone()
        if found is None:
            raise ValueError(
                f"{self._location} does not tell the dimension of its empty column {column.name!r}; fill it"
            )
        return found[0]


def _begin_snapshot(connection: psycopg.Connection[Any]) -> None:
    # Sorting whole rows, vectors and all, is far dearer than to walk the index of the key.
    connection.execute("BEGIN ISOLATION LEVEL REPEATABLE READ READ ONLY")
    connection.execute("SELECT set_config('enable_sort', 'off', true), set_config('jit', 'off', true)")
