"""Item tables in the formats people keep them in."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import polars as pl


def _read_csv(path: Path, separator: str = ",") -> pl.DataFrame:
    # Every row decides a column's type, and what names something is text at first: "007" is not 7.
    ids: dict[str, Any] = dict.fromkeys(("item_id", "item_id_a", "item_id_b", "query_id", "label"), pl.String)
    table = pl.read_csv(path, separator=separator, schema_overrides=ids, infer_schema_length=None)
    for name in ids.keys() & set(table.columns):
        numbers = table[name].cast(pl.Int64, strict=False)
        if numbers.cast(pl.String).equals(table[name]):
            table = table.with_columns(numbers)
    return table


READERS: dict[str, Callable[[Path], pl.DataFrame]] = {
    ".csv": _read_csv,
    ".tsv": lambda path: _read_csv(path, "\t"),
    ".parquet": pl.read_parquet,
    ".json": pl.read_json,
    ".ndjson": pl.read_ndjson,
    ".jsonl": pl.read_ndjson,
    ".arrow": pl.read_ipc,
    ".feather": pl.read_ipc,
}
"""How to read a table, by the ending of its file."""


def read_item_table(path: str | Path, column: str) -> pl.DataFrame:
    """Read a table that must have a given column; row i of it belongs to vector i.

    Args:
        path: A CSV, TSV, Parquet, JSON, NDJSON or Arrow file. Integer ids of a CSV stay text unless each is written as
            the integer itself is (`7`, not `007`).
        column: `item_id`, whose values must be unique strings or integers, or any other, such as `label`.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If it cannot be read, has no such column, or ids are absent or occur twice.
    """
    path = Path(path)
    if path.suffix.lower() not in READERS:
        raise ValueError(f"cannot tell the format of {path}, expected a file ending in {', '.join(READERS)}; rename it")
    if not path.is_file():
        raise FileNotFoundError(f"no table at {path}: there is no such file")
    try:
        table = READERS[path.suffix.lower()](path)
    except (pl.exceptions.PolarsError, pl.exceptions.PanicException) as error:
        reason = str(error).strip().split("\n")[0]
        raise ValueError(f"table {path} cannot be read ({reason}); save it again") from None
    if column not in table.columns:
        found = ", ".join(table.columns) or "none"
        raise ValueError(f"table {path} has no column {column}; found {found}: rename the one that is meant")
    if column == "item_id":
        _require_unique(path, table[column])
    return table


def _require_unique(path: Path, ids: pl.Series) -> None:
    if not (ids.dtype == pl.String or ids.dtype.is_integer()) or ids.null_count():
        raise ValueError(
            f"item_id in table {path} must be strings or integers without gaps, found {ids.dtype} with "
            f"{ids.null_count()} absent; fill them in"
        )
    again = ids.filter(ids.is_duplicated())
    if len(again):
        raise ValueError(
            f"item_id must be unique, but in table {path} {again[0]!r} and {len(again) - 1} more occur again; "
            "remove or rename them"
        )
