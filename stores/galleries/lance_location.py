"""Where a gallery in LanceDB is, and reaching it.

A location is what follows `lance:` in `lance:FOLDER/TABLE?option=value`. FOLDER is a folder of this machine, or the URL
of a bucket (`s3://bucket/folder`), which goes to Lance as it is, the keys for it being Lance's business.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import unquote

from stores.chunks import DamagedStore
from stores.durable import StoreLocked, WriterLock
from stores.galleries.missing import missing

NUMBERS = ("float32", "float16")
INDEXES = ("none", "ivf_pq", "hnsw")
_OPTIONS = ("dtype", "index", "id", "vector")


@dataclass(frozen=True, kw_only=True)
class LanceLocation:
    """A table of a LanceDB database.

    Attributes:
        folder: The database: a folder, or the URL of one.
        table: Name of the table, after any link of that name was followed.
        dtype: What the numbers of a table that is written are kept as; float16 keeps three digits.
        index: Index that is built when every row is in.
        id: Column of the item ids, of somebody else's table.
        vector: Column of the vectors, of somebody else's table.
    """

    folder: str
    table: str
    dtype: str | None = None
    index: str = "none"
    id: str | None = None
    vector: str | None = None

    def __str__(self) -> str:
        return f"lance:{self.folder}/{self.table}"

    @property
    def path(self) -> Path | None:
        """The table's own folder; None of one in a bucket."""
        return None if "://" in self.folder else Path(self.folder, f"{self.table}.lance")


def parse_location(location: str, *, follow: bool = True) -> LanceLocation:
    """Take a location apart.

    Args:
        location: FOLDER/TABLE, perhaps with options.
        follow: Whether a table that is a link is taken for the table that it leads to.

    Raises:
        ValueError: If it names no table, or an option that there is not.
    """
    place, _, query = location.partition("?")
    folder, slash, table = place.rpartition("/")
    if not table or table.startswith(".") or ("://" in place and not folder.partition("://")[2]):
        raise ValueError(f"lance:{place} names no table; write lance:FOLDER/TABLE")
    if not re.fullmatch(r"[A-Za-z0-9_.-]+", table):  # what Lance says too, once a folder is there
        raise ValueError(
            f"{table!r} is no name of a table of Lance's, expected letters of ASCII, digits, _, - and .; rename it"
        )
    options: dict[str, str] = {}
    for name, _, value in (each.partition("=") for each in query.split("&") if each):
        if name not in _OPTIONS:
            raise ValueError(f"lance:{place} has an option {name!r}, expected one of {', '.join(_OPTIONS)}")
        options[name] = unquote(value)
    for name, choices in (("dtype", NUMBERS), ("index", INDEXES)):
        if options.get(name, choices[0]) not in choices:
            raise ValueError(f"lance:{place} has {name}={options[name]}, expected one of {', '.join(choices)}")
    found = LanceLocation(folder=folder or ("/" if slash else "."), table=table.removesuffix(".lance"), **options)
    if follow and found.path is not None and found.path.is_symlink():
        real = found.path.resolve()
        return LanceLocation(folder=str(real.parent), table=real.name.removesuffix(".lance"), **options)
    return found


def require_lancedb() -> Any:
    """The library.

    Raises:
        ImportError: If it is missing.
    """
    os.environ.setdefault("LANCE_LOG", "error")  # it tells of every new table otherwise
    try:
        import lancedb
    except ImportError:
        raise ImportError("Lance tables need lancedb: pip install 'embedding-compat[lance]'") from None
    return lancedb


def open_table(location: LanceLocation, *, version: int | None = None) -> Any:
    """The table as it is now, or was at a version; None where there is none.

    Raises:
        DamagedStore: If it cannot be read.
    """
    lancedb = require_lancedb()
    if location.path is not None and not (location.path / "_versions").is_dir():
        return None
    with reported(location):
        try:
            table = lancedb.connect(location.folder).open_table(location.table)
        except ValueError as error:
            if "not found" in str(error):
                return None
            raise
        if version is not None:
            table.checkout(version)
        return table


def no_table(location: LanceLocation) -> FileNotFoundError:
    """The error of a table that is not there; a bucket is not listed for it."""
    if location.path is None:
        return missing(location, "table", None)
    folders = location.path.parent.glob("[!.]*.lance")
    return missing(location, "table", [each.stem for each in folders if (each / "_versions").is_dir()])


def connect(location: LanceLocation) -> Any:
    """The database of a table, for whoever is to make the table."""
    return require_lancedb().connect(location.folder)


@contextmanager
def reported(location: LanceLocation, *, writing: bool = False) -> Iterator[None]:
    """Turn what Lance raises within the block into one line.

    Raises:
        OSError: While writing.
        DamagedStore: Otherwise.
    """
    import pyarrow as pa

    try:
        yield
    except (DamagedStore, StoreLocked, FileExistsError, FileNotFoundError):
        raise
    except (RuntimeError, OSError, ValueError, NotImplementedError, pa.ArrowException) as error:
        lines = [line.strip() for line in str(error).split("\n") if line.strip()] or [type(error).__name__]
        reason = lines[0][:300]
        if writing:
            raise OSError(f"{location} cannot be written ({reason}); run again to go on from the last commit") from None
        raise DamagedStore(f"{location} cannot be read ({reason}); restore it from a copy") from None


@contextmanager
def only_writer(location: LanceLocation) -> Iterator[None]:
    """Hold the lock of a local table for the block; one in a bucket has none.

    Raises:
        StoreLocked: If another process is writing it.
    """
    if location.path is None:
        yield
        return
    lock = WriterLock(location.path)
    lock.acquire()
    try:
        yield
    finally:
        lock.release()
