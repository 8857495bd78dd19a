"""The vectors of a store: one Zarr v3 array [rows, dim] whose chunk files are mapped into memory and checked once.

A chunk file is the little-endian float32 rows of the chunk followed by their CRC-32C, which is what Zarr's `bytes` and
`crc32c` codecs define, so any Zarr v3 reader understands it. Reading through a map instead of through zarr's own
machinery is what makes a store nearly as fast as a bare memory-mapped array; zarr still writes the array's metadata.
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import google_crc32c
import numpy as np

from stores.durable import write_atomically

_CHECKSUM_BYTES = 4
_MOST_MAPS = 16_384  # well below Linux's default of 65,530 maps for a process


class DamagedStore(ValueError):
    """A file of a store is missing, truncated or altered."""


class VectorChunks:
    """The chunk files of one array. Rows [i * chunk_rows, (i + 1) * chunk_rows) are chunk i; the last one is padded.

    Args:
        folder: The Zarr array's folder.
        dim: Length of a vector.
        chunk_rows: Rows in a chunk.
    """

    def __init__(self, folder: Path, dim: int, chunk_rows: int) -> None:
        self.folder = folder
        self.dim = dim
        self.chunk_rows = chunk_rows
        self._maps: dict[int, np.ndarray] = {}
        self._verified: set[int] = set()

    @classmethod
    def create(cls, folder: Path, dim: int, chunk_rows: int) -> VectorChunks:
        """Make an empty array on disk."""
        import zarr
        from zarr.codecs import Crc32cCodec

        zarr.create_array(
            store=str(folder),
            shape=(0, dim),
            chunks=(chunk_rows, dim),
            dtype="float32",
            compressors=[Crc32cCodec()],
            fill_value=0.0,
        )
        return cls(folder, dim, chunk_rows)

    def path(self, chunk: int) -> Path:
        """The file of a chunk."""
        return self.folder / "c" / str(chunk) / "0"

    def write(self, chunk: int, rows: np.ndarray) -> None:
        """Replace a chunk by rows, float32 [n <= chunk_rows, dim], padded with zeros as Zarr stores it."""
        block = np.ascontiguousarray(rows, dtype="<f4")
        if len(block) < self.chunk_rows:
            block = np.concatenate([block, np.zeros((self.chunk_rows - len(block), self.dim), "<f4")])
        checksum = google_crc32c.value(_frozen(block)).to_bytes(_CHECKSUM_BYTES, "little")
        path = self.path(chunk)
        path.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(path, [block, checksum])
        # A map made earlier shows the replaced file.
        self._maps.pop(chunk, None)
        self._verified.discard(chunk)

    def set_rows(self, rows: int) -> None:
        """Set the array's length in its metadata."""
        metadata = self._metadata()
        metadata["shape"] = [rows, self.dim]
        write_atomically(self.folder / "zarr.json", [json.dumps(metadata, indent=2).encode()])

    def block(self, chunk: int) -> np.ndarray:
        """A chunk's rows, read-only float32 [chunk_rows, dim], its checksum verified when first touched.

        Raises:
            DamagedStore: If the file is missing, of the wrong size, or its checksum does not match.
        """
        block = self._maps.get(chunk)
        if block is None:
            block = self._map(chunk)
            if len(self._maps) >= _MOST_MAPS:
                self._maps.clear()
            self._maps[chunk] = block
        return block

    def checksum(self, chunk: int) -> bytes:
        """The CRC-32C that a chunk's file carries, 4 bytes."""
        with self.path(chunk).open("rb") as file:
            file.seek(-_CHECKSUM_BYTES, 2)
            return file.read()

    def _map(self, chunk: int) -> np.ndarray:
        path = self.path(chunk)
        data_bytes = self.chunk_rows * self.dim * 4
        try:
            raw = np.memmap(path, dtype=np.uint8, mode="r")
        except FileNotFoundError:
            raise DamagedStore(f"chunk file {path} is missing; restore it from a copy or extract again") from None
        except ValueError:  # numpy will not map an empty file
            raw = np.empty(0, np.uint8)
        if raw.size != data_bytes + _CHECKSUM_BYTES:
            raise DamagedStore(
                f"chunk file {path} has {raw.size} bytes, expected {data_bytes + _CHECKSUM_BYTES}; "
                "it was cut short or overwritten: restore it from a copy or extract again"
            )
        if chunk not in self._verified:
            if google_crc32c.value(raw[:data_bytes]) != int.from_bytes(raw[data_bytes:].tobytes(), "little"):
                raise DamagedStore(
                    f"chunk file {path} does not match its checksum: its bytes were altered; "
                    "restore it from a copy or extract again"
                )
            self._verified.add(chunk)
        return np.asarray(raw[:data_bytes]).view("<f4").reshape(self.chunk_rows, self.dim)

    def truncate(self, rows: int) -> None:
        """Remove chunks past the given number of rows, and unfinished files, which a writer that died left behind."""
        chunks = -(-rows // self.chunk_rows)
        for entry in (self.folder / "c").glob("*"):
            if entry.name.isdecimal() and int(entry.name) >= chunks:
                shutil.rmtree(entry)
        last = self.path(max(chunks - 1, 0)).parent
        for unfinished in (*self.folder.glob(".*.tmp"), *last.glob(".*.tmp")):
            unfinished.unlink()
        if self._metadata()["shape"] != [rows, self.dim]:
            self.set_rows(rows)

    def missing(self, rows: int) -> list[Path]:
        """Chunk files that an array of this many rows should have and has not."""
        present = {int(entry.name) for entry in (self.folder / "c").glob("*") if entry.name.isdecimal()}
        wanted = range(-(-rows // self.chunk_rows))
        return [self.path(i) for i in wanted if i not in present or not self.path(i).is_file()]

    def check_metadata(self, rows: int) -> None:
        """Compare the array's metadata with what this class writes.

        Raises:
            DamagedStore: If zarr.json is missing, unreadable, of another layout, or shorter than rows.
        """
        metadata, path = self._metadata(), self.folder / "zarr.json"
        shape = metadata.get("shape")
        if not (isinstance(shape, list) and len(shape) == 2 and isinstance(shape[0], int) and shape[0] >= rows):
            raise DamagedStore(f"{path} gives the shape {shape}, expected at least {rows} rows")
        expected = {
            "shape": [shape[0], self.dim],
            "data_type": "float32",
            "chunk_grid": {"name": "regular", "configuration": {"chunk_shape": [self.chunk_rows, self.dim]}},
            "chunk_key_encoding": {"name": "default", "configuration": {"separator": "/"}},
            "fill_value": 0.0,
            "codecs": [{"name": "bytes", "configuration": {"endian": "little"}}, {"name": "crc32c"}],
            "zarr_format": 3,
            "node_type": "array",
            "storage_transformers": [],
        }
        metadata.pop("attributes", None)  # anybody may add some; they change no vector
        if metadata != expected:
            odd = sorted(k for k in expected.keys() | metadata.keys() if metadata.get(k) != expected.get(k))
            raise DamagedStore(f"{path} is not as this store was written (fields {', '.join(odd)})")

    def _metadata(self) -> dict:
        path = self.folder / "zarr.json"
        try:
            metadata = json.loads(path.read_bytes())
        except FileNotFoundError:
            raise DamagedStore(f"{path} is missing; restore it from a copy") from None
        except ValueError as error:
            raise DamagedStore(f"{path} is not readable JSON ({error}); restore it from a copy") from None
        if not isinstance(metadata, dict):
            raise DamagedStore(f"{path} is not a JSON object; restore it from a copy")
        return metadata


def _frozen(block: np.ndarray) -> np.ndarray:
    # google_crc32c takes only read-only buffers.
    view = block.reshape(-1).view(np.uint8)
    view.flags.writeable = False
    return view
