"""A gallery in a plain Zarr array of vectors, or in a group of it and arrays of the item columns, as others keep them.

Zarr versions 2 and 3 are read, from folders and .zip archives. A gallery is written as a version 3 group: `vectors`,
float32 [n, d], and an array [n] for every item column that fits one, all with CRC-32C checksums. The whole item table
is in GROUP.items.parquet, the card in GROUP.json.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
from crc32c import crc32c

from stores.durable import sha256_of, sync_folder, write_atomically
from stores.galleries.batching import of_size
from stores.galleries.card import GalleryCard, items_path, partial_path, read_items, write_items
from stores.galleries.gallery import row_ranges
from stores.galleries.item_arrays import VECTORS, name_of_vectors, plain_columns, table_of
from stores.galleries.spooled import SpooledTarget
from stores.galleries.zarr_chunks import ZarrChunks
from stores.galleries.zarr_codecs import encode_texts
from stores.galleries.zarr_files import METADATA, ArchiveFiles, FolderFiles, ZarrFiles
from stores.galleries.zarr_metadata import ZarrNode, read_nodes
from stores.space import EmbeddingSpace
from stores.store import Batch, EmbeddingStore

_BLOCK_BYTES = 4 * 2**20  # of chunks of few rows that are read together
_MOST_BLOCK_BYTES = 256 * 2**20  # in memory; a larger block is put together in a file
_VECTOR_CHUNK_ROWS = 4096
_COLUMN_CHUNK_ROWS = 65_536


class ZarrArraySource:
    """Rows of a Zarr array, whole chunks read once and in order.

    Where chunks hold parts of many rows, these rows are put together in a temporary file.

    Args:
        path: A folder or a .zip archive.
        card: What the toolkit recorded when it wrote the group, if it did.

    Raises:
        ValueError: If no array or several could be the vectors, or one is kept in a way not known here.
        DamagedStore: If a chunk is missing or the metadata damaged.
    """

    def __init__(self, path: Path, card: GalleryCard | None) -> None:
        self._path = path
        files = FolderFiles(path) if path.is_dir() else ArchiveFiles(path)
        nodes = {node.name or VECTORS: node for node in _nodes(path, files)}
        matrices = [name for name, node in nodes.items() if _is_matrix(node)]
        vectors = nodes.pop(name_of_vectors(path, matrices, nodes))
        self._chunks = _chunks(path, files, vectors)
        self._rows, self.dim = vectors.shape
        if card is not None or items_path(path).is_file():
            self._items = read_items(path, self._rows)
        else:
            columns = {name: node for name, node in nodes.items() if node.shape == (self._rows,) and _is_plain(node)}
            self._items = table_of(
                {
                    name: _read_column(name, _chunks(path, files, columns[name]))
                    for name in sorted(columns, key=_usual_order)
                },
                self._rows,
            )
        self.space = card.space if card else None
        self.provenance = card.provenance if card else {}

    def __len__(self) -> int:
        return self._rows

    def scan(self, size: int, *, start: int = 0) -> Iterator[Batch]:
        """Rows start.. in row order; see `GallerySource`."""
        row_ranges(len(self), size, start)
        yield from of_size(self._blocks(start), size)

    def _blocks(self, start: int) -> Iterator[Batch]:
        height = self._chunks.chunk[0]
        height *= max(1, _BLOCK_BYTES // (height * self.dim * 4))  # a few rows of chunks, where these are small
        for first in range(start // height * height, self._rows, height):
            stop = min(first + height, self._rows)
            vectors = self._block(first, stop)
            skipped = max(0, start - first)
            yield Batch(self._items[first + skipped : stop], vectors[skipped:])

    def _block(self, first: int, stop: int) -> np.ndarray:
        rows, columns = self._chunks.chunk
        block: np.ndarray | None = None
        for row in range(first // rows, -(-stop // rows)):
            for column in range(-(-self.dim // columns)):
                chunk = self._chunks.read((row, column))
                assert isinstance(chunk, np.ndarray)
                low, left = row * rows, column * columns
                part = chunk[: stop - low, : self.dim - left]
                if part.shape == (stop - first, self.dim) and part.dtype == np.float32 and part.flags.c_contiguous:
                    return part  # the whole block, as it is kept
                if block is None:
                    block = _room(stop - first, self.dim)
                with np.errstate(over="ignore"):  # too large for float32 becomes infinite, which every target refuses
                    block[low - first : low - first + len(part), left : left + part.shape[1]] = part
        assert block is not None
        return block


class ZarrArrayTarget(SpooledTarget):
    """A Zarr group that is absent until `finish`; otherwise as `SpooledTarget`."""

    def __init__(self, path: Path, space: EmbeddingSpace, provenance: dict[str, Any]) -> None:
        super().__init__(path, space, provenance, lambda *_: (), reserved=[VECTORS])

    def finish(self) -> None:
        """Write the group from the rows, put it in place, and remove the hidden store."""
        if self.finished:
            return
        spool = self._begun()
        spool.commit()
        store, built = spool.store, self._partial / self._path.name
        if built.exists():  # of a run that died
            shutil.rmtree(built)
        _write_group(store, built)
        items = write_items(store.items, built)
        files = [*sorted(path for path in built.rglob("*") if path.is_file()), items]
        card = GalleryCard(
            space=store.space,
            rows=len(store),
            provenance=spool.provenance,
            files={str(path.relative_to(self._partial)): sha256_of(path) for path in files},
        )
        if self._path.is_dir():  # of a run that died before it wrote its card
            shutil.rmtree(self._path)
        for path in (built, items):
            path.replace(self._path.parent / path.name)
        sync_folder(self._path.parent)
        card.write(self._path)
        sync_folder(self._path.parent)
        self._card = card
        self.close()
        shutil.rmtree(self._partial)


def is_zarr_array(path: Path) -> bool:
    """Whether a folder is a Zarr array or group, and no `EmbeddingStore`."""
    return path.is_dir() and not (path / "store.json").exists() and any((path / name).is_file() for name in METADATA)


def open_source(location: str) -> ZarrArraySource:
    """Open a Zarr array [n, d] of floats, or a group with such an array.

    Of a group the vectors are the array `vectors`, else `embeddings`, else its only matrix of floats. The items are
    those of the table beside it, else its arrays of numbers or strings with a value for each vector; without `item_id`
    the ids are row numbers.

    Raises:
        FileNotFoundError: If there is neither a folder nor an archive.
        ValueError: If it is damaged or no such array; see `ZarrArraySource`.
    """
    path = Path(location)
    card = GalleryCard.beside(path)
    if card is not None:
        card.verify(path.parent)
    elif partial_path(path).is_dir():
        raise ValueError(f"{path} is unfinished; run the command that writes it again")
    elif not path.exists():
        raise FileNotFoundError(f"no gallery at {path}: there is no such folder or archive; correct the path")
    return ZarrArraySource(path, card)


def open_target(location: str, space: EmbeddingSpace, provenance: dict[str, Any]) -> ZarrArrayTarget:
    """Begin or go on with a group; see `ZarrArrayTarget`.

    Raises:
        ValueError: If the location names an archive.
    """
    if Path(location).suffix.lower() == ".zip":
        raise ValueError(f"{location} would be an archive, which is only read; name a folder, and zip it afterwards")
    return ZarrArrayTarget(Path(location), space, provenance)


def digest(location: str) -> str:
    """Digest over every file of a group or array in a folder, or over the archive that holds it, hexadecimal."""
    path = Path(location)
    if not path.is_dir():
        return sha256_of(path)
    found = hashlib.sha256()
    for file in sorted(path.rglob("*")):
        if file.is_file():
            found.update(f"{file.relative_to(path)}\0{sha256_of(file)}\n".encode())
    return found.hexdigest()


def _nodes(path: Path, files: ZarrFiles) -> list[ZarrNode]:
    try:
        return read_nodes(files)
    except ValueError as error:
        raise _about(path, error) from None


def _chunks(path: Path, files: ZarrFiles, node: ZarrNode) -> ZarrChunks:
    try:
        return ZarrChunks(str(path), files, node)
    except ValueError as error:
        raise _about(path, error) from None


def _about(path: Path, error: ValueError) -> ValueError:
    return error if str(path) in str(error) else type(error)(f"{path}: {error}")


def _is_matrix(node: ZarrNode) -> bool:
    dtype = node.dtype
    return (
        len(node.shape) == 2 and node.shape[1] > 0 and dtype is not None and dtype.kind == "f" and dtype.itemsize <= 8
    )


def _is_plain(node: ZarrNode) -> bool:
    dtype = node.dtype
    return dtype is not None and (node.text or dtype.kind in "biuUS" or (dtype.kind == "f" and dtype.itemsize <= 8))


def _usual_order(name: str) -> tuple[int, str]:
    # The arrays of a group have no order of their own.
    first = ("item_id", "label")
    return (first.index(name) if name in first else len(first), name)


def _read_column(name: str, chunks: ZarrChunks) -> np.ndarray | list[str]:
    (rows,), (height,) = chunks.shape, chunks.chunk
    parts = [chunks.read((number,)) for number in range(-(-rows // height))]
    texts: list[str] = []
    numbers: list[np.ndarray] = []
    for part in parts:
        if isinstance(part, list):
            texts += part
        elif part.dtype.kind in "US":
            texts += _decoded(name, part)
        else:
            numbers.append(part.astype(part.dtype.newbyteorder("=")))
    return np.concatenate(numbers)[:rows] if numbers else texts[:rows]


def _decoded(name: str, part: np.ndarray) -> list[str]:
    try:
        return [text.decode() if isinstance(text, bytes) else text for text in part.tolist()]
    except UnicodeDecodeError:
        raise ValueError(f"array {name!r} holds text that is not UTF-8; write it again") from None


def _room(rows: int, dim: int) -> np.ndarray:
    """Room for float32 [rows, dim], in a nameless file where it is more than should be in memory."""
    size = 4 * rows * dim
    if size <= _MOST_BLOCK_BYTES:
        return np.empty((rows, dim), np.float32)
    with tempfile.TemporaryFile() as file:
        os.posix_fallocate(file.fileno(), 0, size)  # a full disk is told now, not by a signal
        return np.memmap(file, np.float32, "r+", shape=(rows, dim))


def _write_group(store: EmbeddingStore, folder: Path) -> None:
    folder.mkdir()
    _write_json(folder, {"zarr_format": 3, "node_type": "group", "attributes": {}})
    rows, dim = len(store), store.space.dim
    height = max(1, min(rows, _VECTOR_CHUNK_ROWS))
    _write_metadata(folder / VECTORS, (rows, dim), (height, dim), "float32", 0.0)
    _write_chunks(folder / VECTORS, ".0", (_padded(batch.vectors, height) for batch in store.batches(height)))
    height = max(1, min(rows, _COLUMN_CHUNK_ROWS))
    for name in plain_columns(store.items):
        if name.startswith("__"):  # such names Zarr keeps for itself
            continue
        column = store.items[name]
        parts = (column[first:stop] for first, stop in row_ranges(rows, height, 0))
        if column.dtype == pl.String:
            _write_metadata(folder / name, (rows,), (height,), "string", "")
            _write_chunks(folder / name, "", (encode_texts(p.to_list() + [""] * (height - len(p))) for p in parts))
        else:
            dtype = column.clear().to_numpy().dtype
            _write_metadata(folder / name, (rows,), (height,), dtype.name, False if dtype.kind == "b" else 0)
            _write_chunks(folder / name, "", (_padded(part.to_numpy(), height) for part in parts))


def _padded(values: np.ndarray, rows: int) -> bytes:
    little = np.ascontiguousarray(values, values.dtype.newbyteorder("<"))
    return little.tobytes() + bytes((rows - len(little)) * little[:1].nbytes)


def _write_chunks(folder: Path, suffix: str, chunks: Iterable[bytes]) -> None:
    for number, chunk in enumerate(chunks):
        path = folder / "c" / f"{number}{suffix}".replace(".", "/")
        path.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(path, [chunk, crc32c(chunk).to_bytes(4, "little")])


def _write_metadata(
    folder: Path, shape: tuple[int, ...], chunk: tuple[int, ...], data_type: str, fill: float | str
) -> None:
    folder.mkdir()
    encoding = (
        {"name": "vlen-utf8"} if data_type == "string" else {"name": "bytes", "configuration": {"endian": "little"}}
    )
    body = {
        "zarr_format": 3,
        "node_type": "array",
        "shape": shape,
        "data_type": data_type,
        "chunk_grid": {"name": "regular", "configuration": {"chunk_shape": chunk}},
        "chunk_key_encoding": {"name": "default", "configuration": {"separator": "/"}},
        "fill_value": fill,
        "codecs": [encoding, {"name": "crc32c"}],
        "attributes": {},
    }
    _write_json(folder, body)


def _write_json(folder: Path, body: dict[str, Any]) -> None:
    write_atomically(folder / "zarr.json", [json.dumps(body, indent=2).encode()])
