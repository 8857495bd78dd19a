"""Bytes of COPY between this process and the server, waiting without a spinning core or a held interpreter lock."""

from __future__ import annotations

import select
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np

from stores.galleries.postgres_copy import HEADER, TRAILER, MalformedRows

if TYPE_CHECKING:
    import psycopg
    from psycopg.sql import Composable

Piece = TypeVar("Piece")

_PIECE = 128 * 2**10


def copy_out(connection: psycopg.Connection[Any], query: Composable, rows: int) -> Iterator[tuple[bytes, np.ndarray]]:
    """What a query gives: `rows` rows at a time (the last time fewer) as one piece of bytes, and where each begins.

    The server sends each row as a message of its own. The connection is of no further use where the caller stops
    before the end.

    Raises:
        psycopg.Error: If the server or the connection fails.
        MalformedRows: If what comes is no binary COPY.
    """
    import psycopg
    from psycopg.sql import SQL

    wire = connection.pgconn
    statement = SQL("COPY ({}) TO STDOUT (FORMAT binary)").format(query)
    wire.send_query(statement.as_bytes(connection))
    _flush(wire)
    _expect(connection, psycopg.pq.ExecStatus.COPY_OUT)
    messages: list[memoryview] = []
    first = True
    while True:
        length, message = wire.get_copy_data(1)
        if length == 0:
            _wait(wire, select.POLLIN)
            wire.consume_input()
            continue
        if length < 0:
            break
        if first:
            if bytes(message[: len(HEADER)]) != HEADER:
                raise MalformedRows("the server sent no rows of a binary COPY; use PostgreSQL 14 or later")
            message, first = message[len(HEADER) :], False
        if len(message) <= len(TRAILER):
            continue  # the trailer; every row is longer
        messages.append(message)
        if len(messages) == rows:
            yield _joined(messages)
            messages = []
    _expect(connection, psycopg.pq.ExecStatus.COMMAND_OK)
    if messages:
        yield _joined(messages)


def copy_in(connection: psycopg.Connection[Any], statement: Composable, rows: np.ndarray) -> None:
    """Send encoded rows, uint8, to a `COPY ... FROM STDIN (FORMAT binary)`, and wait until the server has taken them.

    Raises:
        psycopg.Error: If the server refuses them, or the connection fails.
    """
    begin_copy(connection, statement)
    send_rows(connection, rows)
    end_copy(connection)


def begin_copy(connection: psycopg.Connection[Any], statement: Composable) -> None:
    """Begin a `COPY ... FROM STDIN (FORMAT binary)`: nothing but `send_rows` and `end_copy` may follow."""
    import psycopg

    wire = connection.pgconn
    wire.send_query(statement.as_bytes(connection))
    _flush(wire)
    _expect(connection, psycopg.pq.ExecStatus.COPY_IN)
    wire.put_copy_data(HEADER)


def send_rows(connection: psycopg.Connection[Any], rows: np.ndarray) -> None:
    """Send encoded rows, uint8; what the server finds wrong with them `end_copy` raises."""
    view = rows.data
    for start in range(0, len(view), _PIECE):
        connection.pgconn.put_copy_data(view[start : start + _PIECE])
        _flush(connection.pgconn)


def end_copy(connection: psycopg.Connection[Any]) -> None:
    """Wait until the server has taken every row.

    Raises:
        psycopg.Error: If it refuses one.
    """
    import psycopg

    wire = connection.pgconn
    wire.put_copy_data(TRAILER)
    wire.put_copy_end()
    _flush(wire)
    _expect(connection, psycopg.pq.ExecStatus.COMMAND_OK)


def ahead(pieces: Iterator[Piece]) -> Iterator[Piece]:
    """The same pieces, the next one always being made in a thread of its own while the caller works on one."""
    end: Any = object()
    with ThreadPoolExecutor(1, thread_name_prefix="rows") as pool:
        coming = pool.submit(next, pieces, end)
        while (piece := coming.result()) is not end:
            coming = pool.submit(next, pieces, end)
            yield piece


def _joined(messages: list[memoryview]) -> tuple[bytes, np.ndarray]:
    lengths = np.fromiter(map(len, messages), np.int64, len(messages))
    return b"".join(messages), np.cumsum(lengths) - lengths


def _expect(connection: psycopg.Connection[Any], wanted: Any) -> None:
    """Take the result of what was sent, and of a finished statement what follows it."""
    import psycopg

    wire = connection.pgconn
    copying = wanted in (psycopg.pq.ExecStatus.COPY_IN, psycopg.pq.ExecStatus.COPY_OUT)
    failed: psycopg.Error | None = None
    while True:
        while wire.is_busy():
            _wait(wire, select.POLLIN)
            wire.consume_input()
        result = wire.get_result()
        if result is None:
            break
        if result.status != wanted and failed is None:
            failed = psycopg.errors.error_from_result(result, encoding="utf-8")
        elif copying:
            return
    if failed is not None:
        raise failed


def _flush(wire: Any) -> None:
    while wire.flush():
        if _wait(wire, select.POLLIN | select.POLLOUT) & select.POLLIN:
            wire.consume_input()  # a server that complains stops reading until it is heard


def _wait(wire: Any, events: int) -> int:
    poll = select.poll()
    poll.register(wire.socket, events)
    return poll.poll()[0][1]
