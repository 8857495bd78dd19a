"""Files that are whole or absent: write beside, flush to disk, rename. And a lock that dies with its owner."""

from __future__ import annotations

import fcntl
import hashlib
import os
from collections.abc import Iterable
from pathlib import Path
from typing import IO, Any


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


def _write_all(file: IO[bytes], part: Any) -> None:
    view = memoryview(part).cast("B")
    while view:
        # One write() may take less than it was given: past 2 GiB, and on a disk that is filling up.
        view = view[file.write(view) :]


def sync_folder(folder: Path) -> None:
    """Flush a folder's entries to disk, so that renames into it outlive a power cut."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def sha256_of(path: Path) -> str:
    """Hexadecimal SHA-256 of a file's bytes."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


class WriterLock:
    """Exclusive right to write below a folder. The kernel releases it when the process ends, however it ends."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._file: IO[bytes] | None = None

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
            raise StoreLocked(f"{self._folder} is being written by another process; wait for it to end") from None
        self._file = file

    def release(self) -> None:
        """Give the lock back; does nothing when it is not held."""
        if self._file is not None:
            self._file.close()
            self._file = None
