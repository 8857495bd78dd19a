"""The files below a Zarr node, in a folder or in a .zip archive, read only and never outside of it."""

from __future__ import annotations

import mmap
import os
import stat
import zipfile
import zlib
from pathlib import Path
from typing import Protocol

METADATA = ("zarr.json", ".zarray", ".zgroup")
"""The files by which a folder is known to be a Zarr node."""

_MOST_MEMBER_BYTES = 2**30  # a member of an archive is read whole


class ZarrFiles(Protocol):
    """Files with names such as `vectors/c/0/0`."""

    def nodes(self) -> list[str]:
        """Names of the folders at the top, sorted."""
        ...

    def size(self, name: str) -> int | None:
        """Bytes of a file, None where there is none.

        Raises:
            ValueError: If it is a link or no plain file.
        """
        ...

    def read(self, name: str) -> memoryview:
        """The bytes of a file, read-only; of a file in a folder a map.

        Raises:
            FileNotFoundError: If there is none.
            ValueError: If it is a link, no plain file, or too large to be read.
        """
        ...


class FolderFiles:
    """The files below a folder. Links are refused: who made the folder would choose which file of ours is read."""

    def __init__(self, path: Path) -> None:
        self._root = os.path.realpath(path)
        self._given = path

    def nodes(self) -> list[str]:
        """See `ZarrFiles`."""
        names = []
        with os.scandir(self._root) as entries:
            for entry in entries:
                if entry.is_symlink():
                    raise ValueError(f"{self._given / entry.name} is a link; copy what it points to in its place")
                if entry.is_dir():
                    names.append(entry.name)
        return sorted(names)

    def size(self, name: str) -> int | None:
        """See `ZarrFiles`."""
        path = f"{self._root}/{name}"
        try:
            found = os.lstat(path)
        except (FileNotFoundError, NotADirectoryError):
            return None
        if not stat.S_ISREG(found.st_mode) or os.path.realpath(path) != path:
            raise ValueError(f"{self._given / name} is a link or no plain file; put the file itself there")
        return found.st_size

    def read(self, name: str) -> memoryview:
        """See `ZarrFiles`."""
        size = self.size(name)
        if size is None:
            raise FileNotFoundError(f"{self._given / name} is missing")
        if not size:
            return memoryview(b"")
        with Path(f"{self._root}/{name}").open("rb") as file:
            return memoryview(mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ))


class ArchiveFiles:
    """The members of a .zip archive, whose outermost Zarr node may lie within folders.

    Raises:
        ValueError: If it is no archive, or holds a name that points outside.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        try:
            self._archive = zipfile.ZipFile(path)
        except (zipfile.BadZipFile, NotImplementedError, ValueError) as error:
            raise ValueError(f"{path} is no .zip archive ({str(error)[:100]}); restore it from a copy") from None
        names = self._archive.namelist()
        odd = [name for name in names if name.startswith("/") or "\\" in name or ".." in name.split("/")]
        if odd:
            raise ValueError(f"{path} has a member {odd[0][:80]!r}, which points outside; write the archive again")
        nodes = [name for name in names if name.split("/")[-1] in METADATA]
        shortest = min(nodes, key=lambda name: name.count("/"), default="")
        self._prefix = shortest[: shortest.rfind("/") + 1]
        # An archive that was added to names some files twice; the last one counts.
        self._members = {
            info.filename.removeprefix(self._prefix): info
            for info in self._archive.infolist()
            if info.filename.startswith(self._prefix) and not info.is_dir()
        }

    def nodes(self) -> list[str]:
        """See `ZarrFiles`."""
        return sorted({name.split("/")[0] for name in self._members if "/" in name})

    def size(self, name: str) -> int | None:
        """See `ZarrFiles`."""
        info = self._members.get(name)
        return None if info is None else info.file_size

    def read(self, name: str) -> memoryview:
        """See `ZarrFiles`."""
        info = self._members.get(name)
        if info is None:
            raise FileNotFoundError(f"{name} is missing in {self._path}")
        if info.file_size > _MOST_MEMBER_BYTES:
            raise ValueError(
                f"{name} in {self._path} has {info.file_size} bytes; unpack the archive and name the folder"
            )
        try:
            with self._archive.open(info) as file:
                content = file.read(info.file_size)
                file.read(1)  # at the end its checksum is compared
        except (zipfile.BadZipFile, zlib.error, EOFError, RuntimeError, NotImplementedError, OSError) as error:
            reason = str(error)[:100] or "it is cut short"
            raise ValueError(f"{name} in {self._path} cannot be read ({reason}); restore it from a copy") from None
        return memoryview(content)
