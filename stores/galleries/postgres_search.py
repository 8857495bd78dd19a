"""Search inside PostgreSQL: `ORDER BY embedding <=> query LIMIT k`, through pgvector's index where there is one."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, LiteralString

import numpy as np

from stores.galleries.found import Neighbours, neighbours, require_searchable
from stores.galleries.postgres_card import complete_table
from stores.galleries.postgres_location import connected, parse_location
from stores.galleries.postgres_table import ROW, Selection, Table, select, vector_schema
from stores.space import Similarity

if TYPE_CHECKING:
    import psycopg

_OPERATORS: dict[Similarity, LiteralString] = {"cosine": "OPERATOR({}.<=>)", "inner_product": "OPERATOR({}.<#>)"}
_MOST_CANDIDATES = 1000  # that pgvector lets a search of HNSW keep


def search(location: str, queries: np.ndarray, k: int, similarity: Similarity) -> Neighbours:
    """The k nearest rows of a table or view; see `SearchEngine`.

    All queries see one state of the table. An index looks at more rows where it finds too few (pgvector 0.8 and later).

    Raises:
        FileNotFoundError: If there is no such table.
        ValueError: If it is unfinished, or a query does not fit.
    """
    queries = require_searchable(queries, k)
    place = parse_location(location)
    with connected(place, autocommit=False) as connection:
        connection.execute("SET TRANSACTION ISOLATION LEVEL REPEATABLE READ READ ONLY")
        table, card = complete_table(connection, place)
        selection = select(place, table, own=card is not None and ROW in table.columns)
        dim = card.space.dim if card else selection.size
        if dim is not None and queries.shape[1] != dim:
            raise ValueError(f"queries are [q, {queries.shape[1]}], expected [q, {dim}] as {place} has")
        extension = vector_schema(connection, place)
        _look_far_enough(connection, extension, k)
        return neighbours(_found(connection, extension, table, selection, queries, k, similarity), k)


def _found(
    connection: psycopg.Connection[Any],
    extension: str,
    table: Table,
    selection: Selection,
    queries: np.ndarray,
    k: int,
    similarity: Similarity,
) -> list[list[tuple[str | int, float]]]:
    from psycopg.sql import SQL, Identifier, Literal

    vector, column = selection.vector
    near = SQL(_OPERATORS[similarity]).format(Identifier(extension))
    found = []
    for query in queries:
        text = "[" + ",".join(f"{value:.9g}" for value in query.tolist()) + "]"
        statement = SQL(
            "SELECT {id}, {vector} {near} {query}::{kind} FROM {table} WHERE {vector} IS NOT NULL "
            "ORDER BY {vector} {near} {query}::{kind} LIMIT {k}"
        ).format(
            id=selection.items[0][0],
            vector=vector,
            near=near,
            query=Literal(text),
            kind=Identifier(extension, column.sent),
            table=Identifier(table.schema, table.name),
            k=Literal(k),
        )
        rows = connection.execute(statement).fetchall()
        sign, shift = (-1.0, 1.0) if similarity == "cosine" else (-1.0, 0.0)  # distances: 1 - cosine, - product
        found.append([(item_id, shift + sign * distance) for item_id, distance in rows])
    return found


def _look_far_enough(connection: psycopg.Connection[Any], extension: str, k: int) -> None:
    from psycopg.sql import SQL, Identifier

    # An index of HNSW finds 40 rows otherwise. The settings are known only once the extension is loaded, and not to
    # versions that came before them.
    connection.execute(SQL("SELECT '[1]'::{}").format(Identifier(extension, "vector")))
    settings = {
        "hnsw.ef_search": str(min(max(k, 40), _MOST_CANDIDATES)),
        "hnsw.iterative_scan": "strict_order",
        "ivfflat.iterative_scan": "relaxed_order",
    }
    for name, value in settings.items():
        connection.execute("SELECT set_config(name, %s, true) FROM pg_settings WHERE name = %s", [value, name])
