"""A gallery in a .npz archive: `vectors`, float32 [n, d], and an array [n] for every item column that fits one.

The whole item table is in FILE.items.parquet, the card in FILE.json. An archive is read member by member as a stream:
nothing is unpacked to disk, and only the arrays of the items are held in memory.
"""

from __future__ import annotations

import io
import lzma
import math
import os
import re
import tokenize
import zipfile
import zlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any, NamedTuple

import numpy as np
import polars as pl

from stores.chunks import DamagedStore
from stores.galleries.card import GalleryCard, digest_of_file, items_path, read_items, verified_card, write_items
from stores.galleries.gallery import row_ranges
from stores.galleries.item_arrays import VECTORS, name_of_vectors, plain_columns, table_of
from stores.galleries.spooled import SpooledTarget
from stores.space import EmbeddingSpace
from stores.store import Batch, EmbeddingStore

_BLOCK_ROWS = 8192
_EPOCH = (1980, 1, 1, 0, 0, 0)  # the same rows give the same bytes
_EXPANSION = 100  # embeddings barely compress
_ALWAYS_ALLOWED = 64 * 2**20  # bytes, for small archives of equal values


class _Member(NamedTuple):
    shape: tuple[int, ...]
    dtype: np.dtype
    header: int  # bytes before the values
    by_columns: bool


class NpzSource:
    """Rows of an archive's array of vectors, read as a stream.

    Args:
        path: The archive.
        card: What the toolkit recorded when it wrote the file, if it did.

    Raises:
        ValueError: If it is damaged, holds anything but plain arrays, expands beyond measure, or no array or several
            could be the vectors.
    """

    def __init__(self, path: Path, card: GalleryCard | None) -> None:
        self._path = path
        with _legible(path), zipfile.ZipFile(path) as archive:
            members = _members(path, archive)
            matrices = [name for name, member in members.items() if _is_matrix(member)]
            self._name = name_of_vectors(path, matrices, members)
            self._vectors = members[self._name]
            rows, self.dim = self._vectors.shape
            if self._vectors.by_columns and rows > 1 and self.dim > 1:
                raise ValueError(
                    f"{path} holds its vectors column by column, so that no row can be read alone; save "
                    "numpy.ascontiguousarray of them"
                )
            if card is not None or items_path(path).is_file():
                self._items = read_items(path, rows)
            else:
                self._items = _read_columns(archive, members, rows)
        self.space = card.space if card else None
        self.provenance = card.provenance if card else {}

    def __len__(self) -> int:
        return self._vectors.shape[0]

    def scan(self, size: int, *, start: int = 0) -> Iterator[Batch]:
        """Rows start.. in row order; see `GallerySource`."""
        ranges = row_ranges(len(self), size, start)
        width = self.dim * self._vectors.dtype.itemsize
        with _legible(self._path), zipfile.ZipFile(self._path) as archive, archive.open(f"{self._name}.npy") as file:
            file.seek(self._vectors.header + start * width)
            for first, stop in ranges:
                values = np.frombuffer(_exactly(file, (stop - first) * width), self._vectors.dtype)
                with np.errstate(over="ignore"):  # too large for float32 becomes infinite, which every target refuses
                    vectors = values.reshape(-1, self.dim).astype(np.float32, copy=False)
                yield Batch(self._items[first:stop], vectors)
            file.read(1)  # at the end of a member its checksum is compared


def open_source(location: str) -> NpzSource:
    """Open an archive of arrays.

    The vectors are its array `vectors`, or else its only matrix of floats. The items are those of the table beside it,
    else its arrays of numbers or strings with a value for each vector; without `item_id` the ids are row numbers.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If it is damaged or not such an archive; see `NpzSource`.
    """
    path = Path(location)
    card = verified_card(path)
    return NpzSource(path, card)


def open_target(location: str, space: EmbeddingSpace, provenance: dict[str, Any]) -> SpooledTarget:
    """Begin or go on with an archive; see `SpooledTarget`."""
    return SpooledTarget(Path(location), space, provenance, _build, reserved=[VECTORS])


digest = digest_of_file


def _members(path: Path, archive: zipfile.ZipFile) -> dict[str, _Member]:
    entries = archive.infolist()
    names = [entry.filename for entry in entries]
    odd = [name for name in names if not re.fullmatch(r"[^/\\\0]+\.npy", name) or name.startswith("..")]
    if odd or len(set(names)) < len(names):
        found = f"a member {odd[0][:80]!r}" if odd else "two members of one name"
        raise ValueError(f"{path} has {found}, expected arrays called NAME.npy; save it by numpy.savez")
    size, claimed = path.stat().st_size, sum(entry.file_size for entry in entries)
    if claimed > _ALWAYS_ALLOWED + _EXPANSION * size:
        raise ValueError(
            f"{path} has {size} bytes and claims to hold {claimed}, more than embeddings compress; unpack it if you "
            "trust it, and convert the .npy files"
        )
    return {entry.filename.removesuffix(".npy"): _read_header(path, archive, entry) for entry in entries}


