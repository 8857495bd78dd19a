"""What an appended table and its vectors must satisfy."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
import polars as pl

from stores.known_ids import KnownIds


def checked_items(items: pl.DataFrame, schema: pl.Schema | None, known: KnownIds) -> pl.DataFrame:
    """The table as a store keeps it, integer ids as int64.

    Args:
        items: Rows to append.
        schema: Columns of the rows that are already there, which these must have; None for the first ones.
        known: Ids that are already there.

    Raises:
        ValueError: If a column or an id is missing or of the wrong type, or an id occurs again.
    """
    if "item_id" not in items.columns:
        raise ValueError(f"the item table has no column item_id; found {', '.join(items.columns) or 'no columns'}")
    if items["item_id"].dtype.is_integer():
        items = items.with_columns(pl.col("item_id").cast(pl.Int64, strict=False))  # null past 2^63 - 1
    elif items["item_id"].dtype != pl.String:
        raise ValueError(f"item_id must be strings or integers, found {items['item_id'].dtype}; cast it first")
    odd = [name for name, dtype in items.schema.items() if dtype == pl.Object]
    if odd:
        raise ValueError(f"column {odd[0]} holds Python objects, which no file can keep; convert or drop it")
    ids = items["item_id"]
    if ids.null_count():
        raise ValueError(f"{ids.null_count()} items have no item_id that fits 64 bits; every row needs one")
    if schema is not None and items.schema != schema:
        raise ValueError(f"the items have the columns {_columns(items.schema)}, the store has {_columns(schema)}")
    again = pl.concat([ids.filter(ids.is_duplicated()), known.among(ids)])
    if len(again):
        raise ValueError(f"item_id must be unique in a store; {again[0]!r} and {len(again) - 1} more occur again")
    return items


def _columns(schema: pl.Schema) -> str:
    return ", ".join(f"{name} ({dtype})" for name, dtype in schema.items())


def finite_vectors(items: pl.DataFrame, vectors: np.ndarray, number: np.dtype) -> np.ndarray:
    """Vectors [n, d] as numbers of a type, contiguous.

    Raises:
        ValueError: If one holds NaN, infinity, or what the type cannot; the first such item is named, no vector is
            shown.
    """
    if vectors.dtype.kind not in "fiub":
        raise ValueError(f"vectors are {vectors.dtype}, expected real numbers; convert them to float32")
    with np.errstate(over="ignore"):  # what is too large for the type becomes infinite and is refused below
        kept = np.ascontiguousarray(vectors, dtype=number)
    flat = kept.reshape(-1)
    with np.errstate(over="ignore", invalid="ignore"):
        # One pass at memory speed; overflow only sends us to the exact check, as it does every float16.
        if number.itemsize > 2 and np.isfinite(np.dot(flat, flat)):
            return kept
    bad = np.flatnonzero(~np.isfinite(kept).all(axis=1))
    if len(bad):
        what = "NaN or infinity" if number.itemsize > 2 else f"NaN, infinity or more than {np.finfo(number).max:g}"
        raise ValueError(
            f"{len(bad)} of {len(kept)} vectors hold {what}, the first is item "
            f"{items['item_id'][int(bad[0])]!r}; leave them out"
        )
    lost = np.flatnonzero(~kept.any(axis=1) & vectors.any(axis=1)) if number.itemsize == 2 else bad
    if len(lost):
        raise ValueError(
            f"{len(lost)} of {len(kept)} vectors are too short for {number.name} and would become zeros, the first is "
            f"item {items['item_id'][int(lost[0])]!r}; scale them, or keep float32"
        )
    return kept


def listed_ids(item_ids: Iterable[str] | Iterable[int], dtype: pl.DataType) -> pl.Series:
    """Ids that somebody lists, each once, as a store keeps its own.

    Raises:
        ValueError: If they are of another type, or a single string.
    """
    kind = "integers" if dtype.is_integer() else "strings"
    if isinstance(item_ids, str):
        raise ValueError(f"item ids are a single string, expected a list of {kind}; put it into brackets")
    ids = list(item_ids)
    if any(isinstance(each, bool) or not isinstance(each, int if dtype.is_integer() else str) for each in ids):
        raise ValueError(f"the ids of this store are {kind}, and other values were listed; convert them")
    return pl.Series(ids, dtype=dtype, strict=False).drop_nulls().unique()
