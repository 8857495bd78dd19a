"""Searching a gallery with a new model's queries, whatever space the gallery is in."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import polars as pl

from compat.neighbors import ExactIndex
from compat.transformers.artefact import Transformer, WrongSpace
from stores.space import EmbeddingSpace
from stores.store import EmbeddingStore


class SearchResult(NamedTuple):
    """Neighbours of each query in falling order: item ids [q, k] (as lists), cosines float32 [q, k]."""

    item_ids: list[list[str | int]]
    scores: np.ndarray


class BridgedGallery:
    """An old gallery that new queries can search: queries go through a `new-to-old` transformer first.

    Args:
        gallery: The old model's gallery, left as it is; or a migrated one, searched without a transformer.
        transformer: The map, or None where the gallery already is in the queries' space.

    Raises:
        WrongSpace: If the transformer maps the gallery instead, or into another space than the gallery's.
    """

    def __init__(self, gallery: EmbeddingStore, transformer: Transformer | None = None) -> None:
        if transformer is not None:
            transformer.require("new-to-old", transformer.source, gallery.space)
        self.gallery = gallery
        self.transformer = transformer
        self._index: ExactIndex | None = None

    @property
    def query_space(self) -> EmbeddingSpace:
        """The space that queries must be in."""
        return self.transformer.source if self.transformer else self.gallery.space

    def search(self, queries: np.ndarray, k: int = 10, *, space: EmbeddingSpace) -> SearchResult:
        """The k nearest items of each query by cosine, by exact search.

        The first search reads the gallery into an index in memory (4 bytes a number), which later ones use again.

        Args:
            queries: The new model's raw vectors, floats [q, d].
            k: Neighbours wanted.
            space: Space of the queries: vectors of another model would be found neighbours too, and wrong ones.

        Raises:
            WrongSpace: If the queries are in another space than `query_space`.
            ValueError: If their dimension is wrong or the gallery is empty.
        """
        if space != self.query_space:
            raise WrongSpace(f"the queries are in {space}, expected {self.query_space}; map them first")
        if self.transformer:
            queries = self.transformer.transform(queries)
        if self._index is None:
            self._index = ExactIndex(self.gallery.space.dim)
            for batch in self.gallery.batches(self.gallery.chunk_rows):
                self._index.add(batch.vectors)
        scores, rows = self._index.search(queries, k)
        ids: pl.Series = self.gallery.items["item_id"]
        return SearchResult([ids.gather(row).to_list() for row in rows], scores)
