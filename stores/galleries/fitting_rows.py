"""What rows must satisfy before an engine that checks nothing itself is given them."""

from __future__ import annotations

from collections.abc import Collection

import numpy as np
import polars as pl

from stores.known_ids import KnownIds
from stores.new_items import checked_items, finite_vectors
from stores.space import EmbeddingSpace
from stores.store import Batch


def fitting_rows(
    batch: Batch,
    space: EmbeddingSpace,
    *,
    schema: pl.Schema | None,
    known: KnownIds,
    number: np.dtype,
    reserved: Collection[str],
) -> Batch:
    """A batch as a gallery keeps it: integer ids as int64, vectors of one type, contiguous.

    Args:
        batch: Rows to add.
        space: What the gallery's vectors are.
        schema: Columns of the rows that are there; None for the first ones.
        known: Ids that are there.
        number: Type of the numbers.
        reserved: Column names that the engine needs for itself.

    Raises:
        ValueError: If shapes, columns or ids do not fit, or a vector holds what the type cannot.
    """
    items, vectors = batch.items, np.asarray(batch.vectors)
    taken = sorted(set(items.columns).intersection(reserved))
    if taken:
        raise ValueError(f"item column {taken[0]!r} is reserved by the gallery's format; rename it")
    if vectors.ndim != 2 or vectors.shape[1] != space.dim:
        raise ValueError(f"vectors have shape {list(vectors.shape)}, expected [n, {space.dim}]")
    if len(items) != len(vectors):
        raise ValueError(f"{len(items)} items and {len(vectors)} vectors; row i of the table must be vector i")
    items = checked_items(items, schema, known)
    return Batch(items, finite_vectors(items, vectors, number))


def comparable_ids(item_ids: pl.Series, kind: pl.DataType) -> pl.Series:
    """Ids that somebody names, each once, as a gallery's own of the type `kind`; those that cannot be one are left out.

    `"7"` names the integer 7, `"007"` does not.
    """
    names = item_ids.cast(pl.String).drop_nulls().unique(maintain_order=True)
    if not kind.is_integer():
        return names
    numbers = names.cast(pl.Int64, strict=False)
    return numbers.filter((numbers.cast(pl.String) == names).fill_null(False))
