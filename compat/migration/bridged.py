"""Searching a gallery with a new model's queries, whatever space the gallery is in and whatever engine it lives in."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple, cast

import numpy as np
import polars as pl

from compat.migration.engines import Described, MemoryEngine, Rows, Searches, opened, search_without
from compat.transformers.artefact import Transformer, WrongSpace
from compat.transformers.serving import QueryForm, is_lifted, query_form
from stores.space import EmbeddingSpace
from stores.store import EmbeddingStore


class SearchResult(NamedTuple):
    """Neighbours of each query in falling order: item ids [q, k] (as lists), scores float32 [q, k].

    A score is the cosine, less what a hubness correction takes off. An engine's approximate index may find fewer than k
    items: a list is then shorter, and its row of scores ends in -inf.
    """

    item_ids: list[list[str | int]]
    scores: np.ndarray


class BridgedGallery:
    """A gallery that new queries can search: an old one through a transformer, or one that was migrated.

    Args:
        gallery: The old model's gallery, left as it is; or a migrated one. An `EmbeddingStore`; the URI of a gallery,
            which PostgreSQL, Lance and Qdrant search themselves, through their index; a `faiss.Index` in memory; or
            any object with `space` and `search(queries, k)`. Stores and files are searched exactly, in memory.
        transformer: For an old gallery a `new-to-old` one, with or without a hubness correction. For a gallery migrated
            with its correction the one it was migrated with; where that maps the gallery it may be left out. None for
            any other gallery, which is in the queries' space already.
        space: What the gallery's vectors are, where it cannot tell; must agree where it can.
        item_ids: Ids of the rows of a `faiss.Index`; its own numbers are the ids otherwise.
        leave_out: Ids of items that are never found.

    Raises:
        WrongSpace: If the transformer does not fit the gallery, or is missing, or nobody says what the vectors are.
        ValueError: If the transformer corrects hubs and an engine searches a gallery without the dimension for it.
    """

    def __init__(
        self,
        gallery: object,
        transformer: Transformer | None = None,
        *,
        space: EmbeddingSpace | None = None,
        item_ids: Sequence[str | int] | None = None,
        leave_out: pl.Series | None = None,
    ) -> None:
        found = opened(gallery, space=space, item_ids=item_ids)
        described = found.described
        self._ready = ready = transformer is None or _serves(described, transformer)
        if transformer is None or ready:
            self._form = query_form(_as_store(described), transformer)
        else:
            transformer.require("new-to-old", transformer.source, described.space)
            self._form = QueryForm(transformer.query_space, transformer, lifted=transformer.correction is not None)
            if transformer.correction is not None and not isinstance(found, Rows):
                raise ValueError(
                    f"{described.path} has no dimension for the transformer's hubness correction; migrate it with "
                    "python -m compat.migrate, or search with transformer.without_correction()"
                )
        self.gallery = found.source if isinstance(found, Rows) else gallery
        self.transformer = transformer
        nothing = pl.Series("item_id", [], dtype=pl.String)
        hidden = nothing if leave_out is None else leave_out
        self._engine: Searches
        if isinstance(found, Rows):
            self._engine, self._leave_out = MemoryEngine(found, None if ready else transformer, hidden), nothing
        else:
            self._engine, self._leave_out = found.engine, hidden

    @property
    def ready(self) -> bool:
        """Whether the gallery's vectors are compared as they are."""
        return self._ready

    @property
    def corrected(self) -> bool:
        """Whether scores have a hubness correction taken off."""
        return self._form.lifted

    @property
    def query_space(self) -> EmbeddingSpace:
        """The space that queries must be in."""
        return self._form.space

    def form_of(self, queries: np.ndarray) -> np.ndarray:
        """Raw queries, floats [q, d], as the gallery's vectors are compared with them."""
        return self._form(queries)

    def search(self, queries: np.ndarray, k: int = 10, *, space: EmbeddingSpace | None = None) -> SearchResult:
        """The k nearest items of each query, by exact search unless an engine searches by an approximate index.

        The first search of a store or file reads it into an index in memory (4 bytes a number), which later ones use
        again. A correction's offsets are found then too.

        Args:
            queries: The new model's raw vectors, floats [q, d].
            k: Neighbours wanted.
            space: Space of the queries, where it is known, as a store knows it: vectors of another model would be found
                neighbours too, and wrong ones. None takes them for vectors of `query_space`.

        Raises:
            WrongSpace: If the queries are in another space than `query_space`.
            ValueError: If their dimension is wrong or the gallery is empty.
        """
        if space is not None and space != self.query_space:
            raise WrongSpace(f"the queries are in {space}, expected {self.query_space}; map them first")
        return SearchResult(*search_without(self._engine, self._form(queries), k, self._leave_out))


def _serves(gallery: Described, transformer: Transformer) -> bool:
    """Whether a gallery is served by a transformer already: with its correction, as it says or as its caller does."""
    lifted = transformer.correction is not None and gallery.space == transformer.served_space
    return lifted or is_lifted(_as_store(gallery))


def _as_store(gallery: Described) -> EmbeddingStore:
    return cast(EmbeddingStore, gallery)  # of which serving reads path, space and provenance alone
