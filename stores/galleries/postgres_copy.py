"""Rows of PostgreSQL's binary COPY as arrays and back, a block at a time and no row on its own.

A row is the number of its fields (int16) and, for each field, its length (int32, -1 for null) and its bytes; all
numbers are big-endian. A vector is its dimension (int16), an unused int16, and its numbers.

Source: PostgreSQL documentation, COPY, "Binary Format"; pgvector, `vector_send` and `halfvec_send`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import polars as pl

HEADER = b"PGCOPY\n\xff\r\n\0" + bytes(8)
TRAILER = b"\xff\xff"
_EPOCH_DAYS = 10_957  # from 1970 to 2000, where PostgreSQL begins to count
_EPOCH_MICROSECONDS = _EPOCH_DAYS * 86_400_000_000
_VECTOR_HEAD = 4
_FARTHEST_DAY = 2_932_896 - _EPOCH_DAYS  # 9999-12-31


@dataclass(frozen=True)
class Column:
    """A column of a table.

    Attributes:
        name: Its name.
        sent: The type PostgreSQL sends it in: `int8`, `text`, `vector`, ...
        dtype: What it is in an item table; for vectors float32 or float16.
    """

    name: str
    sent: str
    dtype: pl.DataType


FIXED: dict[str, np.dtype] = {
    "bool": np.dtype("u1"),
    "int2": np.dtype(">i2"),
    "int4": np.dtype(">i4"),
    "int8": np.dtype(">i8"),
    "float4": np.dtype(">f4"),
    "float8": np.dtype(">f8"),
    "date": np.dtype(">i4"),
    "timestamp": np.dtype(">i8"),
    "timestamptz": np.dtype(">i8"),
}
"""How types of one length are sent."""

VECTORS: dict[str, np.dtype] = {"vector": np.dtype(">f4"), "halfvec": np.dtype(">f2")}
"""How the numbers of a vector are sent."""


class MalformedRows(ValueError):
    """What the server sent is not what was asked for."""


def encode(columns: list[Column], items: pl.DataFrame, vectors: np.ndarray, vector: Column) -> np.ndarray:
    """Rows as COPY takes them, uint8, without header and trailer: the item columns, then the vector.

    Args:
        columns: Those of the items, in order.
        items: The item table [n].
        vectors: Floats [n, d].
        vector: The column of the vectors.
    """
    rows = len(items)
    fields = [_field(column, items[column.name]) for column in columns]
    numbers = VECTORS[vector.sent]
    body = np.empty((rows, _VECTOR_HEAD + numbers.itemsize * vectors.shape[1]), np.uint8)
    body[:, :_VECTOR_HEAD] = np.frombuffer(vectors.shape[1].to_bytes(2, "big") + b"\0\0", np.uint8)
    body[:, _VECTOR_HEAD:] = vectors.astype(numbers).view(np.uint8).reshape(rows, -1)
    fields.append(_Fixed(body, None))
    starts = np.zeros(rows + 1, np.int64)
    np.cumsum(2 + sum(4 + field.sizes for field in fields), out=starts[1:])
    out = np.empty(int(starts[-1]), np.uint8)
    place = starts[:-1]
    _put(out, place, np.full((rows, 1), len(fields), ">i2").view(np.uint8))
    place = place + 2
    for field in fields:
        _put(out, place, field.lengths[:, None].astype(">i4").view(np.uint8))
        place = place + 4
        field.put(out, place)
        place = place + field.sizes
    return out


class _Fixed:
    """A field whose values are all of one length, uint8 [n, w], some of them perhaps null."""

    def __init__(self, values: np.ndarray, nulls: np.ndarray | None) -> None:
        self._values = values
        self._kept = None if nulls is None or not nulls.any() else ~nulls
        self.lengths = np.full(len(values), values.shape[1], np.int32)
        if self._kept is not None:
            self.lengths[~self._kept] = -1
        self.sizes = np.maximum(self.lengths, 0)

    def put(self, out: np.ndarray, places: np.ndarray) -> None:
        if self._kept is None:
            _put(out, places, self._values)
        else:
            _put(out, places[self._kept], self._values[self._kept])


class _Varying:
    """A field of strings or bytes, some of them perhaps null."""

    def __init__(self, values: pl.Series) -> None:
        import pyarrow as pa

        array: Any = values.to_arrow(compat_level=pl.CompatLevel.oldest())
        if isinstance(array, pa.ChunkedArray):
            array = array.combine_chunks()
        _, offsets, content = array.buffers()
        self._offsets = np.frombuffer(offsets, np.int64)[array.offset : array.offset + len(array) + 1]
        self._content = np.frombuffer(content, np.uint8) if content else np.empty(0, np.uint8)
        self.sizes = np.diff(self._offsets)
        nulls = values.is_null().to_numpy()
        self.sizes[nulls] = 0
        self.lengths = np.where(nulls, -1, self.sizes)

    def put(self, out: np.ndarray, places: np.ndarray) -> None:
        ends = np.cumsum(self.sizes)
        within = np.arange(int(ends[-1]) if len(ends) else 0) - np.repeat(ends - self.sizes, self.sizes)
        out[np.repeat(places, self.sizes) + within] = self._content[np.repeat(self._offsets[:-1], self.sizes) + within]


def _field(column: Column, values: pl.Series) -> _Fixed | _Varying:
    if column.sent in ("text", "bytea"):
        return _Varying(values.cast(pl.Binary))
    nulls = values.is_null().to_numpy() if values.null_count() else None
    if column.sent == "date":
        numbers = values.to_physical().cast(pl.Int64) - _EPOCH_DAYS
    elif column.sent in ("timestamp", "timestamptz"):
        numbers = values.dt.cast_time_unit("us").to_physical() - _EPOCH_MICROSECONDS
    else:
        numbers = values
    if nulls is not None:
        numbers = numbers.fill_null(False if column.sent == "bool" else 0)
    array = np.ascontiguousarray(numbers.to_numpy().astype(FIXED[column.sent]))
    return _Fixed(array.view(np.uint8).reshape(len(array), -1), nulls)


def decode(
    content: bytes, starts: np.ndarray, columns: list[Column], vector: Column, dim: int
) -> tuple[pl.DataFrame, np.ndarray]:
    """The item table [n] and the vectors, float32 [n, dim], of rows of item columns and a vector.

    Args:
        content: The rows, as the server sent them.
        starts: Where in it each begins, int64 [n].
        columns: Those of the items, in the order they were asked for.
        vector: The column of the vectors, which comes last.
        dim: Their dimension.

    Raises:
        MalformedRows: If a row has no vector, one of another dimension, or a date that no calendar has.
    """
    place = starts + 2
    series = []
    for column in columns:
        lengths = _numbers(content, place, np.dtype(">i4"))
        place = place + 4
        series.append(_series(column, content, place, lengths))
        place = place + np.maximum(lengths, 0)
    numbers = VECTORS[vector.sent]
    width = numbers.itemsize * dim
    lengths = _numbers(content, place, np.dtype(">i4"))
    odd = lengths != _VECTOR_HEAD + width
    if odd.any():
        first = int(odd.argmax())
        raise MalformedRows(f"item {series[0][first]!r} has no vector of {dim} numbers; fill it in, or leave it out")
    raw = _window(content, width)[place + 4 + _VECTOR_HEAD]
    floats = raw.view(numbers).reshape(len(starts), dim).astype(np.float32)
    return pl.DataFrame(series), floats


def _series(column: Column, content: bytes, places: np.ndarray, lengths: np.ndarray) -> pl.Series:
    nulls = lengths < 0
    any_null = bool(nulls.any())
    if column.sent in ("text", "bytea"):
        return _strings(column, content, places, np.maximum(lengths, 0), nulls if any_null else None)
    kind = FIXED[column.sent]
    if any_null:  # whatever stands there is within the content, and is masked
        places = np.where(nulls, 0, places)
    native = _numbers(content, places, kind)
    if column.sent in ("date", "timestamp", "timestamptz"):
        day = native if column.sent == "date" else native // 86_400_000_000
        if ((np.abs(day.astype(np.int64)) > _FARTHEST_DAY) & ~nulls).any():
            raise MalformedRows(f"column {column.name!r} holds a time before or past every calendar; leave it out")
        native = native + (_EPOCH_DAYS if column.sent == "date" else _EPOCH_MICROSECONDS)
    if column.sent == "bool":
        native = native.astype(bool)
    series = pl.Series(column.name, native).cast(column.dtype)
    return series.set(pl.Series(nulls), None) if any_null else series


def _strings(
    column: Column, content: bytes, places: np.ndarray, sizes: np.ndarray, nulls: np.ndarray | None
) -> pl.Series:
    import pyarrow as pa

    ends = np.cumsum(sizes, dtype=np.int64)
    within = np.arange(int(ends[-1]) if len(ends) else 0) - np.repeat(ends - sizes, sizes)
    joined = np.frombuffer(content, np.uint8)[np.repeat(places, sizes) + within]
    offsets = np.concatenate([np.zeros(1, np.int64), ends])
    mask = None if nulls is None else pa.array(~nulls).buffers()[1]
    kind = pa.large_string() if column.sent == "text" else pa.large_binary()
    array = pa.Array.from_buffers(kind, len(sizes), [mask, pa.py_buffer(offsets), pa.py_buffer(joined)])
    found: Any = pl.from_arrow(array)
    return found.alias(column.name)


def _window(content: Any, width: int) -> np.ndarray:
    """Every stretch of `width` bytes, so that taking some copies each as one piece; void [len(content) - width + 1]."""
    return np.ndarray((len(content) - width + 1,), np.dtype((np.void, width)), content, strides=(1,))


def _numbers(content: bytes, places: np.ndarray, kind: np.dtype) -> np.ndarray:
    if not len(places):
        return np.empty(0, kind.newbyteorder("="))
    return _window(content, kind.itemsize)[places].view(kind).astype(kind.newbyteorder("="))


def _put(out: np.ndarray, places: np.ndarray, values: np.ndarray) -> None:
    """Write values, uint8 [n, w], where they belong."""
    if len(places):
        width = values.shape[1]
        _window(out, width)[places] = np.ascontiguousarray(values).view(np.dtype((np.void, width))).reshape(-1)
