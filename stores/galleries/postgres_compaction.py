"""Writing a table of PostgreSQL anew without the bytes of rows that were removed from it."""

from __future__ import annotations

import re
from dataclasses import replace
from typing import Any

from stores.durable import StoreLocked
from stores.galleries.postgres_card import complete_table, lock_writer, mark_uncompacted
from stores.galleries.postgres_location import connected, parse_location
from stores.galleries.postgres_table import table_behind

_SERVER = "no file of the table holds their bytes, but the server's log, its replicas and backups may"
_LOCK_SECONDS = 10


def compact(location: str) -> str | None:
    """Write a table and its indexes anew by VACUUM FULL, which nobody can read meanwhile; see `CompactingEngine`.

    A deleted row is left on its page otherwise, and a plain VACUUM makes room of it without wiping it. A table of
    somebody else's is left as it is.

    Raises:
        FileNotFoundError: If there is no gallery.
        ValueError: If it is unfinished.
        PermissionError: If the table belongs to another user.
        StoreLocked: If somebody else is writing it, or an open transaction still sees rows that were removed.
    """
    from psycopg.sql import SQL, Identifier

    place = parse_location(location)
    left: list[int] = []

    def hear(told: Any) -> None:
        # Of each table and its texts, in the server's language: "N dead row versions cannot be removed yet."
        number = re.search(r"\d+", told.message_detail or "") if told.severity_nonlocalized == "INFO" else None
        left.append(int(number[0]) if number else 0)

    with connected(place) as connection:
        table, card = complete_table(connection, place)
        table = table_behind(connection, table)
        named = Identifier(table.schema, table.name)
        if card is None:
            return (
                "the table is not the toolkit's: their bytes are there until its owner runs VACUUM FULL "
                f"{named.as_string(connection)}"
            )
        place = replace(place, schema=table.schema, table=table.name)
        lock_writer(connection, place, table.schema)
        connection.execute("SELECT set_config('lock_timeout', %s, false)", [f"{_LOCK_SECONDS}s"])
        file = "SELECT pg_relation_filenode(%s::oid)"
        before = connection.execute(file, [table.oid]).fetchone()
        connection.add_notice_handler(hear)
        connection.execute(SQL("VACUUM (FULL, VERBOSE, ANALYZE) {}").format(named))
        if connection.execute(file, [table.oid]).fetchone() == before:  # no error, the server merely warns
            raise PermissionError(
                f"the rows are taken out, but only its owner may write {place} anew; let its owner run the same command"
            )
        if sum(left):
            raise StoreLocked(
                f"{max(left)} rows that were taken out are still seen by an open transaction on {place.server}; end "
                "it, and run again"
            )
        mark_uncompacted(connection, table.schema, table.name, False)
    return _SERVER


def uncompacted(location: str) -> bool:
    """Whether rows were removed from a table since it was last written anew; see `CompactingEngine`.

    Raises:
        FileNotFoundError: If there is no gallery.
        ValueError: If it is unfinished.
    """
    place = parse_location(location)
    with connected(place) as connection:
        _, card = complete_table(connection, place)
    return card is not None and card.uncompacted
