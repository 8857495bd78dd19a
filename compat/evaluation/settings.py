"""Measuring one setting after another: the same queries, the same right answers, another way of searching."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import polars as pl

from compat.metrics.retrieval import Relevance, Rows, relevant_ranks, retrieval_scores
from compat.pairs import label_codes, of_one_type
from compat.transformers.artefact import Transformer, WrongSpace
from compat.transformers.hubness import lift_queries
from compat.transformers.serving import OnRows, corrected_old_rows, query_form, served_rows
from stores.item_tables import read_item_table
from stores.space import Similarity
from stores.store import EmbeddingStore

OnSetting = Callable[[str], None]
SECONDS_BETWEEN_LINES = 5.0


class Study:
    """Queries, a gallery, and which of its items are right for each query; formed once, for every setting.

    Args:
        queries: The new model's queries.
        gallery: The gallery whose item table decides what is relevant.
        relevance: `label`, `item`, `auto` or the path of a table.
        say: Called with a line before each setting is measured.

    Raises:
        ValueError: If a store is empty, or no query has a relevant item.
    """

    def __init__(self, queries: EmbeddingStore, gallery: EmbeddingStore, relevance: str, say: OnSetting) -> None:
        for role, store in (("query store", queries), ("gallery", gallery)):
            if not len(store):
                raise ValueError(f"the {role} {store.path} is empty; extract or convert embeddings into it first")
        self.queries, self.gallery, self._say = queries, gallery, say
        labelled = all("label" in store.items.columns for store in (queries, gallery))
        self.kind = relevance if relevance != "auto" else ("label" if labelled else "item")
        self.relevance = _relevance(self.kind, queries, gallery)
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

    def search(self, name: str, queries: EmbeddingStore) -> np.ndarray:
        """Measures float64 [q, 5] of queries against the gallery as it is."""
        self._say(name)
        return self._measure(self._of(queries), self.gallery, self.relevance, self.gallery.space.similarity)

    def search_elsewhere(self, name: str, gallery: EmbeddingStore) -> np.ndarray:
        """Measures [q, 5] of the queries against the same items in another store, whatever their order there.

        Raises:
            ValueError: If that store holds other items.
        """
        self._say(name)
        ours, theirs = self.gallery.items["item_id"], gallery.items["item_id"]
        rows = rows_of(ours, theirs)
        if len(ours) != len(theirs) or (rows < 0).any():
            raise ValueError(
                f"{gallery.path} must hold the items of {self.gallery.path}, each once: found {len(theirs)} items, "
                f"{int((rows >= 0).sum())} of the gallery's {len(ours)}"
            )
        return self._measure(self._of(self.queries), gallery, self.relevance.moved(rows), gallery.space.similarity)

    def bridge(self, name: str, bridge: Transformer) -> np.ndarray:
        """Measures [q, 5] of the queries against the gallery through a transformer, as it is served."""
        self._say(f"through {name} ({bridge.family}, {bridge.direction})")
        queries = bridge.serve_queries(self._of(self.queries))
        gallery = served_rows(self.gallery, bridge, on_rows=self._told("hubness"))
        return self._measure(queries, gallery, self.relevance, bridge.served_space.similarity)

    def migrated(self, name: str, transformer: Transformer | None, *, corrected: bool = True) -> np.ndarray:
        """Measures [q, 5] of raw queries against a gallery that was migrated with its correction.

        Args:
            name: What is measured.
            transformer: The one it was migrated with, needed where queries are mapped.
            corrected: Whether the extra dimension counts.
        """
        self._say(name)
        queries = query_form(self.gallery, transformer)(self._of(self.queries))
        if not corrected:
            queries[:, -1] = 0.0
        return self._measure(queries, self.gallery, self.relevance, "inner_product")

    def search_corrected(self, name: str, queries: EmbeddingStore, bridge: Transformer) -> np.ndarray:
        """Measures [q, 5] of the old model's queries against its gallery, corrected as `bridge` corrects it."""
        self._say(name)
        gallery = corrected_old_rows(self.gallery, bridge, on_rows=self._told("hubness of old vectors"))
        return self._measure(lift_queries(self._of(queries)), gallery, self.relevance, "inner_product")

    def _told(self, what: str) -> OnRows:
        said = time.monotonic()

        def say(done: int, rows: int) -> None:
            nonlocal said
            if time.monotonic() - said > SECONDS_BETWEEN_LINES:
                said = time.monotonic()
                self._say(f"{what}: {done}/{rows} gallery rows")

        return say

    def _of(self, store: EmbeddingStore) -> np.ndarray:
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

    def _measure(self, vectors: np.ndarray, gallery: Rows, relevance: Relevance, similarity: Similarity) -> np.ndarray:
        scores = retrieval_scores(relevant_ranks(vectors, gallery, relevance, similarity=similarity), relevance)
        recalls = (scores.recall_at_1, scores.recall_at_5, scores.recall_at_10)
        return np.stack([*recalls, scores.average_precision, scores.reciprocal_rank], axis=1)


def require_space(option: str, store: EmbeddingStore, like: EmbeddingStore) -> None:
    """Make sure that two stores are in one space.

    Raises:
        WrongSpace: If they are not.
    """
    if store.space != like.space:
        raise WrongSpace(f"{option} {store.path} is in {store.space}, expected the space of {like.path}: {like.space}")


def rows_of(wanted: pl.Series, ids: pl.Series) -> np.ndarray:
    """The row in `ids` of each wanted id, or -1, int64 [len(wanted)]; text and integer ids are compared as text."""
    wanted, ids = of_one_type(wanted, ids)
    table = pl.DataFrame({"item_id": ids}).with_row_index("row")
    rows = pl.DataFrame({"item_id": wanted}).join(table, on="item_id", how="left", maintain_order="left")["row"]
    return rows.cast(pl.Int64).fill_null(-1).to_numpy()


def _relevance(kind: str, queries: EmbeddingStore, gallery: EmbeddingStore) -> Relevance:
    own = rows_of(queries.items["item_id"], gallery.items["item_id"])
    if kind == "item":
        return Relevance.by_item(own)
    if kind != "label":
        return _judged(Path(kind), queries, gallery)
    for store in (queries, gallery):
        if "label" not in store.items.columns:
            raise ValueError(f"relevance 'label' needs a column label, which {store.path} lacks; use 'item'")
    codes = label_codes(pl.concat(of_one_type(queries.items["label"], gallery.items["label"])))
    return Relevance.by_label(codes[: len(own)], codes[len(own) :], own)


def _judged(path: Path, queries: EmbeddingStore, gallery: EmbeddingStore) -> Relevance:
    if not path.is_file():
        raise FileNotFoundError(f"--relevance {path} is not 'label', 'item', 'auto' or an existing table")
    table = read_item_table(path, "query_id")
    if "item_id" not in table.columns:
        raise ValueError(f"{path} needs the columns query_id and item_id, found {', '.join(table.columns)}")
    if "grade" in table.columns:  # a grade of 0 was judged, and found irrelevant
        if not table["grade"].dtype.is_numeric():
            raise ValueError(f"grade in {path} must be a number, found {table['grade'].dtype}")
        table = table.filter(pl.col("grade") > 0)
    query, row = (
        rows_of(table[name].cast(ids.dtype, strict=False), ids)
        for name, ids in (("query_id", queries.items["item_id"]), ("item_id", gallery.items["item_id"]))
    )
    known = (query >= 0) & (row >= 0)
    return Relevance.by_judgement(len(queries), query[known], row[known])
