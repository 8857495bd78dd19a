"""Many processes writing one table of PostgreSQL, each a part of its rows.

A part is one transaction: its rows and the mark that they are there are seen together or not at all.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np
import polars as pl

from stores.galleries.postgres_card import CARDS, PARTS, PostgresCard, changing, lock_writer, read_card, schema_of
from stores.galleries.postgres_copy import VECTORS
from stores.galleries.postgres_layout import (
    complete,
    copy_statement,
    create_table,
    encoded_rows,
    fitting,
    require_writable,
)
from stores.galleries.postgres_location import PostgresLocation, connected, parse_location
from stores.galleries.postgres_stream import copy_in
from stores.galleries.postgres_table import ITEM_ID, columns_of, find_table, kept_columns
from stores.galleries.postgres_target import begin_card
from stores.known_ids import KnownIds
from stores.space import EmbeddingSpace
from stores.store import Batch

if TYPE_CHECKING:
    import psycopg

_PART_BYTES = 32 * 2**20
_LEAST_ROWS = 1024


def begin_parts(location: str, space: EmbeddingSpace, provenance: dict[str, Any], rows: int) -> int:
    """Begin a gallery of so many rows, or go on with it; return the rows of a part; see `PartsEngine`.

    Raises:
        FileExistsError: If something else is there, or the same begun by one writer or with another number of rows.
        StoreLocked: If another process is beginning or finishing it.
    """
    from psycopg.sql import SQL, Identifier, Literal

    place = parse_location(location)
    require_writable(place, space)
    size = max(_LEAST_ROWS, _PART_BYTES // (4 * space.dim))
    with connected(place) as connection:
        schema, card = begin_card(connection, place, space, provenance, size)
        if card.part_rows is None:
            if card.complete and card.rows == rows:
                return size
            raise FileExistsError(f"{place} was begun by one writer; go on with one, or remove it")
        lock_writer(connection, place, schema)
        with connection.transaction():
            parts, cards, name = Identifier(schema, PARTS), Identifier(schema, CARDS), Literal(place.table)
            last = Literal(-(-rows // card.part_rows) - 1)
            connection.execute(
                SQL(
                    "INSERT INTO {parts} SELECT {name}, number, false FROM generate_series(0, {last}) AS number "
                    "WHERE NOT EXISTS (SELECT FROM {parts} WHERE gallery = {name})"
                ).format(parts=parts, name=name, last=last)
            )
            connection.execute(
                SQL("UPDATE {} SET rows = {} WHERE gallery = {} AND rows = 0 AND NOT complete").format(
                    cards, Literal(rows), name
                )
            )
        card = _card(connection, place, schema)
        if card.rows != rows:
            raise FileExistsError(f"{place} was begun for {card.rows} rows, expected {rows}; name another target")
        return card.part_rows or size


@contextmanager
def hold_parts(location: str) -> Iterator[None]:
    """Be the one who hands out the parts of a table, for the block; see `PartsEngine`.

    Raises:
        StoreLocked: If somebody else does.
    """
    place = parse_location(location)
    with connected(place) as connection:
        # Not the writer's lock, which beginning and finishing take in connections of their own.
        lock_writer(connection, replace(place, table=f"{place.table} parts"), schema_of(connection, place))
        yield


def parts_done(location: str) -> set[int]:
    """Numbers of the parts that outlive an interruption; see `PartsEngine`."""
    place = parse_location(location)
    with connected(place) as connection:
        schema = schema_of(connection, place)
        return _parts(connection, place, schema, done=True)


def write_part(location: str, number: int, batch: Batch) -> None:
    """Write all rows of a part in one transaction; see `PartsEngine`.

    Raises:
        ValueError: If there is no such part, or the batch does not fit it.
    """
    from psycopg.sql import SQL, Identifier, Literal

    place = parse_location(location)
    with connected(place) as connection:
        schema = schema_of(connection, place)
        card = _card(connection, place, schema)
        if card.complete:
            return
        part_rows = card.part_rows or 1
        first = number * part_rows
        expected = min(part_rows, card.rows - first)
        if number < 0 or expected < 1 or len(batch.items) != expected:
            raise ValueError(
                f"part {number} of {place} got {len(batch.items)} rows, expected {max(expected, 0)}; begin again"
            )
        numbers = np.dtype(VECTORS[place.type].newbyteorder("="))
        with changing(connection, _table_lock(place), schema):
            table = find_table(connection, place)
            if table is None:
                items, _ = fitting(batch, card.space, None, KnownIds(pl.Series([])), numbers)
                create_table(connection, place, schema, kept_columns(items.schema), card.space)
                table = find_table(connection, place)
        columns = columns_of(table) if table else None
        items, vectors = fitting(batch, card.space, columns, KnownIds(pl.Series([])), numbers)
        with connection.transaction():
            part = (Identifier(schema, PARTS), Literal(place.table), Literal(number))
            query = SQL("SELECT done FROM {} WHERE gallery = {} AND number = {} FOR UPDATE").format(*part)
            found = connection.execute(query).fetchone()
            if found is None:
                raise ValueError(f"{place} has no part {number}; begin its parts first")
            if found[0]:
                return
            encoded = encoded_rows(place, columns or [], items, vectors, first)
            copy_in(connection, copy_statement(place, schema, columns or []), encoded)
            connection.execute(SQL("UPDATE {} SET done = true WHERE gallery = {} AND number = {}").format(*part))


def finish_parts(location: str) -> None:
    """Make the gallery whole and readable, when every part is done; see `PartsEngine`.

    Raises:
        ValueError: If a part is missing, or an id occurs twice.
        StoreLocked: If another process is finishing it.
    """
    place = parse_location(location)
    with connected(place) as connection:
        schema = schema_of(connection, place)
        if _card(connection, place, schema).complete:
            return
        lock_writer(connection, place, schema)
        card = _card(connection, place, schema)
        if card.complete:
            return
        missing = _parts(connection, place, schema, done=False)
        if missing:
            raise ValueError(f"{len(missing)} parts of {place} are missing, the first is {min(missing)}; run again")
        with connection.transaction():
            if find_table(connection, place) is None:
                create_table(connection, place, schema, kept_columns(pl.Schema({ITEM_ID: pl.String()})), card.space)
            complete(connection, place, schema, card.space, card.rows)


def _card(connection: psycopg.Connection[Any], place: PostgresLocation, schema: str) -> PostgresCard:
    card = read_card(connection, place, schema, place.table)
    if card is None:
        raise FileNotFoundError(f"no gallery at {place}: its parts were not begun")
    return card


def _parts(connection: psycopg.Connection[Any], place: PostgresLocation, schema: str, *, done: bool) -> set[int]:
    from psycopg.sql import SQL, Identifier, Literal

    _card(connection, place, schema)
    query = SQL("SELECT number FROM {} WHERE gallery = {} AND done = {}").format(
        Identifier(schema, PARTS), Literal(place.table), Literal(done)
    )
    return {number for (number,) in connection.execute(query)}


def _table_lock(place: PostgresLocation) -> PostgresLocation:
    """What is locked while the table is made: not what a coordinator holds all the while."""
    return replace(place, table=f"{place.table} table")
