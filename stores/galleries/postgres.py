"""A gallery in a table of PostgreSQL with pgvector: `postgresql://user@host:port/database/table?option=value`.

Options: `id=` and `vector=` name the columns of somebody else's table, `order=` the column that its rows are read in
the order of; `type=vector|halfvec` and `index=none|hnsw|ivfflat` are of a table that is written. A view that shows one
gallery is read as that gallery. Needs psycopg, the extra `postgres`, and pgvector 0.7 or later in the database.
"""

from __future__ import annotations

import hashlib
from typing import Any

from stores.galleries.postgres_compaction import compact, uncompacted
from stores.galleries.postgres_live import discard, put, remove, serve, served
from stores.galleries.postgres_location import connected, parse_location
from stores.galleries.postgres_parts import begin_parts, finish_parts, hold_parts, parts_done, write_part
from stores.galleries.postgres_source import PostgresSource
from stores.galleries.postgres_table import find_table, no_table, table_behind
from stores.galleries.postgres_target import PostgresTarget
from stores.space import EmbeddingSpace

__all__ = [
    "begin_parts",
    "compact",
    "digest",
    "discard",
    "finish_parts",
    "hold_parts",
    "open_source",
    "open_target",
    "parts_done",
    "put",
    "remove",
    "serve",
    "served",
    "uncompacted",
    "write_part",
]


def open_source(location: str) -> PostgresSource:
    """Open a table or view; see `PostgresSource`."""
    return PostgresSource(parse_location(location))


def open_target(location: str, space: EmbeddingSpace, provenance: dict[str, Any]) -> PostgresTarget:
    """Begin or go on with a table; see `PostgresTarget`."""
    return PostgresTarget(parse_location(location), space, provenance)


def digest(location: str) -> str:
    """A name that a table keeps whatever its rows, hexadecimal: of the server, the database, the table.

    Raises:
        FileNotFoundError: If there is no such table.
    """
    from psycopg import errors

    place = parse_location(location)
    with connected(place) as connection:
        table = find_table(connection, place)
        if table is None:
            raise no_table(connection, place)
        table = table_behind(connection, table)
        try:
            server = connection.execute("SELECT system_identifier FROM pg_control_system()").fetchone()
        except errors.InsufficientPrivilege:
            server = (place.server,)
        database = connection.execute("SELECT oid FROM pg_database WHERE datname = current_database()").fetchone()
    return hashlib.sha256(repr((server, database, table.oid)).encode()).hexdigest()
