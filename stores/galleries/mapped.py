"""A gallery whose vectors can be mapped into memory as one array, with an item table beside it."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import polars as pl

from stores.galleries.card import GalleryCard
from stores.galleries.gallery import row_ranges
from stores.store import Batch


class MappedSource:
    """Rows of an array, read as they are needed.

    Args:
        vectors: Floats [n, d] of any width, commonly a map of a file.
        items: The item table, n rows.
        card: What the toolkit recorded when it wrote the file, if it did.
        lengths: Floats [n] by which the vectors are multiplied, or None to give them as they are.
    """

    def __init__(
        self, vectors: np.ndarray, items: pl.DataFrame, card: GalleryCard | None, lengths: np.ndarray | None = None
    ) -> None:
        self._vectors = vectors
        self._items = items
        self._lengths = lengths
        self.space = card.space if card else None
        self.dim = vectors.shape[1]
        self.provenance = card.provenance if card else {}

    def __len__(self) -> int:
        return len(self._vectors)

    def scan(self, size: int, *, start: int = 0) -> Iterator[Batch]:
        """Rows start.. in row order; see `GallerySource`."""
        for first, stop in row_ranges(len(self), size, start):
            vectors = self._vectors[first:stop]
            if self._lengths is not None:
                vectors = vectors * self._lengths[first:stop, None]
            with np.errstate(over="ignore"):  # too large for float32 becomes infinite, which every target refuses
                yield Batch(self._items[first:stop], np.ascontiguousarray(vectors, dtype=np.float32))
