"""Which gallery items are right for each query, from labels, ids or a table of judgements."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

import numpy as np
import polars as pl

from compat.metrics.relevance import Relevance
from compat.pairs import label_codes, of_one_type
from stores.item_tables import read_item_table
from stores.store import EmbeddingStore


def rows_of(wanted: pl.Series, ids: pl.Series) -> np.ndarray:
    """The row in `ids` of each wanted id, or -1, int64 [len(wanted)]; text and integer ids are compared as text."""
    wanted, ids = of_one_type(wanted, ids)
    table = pl.DataFrame({"item_id": ids}).with_row_index("row")
    rows = pl.DataFrame({"item_id": wanted}).join(table, on="item_id", how="left", maintain_order="left")["row"]
    return rows.cast(pl.Int64).fill_null(-1).to_numpy()


class Judged(NamedTuple):
    """What is relevant, and what its reader should know of how that was found; empty where nothing."""

    relevance: Relevance
    note: str = ""


def relevance_of(kind: str, queries: EmbeddingStore, gallery: EmbeddingStore) -> Judged:
    """Which gallery items are right for each query.

    Args:
        kind: `label`, `item`, or the path of a table with columns query_id, item_id and perhaps grade.
        queries: [q].
        gallery: [g].

    Raises:
        FileNotFoundError: If the table is missing.
        ValueError: If a column is, or more than half of the judged items are not in the gallery.
    """
    own = rows_of(queries.items["item_id"], gallery.items["item_id"])
    if kind == "item":
        return Judged(Relevance.by_item(own))
    if kind != "label":
        return _judged(Path(kind), queries, gallery)
    for store in (queries, gallery):
        if "label" not in store.items.columns:
            raise ValueError(f"relevance 'label' needs a column label, which {store.path} lacks; use 'item'")
    codes = label_codes(pl.concat(of_one_type(queries.items["label"], gallery.items["label"])))
    return Judged(Relevance.by_label(codes[: len(own)], codes[len(own) :], own))


def _judged(path: Path, queries: EmbeddingStore, gallery: EmbeddingStore) -> Judged:
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
    grades = table["grade"].to_numpy()[known] if "grade" in table.columns else None
    relevance, missing = (
        Relevance.by_judgement(len(queries), query[known], row[known], grades),
        (query >= 0) & (row < 0),
    )
    if not missing.any():
        return Judged(relevance)
    example = table["item_id"][int(np.flatnonzero(missing)[0])]
    found = (
        f"{int(missing.sum()):,} of {int((query >= 0).sum()):,} items judged for these queries in {path} are not in "
        f"{gallery.path}, for example {example!r}"
    )
    if missing.sum() > known.sum():
        raise ValueError(f"{found}; check that table and gallery name items alike")
    return Judged(relevance, f"{found}: they count as if they had never been judged")
