"""Changing a gallery in PostgreSQL in place, and the view that leads to the one that is served."""

from __future__ import annotations

import uuid
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np
import polars as pl

from stores.galleries.fitting_rows import comparable_ids
from stores.galleries.postgres_card import (
    CARDS,
    PARTS,
    changing,
    complete_table,
    mark_uncompacted,
    read_card,
    schema_of,
)
from stores.galleries.postgres_copy import VECTORS
from stores.galleries.postgres_layout import copy_statement, encoded_rows, fitting
from stores.galleries.postgres_location import connected, parse_location
from stores.galleries.postgres_stream import copy_in
from stores.galleries.postgres_table import (
    EMBEDDING,
    ITEM_ID,
    ROW,
    Table,
    base_of,
    columns_of,
    find_table,
    select,
    table_behind,
)
from stores.known_ids import KnownIds
from stores.store import Batch

if TYPE_CHECKING:
    import psycopg

_INCOMING = "embedding_gallery_incoming"
_SCHEME = "postgresql:"  # in a view's comment; releases before wrote none
_SWITCH_SECONDS = 5  # a view's new readers wait behind whoever waits to replace it


def put(location: str, batch: Batch) -> None:
    """Add rows to a finished gallery in one transaction; a row whose id is there is replaced; see `LiveEngine`.

    Raises:
        FileNotFoundError: If there is no gallery.
        ValueError: If it is unfinished or was not written by the toolkit, or the batch does not fit it.
    """
    from psycopg.sql import SQL, Identifier

    place = parse_location(location)
    with connected(place) as connection:
        table, card = complete_table(connection, place)
        table = table_behind(connection, table)
        if card is None:
            raise ValueError(f"{place} was not written by this toolkit, which adds no rows to it; insert them yourself")
        place = replace(place, schema=table.schema, table=table.name, type=table.columns[EMBEDDING].kind)
        columns = columns_of(table)
        number = np.dtype(VECTORS[place.type].newbyteorder("="))
        items, vectors = fitting(batch, card.space, columns, KnownIds(pl.Series([])), number)
        relation, incoming = Identifier(table.schema, table.name), Identifier(_INCOMING)
        names = [column.name for column in columns] + [EMBEDDING]
        with changing(connection, place, table.schema):
            connection.execute(SQL("CREATE TEMPORARY TABLE {} (LIKE {}) ON COMMIT DROP").format(incoming, relation))
            found = connection.execute(
                SQL("SELECT coalesce(max({}) + 1, 0) FROM {}").format(Identifier(ROW), relation)
            ).fetchone()
            encoded = encoded_rows(place, columns, items, vectors, found[0] if found else 0)
            copy_in(connection, copy_statement(place, table.schema, columns, into=_INCOMING), encoded)
            connection.execute(
                SQL("INSERT INTO {0} ({1}) SELECT {1} FROM {2} ON CONFLICT ({3}) DO UPDATE SET {4}").format(
                    relation,
                    SQL(", ").join(map(Identifier, [ROW, *names])),
                    incoming,
                    Identifier(ITEM_ID),
                    SQL(", ").join(SQL("{0} = excluded.{0}").format(Identifier(name)) for name in names),
                )
            )


def remove(location: str, item_ids: pl.Series) -> int:
    """Take rows out of a finished gallery in one transaction and return how many there were; see `LiveEngine`.

    Their bytes stay in the table's files; `compact` leaves none.

    Raises:
        FileNotFoundError: If there is no gallery.
        ValueError: If it is unfinished.
    """
    from psycopg.sql import SQL, Identifier, Literal

    place = parse_location(location)
    with connected(place) as connection:
        table, card = complete_table(connection, place)
        if card is not None:
            table = table_behind(connection, table)
            place = replace(place, schema=table.schema, table=table.name)
        name = select(place, table, own=card is not None and ROW in table.columns).id
        kind = table.columns[name].kind
        ids, cast = _comparable(item_ids, kind)
        with changing(connection, place, table.schema):
            found = connection.execute(
                SQL("DELETE FROM {} WHERE {} = ANY({}::{}[])").format(
                    Identifier(table.schema, table.name),
                    Identifier(name) if cast in _NATIVE.get(kind, ()) else SQL("{}::text").format(Identifier(name)),
                    Literal(ids),
                    Identifier(cast),
                )
            )
            if card is not None and found.rowcount:
                mark_uncompacted(connection, table.schema, table.name, True)
            return found.rowcount


