"""A gallery with what its format could not tell: the space, the item ids, the labels."""

from __future__ import annotations

from collections.abc import Iterator

import polars as pl

from stores.galleries.gallery import GallerySource, notes_of, row_ranges
from stores.space import EmbeddingSpace
from stores.store import Batch


class AnnotatedSource:
    """The rows of another source, under another space or with another item table.

    Args:
        source: Where the vectors come from.
        space: What they are, where the source does not know.
        items: The item table to use instead of the source's, row i for vector i.
        labels: A column to set as `label`, value i for vector i.

    Raises:
        ValueError: If the source knows another space, or a length or dimension does not fit.
    """

    def __init__(
        self,
        source: GallerySource,
        *,
        space: EmbeddingSpace | None = None,
        items: pl.DataFrame | None = None,
        labels: pl.Series | None = None,
    ) -> None:
        if space and source.space and space != source.space:
            raise ValueError(f"the gallery holds vectors of {source.space}, expected {space}; name the one it has")
        if space and space.dim != source.dim:
            raise ValueError(f"the gallery's vectors have {source.dim} dimensions, expected {space.dim} of {space}")
        for name, given in {"item table": items, "labels": labels}.items():
            if given is not None and len(given) != len(source):
                raise ValueError(f"the {name} has {len(given)} rows, expected {len(source)}, one for each vector")
        self._source = source
        self._items = items
        self._labels = labels
        self.space = source.space or space
        self.dim = source.dim
        self.provenance = source.provenance
        self.notes = notes_of(source)

    def __len__(self) -> int:
        return len(self._source)

    def scan(self, size: int, *, start: int = 0) -> Iterator[Batch]:
        """Rows start.. in row order; see `GallerySource`."""
        batches = self._source.scan(size, start=start)
        for (first, stop), batch in zip(row_ranges(len(self), size, start), batches, strict=True):
            items = batch.items if self._items is None else self._items[first:stop]
            if self._labels is not None:
                items = items.with_columns(self._labels[first:stop].alias("label"))
            yield Batch(items, batch.vectors)
