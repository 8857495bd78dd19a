"""A gallery in a CSV file whose column `vector` holds JSON lists, such as [0.5, -1.25]; otherwise as in `csv_table`."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl

from stores.galleries.card import digest_of_file
from stores.galleries.csv_table import JSON_COLUMN, open_source, write_csv
from stores.galleries.spooled import SpooledTarget
from stores.space import EmbeddingSpace
from stores.store import EmbeddingStore

__all__ = ["open_source", "open_target"]


def open_target(location: str, space: EmbeddingSpace, provenance: dict[str, Any]) -> SpooledTarget:
    """Begin or go on with a CSV file with all numbers in one column; see `SpooledTarget`."""
    return SpooledTarget(Path(location), space, provenance, _build, reserved=[JSON_COLUMN])


digest = digest_of_file


def _build(store: EmbeddingStore, path: Path) -> Sequence[Path]:
    return write_csv(store, path, _lists)


def _lists(vectors: np.ndarray) -> pl.DataFrame:
    kind = pl.Array(pl.Float32, vectors.shape[1])
    numbers = pl.col(JSON_COLUMN).cast(pl.Array(pl.String, vectors.shape[1])).arr.join(",")
    return pl.DataFrame({JSON_COLUMN: pl.Series(vectors, dtype=kind)}).select(
        pl.format("[{}]", numbers).alias(JSON_COLUMN)
    )
