"""Item tables as arrays with names, for formats that keep one array per column beside the vectors.

Such arrays serve readers other than this toolkit: they cannot hold every type, so the toolkit's own item table lies
beside the file as well, and is the one it reads.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping
from pathlib import Path

import numpy as np
import polars as pl

from stores.galleries.card import row_numbers

VECTORS = "vectors"
"""The name of the array of vectors."""

_ALSO_VECTORS = "embeddings"

_WIDEST_TEXT = 256  # characters; NumPy gives every string the room of the longest


def plain_columns(items: pl.DataFrame) -> list[str]:
    """The columns of an item table that an array of numbers or of short strings can hold exactly."""
    return [name for name in items.columns if re.fullmatch(r"\w+", name) and _is_plain(items[name])]


def _is_plain(column: pl.Series) -> bool:
    if column.null_count():
        return False
    if column.dtype == pl.String:
        # Arrays of text end a string at its first NUL.
        widest = column.str.len_chars().max() or 0
        return isinstance(widest, int) and widest <= _WIDEST_TEXT and not column.str.contains("\0", literal=True).any()
    return column.dtype in (pl.Int8, pl.Int16, pl.Int32, pl.Int64, pl.Boolean, pl.Float32, pl.Float64) or (
        column.dtype in (pl.UInt8, pl.UInt16, pl.UInt32, pl.UInt64)
    )


def name_of_vectors(path: Path, matrices: Collection[str], names: Collection[str]) -> str:
    """Which array of a file holds the vectors: `vectors`, else `embeddings`, else the only matrix of floats there is.

    Args:
        path: The file, for the error.
        matrices: The names of its arrays of floats [n, d].
        names: The names of all its arrays.

    Raises:
        ValueError: If there is no matrix of floats, or several and none is called `vectors`.
    """
    if VECTORS in matrices:
        return VECTORS
    if VECTORS not in names:
        if _ALSO_VECTORS in matrices:
            return _ALSO_VECTORS
        if len(matrices) == 1:
            return next(iter(matrices))
    shown = ", ".join(sorted(names)[:8]) + (", ..." if len(names) > 8 else "")
    raise ValueError(
        f"{path} holds the arrays {shown or '(none)'}, {len(matrices)} of them floats [n, d]; expected one of these, "
        f"or one called {VECTORS}: save it again"
    )


def table_of(arrays: Mapping[str, np.ndarray | list[str]], rows: int) -> pl.DataFrame:
    """An item table made of arrays [rows], with row numbers as ids where no array is called `item_id`."""
    items = pl.DataFrame({name: pl.Series(name, array) for name, array in arrays.items()})
    return items if "item_id" in items.columns else row_numbers(0, rows).hstack(items)
