"""What a table of PostgreSQL holds: its columns as those of an item table, its key, its vectors."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import polars as pl

from stores.galleries.missing import missing
from stores.galleries.postgres_copy import VECTORS, Column
from stores.galleries.postgres_location import PostgresLocation, require_name

if TYPE_CHECKING:
    import psycopg
    from psycopg.sql import Composable

ROW, ITEM_ID, EMBEDDING = "row", "item_id", "embedding"
MOST_DIMENSIONS = 16_000
_OLDEST = (0, 7)  # of pgvector: the first with halfvec and its index

_READ: dict[str, tuple[str, pl.DataType]] = {
    "bool": ("bool", pl.Boolean()),
    "int2": ("int2", pl.Int16()),
    "int4": ("int4", pl.Int32()),
    "int8": ("int8", pl.Int64()),
    "float4": ("float4", pl.Float32()),
    "float8": ("float8", pl.Float64()),
    "date": ("date", pl.Date()),
    "timestamp": ("timestamp", pl.Datetime("us")),
    "timestamptz": ("timestamptz", pl.Datetime("us", "UTC")),
    "bytea": ("bytea", pl.Binary()),
}
"""How a column is sent and what it becomes; any other type is sent as text."""


@dataclass(frozen=True)
class TableColumn:
    """A column as the catalogue has it; `size` is the dimension of a vector, None where it is not fixed."""

    name: str
    kind: str
    size: int | None
    required: bool


@dataclass(frozen=True)
class Table:
    """A table, or a view.

    Attributes:
        schema: Where it is.
        name: What it is called.
        oid: Its number in the database.
        kind: `r` for a table, `v` for a view, ...
        columns: Its columns by name.
        key: Columns of its primary key.
    """

    schema: str
    name: str
    oid: int
    kind: str
    columns: dict[str, TableColumn]
    key: tuple[str, ...]


@dataclass(frozen=True)
class Selection:
    """What is read of a table: an expression and a `Column` for the id, for each further column, for the vector."""

    items: list[tuple[Composable, Column]]
    vector: tuple[Composable, Column]
    id: str
    size: int | None


def find_table(connection: psycopg.Connection[Any], location: PostgresLocation) -> Table | None:
    """The table at a location, None where there is none.

    Raises:
        psycopg.Error: If the server fails.
    """
    from psycopg.sql import Identifier

    named = Identifier(*((location.schema,) if location.schema else ()), location.table).as_string(connection)
    found = connection.execute(
        "SELECT c.oid, n.nspname, c.relname, c.relkind::text FROM pg_class c JOIN pg_namespace n "
        "ON n.oid = c.relnamespace WHERE c.oid = to_regclass(%s) AND c.relkind IN ('r', 'p', 'v', 'm', 'f')",
        [named],
    ).fetchone()
    return None if found is None else _described(connection, *found)


def no_table(connection: psycopg.Connection[Any], location: PostgresLocation) -> FileNotFoundError:
    """The error of a table that is not there, with those of the database that have vectors."""
    found = connection.execute(
        "SELECT DISTINCT n.nspname, c.relname FROM pg_attribute a JOIN pg_type t ON t.oid = a.atttypid "
        "JOIN pg_class c ON c.oid = a.attrelid JOIN pg_namespace n ON n.oid = c.relnamespace "
        "WHERE t.typname = ANY(%s) AND NOT a.attisdropped AND c.relkind IN ('r', 'p', 'v', 'm', 'f')",
        [list(VECTORS)],
    ).fetchall()
    near = [each for each in found if each[0] == location.schema] or found
    return missing(location, "table", [f"{schema}.{name}" for schema, name in near])


def base_of(connection: psycopg.Connection[Any], view: Table) -> Table | None:
    """The one table that a view shows, None where it shows several, or where it is no view."""
    if view.kind != "v":
        return None
    found = connection.execute(
        "SELECT DISTINCT c.oid, n.nspname, c.relname, c.relkind::text FROM pg_rewrite r JOIN pg_depend d "
        "ON d.classid = 'pg_rewrite'::regclass AND d.objid = r.oid AND d.refclassid = 'pg_class'::regclass "
        "JOIN pg_class c ON c.oid = d.refobjid JOIN pg_namespace n ON n.oid = c.relnamespace "
        "WHERE r.ev_class = %s AND c.oid <> %s",
        [view.oid, view.oid],
    ).fetchall()
    return _described(connection, *found[0]) if len(found) == 1 else None


def table_behind(connection: psycopg.Connection[Any], table: Table) -> Table:
    """The one table that a view shows, and anything else itself."""
    return base_of(connection, table) or table


def _described(connection: psycopg.Connection[Any], oid: int, schema: str, name: str, kind: str) -> Table:
    columns = connection.execute(
        "SELECT a.attname, t.typname, a.atttypmod, a.attnotnull FROM pg_attribute a "
        "JOIN pg_type t ON t.oid = a.atttypid "
        "WHERE a.attrelid = %s AND a.attnum > 0 AND NOT a.attisdropped ORDER BY a.attnum",
        [oid],
    ).fetchall()
    key = connection.execute(
        "SELECT a.attname FROM pg_index i CROSS JOIN LATERAL unnest(i.indkey) WITH ORDINALITY AS k(number, place) "
        "JOIN pg_attribute a ON a.attrelid = i.indrelid AND a.attnum = k.number "
        "WHERE i.indrelid = %s AND i.indisprimary ORDER BY k.place",
        [oid],
    ).fetchall()
    described = {
        column: TableColumn(column, typed, size if typed in VECTORS and size > 0 else None, required)
        for column, typed, size, required in columns
    }
    return Table(schema, name, oid, kind, described, tuple(column for (column,) in key))


def vector_schema(connection: psycopg.Connection[Any], location: PostgresLocation) -> str:
    """The schema that pgvector's types are in.

    Raises:
        ValueError: If the database has not the extension, or one too old.
    """
    found = connection.execute(
        "SELECT n.nspname, e.extversion FROM pg_extension e JOIN pg_namespace n ON n.oid = e.extnamespace "
        "WHERE e.extname = 'vector'"
    ).fetchone()
    if found is None:
        raise ValueError(
            f"the database of {location} has not the extension vector (pgvector); let its owner run "
            "CREATE EXTENSION vector"
        )
    version = tuple(int(part) for part in found[1].split(".")[:2])
    if version < _OLDEST:
        raise ValueError(
            f"the database of {location} has pgvector {found[1]}, expected 0.7 or later; let its owner run "
            "ALTER EXTENSION vector UPDATE"
        )
    return found[0]


def select(location: PostgresLocation, table: Table, *, own: bool) -> Selection:
    """What to read of a table for its items and vectors.

    Args:
        location: Says which columns hold ids and vectors, where that is not plain.
        table: The table or view.
        own: Whether the toolkit wrote it: its column `row` is then no item column.

    Raises:
        ValueError: If a column is missing, or it takes an option to say which is meant.
    """
    for option in ("id", "vector", "order"):
        name = getattr(location, option)
        if name is not None and name not in table.columns:
            raise ValueError(
                f"{location} has no column {name!r}, only {', '.join(table.columns)}; correct the option {option}="
            )
    id_column = location.id or next(
        (name for name in (ITEM_ID, "id", *_single(table.key)) if name in table.columns), ""
    )
    if not id_column:
        raise ValueError(f"{location} has the columns {', '.join(table.columns)}; name the one of the ids: ?id=COLUMN")
    vectors = [column.name for column in table.columns.values() if column.kind in VECTORS]
    if not vectors:
        raise ValueError(f"{location} has no column of the type vector or halfvec; name another table")
    vector = location.vector or (EMBEDDING if own else vectors[0])
    if vector not in vectors:
        raise ValueError(f"column {vector!r} of {location} is no vector; give ?vector= one of {', '.join(vectors)}")
    if len(vectors) > 1 and location.vector is None and not own:
        raise ValueError(f"{location} has the vectors {', '.join(vectors)}; say which: ?vector={vectors[0]}")
    kept = [name for name in table.columns if name not in (id_column, vector, *([ROW] if own else []))]
    if ITEM_ID in kept:
        raise ValueError(
            f"{location} has a column item_id beside the ids in {id_column!r}; leave out ?id=, or rename it"
        )
    described = table.columns[vector]
    return Selection(
        [_id_column(table.columns[id_column]), *(_read_column(table.columns[name]) for name in kept)],
        (_expression(vector), Column(vector, described.kind, pl.Float32())),
        id_column,
        described.size,
    )


def _single(key: tuple[str, ...]) -> tuple[str, ...]:
    return key if len(key) == 1 else ()


def _id_column(column: TableColumn) -> tuple[Composable, Column]:
    integer = column.kind in ("int2", "int4", "int8")
    if integer:
        return _expression(column.name, "int8"), Column(ITEM_ID, "int8", pl.Int64())
    return _expression(column.name, "text"), Column(ITEM_ID, "text", pl.String())


def _read_column(column: TableColumn) -> tuple[Composable, Column]:
    sent, dtype = _READ.get(column.kind, ("text", pl.String()))
    return _expression(column.name, "text" if sent == "text" else None), Column(column.name, sent, dtype)


def _expression(name: str, cast: str | None = None) -> Composable:
    from psycopg.sql import SQL, Identifier

    return SQL("{}::{}").format(Identifier(name), Identifier(cast)) if cast else Identifier(name)


def kept_columns(schema: pl.Schema) -> list[Column]:
    """The columns that a gallery's table gets for those of an item table.

    Raises:
        ValueError: If a name is reserved or too long, or a type has no counterpart.
    """
    columns = []
    for name, dtype in schema.items():
        if name in (ROW, EMBEDDING):
            raise ValueError(f"item column {name!r} is reserved by a gallery in PostgreSQL; rename it")
        require_name(name)
        sent = _written_type(dtype)
        if sent is None:
            raise ValueError(f"item column {name!r} is {dtype}, which PostgreSQL has no type for; cast it, or drop it")
        columns.append(Column(name, sent, pl.String() if sent == "text" else _READ[sent][1]))
    return columns


_WRITTEN: dict[Any, str] = {
    pl.Boolean: "bool",
    pl.Int8: "int2",
    pl.UInt8: "int2",
    pl.Int16: "int2",
    pl.UInt16: "int4",
    pl.Int32: "int4",
    pl.UInt32: "int8",
    pl.Int64: "int8",
    pl.Float32: "float4",
    pl.Float64: "float8",
    pl.Date: "date",
    pl.Binary: "bytea",
    pl.String: "text",
    pl.Categorical: "text",
    pl.Enum: "text",
    pl.Null: "text",
}


def _written_type(dtype: pl.DataType) -> str | None:
    if isinstance(dtype, pl.Datetime):
        return "timestamptz" if dtype.time_zone else "timestamp"
    return _WRITTEN.get(dtype.base_type())


def as_kept(items: pl.DataFrame, columns: list[Column]) -> pl.DataFrame:
    """An item table with the types that its columns have in PostgreSQL."""
    return items.select(
        pl.col(column.name).dt.convert_time_zone("UTC").cast(column.dtype)
        if column.sent == "timestamptz"
        else pl.col(column.name).cast(column.dtype)
        for column in columns
    )


def columns_of(table: Table) -> list[Column]:
    """The item columns of a table that the toolkit wrote."""
    return [_read_column(column)[1] for column in table.columns.values() if column.name not in (ROW, EMBEDDING)]
