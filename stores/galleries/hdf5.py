"""A gallery in an HDF5 file: dataset `vectors`, float32 [n, d], and a dataset [n] for every item column that fits one.

The whole item table is in FILE.items.parquet, the card in FILE.json. Needs h5py, the extra `hdf5`.
"""

from __future__ import annotations

import math
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType
from typing import Any

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
_EXPANSION = 100  # embeddings barely compress
_ALWAYS_ALLOWED = 64 * 2**20  # bytes, for small files of equal values
_MOST_CHUNK_BYTES = 256 * 2**20  # a chunk is read whole
_TEXT_ROWS = 256
_FILTERS = {1: "gzip", 2: "shuffle", 3: "fletcher32", 32000: "lzf"}  # any other may be code from a plugin


class Hdf5Source:
    """Rows of a dataset of vectors, read as they are needed.

    Args:
        path: The file.
        card: What the toolkit recorded when it wrote the file, if it did.

    Raises:
        ImportError: If h5py is missing.
        ValueError: If the file is damaged, keeps data elsewhere or claims more than it holds, or if no dataset or
            several could be the vectors.
    """

    def __init__(self, path: Path, card: GalleryCard | None) -> None:
        self._path = path
        with _opened(path) as file:
            datasets = _datasets(path, file)
            matrices = [name for name, dataset in datasets.items() if _is_matrix(dataset)]
            self._name = name_of_vectors(path, matrices, datasets)
            vectors = datasets[self._name]
            _require_plain(path, self._name, vectors)
            self._rows, self.dim = vectors.shape
            if card is not None or items_path(path).is_file():
                self._items = read_items(path, self._rows)
            else:
                self._items = _read_columns(path, datasets, self._rows)
        self.space = card.space if card else None
        self.provenance = card.provenance if card else {}

    def __len__(self) -> int:
        return self._rows

    def scan(self, size: int, *, start: int = 0) -> Iterator[Batch]:
        """Rows start.. in row order; see `GallerySource`."""
        ranges = row_ranges(len(self), size, start)
        with _opened(self._path) as file:
            vectors = file[self._name]
            for first, stop in ranges:
                values = vectors[first:stop]
                with np.errstate(over="ignore"):  # too large for float32 becomes infinite, which every target refuses
                    yield Batch(self._items[first:stop], values.astype(np.float32, copy=False))


def open_source(location: str) -> Hdf5Source:
    """Open an HDF5 file.

    The vectors are its dataset `vectors`, or else its only matrix of floats outside groups. The items are those of the
    table beside it, else its datasets of numbers or strings with a value for each vector; without `item_id` the ids
    are row numbers.

    Raises:
        FileNotFoundError: If there is no such file.
        ImportError: If h5py is missing.
        ValueError: If it is damaged or not such a file; see `Hdf5Source`.
    """
    path = Path(location)
    card = verified_card(path)
    return Hdf5Source(path, card)


def open_target(location: str, space: EmbeddingSpace, provenance: dict[str, Any]) -> SpooledTarget:
    """Begin or go on with an HDF5 file; see `SpooledTarget`.

    Raises:
        ImportError: If h5py is missing: before the work, not at its end.
    """
    _h5py()
    return SpooledTarget(Path(location), space, provenance, _build, reserved=[VECTORS])


digest = digest_of_file


def _h5py() -> ModuleType:
    try:
        import h5py
    except ImportError:
        raise ImportError("HDF5 files need h5py: pip install 'embedding-compat[hdf5]'") from None
    return h5py


@contextmanager
def _opened(path: Path) -> Iterator[Any]:
    """The file, and what h5py says of a damaged one in one line."""
    h5py = _h5py()
    try:
        with h5py.File(path, "r", locking=False) as file:
            yield file
    except DamagedStore:
        raise
    except (OSError, RuntimeError, KeyError, TypeError, ValueError, MemoryError, OverflowError) as error:
        reason = str(error.args[0] if error.args else error).strip().split("\n")[0]
        if reason.startswith(str(path)):
            raise ValueError(reason) from None
        raise DamagedStore(
            f"{path} cannot be read as HDF5 ({reason[:200] or type(error).__name__}); restore it from a copy"
        ) from None


