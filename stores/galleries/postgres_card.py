"""The cards of galleries in PostgreSQL: a row of `embedding_galleries` for each, in the schema of its table.

A card says what a table holds, where it comes from, and how many rows of it are committed: it changes in the same
transactions as the table.

Values stand in these statements as literals: the driver would take a % of a name beside a parameter for one more.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from stores.chunks import DamagedStore
from stores.durable import StoreLocked
from stores.galleries.postgres_location import PostgresLocation
from stores.galleries.postgres_table import EMBEDDING, ITEM_ID, ROW, Table, base_of, find_table, no_table
from stores.space import EmbeddingSpace

if TYPE_CHECKING:
    import psycopg
    from psycopg.sql import Composed

FORMAT_VERSION = 1
CARDS, PARTS = "embedding_galleries", "embedding_gallery_parts"
_LOCK_SECONDS = 2  # as long as the server may need to see that a killed writer is gone
_COLUMNS = "format_version, space, provenance, rows, complete, part_rows, uncompacted"


@dataclass(frozen=True)
class PostgresCard:
    """What a table holds.

    Attributes:
        space: What the vectors are.
        provenance: JSON values that say where they come from.
        rows: Rows committed until it was complete.
        complete: Whether every row is in.
        part_rows: Size of a part where many write it, else None.
        uncompacted: Whether rows were taken out whose bytes may be in its files still.
    """

    space: EmbeddingSpace
    provenance: dict[str, Any]
    rows: int
    complete: bool
    part_rows: int | None
    uncompacted: bool = False


def schema_of(connection: psycopg.Connection[Any], location: PostgresLocation) -> str:
    """The schema that a location's table is in, or would be.

    Raises:
        ValueError: If there is no such schema.
    """
    table = find_table(connection, location)
    if table is not None:
        return table.schema
    found = connection.execute(
        "SELECT nspname FROM pg_namespace WHERE nspname = coalesce(%s, current_schema())", [location.schema]
    ).fetchone()
    if found is None:
        raise ValueError(f"{location} has no schema {location.schema!r}; create it, or name another")
    return found[0]


def read_card(
    connection: psycopg.Connection[Any], location: PostgresLocation, schema: str, name: str
) -> PostgresCard | None:
    """The card of the table `name`, None where it has none.

    Raises:
        DamagedStore: If it cannot be read.
    """
    from psycopg.sql import SQL, Literal

    if not connection.execute("SELECT to_regclass(%s)", [_named(connection, schema, CARDS)]).fetchone()[0]:  # type: ignore[index]
        return None
    query = SQL("SELECT {} FROM {} WHERE gallery = {}").format(SQL(_COLUMNS), _identifier(schema, CARDS), Literal(name))
    found = connection.execute(query).fetchone()
    if found is None:
        return None
    version, space, provenance, *counted = found
    remedy = f"restore its row of {schema}.{CARDS} from a copy"
    if version > FORMAT_VERSION:
        raise DamagedStore(
            f"the card of {location} has format version {version}, expected at most {FORMAT_VERSION}; "
            "update the toolkit"
        )
    try:
        return PostgresCard(EmbeddingSpace.from_dict(space), dict(provenance), *counted)
    except (ValueError, TypeError) as error:
        raise DamagedStore(f"the card of {location} was altered ({error}); {remedy}") from None


def complete_table(
    connection: psycopg.Connection[Any], location: PostgresLocation
) -> tuple[Table, PostgresCard | None]:
    """The table or view at a location and the card it has, or the table has that a view shows.

    Raises:
        FileNotFoundError: If there is no such table.
        ValueError: If it is unfinished.
        DamagedStore: If it is not as its card says.
    """
    table = find_table(connection, location)
    schema = schema_of(connection, location) if table is None else table.schema
    base = base_of(connection, table) if table else None
    owner = base or table
    card = read_card(connection, location, owner.schema, owner.name) if owner else None
    if table is None:
        card = read_card(connection, location, schema, location.table)
        if card is None:
            raise no_table(connection, location)
    if card is not None and not card.complete:
        raise ValueError(
            f"{location} is unfinished, it has {card.rows} rows so far; run the command that writes it again"
        )
    if table is None:
        raise DamagedStore(
            f"the table of {location} is missing; restore it, or delete its row of {schema}.{CARDS} to write it again"
        )
    if card is not None and base is None:
        found = table.columns.get(EMBEDDING)
        if found is None or found.size != card.space.dim or {ROW, ITEM_ID} - table.columns.keys():
            raise DamagedStore(
                f"{location} has the columns {', '.join(table.columns)}, expected row, item_id and embedding of "
                f"{card.space.dim} dimensions; restore it from a copy"
            )
    return table, card


def make_cards(connection: psycopg.Connection[Any], schema: str) -> None:
    """Make the tables of cards and parts, where they are missing."""
    from psycopg.sql import SQL

    with connection.transaction():
        connection.execute("SELECT pg_advisory_xact_lock(hashtextextended(%s, 0))", [f"{CARDS} {schema}"])
        if connection.execute("SELECT to_regclass(%s)", [_named(connection, schema, PARTS)]).fetchone()[0]:  # type: ignore[index]
            return
        connection.execute(
            SQL(
                "CREATE TABLE IF NOT EXISTS {} (gallery text PRIMARY KEY, format_version integer NOT NULL, "
                "space json NOT NULL, provenance json NOT NULL, rows bigint NOT NULL, complete boolean NOT NULL, "
                "part_rows bigint, uncompacted boolean NOT NULL)"
            ).format(_identifier(schema, CARDS))
        )
        connection.execute(
            SQL(
                "CREATE TABLE {} (gallery text NOT NULL, number bigint NOT NULL, done boolean NOT NULL, "
                "PRIMARY KEY (gallery, number))"
            ).format(_identifier(schema, PARTS))
        )


def write_card(connection: psycopg.Connection[Any], schema: str, name: str, card: PostgresCard) -> None:
    """Put a new card down."""
    from psycopg.sql import SQL, Literal

    values = [
        name,
        FORMAT_VERSION,
        json.dumps(card.space.to_dict()),
        json.dumps(card.provenance),
        card.rows,
        card.complete,
        card.part_rows,
        card.uncompacted,
    ]
    connection.execute(
        SQL("INSERT INTO {} (gallery, {}) VALUES ({})").format(
            _identifier(schema, CARDS), SQL(_COLUMNS), SQL(", ").join(map(Literal, values))
        )
    )


def update_card(connection: psycopg.Connection[Any], schema: str, name: str, rows: int, *, complete: bool) -> None:
    """Record how many rows a table has, within the transaction that adds them."""
    from psycopg.sql import SQL, Literal

    connection.execute(
        SQL("UPDATE {} SET rows = {}, complete = {} WHERE gallery = {}").format(
            _identifier(schema, CARDS), Literal(rows), Literal(complete), Literal(name)
        )
    )


def mark_uncompacted(connection: psycopg.Connection[Any], schema: str, name: str, uncompacted: bool) -> None:
    """Record whether rows were taken out whose bytes may be in the table's files still."""
    from psycopg.sql import SQL, Literal

    connection.execute(
        SQL("UPDATE {} SET uncompacted = {} WHERE gallery = {}").format(
            _identifier(schema, CARDS), Literal(uncompacted), Literal(name)
        )
    )


