"""Searching a gallery with a new model's queries, whatever space the gallery is in."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import polars as pl

from compat.metrics.retrieval import Rows
from compat.neighbors import ExactIndex
from compat.transformers.artefact import Transformer, WrongSpace
from compat.transformers.serving import QueryForm, is_lifted, query_form, served_rows
from stores.space import EmbeddingSpace
from stores.store import EmbeddingStore


class SearchResult(NamedTuple):
    """Neighbours of each query in falling order: item ids [q, k] (as lists), scores float32 [q, k].

    A score is the cosine, less what a hubness correction takes off.
    """

    item_ids: list[list[str | int]]
    scores: np.ndarray


class BridgedGallery:
    """A gallery that new queries can search: an old one through a transformer, or one that was migrated.

    Args:
        gallery: The old model's gallery, left as it is; or a migrated one.
        transformer: For an old gallery a `new-to-old` one, with or without a hubness correction. For a gallery migrated
            with its correction the one it was migrated with; where that maps the gallery it may be left out. None for
            any other gallery, which is in the queries' space already.

    Raises:
        WrongSpace: If the transformer does not fit the gallery, or is missing.
    """

    def __init__(self, gallery: EmbeddingStore, transformer: Transformer | None = None) -> None:
        self._ready = transformer is None or is_lifted(gallery)
        if transformer is None or self._ready:
            self._form = query_form(gallery, transformer)
        else:
            transformer.require("new-to-old", transformer.source, gallery.space)
            self._form = QueryForm(transformer.query_space, transformer, transformer.correction is not None)
        self.gallery = gallery
        self.transformer = transformer
        self._index: ExactIndex | None = None

    @property
    def query_space(self) -> EmbeddingSpace:
        """The space that queries must be in."""
        return self._form.space

    def search(self, queries: np.ndarray, k: int = 10, *, space: EmbeddingSpace) -> SearchResult:
        """The k nearest items of each query, by exact search.

        The first search reads the gallery into an index in memory (4 bytes a number), which later ones use again. A
        correction's offsets are found then too.

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
        queries = self._form(queries)
        if self._index is None:
            self._index = self._built()
        scores, rows = self._index.search(queries, k)
        ids: pl.Series = self.gallery.items["item_id"]
        return SearchResult([ids.gather(row).to_list() for row in rows], scores)

    def _built(self) -> ExactIndex:
        rows: Rows = self.gallery
        served = self.gallery.space
        if self.transformer is not None and not self._ready:
            rows, served = served_rows(self.gallery, self.transformer), self.transformer.served_space
        index = ExactIndex(served.dim, served.similarity)
        for start in range(0, len(rows), self.gallery.chunk_rows):
            index.add(rows.rows(start, min(start + self.gallery.chunk_rows, len(rows))))
        return index
