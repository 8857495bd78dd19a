"""The vectors of a store: one Zarr v3 array [rows, dim] whose files are mapped into memory, each chunk checked once.

Any Zarr v3 reader understands the files (see `stores.layout`). Reading them through a map instead of through a Zarr
library is what makes a store nearly as fast as a bare memory-mapped array. A file that somebody cuts while it is mapped
ends the process that reads it (SIGBUS), as with every memory map; the store itself never cuts a file, it replaces it.
"""

from __future__ import annotations

import json
import mmap
import os
import shutil
from pathlib import Path
from typing import Any

import numpy as np
from crc32c import crc32c

from stores.durable import BackgroundSync, sync_folder, write_atomically, write_plainly
from stores.layout import CHECKSUM_BYTES, VectorLayout

_MOST_MAPS = 16_384  # well below Linux's default of 65,530 maps for a process
_RESTORE = "restore it from a copy or extract again"


class DamagedStore(ValueError):
    """A file of a store is missing, truncated or altered."""


class VectorChunks:
    """The chunks of one array. Rows [i * chunk_rows, (i + 1) * chunk_rows) are chunk i; the last one is padded.

    Args:
        folder: The Zarr array's folder.
        layout: How the rows lie in its files.
        rows: Rows that are committed.
        checksums: CRC-32C of the committed rows of each chunk, 4 bytes after 4 bytes; None where nobody wrote
            them down.
    """

    def __init__(self, folder: Path, layout: VectorLayout, rows: int = 0, checksums: bytes | None = None) -> None:
        self.folder = folder
        self.layout = layout
        self.expect(rows, checksums)
        self._maps: dict[int, np.ndarray] = {}
        self._blocks: dict[int, np.ndarray] = {}
        self._verified: set[int] = set()
        self._flushing = BackgroundSync()

    @classmethod
    def create(cls, folder: Path, layout: VectorLayout) -> VectorChunks:
        """Make an empty array on disk."""
        folder.mkdir(parents=True, exist_ok=True)
        chunks = cls(folder, layout)
        chunks._write_metadata(layout.zarr_metadata(0))
        sync_folder(folder)
        return chunks

    def expect(self, rows: int, checksums: bytes | None) -> None:
        """Take in what was committed since."""
        self._rows, self._checksums = rows, checksums

    def path(self, file: int) -> Path:
        """Where the file of this number is."""
        return self.folder / "c" / str(file) / "0"

    def write(self, file: int, rows: np.ndarray, *, replace: bool) -> bytes:
        """Write a file, float [n <= file_rows, dim]; it is on disk for sure after `sync`.

        Args:
            file: Its number.
            rows: What it holds.
            replace: Whether it holds committed rows already, so that it must never be seen half-written.

        Returns:
            CRC-32C of the rows in each of its chunks, 4 bytes after 4 bytes.
        """
        layout = self.layout
        parts: list[np.ndarray | bytes] = []
        checksums = []
        for start in range(0, len(rows), layout.chunk_rows):
            block = np.ascontiguousarray(rows[start : start + layout.chunk_rows], dtype=layout.number)
            checksums.append(_checksum(block))
            if len(block) < layout.chunk_rows:
                padding = np.zeros((layout.chunk_rows - len(block), layout.dim), layout.number)
                block = np.concatenate([block, padding])
                parts += [block, _checksum(block)]
            else:
                parts += [block, checksums[-1]]
        index = layout.index(-(-len(rows) // layout.chunk_rows))
        if index:
            parts += [index, _checksum(index)]
        path = self.path(file)
        path.parent.mkdir(parents=True, exist_ok=True)
        if replace:
            write_atomically(path, parts)
        else:
            write_plainly(path, parts)
        self._flushing.add(path)
        # A map made earlier shows the replaced file.
        self._maps.pop(file, None)
        for chunk in range(file * layout.shard_chunks, (file + 1) * layout.shard_chunks):
            self._blocks.pop(chunk, None)
            self._verified.discard(chunk)
        return b"".join(checksums)

    def sync(self) -> None:
        """Return when everything written so far is on disk and outlives a power cut.

        Raises:
            OSError: If the disk refused some of it.
        """
        self._flushing.wait()
        if (self.folder / "c").is_dir():
            sync_folder(self.folder / "c")
        sync_folder(self.folder)

    def close(self) -> None:
        """Stop flushing what no commit will hold."""
        self._flushing.stop()

    def set_rows(self, rows: int) -> None:
        """Set the array's length in its metadata."""
        metadata = self._metadata()
        metadata["shape"] = [rows, self.layout.dim]
        self._write_metadata(metadata)

    def block(self, chunk: int) -> np.ndarray:
        """A chunk's rows, read-only [chunk_rows, dim] as they are kept, its checksum verified when first touched.

        Raises:
            DamagedStore: If the file is missing, of the wrong size, or a checksum does not match.
        """
        block = self._blocks.get(chunk)
        if block is None:
            if len(self._blocks) >= _MOST_MAPS:
                self._blocks.clear()
            block = self._blocks[chunk] = self._read(chunk)
        return block

    def _read(self, chunk: int) -> np.ndarray:
        layout = self.layout
        file, start = layout.place(chunk)
        raw = self._file(file)
        stop = start + layout.chunk_bytes
        if stop + CHECKSUM_BYTES > raw.size:
            raise DamagedStore(f"chunk file {self.path(file)} ends before chunk {chunk}: it was cut short; {_RESTORE}")
        if chunk not in self._verified:
            if _checksum(raw[start:stop]) != raw[stop : stop + CHECKSUM_BYTES].tobytes():
                raise DamagedStore(
                    f"chunk file {self.path(file)} does not match its checksum: its bytes were altered; {_RESTORE}"
                )
            self._require_committed(chunk, raw[start : stop + CHECKSUM_BYTES])
            self._verified.add(chunk)
        return raw[start:stop].view(layout.number).reshape(layout.chunk_rows, layout.dim)

    def tail(self) -> np.ndarray:
        """The committed rows of the last file, where it is not full, [n, dim] as they are kept."""
        layout = self.layout
        first = self._rows - self._rows % layout.file_rows
        blocks = [self.block(chunk) for chunk in range(first // layout.chunk_rows, -(-self._rows // layout.chunk_rows))]
        return np.concatenate([np.empty((0, layout.dim), layout.number), *blocks])[: self._rows - first]

    def _require_committed(self, chunk: int, content: np.ndarray) -> None:
        """Compare a chunk, whole in itself, with what was committed: it may be another one, or an older version."""
        if self._checksums is None:
            return
        rows = self._rows - chunk * self.layout.chunk_rows
        if rows >= self.layout.chunk_rows:
            found = content[-CHECKSUM_BYTES:].tobytes()
        else:  # somebody may have added rows to the chunk since
            found = _checksum(content[: max(rows, 0) * self.layout.dim * self.layout.number.itemsize])
        if found != self._checksums[chunk * CHECKSUM_BYTES : (chunk + 1) * CHECKSUM_BYTES]:
            raise DamagedStore(
                f"chunk file {self.path(self.layout.place(chunk)[0])} holds other rows than were committed: it was "
                f"exchanged, or is an older version; {_RESTORE}"
            )

    def checksums(self) -> bytes:
        """CRC-32C of the committed rows of each chunk, 4 bytes after 4 bytes; read from the files where need be.

        Raises:
            DamagedStore: If a file is damaged.
        """
        if self._checksums is not None:
            return self._checksums
        full, rest = divmod(self._rows, self.layout.chunk_rows)
        found = [self._carried(chunk) for chunk in range(full)]
        return b"".join([*found, _checksum(self.block(full)[:rest])] if rest else found)

    def _carried(self, chunk: int) -> bytes:
        """The CRC-32C that a chunk carries in its file."""
        file, start = self.layout.place(chunk)
        try:
            with self.path(file).open("rb") as opened:
                opened.seek(start + self.layout.chunk_bytes)
                checksum = opened.read(CHECKSUM_BYTES)
        except FileNotFoundError:
            raise DamagedStore(f"chunk file {self.path(file)} is missing; {_RESTORE}") from None
        if len(checksum) < CHECKSUM_BYTES:
            raise DamagedStore(f"chunk file {self.path(file)} was cut short; {_RESTORE}")
        return checksum

    def _file(self, file: int) -> np.ndarray:
        """A file's bytes, uint8, mapped into memory, their number and a shard's index checked."""
        raw = self._maps.get(file)
        if raw is None:
            raw = self._map(file)
            if len(self._maps) >= _MOST_MAPS:
                self._maps.clear()
            self._maps[file] = raw
        return raw

    def _map(self, file: int) -> np.ndarray:
        path, layout = self.path(file), self.layout
        # A file of one chunk is read whole at its first touch, for its checksum: one call brings all its pages in.
        flags = mmap.MAP_SHARED | (mmap.MAP_POPULATE if layout.shard_chunks == 1 else 0)
        try:
            with path.open("rb") as opened:
                size = os.fstat(opened.fileno()).st_size
                raw = np.empty(0, np.uint8)
                if size:  # nothing maps an empty file
                    raw = np.frombuffer(mmap.mmap(opened.fileno(), size, flags=flags, prot=mmap.PROT_READ), np.uint8)
        except FileNotFoundError:
            raise DamagedStore(f"chunk file {path} is missing; {_RESTORE}") from None
        chunks = (size - layout.file_bytes(0)) // (layout.chunk_bytes + CHECKSUM_BYTES)
        if not 1 <= chunks <= layout.shard_chunks or size != layout.file_bytes(chunks):
            expected = layout.file_bytes(1) if layout.shard_chunks == 1 else "that of a whole number of chunks"
            raise DamagedStore(
                f"chunk file {path} has {size} bytes, expected {expected}; it was cut short or overwritten: {_RESTORE}"
            )
        index = layout.index(chunks)
        if index and raw[-len(index) - CHECKSUM_BYTES :].tobytes() != index + _checksum(index):
            raise DamagedStore(f"the index of chunk file {path} is not as it was written: it was altered; {_RESTORE}")
        return raw

    def discard_uncommitted(self) -> None:
        """Remove what a writer that died left: files past the committed rows, unfinished ones, and rows in the last."""
        rows = self._rows
        files = -(-rows // self.layout.file_rows)
        for entry in (self.folder / "c").glob("*"):
            if entry.name.isdecimal() and int(entry.name) >= files:
                shutil.rmtree(entry)
        last = self.path(max(files - 1, 0)).parent
        for unfinished in (*self.folder.glob(".*.tmp"), *last.glob(".*.tmp")):
            unfinished.unlink()
        if self._metadata()["shape"] != [rows, self.layout.dim]:
            self.set_rows(rows)
        if rows % self.layout.file_rows and self._exceeds_commit(files - 1):
            self.write(files - 1, self.tail(), replace=True)
            self.sync()

    def _exceeds_commit(self, file: int) -> bool:
        """Whether the last file holds rows that no commit names, in its last chunk or in further ones."""
        layout = self.layout
        chunk, rest = divmod(self._rows, layout.chunk_rows)
        committed = -(-(self._rows % layout.file_rows) // layout.chunk_rows)
        further = self._file(file).size > layout.file_bytes(committed)
        return further or bool(rest and self.block(chunk)[rest:].any())

    def missing(self, rows: int) -> list[Path]:
        """Files that an array of this many rows should have and has not."""
        present = {entry.name for entry in (self.folder / "c").glob("*")}
        wanted = range(-(-rows // self.layout.file_rows))
        return [self.path(i) for i in wanted if str(i) not in present or not self.path(i).is_file()]

    def check_metadata(self, rows: int) -> None:
        """Compare the array's metadata with what this class writes.

        Raises:
            DamagedStore: If zarr.json is missing, unreadable, of another layout, or shorter than rows.
        """
        metadata, path = self._metadata(), self.folder / "zarr.json"
        shape = metadata.get("shape")
        if not (isinstance(shape, list) and len(shape) == 2 and isinstance(shape[0], int) and shape[0] >= rows):
            raise DamagedStore(f"{path} gives the shape {shape}, expected at least {rows} rows")
        expected = self.layout.zarr_metadata(shape[0])
        metadata["attributes"] = expected["attributes"]  # anybody may add some; they change no vector
        if metadata != expected:
            odd = sorted(k for k in expected.keys() | metadata.keys() if metadata.get(k) != expected.get(k))
            raise DamagedStore(f"{path} is not as this store was written (fields {', '.join(odd)})")

    def _write_metadata(self, metadata: dict) -> None:
        write_atomically(self.folder / "zarr.json", [json.dumps(metadata, indent=2).encode()])

    def _metadata(self) -> dict:
        path = self.folder / "zarr.json"
        try:
            metadata = json.loads(path.read_bytes())
        except FileNotFoundError:
            raise DamagedStore(f"{path} is missing; restore it from a copy") from None
        except (ValueError, RecursionError) as error:
            raise DamagedStore(f"{path} is not readable JSON ({error}); restore it from a copy") from None
        if not isinstance(metadata, dict):
            raise DamagedStore(f"{path} is not a JSON object; restore it from a copy")
        return metadata


def _checksum(content: Any) -> bytes:
    return crc32c(content).to_bytes(CHECKSUM_BYTES, "little")
