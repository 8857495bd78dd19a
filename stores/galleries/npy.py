"""A gallery in a .npy file, float32 [n, d], with its item table in FILE.items.parquet and its card in FILE.json."""

from __future__ import annotations

import io
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from stores.durable import write_atomically
from stores.galleries.card import digest_of_file, read_items, verified_card, write_items
from stores.galleries.mapped import MappedSource
from stores.galleries.spooled import SpooledTarget
from stores.space import EmbeddingSpace
from stores.store import EmbeddingStore

_BLOCK_ROWS = 8192
_MAGIC = b"\x93NUMPY"
_MOST_HEADER = 10_000  # bytes; numpy itself trusts no more


def open_source(location: str) -> MappedSource:
    """Map an array of float16, float32 or float64 [n, d] into memory.

    Without an item table beside it the ids are the row numbers.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If it is damaged, no .npy file, of objects (which would be unpickled), or not a matrix of floats.
    """
    path = Path(location)
    card = verified_card(path)
    with path.open("rb") as file:
        head = file.read(len(_MAGIC) + 6)
        if not head.startswith((_MAGIC, b"PK")):  # numpy would take anything else for a pickle
            raise ValueError(f"{path} is no .npy file; save the array by numpy.save")
        # A header of versions 2 and 3 may claim 4 GB, which numpy would read before it doubts them.
        if head.startswith(_MAGIC) and head[6:7] != b"\x01" and int.from_bytes(head[8:12], "little") > _MOST_HEADER:
            raise ValueError(f"{path} claims a header too large for an array of floats; save it by numpy.save")
    try:
        # Also refuses headers of unreasonable size, and shapes that the file is too short for.
        array = np.load(path, mmap_mode="r", allow_pickle=False)
    except (ValueError, EOFError, OverflowError) as error:
        raise ValueError(
            f"{path} is no array that can be mapped ({_first_line(error)}); save it by numpy.save"
        ) from None
    if not isinstance(array, np.ndarray):
        array.close()
        raise ValueError(f"{path} is an archive of arrays, expected one array; save that one by numpy.save")
    if array.ndim != 2 or array.dtype.kind != "f" or array.dtype.itemsize > 8 or not array.shape[1]:
        raise ValueError(
            f"{path} holds {array.dtype} {list(array.shape)}, expected float16, float32 or float64 [n, d]; convert it"
        )
    return MappedSource(array, read_items(path, len(array)), card)


def open_target(location: str, space: EmbeddingSpace, provenance: dict[str, Any]) -> SpooledTarget:
    """Begin or go on with an array file; see `SpooledTarget`."""
    return SpooledTarget(Path(location), space, provenance, _build)


digest = digest_of_file


def _build(store: EmbeddingStore, path: Path) -> Sequence[Path]:
    write_atomically(path, _parts(store))
    return path, write_items(store.items, path)


def _parts(store: EmbeddingStore) -> Iterator[bytes | np.ndarray]:
    header = io.BytesIO()
    shape = (len(store), store.space.dim)
    np.lib.format.write_array_header_1_0(header, {"descr": "<f4", "fortran_order": False, "shape": shape})
    yield header.getvalue()
    for batch in store.batches(_BLOCK_ROWS):
        yield batch.vectors


def _first_line(error: BaseException) -> str:
    return str(error).strip().split("\n")[0]
