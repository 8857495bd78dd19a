"""A gallery in a FAISS index file, with its item table in FILE.items.parquet and its card in FILE.json.

Written is an `IndexFlatIP`. Vectors of a space compared by cosine are scaled to unit length, so that inner product is
cosine similarity and queries can search it as they are; the item table's column `vector_norm` keeps the lengths, and
reading multiplies them back. Vectors of a space compared by inner product are written as they are.

Flat and id-mapped flat indexes are a fixed header before the bare vectors. Reading them here, not by faiss, maps the
file instead of loading it, needs no faiss, and cannot crash on a file from outside. Indexes of the other usual kinds
(HNSW, NSG, IVF, scalar and product quantizer, what lies under a transform, and id maps over these) are decoded by faiss
in a process of its own, once, when the gallery is opened; see `faiss_codes`. What they keep as codes is read as the
approximations that these stand for, and the source's `provenance` and `notes` say so. Where an index of inner products
was given unit vectors, nothing in it tells: lengths that nobody kept are lost.
Layout: https://github.com/facebookresearch/faiss/blob/v1.10.0/faiss/impl/index_write.cpp
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Collection, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import polars as pl

from stores.chunks import DamagedStore
from stores.durable import write_atomically
from stores.galleries.card import GalleryCard, digest_of_file, items_path, read_items, verified_card, write_items
from stores.galleries.faiss_codes import DecodedIndex, decode
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
_FLAT = {b"IxFI", b"IxF2", b"IxFl"}
_ID_MAP = {b"IxMp", b"IxM2"}
_CODED = {*b"IHNf IHNs IHNp INSf INSs INSp IwFl IwSq IwPQ IxSQ IxPq IxPT IxRF".split()}  # faiss decodes these
_REFUSED = {
    b"IxMp": "IndexIDMap",
    b"IxM2": "IndexIDMap2",
    b"IHN2": "IndexHNSW2Level",
    b"IPfs": "IndexPQFastScan",
    b"IwPf": "IndexIVFPQFastScan",
    b"IwFd": "IndexIVFFlatDedup",
    b"IwQR": "IndexIVFPQR",
    b"IxHe": "IndexLSH",
    b"IxRq": "IndexResidualQuantizer",
    b"IxLS": "IndexLocalSearchQuantizer",
    b"Ixrq": "IndexRaBitQ",
    b"Iwrq": "IndexIVFRaBitQ",
    b"IBxF": "IndexBinaryFlat",
}
_SUPPORTED = "Flat, HNSW, NSG, IVF, SQ and PQ, transforms before and refinements of these, and one id map over them"
_REMEDY = "rebuild it flat (faiss.IndexFlatIP) from the vectors"


class FlatIndex(NamedTuple):
    """A flat index file: float32 [n, d] mapped into memory, and the int64 [n] ids of an id map, if there is one."""

    vectors: np.ndarray
    ids: np.ndarray | None


class DecodedSource(MappedSource):
    """Rows that were decoded from an index.

    Attributes:
        notes: Lines to tell whoever uses the vectors.
    """

    def __init__(
        self, index: DecodedIndex, items: pl.DataFrame, card: GalleryCard | None, lengths: np.ndarray | None = None
    ) -> None:
        super().__init__(index.vectors, items, card, lengths)
        self.provenance = {**self.provenance, **index.provenance}
        self.notes = index.notes


def read_index(path: Path) -> FlatIndex | DecodedIndex:
    """Map a flat or id-mapped flat index file into memory, or decode one of another kind.

    Raises:
        ValueError: If it is an index of a kind that is not read, cut short, or no index.
        ImportError: If it takes faiss to decode it, and that is missing.
    """
    # numpy will not map an empty file
    content = np.memmap(path, dtype=np.uint8, mode="r") if path.stat().st_size else np.empty(0, np.uint8)
    outer = _read_header(path, content, 0, _FLAT | _CODED | _ID_MAP)
    inner = outer
    if outer.kind in _ID_MAP:
        inner = _read_header(path, content, outer.end, _FLAT | _CODED)
        if (inner.rows, inner.dim) != (outer.rows, outer.dim):
            raise DamagedStore(
                f"{path} is damaged: it is an id map of {outer.rows} x {outer.dim} floats over an index of "
                f"{inner.rows} x {inner.dim}; restore it from a copy"
            )
    if inner.kind in _CODED:
        return decode(path, outer.rows, outer.dim)
    floats, start = _read_count(path, content, inner.end)
    ids_start = start + 4 * floats
    ids, end = _read_count(path, content, ids_start) if inner is not outer else (0, ids_start)
    expected = end + 8 * ids
    if inner.dim < 1 or floats != inner.rows * inner.dim or (inner is not outer and ids != inner.rows):
        raise DamagedStore(
            f"{path} is damaged: its header promises {inner.rows} x {inner.dim} floats, it holds {floats} floats and "
            f"{ids} ids; restore it from a copy"
        )
    if expected != content.size:
        raise DamagedStore(f"{path} has {content.size} bytes, expected {expected}: it was cut short; restore it")
    vectors = np.asarray(content[start:ids_start]).view("<f4").reshape(inner.rows, inner.dim)
    return FlatIndex(vectors, np.array(content[end:]).view("<i8") if inner is not outer else None)


class _Header(NamedTuple):
    kind: bytes
    dim: int
    rows: int
    end: int  # where the next part of the file begins


def _read_header(path: Path, content: np.ndarray, start: int, supported: Collection[bytes]) -> _Header:
    raw = content[start : start + _HEADER.size].tobytes()
    if not content.size:
        raise DamagedStore(f"{path} is empty; restore it from a copy")
    if raw[:4] not in supported:
        found = f"{raw[:4]!r}, {_REFUSED.get(raw[:4], 'unknown here')}"
        where = "an id map over an index" if start else "an index"
        raise ValueError(f"{path} holds {where} of kind {found}; supported are {_SUPPORTED}; {_REMEDY}")
    if len(raw) < _HEADER.size:
        raise DamagedStore(f"{path} is damaged: it ends within its header; restore it from a copy")
    kind, dim, rows, _, _, _, metric = _HEADER.unpack(raw)
    return _Header(kind, dim, rows, start + _HEADER.size + (_METRIC_ARGUMENT.size if metric > 1 else 0))


def _read_count(path: Path, content: np.ndarray, start: int) -> tuple[int, int]:
    raw = content[start : start + _COUNT.size].tobytes()
    if len(raw) < _COUNT.size:
        raise DamagedStore(f"{path} is damaged: it was cut short at byte {content.size}; restore it from a copy")
    return _COUNT.unpack(raw)[0], start + _COUNT.size


def open_source(location: str) -> MappedSource:
    """Open an index file. The ids are those of its item table, else of the index, else the row numbers.

    Rows are in the index's own order, those of inverted lists in the order of their ids; row i of the item table is for
    row i of these. A source that was decoded has `notes`.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If it is damaged or an index of a kind that is not read.
        ImportError: If it takes faiss to decode it, and that is missing.
    """
    path = Path(location)
    card = verified_card(path)
    index = read_index(path)
    lengths = None
    if index.ids is not None and not items_path(path).is_file():
        items = pl.DataFrame({"item_id": index.ids})
    else:
        items = read_items(path, len(index.vectors))
    if NORM in items.columns:
        items, lengths = items.drop(NORM), items[NORM].to_numpy()
    if isinstance(index, DecodedIndex):
        return DecodedSource(index, items, card, lengths)
    return MappedSource(index.vectors, items, card, lengths)


def open_target(location: str, space: EmbeddingSpace, provenance: dict[str, Any]) -> SpooledTarget:
    """Begin or go on with an index file; see `SpooledTarget`."""
    return SpooledTarget(Path(location), space, provenance, _build, reserved=[NORM])


digest = digest_of_file


def write_some(path: Path, keep: np.ndarray, target: Path) -> Sequence[Path]:
    """Write the rows of an index of the toolkit's that `keep`, bool [n], marks, byte for byte, and their item table.

    Raises:
        ValueError: If it is no flat index.
    """
    index = read_index(path)
    if not isinstance(index, FlatIndex):
        raise ValueError(f"{path} is no flat index, whose rows can be kept as they are; {_REMEDY}")
    rows = np.flatnonzero(keep)
    dim = index.vectors.shape[1]

    def parts() -> Iterator[bytes | np.ndarray]:
        yield _HEADER.pack(b"IxFI", dim, len(rows), _UNUSED, _UNUSED, True, _INNER_PRODUCT)
        yield _COUNT.pack(len(rows) * dim)
        for first in range(0, len(rows), _BLOCK_ROWS):
            yield np.ascontiguousarray(index.vectors[rows[first : first + _BLOCK_ROWS]])

    write_atomically(target, parts())
    return target, write_items(read_items(path, len(keep)).filter(pl.Series(keep)), target)


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
