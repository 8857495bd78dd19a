"""What tells one gallery row from another in sixteen bytes: a hash of its id and one of all else that it holds.

Records of a whole gallery lie in a file, in the order of the rows or sorted by id, so that two galleries of any size
are compared in bounded memory. Two ids of ten million share a hash once in 370,000 galleries; a changed vector keeps
its hash with a chance below 2^-32 (multilinear hashing: Lemire and Kaser, Strongly universal string hashing is fast,
2014), or a changed label or other column with one of 2^-64. Neither hash tells anything of a vector or an id.
"""

from __future__ import annotations

import os
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np
import polars as pl

from stores.durable import sync_folder

RECORD = np.dtype([("id", "<u8"), ("vector", "<u8")])
UNKNOWN = 0
"""The vector's hash in a record of a row that may or may not have been written."""
FRESH = 2**64 - 1
"""The same of a row that was new when it was about to be written."""
_BLOCK = 1 << 20  # records in memory at a time: 16 MiB
_BUCKET = 1 << 18
_SEED = 2014


def hash_scheme() -> str:
    """Names the hashes: records are comparable where it is the same. Those of columns hang on the release of polars."""
    return f"columns, polars {pl.__version__}"


def id_hashes(item_ids: pl.Series) -> np.ndarray:
    """Hashes of item ids, uint64 [n]; integers and the strings that spell them differ."""
    return item_ids.hash(_SEED).to_numpy()


def row_records(items: pl.DataFrame, vectors: np.ndarray) -> np.ndarray:
    """Records [n] of rows: their ids, and the bits of their vectors, float32 [n, d], with what other columns hold."""
    records = np.empty(len(vectors), RECORD)
    records["id"] = id_hashes(items["item_id"])
    words = np.ascontiguousarray(vectors, np.float32).view(np.uint32)
    found = np.einsum("ij,j->i", words, _multipliers(words.shape[1]), dtype=np.uint64, casting="unsafe")
    for column in items:
        if column.name != "item_id" and column.null_count() < len(column):  # a column of nulls may also be absent
            seed = zlib.crc32(column.name.encode())
            found += np.where(column.is_null(), np.uint64(0), column.hash(seed).to_numpy())
    records["vector"] = np.where((found == UNKNOWN) | (found == np.uint64(FRESH)), np.uint64(1), found)
    return records


def _multipliers(dim: int) -> np.ndarray:
    # PCG64's stream does not change between releases of NumPy; its raw output is not touched by `Generator` either.
    return np.random.PCG64(2014).random_raw(dim).astype(np.uint64) | np.uint64(1)


class RecordFile:
    """Records in the order of rows, added to as rows are copied.

    Args:
        path: The file; what is behind `rows` in it is cut off.
        rows: Records to keep.

    Raises:
        ValueError: If the file has fewer.
    """

    def __init__(self, path: Path, rows: int = 0) -> None:
        self.path = path
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o600)
        self._file = os.fdopen(descriptor, "r+b")
        found = self._file.seek(0, os.SEEK_END) // RECORD.itemsize
        if found < rows:
            self._file.close()
            raise ValueError(
                f"{path} tells of {found} rows, but {rows} were copied: it was cut or exchanged, or another folder has "
                "the record: --state DIR; else begin again with --step discard"
            )
        self._file.truncate(rows * RECORD.itemsize)
        self._file.seek(0, os.SEEK_END)

    def add(self, records: np.ndarray) -> None:
        """Add records of rows that were written."""
        self._file.write(records.tobytes())

    def flush(self) -> None:
        """Make them outlive a power cut."""
        self._file.flush()
        os.fsync(self._file.fileno())

    def close(self) -> None:
        """Let go of the file."""
        self._file.close()


def read_records(path: Path) -> np.ndarray:
    """The records of a file, mapped into memory, read-only."""
    if not path.stat().st_size:
        return np.empty(0, RECORD)
    return np.memmap(path, RECORD, mode="r")


