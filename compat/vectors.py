"""Vectors of one space read by row number, wherever they live: in a store, in memory, or in several places."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from crc32c import crc32c

from stores.space import EmbeddingSpace

BLOCK_ROWS = 8192


class Vectors(Protocol):
    """Vectors of one space, read by row number: an open `EmbeddingStore`, or an array in memory (`ArrayVectors`)."""

    @property
    def space(self) -> EmbeddingSpace:
        """What the vectors are."""
        ...

    @property
    def chunk_rows(self) -> int:
        """Rows that lie together."""
        ...

    def __len__(self) -> int: ...

    def take(self, rows: np.ndarray) -> np.ndarray:
        """The vectors of row numbers [b], a new float32 [b, d] array."""
        ...

    def rows(self, start: int, stop: int) -> np.ndarray:
        """Vectors start..stop-1, float32 [stop - start, d], perhaps read-only."""
        ...

    def digest(self) -> str:
        """Digest over the vectors, hexadecimal."""
        ...


@dataclass(frozen=True)
class ArrayVectors:
    """An array [n, d] seen as `Vectors`.

    Raises:
        ValueError: If the array does not have the space's dimension.
    """

    array: np.ndarray
    space: EmbeddingSpace
    chunk_rows: int = 4096

    def __post_init__(self) -> None:
        if self.array.ndim != 2 or self.array.shape[1] != self.space.dim:
            raise ValueError(f"the array has shape {list(self.array.shape)}, expected [n, {self.space.dim}]")

    def __len__(self) -> int:
        return len(self.array)

    def take(self, rows: np.ndarray) -> np.ndarray:
        """The vectors of row numbers [b], a new float32 [b, d] array."""
        return self.array[rows].astype(np.float32, copy=False)  # indexing by an array has copied already

    def rows(self, start: int, stop: int) -> np.ndarray:
        """Vectors start..stop-1, float32 [stop - start, d], perhaps a view."""
        return self.array[start:stop].astype(np.float32, copy=False)

    def digest(self) -> str:
        """Digest over the vectors, hexadecimal; it shows accidents at the speed of reading, and keeps nobody out."""
        digest = hashlib.blake2b(f"{self.array.dtype} {self.array.shape}".encode(), digest_size=16)
        for start in range(0, len(self), BLOCK_ROWS):
            digest.update(crc32c(self.array[start : start + BLOCK_ROWS].tobytes()).to_bytes(4, "big"))
        return digest.hexdigest()


@dataclass(frozen=True)
class JoinedVectors:
    """Vectors of one space from several places, one after the other, seen as `Vectors`.

    Raises:
        ValueError: If they are not all in one space.
    """

    parts: tuple[Vectors, ...]

    def __post_init__(self) -> None:
        for part in self.parts[1:]:
            if part.space != self.space:
                raise ValueError(f"pairs of two sources are in {self.space} and {part.space}, expected one space")

    @property
    def space(self) -> EmbeddingSpace:
        """What the vectors are."""
        return self.parts[0].space

    @property
    def chunk_rows(self) -> int:
        """Rows that lie together."""
        return self.parts[0].chunk_rows

    def __len__(self) -> int:
        return sum(map(len, self.parts))

    def take(self, rows: np.ndarray) -> np.ndarray:
        """The vectors of row numbers [b], a new float32 [b, d] array."""
        vectors = np.empty((len(rows), self.space.dim), np.float32)
        first = 0
        for part in self.parts:
            mine = (rows >= first) & (rows < first + len(part))
            if mine.any():
                vectors[mine] = part.take(rows[mine] - first)
            first += len(part)
        return vectors

    def rows(self, start: int, stop: int) -> np.ndarray:
        """Vectors start..stop-1, a new float32 [stop - start, d] array."""
        return self.take(np.arange(start, stop))

    def digest(self) -> str:
        """Digest over the parts', hexadecimal."""
        return hashlib.blake2b(" ".join(part.digest() for part in self.parts).encode(), digest_size=16).hexdigest()
