"""A gallery in a FAISS index file, with its item table in FILE.items.parquet and its card in FILE.json.

Written is an `IndexFlatIP`. Vectors of a space compared by cosine are scaled to unit length, so that inner product is
cosine similarity and queries can search it as they are; the item table's column `vector_norm` keeps the lengths, and
reading multiplies them back. Vectors of a space compared by inner product are written as they are.

The two kinds of file that are read, flat and id-mapped flat, are a fixed header before the bare vectors. Reading them
here, not by faiss, maps the file instead of loading it, needs no faiss, and cannot crash on a file from outside.
Layout: https://github.com/facebookresearch/faiss/blob/v1.10.0/faiss/impl/index_write.cpp
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import polars as pl

from stores.durable import write_atomically
from stores.galleries.card import items_path, read_items, verified_card, write_items
from stores.galleries.mapped import MappedSource
from stores.galleries.spooled import SpooledTarget
from stores.space import EmbeddingSpace
from stores.store import EmbeddingStore

NORM = "vector_norm"
_BLOCK_ROWS = 8192
_HEADER = struct.Struct("<4siqqq?i")  # kind, d, rows, two unused, is trained, metric
_COUNT = struct.Struct("<Q")
_METRIC_ARGUMENT = struct.Struct("<f")  # follows the header where the metric is neither inner product nor L2
_UNUSED = 1 << 20
_INNER_PRODUCT = 0
_FLAT = {b"IxFI": "IndexFlatIP", b"IxF2": "IndexFlatL2", b"IxFl": "IndexFlat"}
_ID_MAP = {b"IxMp": "IndexIDMap", b"IxM2": "IndexIDMap2"}
_REMEDY = "rebuild it flat (faiss.IndexFlatIP) from the vectors"


class FlatIndex(NamedTuple):
    """A flat index file: float32 [n, d] mapped into memory, and the int64 [n] ids of an id map, if there is one."""

    vectors: np.ndarray
    ids: np.ndarray | None


def read_flat_index(path: Path) -> FlatIndex:
    """Map a flat or id-mapped flat index file into memory.

    Raises:
        ValueError: If it is an index of another kind, cut short, or no index.
    """
    # numpy will not map an empty file
    content = np.memmap(path, dtype=np.uint8, mode="r") if path.stat().st_size else np.empty(0, np.uint8)
    outer = _read_header(path, content, 0)
    inner = _read_header(path, content, outer.end) if outer.kind in _ID_MAP else outer
    if inner.kind not in _FLAT:
        raise ValueError(f"{path} is an id map over an index of kind {inner.kind!r}, expected a flat one; {_REMEDY}")
    floats, start = _read_count(path, content, inner.end)
    ids_start = start + 4 * floats
    ids, end = _read_count(path, content, ids_start) if inner is not outer else (0, ids_start)
    expected = end + 8 * ids
    if inner.dim < 1 or floats != inner.rows * inner.dim or (inner is not outer and ids != inner.rows):
        raise ValueError(
            f"{path} is damaged: its header promises {inner.rows} x {inner.dim} floats, it holds {floats} floats and "
            f"{ids} ids; restore it from a copy"
        )
    if expected != content.size:
        raise ValueError(f"{path} has {content.size} bytes, expected {expected}: it was cut short; restore it")
    vectors = np.asarray(content[start:ids_start]).view("<f4").reshape(inner.rows, inner.dim)
    return FlatIndex(vectors, np.array(content[end:]).view("<i8") if inner is not outer else None)


class _Header(NamedTuple):
    kind: bytes
    dim: int
    rows: int
    end: int  # where the next part of the file begins


def _read_header(path: Path, content: np.ndarray, start: int) -> _Header:
    raw = content[start : start + _HEADER.size].tobytes()
    if raw[:4] not in _FLAT and raw[:4] not in _ID_MAP:
        supported = ", ".join([*_FLAT.values(), *_ID_MAP.values()])
        raise ValueError(f"{path} holds an index of kind {raw[:4]!r}, supported are {supported}; {_REMEDY}")
    if len(raw) < _HEADER.size:
        raise ValueError(f"{path} is damaged: it ends within its header; restore it from a copy")
    kind, dim, rows, _, _, _, metric = _HEADER.unpack(raw)
    return _Header(kind, dim, rows, start + _HEADER.size + (_METRIC_ARGUMENT.size if metric > 1 else 0))


def _read_count(path: Path, content: np.ndarray, start: int) -> tuple[int, int]:
    raw = content[start : start + _COUNT.size].tobytes()
    if len(raw) < _COUNT.size:
        raise ValueError(f"{path} is damaged: it was cut short at byte {content.size}; restore it from a copy")
    return _COUNT.unpack(raw)[0], start + _COUNT.size


def open_source(location: str) -> MappedSource:
    """Open an index file. The ids are those of its item table, else of its id map, else the row numbers.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If it is damaged or an index of another kind.
    """
    path = Path(location)
    card = verified_card(path)
    index = read_flat_index(path)
    if index.ids is not None and not items_path(path).is_file():
        return MappedSource(index.vectors, pl.DataFrame({"item_id": index.ids}), card)
    items = read_items(path, len(index.vectors))
    if NORM not in items.columns:
        return MappedSource(index.vectors, items, card)
    return MappedSource(index.vectors, items.drop(NORM), card, lengths=items[NORM].to_numpy())


def open_target(location: str, space: EmbeddingSpace, provenance: dict[str, Any]) -> SpooledTarget:
    """Begin or go on with an index file; see `SpooledTarget`."""
    return SpooledTarget(Path(location), space, provenance, _build, reserved=[NORM])


def _build(store: EmbeddingStore, path: Path) -> Sequence[Path]:
    if store.space.similarity == "inner_product":
        write_atomically(path, _parts(store, lambda vectors: vectors))
        return path, write_items(store.items, path)
    norms: list[np.ndarray] = []

    def directions(vectors: np.ndarray) -> np.ndarray:
        lengths = np.linalg.norm(vectors.astype(np.float64), axis=1)
        norms.append(lengths)
        # A vector of zeros has no direction and stays as it is.
        return vectors / np.where(lengths > 0, lengths, 1.0)[:, None]

    write_atomically(path, _parts(store, directions))
    lengths = np.concatenate(norms) if norms else np.empty(0)
    return path, write_items(store.items.with_columns(pl.Series(NORM, lengths)), path)


def _parts(store: EmbeddingStore, written: Callable[[np.ndarray], np.ndarray]) -> Iterator[bytes | np.ndarray]:
    rows, dim = len(store), store.space.dim
    yield _HEADER.pack(b"IxFI", dim, rows, _UNUSED, _UNUSED, True, _INNER_PRODUCT) + _COUNT.pack(rows * dim)
    for batch in store.batches(_BLOCK_ROWS):
        yield written(batch.vectors).astype("<f4")
