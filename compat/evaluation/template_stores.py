"""Templates, as IJB has them: several items of one store made into one vector, and a store of those."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import polars as pl

from compat.metrics.protocols import templates
from compat.neighbors import unit_rows
from stores.store import EmbeddingStore

MEDIA = "media"
"""Column that says which items are frames of one video, where a table has it."""


def template_store(store: EmbeddingStore, column: str, path: Path) -> EmbeddingStore:
    """A store of one vector for each value of a column, in the same space; its vectors are held in memory.

    A template is the mean of its media's mean directions, of its items' mean length. It keeps the columns in which all
    its items agree; the value is its item_id, so that stores of other models make the same templates.

    Args:
        store: Single items.
        column: Of the item table, for example `template`.
        path: Where the new store is written.

    Raises:
        ValueError: If there is no such column or a value is missing.
    """
    items = store.items
    if column not in items.columns:
        raise ValueError(f"{store.path} has no column {column!r}; it has {', '.join(items.columns)}")
    if missing := items[column].null_count():
        raise ValueError(f"{missing} items of {store.path} have no {column}; give each one, or leave them out")
    ids = items[column] if items[column].dtype.is_integer() else items[column].cast(pl.String)
    vectors = store.take(np.arange(len(store)))
    made = templates(unit_rows(vectors), ids.to_numpy(), items[MEDIA].to_numpy() if MEDIA in items.columns else None)
    kept = [name for name in items.columns if name not in ("item_id", column)]
    table = items.with_columns(ids.alias("item_id"), pl.Series("length", np.linalg.norm(vectors, axis=1)))
    table = table.group_by("item_id", maintain_order=True).agg(
        pl.col("length").mean(), *(pl.when(pl.col(n).n_unique() == 1).then(pl.col(n).first()).alias(n) for n in kept)
    )
    lengths = table["length"].to_numpy()[:, None]
    with EmbeddingStore.create(path, store.space, provenance={"templates": column, **store.provenance}) as written:
        written.append(table.drop("length"), (made.vectors * lengths).astype(np.float32))
        written.commit()
    return EmbeddingStore.open(path)
