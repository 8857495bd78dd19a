"""Where a gallery in PostgreSQL is, and reaching it without ever telling the password.

A location is what follows `postgresql:` in `postgresql://user:password@host:5432/database/schema.table?option=value`:
libpq's own connection URI, with the table as one more part of the path. Options that are not the gallery's (`host`,
`sslmode`, ...) are libpq's. Characters that mean something in a URI are written as %XX.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any
from urllib.parse import quote, unquote

from stores.durable import StoreLocked

if TYPE_CHECKING:
    import psycopg

VECTOR_TYPES = ("vector", "halfvec")
INDEXES = ("none", "hnsw", "ivfflat")
_OPTIONS = ("id", "vector", "type", "index", "order")
_SECRET = re.compile(r"(?i)key|secret|token|passw|pwd|sas|sig(nature)?$|credential")
"""Names of options whose values are never shown: libpq's, Qdrant's, and those of the stores of S3 and Azure."""
_FILES = ("sslkey", "sslkeylogfile")  # of libpq: a path, which whoever connects again needs
_PLACE = re.compile(r"[^:/]*(:\d+)?(,[^:/]*(:\d+)?)*/[^/]+/[^/]+")
"""Hosts, a database, a table."""
_LONGEST_NAME = 63  # bytes; PostgreSQL cuts off what is longer, and two names may then be one
_CONNECT_SECONDS = "10"


@dataclass(frozen=True, kw_only=True)
class PostgresLocation:
    """A table of a database.

    Attributes:
        public: The location without its password, for messages and provenance.
        server: What messages call the server.
        database: Name of the database.
        schema: Schema of the table; None for the first of the search path that has it.
        table: Name of the table, as it is written in the catalogue.
        connection: What libpq is given; may hold a password.
        id: Column of the item ids.
        vector: Column of the vectors.
        type: Type of the column of vectors that is written.
        index: Index that is built when every row is in.
        order: Column that rows are read in the order of; None for the key.
    """

    public: str
    server: str
    database: str
    schema: str | None
    table: str
    connection: dict[str, str] = field(repr=False)
    id: str | None = None
    vector: str | None = None
    type: str = "vector"
    index: str = "none"
    order: str | None = None

    def __str__(self) -> str:
        return f"postgresql:{self.public}"

    def beside(self, schema: str, table: str) -> str:
        """The public location of another table of the same database."""
        head, mark, query = self.public.partition("?")
        kept = [(name, value) for name, value in _options(query) if name not in _OPTIONS]
        parts = head[: head.rindex("/")] + f"/{quote(schema, safe='')}.{quote(table, safe='')}"
        return parts + (mark + "&".join(f"{name}={quote(value, safe='/')}" for name, value in kept) if kept else "")


def public_uri(location: str) -> str:
    """A location of any scheme without the password in it: after the user's name, and among the options.

    Where an unescaped / or ? stands in a password, everything up to the last @ counts as part of it.
    """
    head, slashes, rest = location.partition("//")
    path, mark, query = rest.partition("?")
    if "@" in query and not _PLACE.fullmatch(path.rpartition("@")[2]):
        path = rest
    secret, at, place = path.rpartition("@")
    if path == rest:
        place, mark, query = place.partition("?")
    user = secret.partition(":")[0]
    kept = without_secrets(query)
    return f"{head}{slashes}{user}{at}{place}" + (f"?{kept}" if mark and kept else "")


def without_secrets(query: str) -> str:
    """The options of a location, less those whose name says that they hold a secret."""
    return "&".join(each for each in query.split("&") if each and not _is_secret(unquote(each.partition("=")[0])))


def _is_secret(name: str) -> bool:
    return name not in _FILES and _SECRET.search(name) is not None


def parse_location(location: str) -> PostgresLocation:
    """Take a location apart.

    Raises:
        ValueError: If it names no database or table, or an option has a value that there is not.
        ImportError: If psycopg is missing.
    """
    require_psycopg()
    shape = "expected postgresql://user@host:port/database/table"
    if not location.startswith("//"):  # not shown: nobody knows where in it a password may be
        raise ValueError(f"a location in PostgreSQL begins with two slashes; {shape}")
    public = public_uri(location)
    shown = f"postgresql:{public}"
    path, _, query = location[2:].partition("?")
    authority, *names = path.split("/")
    if len(names) != 2 or not all(names) or authority.count("@") > 1 or "@" in "".join(names):
        raise ValueError(
            f"{shown} names no table, or holds a character that a URI escapes; {shape}, and @ : / ? as %XX"
        )
    database, table = names
    options: dict[str, str] = {}
    connection: dict[str, str] = {}
    for name, value in _options(query):
        (options if name in _OPTIONS else connection)[name] = value
    for name, choices in (("type", VECTOR_TYPES), ("index", INDEXES)):
        if options.get(name, choices[0]) not in choices:
            raise ValueError(f"{shown} has {name}={options[name]}, expected one of {', '.join(choices)}")
    schema, dot, relation = table.partition(".")
    names = [unquote(each) for each in ((schema, relation) if dot else (schema,))]
    for name in (*names, *(options[key] for key in ("id", "vector", "order") if key in options)):
        require_name(name)
    return PostgresLocation(
        public=public,
        server=public[2:].partition("?")[0].rpartition("/")[0].rpartition("/")[0].rpartition("@")[2]
        or connection.get("host", "this machine"),
        database=unquote(database),
        schema=names[0] if dot else None,
        table=names[-1],
        connection=_connection(authority, shown) | connection | {"dbname": unquote(database)},
        **options,
    )


def _options(query: str) -> list[tuple[str, str]]:
    pairs = (each.partition("=") for each in query.split("&") if each)
    return [(unquote(name), unquote(value)) for name, _, value in pairs]


def require_name(name: str) -> None:
    """Make sure that PostgreSQL takes a name of a table or column as it is.

    Raises:
        ValueError: If it is empty or too long.
    """
    if not name or len(name.encode()) > _LONGEST_NAME or "\0" in name:
        raise ValueError(
            f"{name[:80]!r} is no name for a table or column, expected 1 to {_LONGEST_NAME} bytes; choose another"
        )


def _connection(authority: str, shown: str) -> dict[str, str]:
    from psycopg import Error, conninfo

    try:
        found = conninfo.conninfo_to_dict(f"postgresql://{authority}/") if authority else {}
    except Error:  # what libpq says of it may quote it
        raise ValueError(f"{shown} cannot be read; write : / @ ? of a user or password as %3A %2F %40 %3F") from None
    for port in str(found.get("port") or "").split(","):
        if port and not port.isdecimal():  # a password in the wrong place
            raise ValueError(f"{shown} has a port that is no number; write : / @ ? of a password as %3A %2F %40 %3F")
    return {name: str(value) for name, value in found.items()}


def connect(location: PostgresLocation, *, autocommit: bool = True) -> psycopg.Connection[Any]:
    """A new connection, for which the server notices soon that its client has died.

    Raises:
        ConnectionError: If the server cannot be reached.
        PermissionError: If it takes no such user or password.
        FileNotFoundError: If it has no such database.
        ImportError: If psycopg is missing.
    """
    psycopg = require_psycopg()
    settings: dict[str, str] = {"connect_timeout": _CONNECT_SECONDS, "fallback_application_name": "embedding-compat"}
    settings |= location.connection | {"client_encoding": "UTF8"}
    with reported(location):
        try:
            connection = psycopg.connect(autocommit=autocommit, prepare_threshold=None, **settings)
        except psycopg.Error as error:
            raise _unreachable(location, str(error)) from None
        # A killed writer's lock is let go of even while its index is being built. Windows servers have no such check.
        connection.execute("SELECT set_config(name, '500', false) FROM pg_settings WHERE name = %s", [_WATCH])
        if not autocommit:
            connection.commit()
        return connection


_WATCH = "client_connection_check_interval"


def require_psycopg() -> Any:
    """The driver.

    Raises:
        ImportError: If it is missing.
    """
    try:
        import psycopg
    except ImportError:
        raise ImportError("PostgreSQL needs psycopg: pip install 'embedding-compat[postgres]'") from None
    return psycopg


@contextmanager
def connected(location: PostgresLocation, *, autocommit: bool = True) -> Iterator[psycopg.Connection[Any]]:
    """A connection for the block, its errors in one line each; without autocommit one transaction, whole or undone."""
    connection = connect(location, autocommit=autocommit)
    try:
        with reported(location):
            yield connection
            if not autocommit:
                connection.commit()
    finally:
        connection.close()


@contextmanager
def reported(location: PostgresLocation) -> Iterator[None]:
    """Turn what the driver raises within the block into one line without a secret.

    Raises:
        ValueError: Or an `OSError`, by what it was.
    """
    psycopg = require_psycopg()
    try:
        yield
    except psycopg.Error as error:
        raise explained(location, error) from None


def explained(location: PostgresLocation, error: Any) -> Exception:
    """An error of the driver as one that a user understands."""
    from psycopg import errors

    reason = _first_line(location, str(error))
    detail = _first_line(location, getattr(error.diag, "message_detail", None) or "")
    if isinstance(error, errors.UniqueViolation):
        twice = re.search(r"Key \(.*?\)=\((.*?)\)", detail)
        which = f"; {twice[1]!r} occurs again" if twice else ""
        return ValueError(f"item_id must be unique in {location}{which}")
    if isinstance(error, errors.InsufficientPrivilege):
        return PermissionError(f"{location}: {reason}; ask for the right, or connect as another user")
    if isinstance(error, errors.LockNotAvailable | errors.DeadlockDetected):
        return StoreLocked(f"{location} is in use by another process; wait for it to end, and run again")
    if isinstance(error, errors.UndefinedTable):
        return FileNotFoundError(f"no gallery at {location}: {reason}")
    if isinstance(error, errors.DiskFull):
        return OSError(f"the disk of {location.server} is full; make room, and run again")
    if isinstance(error, errors.OperationalError) and not isinstance(error, errors.ProgramLimitExceeded):
        return ConnectionError(f"the connection to {location} was lost ({reason}); run again to go on")
    return ValueError(f"{location}: {reason}{f' ({detail})' if detail else ''}")


def _unreachable(location: PostgresLocation, told: str) -> Exception:
    name = location.server
    if "authentication failed" in told or "no password supplied" in told or "pg_hba.conf" in told:
        return PermissionError(
            f"{name} refuses {location} (user or password); set PGPASSWORD, ~/.pgpass or the URI to those it takes"
        )
    if "database" in told and "does not exist" in told:
        return FileNotFoundError(f"{name} has no database {location.database!r} ({location}); create it, or correct it")
    if "could not translate host name" in told or "failed to resolve host" in told:
        return ConnectionError(f"no host of the name in {location}; correct it")
    if "refused" in told or "No such file" in told:
        return ConnectionError(f"no server answers at {location} (connection refused); start it, or correct the URI")
    if "timeout" in told:
        return ConnectionError(f"no server answers at {location} in time; correct the host, or give connect_timeout=60")
    return ConnectionError(f"{location} cannot be reached ({_first_line(location, told)}); correct the URI")


def _first_line(location: PostgresLocation, told: str) -> str:
    line = " ".join((told.strip().split("\n") or [""])[0].split())[:300]
    for name, value in location.connection.items():
        if _is_secret(name):
            for secret in {value, quote(value, safe="")} - {""}:
                line = line.replace(secret, "...")
    return line