def _read_header(path: Path, archive: zipfile.ZipFile, entry: zipfile.ZipInfo) -> _Member:
    with archive.open(entry) as file:
        # Version 1 has headers of up to 64 KiB, plenty for a plain array; later ones allow them gigabytes.
        if np.lib.format.read_magic(file) != (1, 0):
            raise ValueError(f"member {entry.filename!r} has a header of another version")
        shape, by_columns, dtype = np.lib.format.read_array_header_1_0(file)
        header = file.tell()
    if dtype.hasobject:
        raise ValueError(f"{path}: member {entry.filename!r} holds pickled objects; save arrays of numbers or strings")
    if min(shape, default=0) < 0 or header + math.prod(shape) * dtype.itemsize != entry.file_size:
        raise ValueError(f"member {entry.filename!r} is not as long as its header says")
    return _Member(shape, dtype, header, by_columns)


def _is_matrix(member: _Member) -> bool:
    return len(member.shape) == 2 and member.shape[1] > 0 and member.dtype.kind == "f" and member.dtype.itemsize <= 8


def _read_columns(archive: zipfile.ZipFile, members: dict[str, _Member], rows: int) -> pl.DataFrame:
    columns: dict[str, np.ndarray | list[str]] = {}
    for name, member in members.items():
        wanted = member.dtype.kind in "biuU" or (member.dtype.kind == "f" and member.dtype.itemsize <= 8)
        if member.shape != (rows,) or not wanted:
            continue
        with archive.open(f"{name}.npy") as file:
            array = np.lib.format.read_array(file, allow_pickle=False)
        # As numpy writes them, numbers may be of either byte order.
        columns[name] = array.tolist() if array.dtype.kind == "U" else array.astype(array.dtype.newbyteorder("="))
    return table_of(columns, rows)


def _exactly(file: IO[bytes], count: int) -> bytes:
    content = file.read(count)
    if len(content) < count:
        raise EOFError("a member ends before its last row")
    return content


@contextmanager
def _legible(path: Path) -> Iterator[None]:
    # What zipfile, the decompressors and numpy say of a damaged or foreign file, in one line.
    try:
        yield
    except DamagedStore:
        raise
    except (zipfile.BadZipFile, zlib.error, lzma.LZMAError, EOFError) as error:
        raise DamagedStore(f"{path} cannot be read ({_first_line(error)}); restore it from a copy") from None
    except (ValueError, RuntimeError, OverflowError, SyntaxError, tokenize.TokenError, MemoryError) as error:
        reason = _first_line(error)
        if reason.startswith(str(path)):
            raise ValueError(reason) from None
        raise ValueError(f"{path} cannot be read ({reason}); save the arrays again by numpy.savez") from None
    except OSError as error:
        if error.filename is not None:
            raise
        raise DamagedStore(f"{path} cannot be read ({_first_line(error)}); restore it from a copy") from None


def _first_line(error: BaseException) -> str:
    return str(error).strip().split("\n")[0]


def _build(store: EmbeddingStore, path: Path) -> Sequence[Path]:
    rows, dim = len(store), store.space.dim
    with path.open("wb") as file:
        with zipfile.ZipFile(file, "w", zipfile.ZIP_STORED) as archive:
            vectors = (batch.vectors for batch in store.batches(_BLOCK_ROWS))
            _write_member(archive, VECTORS, np.dtype("<f4"), (rows, dim), vectors)
            for name in plain_columns(store.items):
                column = store.items[name]
                dtype = _dtype_of(column)
                parts = (
                    np.array(column[first:stop].to_list(), dtype) for first, stop in row_ranges(rows, _BLOCK_ROWS, 0)
                )
                _write_member(archive, name, dtype, (rows,), parts)
        file.flush()
        os.fsync(file.fileno())
    return path, write_items(store.items, path)


def _dtype_of(column: pl.Series) -> np.dtype:
    if column.dtype == pl.String:
        widest = column.str.len_chars().max() or 1
        return np.dtype(f"<U{widest}")
    return column.clear().to_numpy().dtype


def _write_member(
    archive: zipfile.ZipFile, name: str, dtype: np.dtype, shape: tuple[int, ...], parts: Iterator[np.ndarray]
) -> None:
    header = io.BytesIO()
    np.lib.format.write_array_header_1_0(
        header, {"descr": np.lib.format.dtype_to_descr(dtype), "fortran_order": False, "shape": shape}
    )
    with archive.open(zipfile.ZipInfo(f"{name}.npy", _EPOCH), "w", force_zip64=True) as file:
        file.write(header.getvalue())
        for part in parts:
            file.write(np.ascontiguousarray(part, dtype).tobytes())
