"""The table of a gallery in PostgreSQL that the toolkit writes: what fits it, how it is made, filled and completed."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import polars as pl

from stores.galleries.postgres_card import update_card
from stores.galleries.postgres_copy import VECTORS, Column, encode
from stores.galleries.postgres_location import PostgresLocation
from stores.galleries.postgres_table import (
    EMBEDDING,
    ITEM_ID,
    MOST_DIMENSIONS,
    ROW,
    as_kept,
    kept_columns,
    vector_schema,
)
from stores.known_ids import KnownIds
from stores.new_items import checked_items, finite_vectors
from stores.space import EmbeddingSpace
from stores.store import Batch

if TYPE_CHECKING:
    import psycopg
    from psycopg.sql import Composed

_MOST_INDEXED = {"vector": 2000, "halfvec": 4000}
_INLINE_BYTES = 3900  # two rows to a page of 8 KiB; longer vectors are kept beside the table, as PostgreSQL does


def require_writable(location: PostgresLocation, space: EmbeddingSpace) -> None:
    """Make sure that a table, and the index asked for, can hold vectors of a space.

    Raises:
        ValueError: If they are too long, or an option is for reading only.
    """
    if location.id or location.vector or location.order:
        raise ValueError(
            f"{location}: id=, vector= and order= are of tables that are there; leave them out of a target"
        )
    if space.dim > MOST_DIMENSIONS:
        raise ValueError(f"{location} takes vectors of up to {MOST_DIMENSIONS} dimensions, found {space.dim}")
    most = _MOST_INDEXED[location.type]
    if location.index != "none" and space.dim > most:
        remedy = "take type=halfvec, or index=none" if space.dim <= _MOST_INDEXED["halfvec"] else "take index=none"
        raise ValueError(
            f"{location}: an {location.index} index takes {location.type}s of up to {most} dimensions, found "
            f"{space.dim}; {remedy}"
        )


def fitting(
    batch: Batch,
    space: EmbeddingSpace,
    columns: list[Column] | None,
    known: KnownIds,
    number: np.dtype,
) -> tuple[pl.DataFrame, np.ndarray]:
    """A batch as the table keeps it.

    Raises:
        ValueError: If it does not fit the space or the columns, holds what the type of the vectors cannot, or an id of
            the known ones.
    """
    items, vectors = batch
    if vectors.ndim != 2 or vectors.shape != (len(items), space.dim):
        raise ValueError(f"vectors have shape {list(vectors.shape)}, expected [{len(items)}, {space.dim}] for {space}")
    items = checked_items(items, None, known)
    items = as_kept(items, kept_columns(items.schema))
    if columns is not None:
        expected = pl.Schema({column.name: column.dtype for column in columns})
        if items.schema != expected:
            checked_items(items, expected, known)
    return items, finite_vectors(items, vectors, number)


def create_table(
    connection: psycopg.Connection[Any],
    location: PostgresLocation,
    schema: str,
    columns: list[Column],
    space: EmbeddingSpace,
) -> None:
    """Make the table, without indexes.

    Raises:
        FileExistsError: If somebody else made one of that name meanwhile.
    """
    from psycopg import errors
    from psycopg.sql import SQL, Identifier, Literal

    fields = [SQL("{} bigint NOT NULL").format(Identifier(ROW))]
    fields += [
        SQL("{} {}{}").format(
            Identifier(column.name), Identifier(column.sent), SQL(" NOT NULL" if column.name == ITEM_ID else "")
        )
        for column in columns
    ]
    kind = Identifier(vector_schema(connection, location), location.type)
    short = VECTORS[location.type].itemsize * space.dim <= _INLINE_BYTES
    fields.append(
        SQL("{} {}({}) {} NOT NULL").format(
            Identifier(EMBEDDING), kind, Literal(space.dim), SQL("STORAGE PLAIN" if short else "STORAGE EXTERNAL")
        )
    )
    try:
        connection.execute(
            SQL("CREATE TABLE {} ({})").format(Identifier(schema, location.table), SQL(", ").join(fields))
        )
    except errors.DuplicateTable:
        raise FileExistsError(f"{location} already exists; name another target, or remove it") from None
    # The planner has no use for a sample of the vectors, and people's vectors have no place in the catalogue.
    connection.execute(
        SQL("ALTER TABLE {} ALTER COLUMN {} SET STATISTICS 0").format(
            Identifier(schema, location.table), Identifier(EMBEDDING)
        )
    )


def encoded_rows(
    location: PostgresLocation, columns: list[Column], items: pl.DataFrame, vectors: np.ndarray, first: int
) -> np.ndarray:
    """Rows, numbered first.., as COPY takes them."""
    numbered = items.select(pl.int_range(first, first + len(items), dtype=pl.Int64).alias(ROW), pl.all())
    vector = Column(EMBEDDING, location.type, pl.Float32())
    return encode([Column(ROW, "int8", pl.Int64()), *columns], numbered, vectors, vector)


def copy_statement(
    location: PostgresLocation, schema: str, columns: list[Column], *, into: str | None = None
) -> Composed:
    """What takes such rows, into the table or into a temporary one of the same columns."""
    from psycopg.sql import SQL, Identifier

    names = SQL(", ").join(Identifier(name) for name in (ROW, *(column.name for column in columns), EMBEDDING))
    relation = Identifier(into) if into else Identifier(schema, location.table)
    return SQL("COPY {} ({}) FROM STDIN (FORMAT binary)").format(relation, names)


def count_rows(connection: psycopg.Connection[Any], schema: str, name: str) -> int:
    """Rows of a table."""
    from psycopg.sql import SQL, Identifier

    found = connection.execute(SQL("SELECT count(*) FROM {}").format(Identifier(schema, name))).fetchone()
    return found[0] if found else 0


def complete(
    connection: psycopg.Connection[Any],
    location: PostgresLocation,
    schema: str,
    space: EmbeddingSpace,
    rows: int,
) -> None:
    """Build key and indexes and mark the gallery complete, within the caller's transaction.

    Raises:
        ValueError: If the table has not so many rows.
    """
    from psycopg.sql import SQL, Identifier

    relation = Identifier(schema, location.table)
    counted = connection.execute(
        SQL("SELECT count(*), coalesce(min({0}), 0), coalesce(max({0}) + 1, 0) FROM {1}").format(
            Identifier(ROW), relation
        )
    ).fetchone()
    if counted != (rows, 0, rows):
        raise ValueError(f"{location} has not the {rows} rows that were written to it; remove it, and write it again")
    connection.execute(
        SQL("ALTER TABLE {} ADD PRIMARY KEY ({}), ADD UNIQUE ({})").format(
            relation, Identifier(ROW), Identifier(ITEM_ID)
        )
    )
    if location.index != "none":
        operators = f"{location.type}_{'ip' if space.similarity == 'inner_product' else 'cosine'}_ops"
        connection.execute(
            SQL("CREATE INDEX ON {} USING {} ({} {})").format(
                relation,
                Identifier(location.index),
                Identifier(EMBEDDING),
                Identifier(vector_schema(connection, location), operators),
            )
        )
    update_card(connection, schema, location.table, rows, complete=True)
    connection.execute(SQL("ANALYZE {}").format(relation))
