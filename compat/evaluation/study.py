"""Queries, a gallery, and what is right for each query: formed once, asked in one way after another."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import fields
from functools import cached_property

import numpy as np
import polars as pl

from compat.evaluation.judgements import relevance_of, rows_of
from compat.evaluation.searched import Searched
from compat.metrics.retrieval import RetrievalScores, relevant_ranks, retrieval_scores
from compat.pairs import label_codes, of_one_type
from compat.transformers.artefact import Transformer, WrongSpace
from compat.transformers.hubness import lift_queries
from compat.transformers.serving import OnRows, corrected_old_rows, query_form, served_rows
from stores.store import EmbeddingStore

OnSetting = Callable[[str], None]
SECONDS_BETWEEN_LINES = 5.0
_SCORES = tuple(field.name for field in fields(RetrievalScores))


class Study:
    """Queries, a gallery, and which of its items are right for each query.

    Args:
        queries: The new model's queries.
        gallery: The gallery whose item table decides what is relevant.
        relevance: `label`, `item`, `auto` or the path of a table.
        say: Called with a line before each long piece of work.

    Raises:
        ValueError: If a store is empty, or no query has a relevant item.
    """

    def __init__(self, queries: EmbeddingStore, gallery: EmbeddingStore, relevance: str, say: OnSetting) -> None:
        for role, store in (("query store", queries), ("gallery", gallery)):
            if not len(store):
                raise ValueError(f"the {role} {store.path} is empty; extract or convert embeddings into it first")
        self.queries, self.gallery, self.say = queries, gallery, say
        labelled = all("label" in store.items.columns for store in (queries, gallery))
        self.kind = relevance if relevance != "auto" else ("label" if labelled else "item")
        self.relevance, self.note = relevance_of(self.kind, queries, gallery)
        self._vectors: dict[str, np.ndarray] = {}
        if not self.asked.any():
            raise ValueError(
                f"no query has a relevant item in {gallery.path} under relevance {self.kind!r}; "
                "check the labels or ids, or choose another --relevance"
            )

    @property
    def asked(self) -> np.ndarray:
        """Whether a query has a relevant item, bool [q]; the others are left out."""
        return self.relevance.counts > 0

    @property
    def clusters(self) -> np.ndarray | None:
        """Codes int64 [q] of queries that are not independent of each other (one identity's), None without labels."""
        return label_codes(self.queries.items["label"]) if "label" in self.queries.items.columns else None

    @cached_property
    def own(self) -> np.ndarray:
        """The gallery row that is each query's own item, or -1, int64 [q]."""
        return rows_of(self.queries.items["item_id"], self.gallery.items["item_id"])

    @cached_property
    def labels(self) -> tuple[np.ndarray, np.ndarray] | None:
        """Label codes of queries int64 [q] and gallery [g], alike where labels are; None where a table has none."""
        tables = [store.items for store in (self.queries, self.gallery)]
        if not all("label" in table.columns for table in tables):
            return None
        codes = label_codes(pl.concat(of_one_type(*(table["label"] for table in tables))))
        return codes[: len(self.queries)], codes[len(self.queries) :]

    def plain(self, queries: EmbeddingStore) -> Searched:
        """Queries in the gallery as it is."""
        return Searched(self.vectors_of(queries), self.gallery, self.gallery.space.similarity)

    def elsewhere(self, gallery: EmbeddingStore) -> Searched:
        """The queries in the same items of another store, whatever their order there.

        Raises:
            ValueError: If that store holds other items.
        """
        ours, theirs = self.gallery.items["item_id"], gallery.items["item_id"]
        rows = rows_of(ours, theirs)
        if len(ours) != len(theirs) or (rows < 0).any():
            raise ValueError(
                f"{gallery.path} must hold the items of {self.gallery.path}, each once: found {len(theirs)} items, "
                f"{int((rows >= 0).sum())} of the gallery's {len(ours)}"
            )
        return Searched(self.vectors_of(self.queries), gallery, gallery.space.similarity, rows)

    def bridged(self, bridge: Transformer) -> Searched:
        """The queries in the gallery through a transformer, as it is served."""
        queries = bridge.serve_queries(self.vectors_of(self.queries))
        gallery = served_rows(self.gallery, bridge, on_rows=self._told("hubness"))
        return Searched(queries, gallery, bridge.served_space.similarity)

    def migrated(self, transformer: Transformer | None, *, corrected: bool = True) -> Searched:
        """Raw queries in a gallery that was migrated with its correction.

        Args:
            transformer: The one it was migrated with, needed where queries are mapped.
            corrected: Whether the extra dimension counts.
        """
        queries = query_form(self.gallery, transformer)(self.vectors_of(self.queries))
        if not corrected:
            queries[:, -1] = 0.0
        return Searched(queries, self.gallery, "inner_product")

    def corrected(self, queries: EmbeddingStore, bridge: Transformer) -> Searched:
        """The old model's queries in its gallery, corrected as `bridge` corrects it."""
        gallery = corrected_old_rows(self.gallery, bridge, on_rows=self._told("hubness of old vectors"))
        return Searched(lift_queries(self.vectors_of(queries)), gallery, "inner_product")

    def measure(self, searched: Searched) -> np.ndarray:
        """Measures float64 [q, m] of every query, in the order of `compat.evaluation.record.MEASURES`."""
        relevance = self.relevance if searched.rows is None else self.relevance.moved(searched.rows)
        ranks = relevant_ranks(
            searched.queries,
            searched.gallery,
            relevance,
            similarity=searched.similarity,
            on_rows=self._told("ranking"),
        )
        scores = retrieval_scores(ranks, relevance, gallery_rows=len(searched.gallery))
        return np.stack([getattr(scores, name) for name in _SCORES], axis=1)

    def vectors_of(self, store: EmbeddingStore) -> np.ndarray:
        """The queries' vectors in a store that holds the same items, float32 [q, d].

        Raises:
            ValueError: If it lacks some.
        """
        key = str(store.path)
        if key not in self._vectors:
            rows = rows_of(self.queries.items["item_id"], store.items["item_id"])
            if (rows < 0).any():
                raise ValueError(
                    f"{int((rows < 0).sum())} of {len(rows)} queries are not in {store.path}; "
                    "--old-queries must hold the same items as --queries"
                )
            self._vectors[key] = store.take(rows)
        return self._vectors[key]

    def _told(self, what: str) -> OnRows:
        said = time.monotonic()

        def say(done: int, rows: int) -> None:
            nonlocal said
            if time.monotonic() - said > SECONDS_BETWEEN_LINES:
                said = time.monotonic()
                self.say(f"{what}: {done}/{rows} gallery rows")

        return say


def require_space(option: str, store: EmbeddingStore, like: EmbeddingStore) -> None:
    """Make sure that two stores are in one space.

    Raises:
        WrongSpace: If they are not.
    """
    if store.space != like.space:
        raise WrongSpace(f"{option} {store.path} is in {store.space}, expected the space of {like.path}: {like.space}")