def sort_records(source: Path, target: Path) -> None:
    """Write a file of records sorted by id, in bounded memory; `target` appears whole or not at all."""
    records = read_records(source)
    buckets = 1
    while len(records) // buckets > _BUCKET and buckets < 1024:
        buckets *= 2
    shift = np.uint64(64 - buckets.bit_length() + 1)
    parts = [target.with_name(f"{target.name}.{number}.tmp") for number in range(buckets)]
    files = [part.open("wb") for part in parts]
    try:
        for start in range(0, len(records), _BLOCK):
            block = np.array(records[start : start + _BLOCK])
            bucket = (block["id"] >> shift).astype(np.int64) if buckets > 1 else np.zeros(len(block), np.int64)
            order = np.argsort(bucket, kind="stable")
            ends = np.cumsum(np.bincount(bucket, minlength=buckets))
            for file, piece in zip(files, np.split(block[order], ends[:-1]), strict=True):
                file.write(piece.tobytes())
        for file in files:
            file.close()
        write_records(target, (_sorted(np.fromfile(part, RECORD)) for part in parts))
    finally:
        for file, part in zip(files, parts, strict=True):
            file.close()
            part.unlink(missing_ok=True)


def _sorted(records: np.ndarray) -> np.ndarray:
    return records[np.argsort(records["id"], kind="stable")]


def write_records(path: Path, pieces: Iterator[np.ndarray]) -> None:
    """Replace a file by records, in one step that outlives a power cut."""
    temporary = path.with_name(f"{path.name}.tmp")
    with os.fdopen(os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "wb") as file:
        for piece in pieces:
            file.write(piece.tobytes())
        file.flush()
        os.fsync(file.fileno())
    temporary.replace(path)
    sync_folder(path.parent)


class Differences(NamedTuple):
    """Of two sorted files of records, in one range of ids.

    Attributes:
        before: The earlier file's records of the range.
        now: The later file's.
        fresh: Ids that only the later has, uint64.
        altered: Ids that both have, with another vector.
        gone: Ids that only the earlier has.
    """

    before: np.ndarray
    now: np.ndarray
    fresh: np.ndarray
    altered: np.ndarray
    gone: np.ndarray


def differences(before: Path, now: Path) -> Iterator[Differences]:
    """Compare two sorted files of records, range by range, in the order of ids."""
    earlier, later = read_records(before), read_records(now)
    ranges = 1 + max(len(earlier), len(later)) // _BUCKET
    bounds = [int(number * 2**64 // ranges) for number in range(1, ranges)]
    edges = [
        [0, *np.searchsorted(records["id"], np.array(bounds, np.uint64)).tolist(), len(records)]
        for records in (earlier, later)
    ]
    for first, stop in zip(zip(*edges, strict=True), list(zip(*edges, strict=True))[1:], strict=False):
        old, new = np.array(earlier[first[0] : stop[0]]), np.array(later[first[1] : stop[1]])
        places, known = places_of(old["id"], new["id"])
        altered = known.copy()
        altered[known] = old["vector"][places[known]] != new["vector"][known]
        if altered.any():  # two ids may share a hash
            altered[altered] = ~np.isin(_mixed(new[altered]), _mixed(old))
        kept = places_of(new["id"], old["id"])[1]
        yield Differences(
            old, new, np.unique(new["id"][~known]), np.unique(new["id"][altered]), np.unique(old["id"][~kept])
        )


def places_of(ordered: np.ndarray, wanted: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Where each wanted value is among ordered ones, int64 [n], and whether it is there at all, bool [n]."""
    places = np.searchsorted(ordered, wanted)
    there = places < len(ordered)
    there[there] = ordered[places[there]] == wanted[there]
    return places, there


def _mixed(records: np.ndarray) -> np.ndarray:
    return records["id"] ^ (records["vector"] * np.uint64(0x9E3779B97F4A7C15))


class IdSet:
    """Ids of a file of records, sorted; what looks ids up in it takes no memory but the system's cache."""

    def __init__(self, path: Path) -> None:
        self._ids = read_records(path)["id"]

    def __len__(self) -> int:
        return len(self._ids)

    def holds(self, hashes: np.ndarray) -> np.ndarray:
        """Which of the hashes, uint64 [n], are among them, bool [n]."""
        return places_of(self._ids, hashes)[1]
