"""Where a study is kept: a journal in its folder, SQLite, or PostgreSQL. Passwords are never shown."""

from __future__ import annotations

import fcntl
import os
import re
import time
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any, cast
from urllib.parse import unquote

from compat.tuning.leases import retry
from stores.durable import WriterLock

if TYPE_CHECKING:
    from optuna import Study
    from optuna.storages import BaseStorage
    from optuna.trial import FrozenTrial

JOURNAL = "journal.log"
HEARTBEAT_SECONDS = 20
"""How often a worker tells a database that it lives."""
TABLE_ATTEMPTS = 5
"""How often the tables of a new database are tried to be made, where several commands begin at once."""
SILENT_SECONDS = 120
"""A worker that was not heard of for so long is dead; its trial goes to another."""


def require_optuna() -> None:
    """Make sure that optuna is installed, and keep its log to itself.

    Raises:
        ImportError: If it is not.
    """
    if find_spec("optuna") is None:
        raise ImportError("studies need optuna: pip install 'embedding-compat[tune]'")
    import optuna

    optuna.logging.set_verbosity(optuna.logging.ERROR)


def is_server(url: str | None) -> bool:
    """Whether workers of other machines may be at work in a storage."""
    return url is not None and not url.startswith("sqlite:")


def masked(url: str) -> str:
    """A storage's URL with stars for its password."""
    for secret in _secrets(url):
        url = url.replace(f":{secret}@", ":***@").replace(f"password={secret}", "password=***")
    return url


def without_password(text: str, url: str | None) -> str:
    """A message with stars where it repeats the password of a URL."""
    if url is None:
        return text
    text = text.replace(url, masked(url))
    for secret in {form for found in _secrets(url) for form in (found, unquote(found))}:
        text = re.sub(rf"(?<!\w){re.escape(secret)}(?!\w)", "***", text)
    return text


def _secrets(url: str) -> list[str]:
    rest = url.partition("://")[2]
    login = rest.rpartition("@")[0]  # a password may hold any character, so the last @ ends it
    found = [login.partition(":")[2], *re.findall(r"password=([^&\s]*)", rest)]
    return sorted({secret for secret in found if secret}, key=len, reverse=True)


def checked_url(url: str) -> str:
    """The URL as SQLAlchemy reads it.

    Raises:
        ValueError: If it names no storage that is known here.
        ImportError: If the driver is not installed.
    """
    from sqlalchemy.engine import make_url
    from sqlalchemy.exc import SQLAlchemyError

    scheme, _, rest = url.partition("://")
    if scheme == "sqlite" and rest.startswith("/") and len(rest) > 1:
        return url
    if scheme in ("postgresql", "postgres", "postgresql+psycopg") and rest:
        if find_spec("psycopg") is None:
            raise ImportError("a study in PostgreSQL needs psycopg: pip install 'embedding-compat[postgres]'")
        read = f"postgresql+psycopg://{rest}"
        try:
            make_url(read)
        except (ValueError, SQLAlchemyError):  # what they say may hold a part of the password
            raise ValueError(
                f"{masked(url)} cannot be read as a URL; write special characters of a password as %40 and so on"
            ) from None
        return read
    raise ValueError(
        f"no storage is known for {masked(url)!r}, expected sqlite:///FILE or postgresql://USER@HOST/DATABASE"
    )


@contextmanager
def opened_storage(url: str | None, folder: Path) -> Iterator[BaseStorage]:
    """The storage of a study, closed at the end.

    Args:
        url: `sqlite:///FILE` or `postgresql://...`; None is the journal in the folder.
        folder: The study's folder.

    Raises:
        ValueError: If the storage cannot be reached, then or later; the message holds no password.
        ImportError: If its driver is missing.
    """
    with plain_errors(url):
        storage = _journal(folder / JOURNAL) if url is None else _database(checked_url(url))
        try:
            yield storage
        finally:
            storage.remove_session()
            engine = getattr(storage, "engine", None)
            if engine is not None:
                engine.dispose()


@contextmanager
def plain_errors(url: str | None) -> Iterator[None]:
    """Turn what a database says when it fails into one line without passwords.

    Raises:
        ValueError: In place of an error of the storage.
    """
    from optuna.exceptions import StorageInternalError
    from sqlalchemy.exc import SQLAlchemyError

    try:
        yield
    except (StorageInternalError, SQLAlchemyError) as error:
        cause = error.__cause__ if isinstance(error, StorageInternalError) and error.__cause__ else error
        said = str(getattr(cause, "orig", None) or cause).strip().splitlines()
        reason = without_password(said[0] if said else type(cause).__name__, url)
        raise ValueError(
            f"the storage {masked(url) if url else JOURNAL} failed: {reason}; see that it is there and may be written, "
            "then run the command again"
        ) from None


def _database(url: str) -> BaseStorage:
    from optuna.exceptions import ExperimentalWarning
    from optuna.storages import RDBStorage
    from sqlalchemy.exc import IntegrityError, OperationalError, ProgrammingError

    for attempt in range(TABLE_ATTEMPTS):
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", ExperimentalWarning)
                return RDBStorage(
                    url,
                    heartbeat_interval=HEARTBEAT_SECONDS,
                    grace_period=SILENT_SECONDS,
                    heartbeat_stale_trial_callback=_retry,
                )
        except (IntegrityError, ProgrammingError, OperationalError) as error:
            # Another command makes the same tables of a new database at this moment.
            made = isinstance(error, IntegrityError) or "already exists" in str(error)
            if not made or attempt == TABLE_ATTEMPTS - 1:
                raise
            time.sleep(0.2 * (attempt + 1))
    raise AssertionError("the last attempt returns or raises")


def _retry(study: Study, trial: FrozenTrial) -> None:
    retry(study, trial)


def _journal(path: Path) -> BaseStorage:
    from optuna.exceptions import ExperimentalWarning
    from optuna.storages import JournalStorage
    from optuna.storages.journal import JournalFileBackend

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ExperimentalWarning)
        # optuna's own locks are files, which a killed process leaves behind for half a minute.
        return JournalStorage(JournalFileBackend(str(path), lock_obj=cast(Any, KernelLock(path))))


class KernelLock:
    """The lock that optuna asks for around each line of a journal. The kernel releases it when its process dies."""

    def __init__(self, path: Path) -> None:
        self._path = path.with_name(f".{path.name}.lock")
        self._file: IO[bytes] | None = None

    def acquire(self) -> bool:
        """Wait for the lock."""
        self._file = self._path.open("ab")
        fcntl.flock(self._file, fcntl.LOCK_EX)
        return True

    def release(self) -> None:
        """Give it back."""
        if self._file is not None:
            self._file.close()
            self._file = None


@contextmanager
def sole_command(folder: Path) -> Iterator[None]:
    """Hold a study's folder, and leave its journal at a whole line, where a power cut may have torn the last.

    Raises:
        ValueError: If another command holds the folder.
    """
    lock = WriterLock(folder)
    lock.acquire()
    try:
        if (folder / JOURNAL).exists():
            _end_at_whole_line(folder / JOURNAL)
        yield
    finally:
        lock.release()


def _end_at_whole_line(journal: Path) -> None:
    lock = KernelLock(journal)  # workers of a command that was killed may be about to end
    lock.acquire()
    try:
        content = journal.read_bytes()
        if content and not content.endswith(b"\n"):
            os.truncate(journal, content.rfind(b"\n") + 1)
    finally:
        lock.release()