_NATIVE = {"int2": ("int8",), "int4": ("int8",), "int8": ("int8",), "uuid": ("uuid",), "text": ("text",)}
"""Types of ids that are compared as they are, so that their index finds them."""


def _comparable(item_ids: pl.Series, kind: str) -> tuple[list[Any], str]:
    if kind in ("int2", "int4", "int8"):
        return comparable_ids(item_ids, pl.Int64()).to_list(), "int8"
    ids = comparable_ids(item_ids, pl.String()).to_list()
    if kind != "uuid":
        return [each for each in ids if "\0" not in each], "text"
    known = []
    for each in ids:
        try:
            known.append(str(uuid.UUID(each)))
        except ValueError:
            continue  # no such id can be in the table
    return known, "uuid"


def serve(name: str, location: str) -> None:
    """Let the view `name` show the table at `location`, in one transaction; see `LiveEngine`.

    Args:
        name: The view: its location, or the bare name of one beside the table.
        location: The gallery. A password may be in either.

    Raises:
        FileNotFoundError: If there is no such gallery.
        FileExistsError: If there is a table of that name, or a view that shows more or less than a table.
        ValueError: If the gallery is unfinished or in another database, or other views stand on the view.
        StoreLocked: If somebody reads the view for longer than a moment; nothing is changed then.
    """
    from psycopg import errors
    from psycopg.sql import SQL, Identifier, Literal

    place = parse_location(location)
    view = parse_location(name) if name.startswith("//") else None
    if view is not None and (view.server, view.database) != (place.server, place.database):
        raise ValueError(f"{view} and {place} are in different databases, and a view shows its own; name one there")
    with connected(view or place) as connection:
        table, _ = complete_table(connection, place)
        if view is None:
            view = parse_location(place.beside(table.schema, name))
        if base_of(connection, table) is not None:
            raise ValueError(f"{place} is a view; name the table that it shows")
        schema = schema_of(connection, view)
        target = Identifier(schema, view.table)
        connection.execute("SELECT set_config('lock_timeout', %s, false)", [f"{_SWITCH_SECONDS}s"])
        with changing(connection, view, schema):
            found = find_table(connection, view)
            if found is not None and found.kind != "v":
                raise FileExistsError(
                    f"{view} is a table, which is never replaced; rename it first, or name another view"
                )
            if found is not None and not _shows_one_table(connection, found):
                raise FileExistsError(
                    f"{view} is a view of somebody's own, which is never replaced; rename it first, or name another "
                    "view"
                )
            rights = _rights(connection, found) if found else []
            try:
                connection.execute(SQL("DROP VIEW IF EXISTS {}").format(target))
            except errors.DependentObjectsStillExist:
                raise ValueError(f"other views stand on {view}; drop them first, or name another view") from None
            connection.execute(
                SQL("CREATE VIEW {} AS SELECT * FROM {}").format(target, Identifier(table.schema, table.name))
            )
            connection.execute(SQL("COMMENT ON VIEW {} IS {}").format(target, Literal(str(place))))
            for role, privileges, grantable in rights:
                connection.execute(
                    SQL("GRANT {} ON {} TO {}{}").format(
                        SQL(", ").join(map(SQL, privileges)),
                        target,
                        Identifier(role) if role else SQL("PUBLIC"),
                        SQL(" WITH GRANT OPTION" if grantable else ""),
                    )
                )


