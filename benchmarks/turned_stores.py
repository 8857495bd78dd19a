"""Stores of two planted models, one turned from the other with noise, written as they would be by `compat.extract`."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import polars as pl

from stores.space import EmbeddingSpace
from stores.store import EmbeddingStore

WRITTEN_ROWS = 40_960


def write_stores(
    folder: Path, rows: int, dim: int, *, items_of_one: int | None = None
) -> tuple[EmbeddingStore, EmbeddingStore]:
    """The old and the new store of the same items in a folder, open; labelled where identities have `items_of_one`."""
    generator = np.random.default_rng(0)
    turn = np.linalg.qr(generator.standard_normal((dim, dim)))[0].astype(np.float32)
    stores = [EmbeddingStore.create(folder / name, EmbeddingSpace(name, None, dim, False)) for name in ("old", "new")]
    for start in range(0, rows, WRITTEN_ROWS):
        number = np.arange(start, min(start + WRITTEN_ROWS, rows))
        items = pl.DataFrame({"item_id": number})
        if items_of_one is not None:
            items = items.with_columns(label=number // items_of_one)
        new = generator.standard_normal((len(items), dim), dtype=np.float32)
        stores[0].append(items, new @ turn + generator.standard_normal(new.shape, dtype=np.float32))
        stores[1].append(items, new)
    for store in stores:
        store.commit()
        store.close()
    old, new = (EmbeddingStore.open(folder / name) for name in ("old", "new"))
    return old, new
