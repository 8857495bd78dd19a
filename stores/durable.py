"""Files that are whole or absent: write beside, flush to disk, rename. And a lock that dies with its owner."""

from __future__ import annotations

import fcntl
import hashlib
import os
from collections.abc import Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import IO, Any

_FLUSHES_AT_A_TIME = 4


class StoreLocked(ValueError):
    """Another process is writing to the store."""


def write_atomically(path: Path, parts: Iterable[Any]) -> None:
    """Replace the file at path by the joined buffers in parts; a reader sees the old file or the new one, never a mix.

    Raises:
        OSError: If the disk refuses (full, read-only); the old file is then still in place.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with temporary.open("wb", buffering=0) as file:
            for part in parts:
                _write_all(file, part)
            os.fsync(file.fileno())
        temporary.replace(path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


def write_plainly(path: Path, parts: Iterable[Any]) -> None:
    """Write the joined buffers in parts to a file that nobody reads yet; it may be torn until `sync_file`.

    Raises:
        OSError: If the disk refuses (full, read-only).
    """
    with path.open("wb", buffering=0) as file:
        for part in parts:
            _write_all(file, part)


def _write_all(file: IO[bytes], part: Any) -> None:
    view = memoryview(part).cast("B")
    while view:
        # One write() may take less than it was given: past 2 GiB, and on a disk that is filling up.
        view = view[file.write(view) :]


def sync_folder(folder: Path) -> None:
    """Flush a folder's entries to disk, so that renames into it outlive a power cut."""
    sync_file(folder)


def sync_file(path: Path) -> None:
    """Flush a file's bytes to disk, so that they outlive a power cut."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


class BackgroundSync:
    """Flushes files to disk while more are written; the disk is then busy instead of waiting for its turn."""

    def __init__(self) -> None:
        self._pool: ThreadPoolExecutor | None = None
        self._flushes: list[Future[None]] = []
        self._failed = False

    def add(self, path: Path) -> None:
        """Begin to flush a file that is written to its end, and its folder."""
        if self._pool is None:
            self._pool = ThreadPoolExecutor(_FLUSHES_AT_A_TIME, thread_name_prefix="flush")
        self._flushes.append(self._pool.submit(_sync_with_folder, path))

    def wait(self) -> None:
        """Return when all of them are on disk.

        Raises:
            OSError: If the disk refused one, now or earlier, or the wait was cut short: the kernel drops what it could
                not write, so that a further try would pass without a reason.
        """
        try:
            for flush in self._flushes:
                flush.result()
        except BaseException:  # an interruption leaves some behind as well
            self._failed = True
            raise
        finally:
            self.stop()
        if self._failed:
            raise OSError("rows appended earlier did not reach the disk; close the store and append them again")

    def stop(self) -> None:
        """Flush no more."""
        if self._pool is not None:
            self._pool.shutdown(cancel_futures=True)
        self._pool, self._flushes = None, []


def _sync_with_folder(path: Path) -> None:
    sync_file(path)
    sync_folder(path.parent)


def sha256_of(path: Path) -> str:
    """Hexadecimal SHA-256 of a file's bytes."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


class WriterLock:
    """Exclusive right to write below a folder. The kernel releases it when the process ends, however it ends."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._file: IO[bytes] | None = None
        self._owner = os.getpid()

    @property
    def held(self) -> bool:
        """Whether this object holds the lock."""
        return self._file is not None

    def acquire(self) -> None:
        """Take the lock.

        Raises:
            StoreLocked: If another writer holds it.
        """
        if self._file is not None:
            return
        file = (self._folder / ".lock").open("ab")
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            file.close()
            raise StoreLocked(
                f"{self._folder} is being written by another process, or by this one through another object; wait for "
                "it to end, or close it"
            ) from None
        self._file, self._owner = file, os.getpid()

    def require_held(self) -> None:
        """Make sure, before something is published, that nobody removed the lock's file and so let others in.

        Raises:
            StoreLocked: If it is another file now, or none.
        """
        path = self._folder / ".lock"
        if self._owner != os.getpid():
            raise StoreLocked(f"{self._folder} was opened before this process was forked; open it again here")
        if self._file is None or not path.exists() or not os.path.samestat(os.fstat(self._file.fileno()), path.stat()):
            raise StoreLocked(f"{path} was removed while this process wrote, and another may write now; open it again")

    def release(self) -> None:
        """Give the lock back; does nothing when it is not held."""
        if self._file is not None:
            if self._owner == os.getpid():  # a forked child has the file open too, and must not be what keeps it locked
                fcntl.flock(self._file, fcntl.LOCK_UN)
            self._file.close()
            self._file = None
