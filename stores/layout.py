"""How the vectors of a store lie on disk: the numbers behind one Zarr v3 array, and the metadata that describes it.

A file holds `shard_chunks` chunks of `chunk_rows` rows each. A chunk is its little-endian rows, the last ones padded
with zeros, followed by their CRC-32C. A file of one chunk is just that; a file of several is a Zarr shard: its chunks
one after the other, then the index of their places, with a CRC-32C of its own.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal, get_args

import numpy as np

VectorType = Literal["float32", "float16"]

CHECKSUM_BYTES = 4
_MOST_CHUNK = 2**30
_MOST_FILE = 2**34
_ABSENT = 2**64 - 1  # stands in a shard's index for a chunk that is not there


@dataclass(frozen=True)
class VectorLayout:
    """The shape of the files; two stores of one layout and the same rows are equal byte for byte.

    Attributes:
        dim: Length of a vector.
        chunk_rows: Rows that are checked, and padded, together.
        dtype: What a number is kept as.
        shard_chunks: Chunks in one file; fewer and larger files suit a store of very many rows.

    Raises:
        ValueError: If a number is not positive or the type is unknown.
    """

    dim: int
    chunk_rows: int = 4096
    dtype: VectorType = "float32"
    shard_chunks: int = 1

    def __post_init__(self) -> None:
        for name in ("dim", "chunk_rows", "shard_chunks"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, found {getattr(self, name)}")
        if self.dtype not in get_args(VectorType):
            raise ValueError(f"dtype must be one of {', '.join(get_args(VectorType))}, found {self.dtype!r}")
        for what, size, most in (
            ("chunk", self.chunk_bytes, _MOST_CHUNK),
            ("file", self.file_bytes(self.shard_chunks), _MOST_FILE),
        ):
            if size > most:
                raise ValueError(
                    f"{self.shard_chunks} chunks of {self.chunk_rows} x {self.dim} {self.dtype} make a {what} of "
                    f"{size} bytes, expected {most} at most; choose fewer chunk_rows or shard_chunks"
                )

    @property
    def number(self) -> np.dtype:
        """The little-endian numpy type of one number."""
        return np.dtype(self.dtype).newbyteorder("<")

    @property
    def file_rows(self) -> int:
        """Rows in a file."""
        return self.chunk_rows * self.shard_chunks

    @property
    def chunk_bytes(self) -> int:
        """Bytes of a chunk without its checksum."""
        return self.chunk_rows * self.dim * self.number.itemsize

    def place(self, chunk: int) -> tuple[int, int]:
        """The file that holds a chunk, and where in that file the chunk begins."""
        file, within = divmod(chunk, self.shard_chunks)
        return file, within * (self.chunk_bytes + CHECKSUM_BYTES)

    def file_bytes(self, chunks: int) -> int:
        """Size of a file that holds this many chunks."""
        index = 16 * self.shard_chunks + CHECKSUM_BYTES if self.shard_chunks > 1 else 0
        return chunks * (self.chunk_bytes + CHECKSUM_BYTES) + index

    def index(self, chunks: int) -> bytes:
        """What follows so many chunks in their file: a shard's index without its checksum, else nothing."""
        if self.shard_chunks == 1:
            return b""
        step = self.chunk_bytes + CHECKSUM_BYTES
        places = np.full((self.shard_chunks, 2), _ABSENT, "<u8")
        places[:chunks, 0] = step * np.arange(chunks, dtype=np.uint64)
        places[:chunks, 1] = step
        return places.tobytes()

    def zarr_metadata(self, rows: int) -> dict[str, Any]:
        """The array's metadata, the content of its zarr.json, for this many rows."""
        plain = [{"name": "bytes", "configuration": {"endian": "little"}}, {"name": "crc32c"}]
        codecs = plain
        if self.shard_chunks > 1:
            sharding = {
                "chunk_shape": [self.chunk_rows, self.dim],
                "codecs": plain,
                "index_codecs": plain,
                "index_location": "end",
            }
            codecs = [{"name": "sharding_indexed", "configuration": sharding}]
        return {
            "shape": [rows, self.dim],
            "data_type": self.dtype,
            "chunk_grid": {"name": "regular", "configuration": {"chunk_shape": [self.file_rows, self.dim]}},
            "chunk_key_encoding": {"name": "default", "configuration": {"separator": "/"}},
            "fill_value": 0.0,
            "codecs": codecs,
            "attributes": {},
            "zarr_format": 3,
            "node_type": "array",
            "storage_transformers": [],
        }