def lock_writer(connection: psycopg.Connection[Any], location: PostgresLocation, schema: str) -> None:
    """Be the one writer of a table as long as the connection lasts.

    Raises:
        StoreLocked: If there is another.
    """
    connection.execute("SELECT set_config('lock_timeout', %s, false)", [f"{_LOCK_SECONDS}s"])
    from psycopg import errors

    try:
        connection.execute("SELECT pg_advisory_lock(hashtextextended(%s, 0))", [_lock_name(schema, location)])
    except errors.LockNotAvailable:
        raise StoreLocked(
            f"{location} is being written by another process, or by this one through another object; wait for it to "
            "end, or close it"
        ) from None
    finally:
        connection.execute("SELECT set_config('lock_timeout', '0', false)")


@contextmanager
def changing(connection: psycopg.Connection[Any], location: PostgresLocation, schema: str) -> Iterator[None]:
    """A transaction in which nobody else changes a table through the toolkit."""
    with connection.transaction():
        connection.execute("SELECT pg_advisory_xact_lock(hashtextextended(%s, 0))", [_lock_name(schema, location)])
        yield


def _lock_name(schema: str, location: PostgresLocation) -> str:
    return f"{CARDS} {schema} {location.table}"


def _named(connection: psycopg.Connection[Any], schema: str, name: str) -> str:
    from psycopg.sql import Identifier

    return Identifier(schema, name).as_string(connection)


def _identifier(schema: str, name: str) -> Composed:
    from psycopg.sql import SQL, Identifier

    return SQL("{}").format(Identifier(schema, name))