def _datasets(path: Path, file: Any) -> dict[str, Any]:
    h5py = _h5py()
    datasets = {}
    for name in file:
        if not isinstance(file.get(name, getlink=True), h5py.HardLink):
            raise ValueError(f"{path} has a link {name[:80]!r} to data elsewhere; copy that data into the file")
        if file.get(name, getclass=True) is h5py.Dataset:
            datasets[name] = file[name]
    return datasets


def _is_matrix(dataset: Any) -> bool:
    shape, dtype = dataset.shape, dataset.dtype
    return shape is not None and len(shape) == 2 and shape[1] > 0 and dtype.kind == "f" and dtype.itemsize <= 8


def _require_plain(path: Path, name: str, dataset: Any) -> None:
    """Refuse data kept outside the file, filters that may be plugins, and shapes that the file is too short for."""
    if dataset.is_virtual or dataset.external:
        raise ValueError(f"{path} keeps its dataset {name!r} in other files; copy it into this one")
    plist = dataset.id.get_create_plist()
    filters = [plist.get_filter(place)[0] for place in range(plist.get_nfilters())]
    unknown = [code for code in filters if code not in _FILTERS]
    if unknown:
        raise ValueError(
            f"{path} has dataset {name!r} under filter {unknown[0]}, expected {', '.join(_FILTERS.values())} or none; "
            "save it again with one of these"
        )
    claimed, stored = math.prod(dataset.shape) * dataset.dtype.itemsize, dataset.id.get_storage_size()
    if claimed > (_ALWAYS_ALLOWED + _EXPANSION * stored if filters else stored) or stored > path.stat().st_size:
        raise ValueError(
            f"{path} stores {stored} bytes of dataset {name!r} and claims that they are {claimed}, more than is "
            "believable; write all rows, or with less compression"
        )
    if dataset.chunks and math.prod(dataset.chunks) * dataset.dtype.itemsize > _MOST_CHUNK_BYTES:
        raise ValueError(
            f"{path} has dataset {name!r} in chunks of {list(dataset.chunks)}, expected at most "
            f"{_MOST_CHUNK_BYTES >> 20} MiB each; save it again with smaller ones"
        )


def _read_columns(path: Path, datasets: dict[str, Any], rows: int) -> pl.DataFrame:
    h5py = _h5py()
    columns: dict[str, np.ndarray | list[str]] = {}
    for name, dataset in datasets.items():
        text = h5py.check_string_dtype(dataset.dtype)
        plain = dataset.dtype.kind in "biu" or (dataset.dtype.kind == "f" and dataset.dtype.itemsize <= 8)
        if dataset.shape != (rows,) or not (text or plain):
            continue
        _require_plain(path, name, dataset)
        if text:
            columns[name] = _read_text(path, name, dataset)
        else:
            array = dataset[:]
            columns[name] = array.astype(array.dtype.newbyteorder("="))
    return table_of(columns, rows)


def _read_text(path: Path, name: str, dataset: Any) -> list[str]:
    texts: list[str] = []
    left = _ALWAYS_ALLOWED + path.stat().st_size
    # A few rows at a time: each may point to the same long text, so that no length is known beforehand.
    for first, stop in row_ranges(len(dataset), _TEXT_ROWS, 0):
        texts += [value.decode() for value in dataset[first:stop]]
        left -= sum(map(len, texts[first:]))
        if left < 0:
            raise ValueError(f"{path} has dataset {name!r} with more text than the file is long; write it plainly")
    return texts


def _build(store: EmbeddingStore, path: Path) -> Sequence[Path]:
    h5py = _h5py()
    rows, dim = len(store), store.space.dim
    with h5py.File(path, "w") as file:
        vectors = file.create_dataset(VECTORS, (rows, dim), "<f4")
        first = 0
        for batch in store.batches(_BLOCK_ROWS):
            vectors[first : first + len(batch.vectors)] = batch.vectors
            first += len(batch.vectors)
        for name in plain_columns(store.items):
            column = store.items[name]
            dtype = h5py.string_dtype() if column.dtype == pl.String else column.clear().to_numpy().dtype
            dataset = file.create_dataset(name, (rows,), dtype)
            for low, high in row_ranges(rows, _BLOCK_ROWS, 0):
                dataset[low:high] = column[low:high].to_list()
    with path.open("rb") as file:
        os.fsync(file.fileno())
    return path, write_items(store.items, path)