def _shows_one_table(connection: psycopg.Connection[Any], view: Table) -> bool:
    """Whether a view is one of `serve`, or could be: a table as it is, so that nothing of its making is lost."""
    base = base_of(connection, view)
    if base is None:
        return False
    described = connection.execute(
        "SELECT obj_description(%s, 'pg_class'), pg_get_viewdef(%s::oid), %s::regclass::text, "
        "(SELECT array_agg(quote_ident(name)) FROM unnest(%s::text[]) AS name)",
        [view.oid, view.oid, base.oid, list(base.columns)],
    ).fetchone()
    comment, definition, name, columns = described or ("", "", "", [])
    if comment and _leads_to(connection, comment, base):
        return True
    # PostgreSQL 15 and earlier write a column with its table.
    own = name.rpartition(".")[2]
    plain = [f"SELECT {', '.join(prefix + column for column in columns)} FROM {name};" for prefix in ("", f"{own}.")]
    return " ".join(definition.split()) in plain


def _rights(connection: psycopg.Connection[Any], view: Table) -> list[tuple[str | None, list[Any], bool]]:
    """Who else may do what with a view: a role (None for everybody), privileges, whether it may hand them on."""
    return connection.execute(
        "SELECT r.rolname, array_agg(a.privilege_type), a.is_grantable "
        "FROM pg_class c CROSS JOIN LATERAL aclexplode(coalesce(c.relacl, acldefault('r', c.relowner))) a "
        "LEFT JOIN pg_roles r ON r.oid = a.grantee "
        "WHERE c.oid = %s AND r.rolname IS DISTINCT FROM current_user GROUP BY 1, 3",
        [view.oid],
    ).fetchall()


def served(name: str) -> str | None:
    """The location, without a password, of the table that the view `name` (its location) shows; see `LiveEngine`."""
    view = parse_location(name)
    with connected(view) as connection:
        found = find_table(connection, view)
        base = base_of(connection, found) if found else None
        if found is None or base is None:
            return None
        noted = connection.execute("SELECT obj_description(%s, 'pg_class')", [found.oid]).fetchone()
        if noted and noted[0] and _leads_to(connection, noted[0], base):
            return noted[0].removeprefix(_SCHEME)
        return view.beside(base.schema, base.name)


def _leads_to(connection: psycopg.Connection[Any], location: str, base: Table) -> bool:
    try:
        table = find_table(connection, parse_location(location.removeprefix(_SCHEME)))
    except ValueError:  # somebody's own comment
        return False
    return table is not None and table.oid == base.oid


def discard(location: str) -> None:
    """Delete a gallery's table and card in one transaction; see `LiveEngine`.

    Raises:
        ValueError: If a view or anything else stands on it, or it is a view.
        StoreLocked: If a process is writing it.
    """
    from psycopg import errors
    from psycopg.sql import SQL, Identifier, Literal

    place = parse_location(location)
    with connected(place) as connection:
        table = find_table(connection, place)
        schema = schema_of(connection, place)
        if table is not None and table.kind not in ("r", "p"):
            raise ValueError(f"{place} is a view or the like; name the table that it shows")
        connection.execute("SELECT set_config('lock_timeout', '2s', false)")
        with changing(connection, place, schema):
            if table is not None:
                try:
                    with connection.transaction():  # so that what stands on it can still be asked for
                        connection.execute(SQL("DROP TABLE {}").format(Identifier(table.schema, table.name)))
                except errors.DependentObjectsStillExist:
                    names = ", ".join(_standing_on(connection, table)) or "a view or another table"
                    raise ValueError(
                        f"{names} stands on {place}; let the name lead to another gallery first, or drop it"
                    ) from None
            if read_card(connection, place, schema, place.table) is not None:
                for cards in (CARDS, PARTS):
                    connection.execute(
                        SQL("DELETE FROM {} WHERE gallery = {}").format(Identifier(schema, cards), Literal(place.table))
                    )


def _standing_on(connection: psycopg.Connection[Any], table: Table) -> list[str]:
    """Views, as they are written in SQL, that show a table."""
    found = connection.execute(
        "SELECT DISTINCT r.ev_class::regclass::text FROM pg_depend d JOIN pg_rewrite r ON r.oid = d.objid "
        "WHERE d.classid = 'pg_rewrite'::regclass AND d.refobjid = %s AND r.ev_class <> d.refobjid ORDER BY 1",
        [table.oid],
    ).fetchall()
    return [f"the view {each}" for (each,) in found]
