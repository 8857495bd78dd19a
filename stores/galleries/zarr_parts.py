"""Many processes writing one `EmbeddingStore`, each a part of its rows: whole chunk files, which nobody shares.

While it is written, `STORE/parts/` holds the plan and, of each part, its item rows and a record with its checksums; the
store itself has no row until the coordinator commits them all. The files are then those that one writer makes.

A part is written under a lock of its own, so that two processes that were given the same one, perhaps on machines that
round differently, never mix their bytes. The folder must be one file system for all of them, with locks that hold
between machines (NFS 4, and the cluster file systems, have them).
"""

from __future__ import annotations

import base64
import fcntl
import hashlib
import io
import json
import shutil
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import polars as pl

from stores.chunks import DamagedStore
from stores.commit import COMMIT_FILE, COMPLETE, Commit, ItemPart
from stores.durable import BackgroundSync, WriterLock, sync_folder, write_atomically
from stores.galleries.origin import require_same_origin
from stores.item_parts import PART_ROWS
from stores.item_parts import write_part as write_item_part
from stores.known_ids import KnownIds
from stores.layout import VectorLayout
from stores.new_items import checked_items, finite_vectors
from stores.sealed import seal, unseal
from stores.space import EmbeddingSpace
from stores.store import Batch, EmbeddingStore

FORMAT_VERSION = 1
PARTS = "parts"
_PLAN = "plan.json"
_PART_BYTES = 64 * 2**20
_FEWEST_PARTS = 64  # of a large store, so that there is work for many
_BUCKET_IDS = 2**24  # whose hashes are compared in memory together
_MOST_SUSPECTS = 1000


class _Plan(NamedTuple):
    rows: int
    part_rows: int

    @property
    def parts(self) -> int:
        return -(-self.rows // self.part_rows)

    def span(self, number: int) -> tuple[int, int]:
        """First row of a part, and the row after its last."""
        return number * self.part_rows, min((number + 1) * self.part_rows, self.rows)


class _Record(NamedTuple):
    checksums: bytes
    items_sha256: str


def begin_parts(location: str, space: EmbeddingSpace, provenance: dict[str, Any], rows: int) -> int:
    """Begin a store of so many rows, or go on with it; return the rows of a part; see `PartsEngine`.

    One that `begin_target` made keeps its layout.

    Raises:
        FileExistsError: If something else is there, or the same begun by one writer or with another number of rows.
        StoreLocked: If another process is writing there.
    """
    path = Path(location)
    if not (path / COMMIT_FILE).is_file():
        begun = json.loads(json.dumps(provenance)) | {COMPLETE: False}
        EmbeddingStore.create(path, space, provenance=begun).close()
    lock = WriterLock(path)
    lock.acquire()
    try:
        commit = Commit.read(path)
        if COMPLETE not in commit.provenance:
            raise FileExistsError(f"{path} already exists and is no copy or migration; name another target")
        require_same_origin(path, commit.space, commit.provenance, space, json.loads(json.dumps(provenance)))
        folder = path / PARTS
        planned = _Plan(rows, _part_rows(commit.layout, rows))
        if commit.provenance[COMPLETE]:
            shutil.rmtree(folder, ignore_errors=True)  # of a coordinator killed while it tidied up
            found = commit.rows
        elif commit.rows:
            raise FileExistsError(
                f"{path} was begun by one writer and has {commit.rows} rows; go on with one, or remove it"
            )
        else:
            folder.mkdir(exist_ok=True)
            if not (folder / _PLAN).is_file():
                write_atomically(folder / _PLAN, [seal({"format_version": FORMAT_VERSION, **planned._asdict()})])
                sync_folder(folder)
                sync_folder(path)
            found = _plan(path).rows
        if found != rows:
            raise FileExistsError(f"{path} was begun for {found} rows, expected {rows}; name another target")
        return planned.part_rows
    finally:
        lock.release()


@contextmanager
def hold_parts(location: str) -> Iterator[None]:
    """Keep other coordinators, and writers of any kind, out for the block; see `PartsEngine`.

    Raises:
        StoreLocked: If there is one.
    """
    lock = WriterLock(Path(location))
    lock.acquire()
    try:
        yield
    finally:
        lock.release()


def parts_done(location: str) -> set[int]:
    """Numbers of the parts that outlive an interruption, all of them of a finished store; see `PartsEngine`."""
    path = Path(location)
    commit = Commit.read(path)
    if commit.provenance.get(COMPLETE):
        return set(range(_Plan(commit.rows, _part_rows(commit.layout, commit.rows)).parts))
    return {int(record.stem) for record in (path / PARTS).glob("*.json") if record.stem.isdecimal()}


def parts_begun(path: Path) -> bool:
    """Whether the store in a folder was begun to be written in parts, and is not finished."""
    return (path / PARTS / _PLAN).is_file() and not Commit.read(path).provenance.get(COMPLETE)


def write_part(location: str, number: int, batch: Batch) -> None:
    """Write all rows of a part; one that is written stays as it is; see `PartsEngine`.

    Raises:
        FileNotFoundError: If the parts of the store were not begun.
        ValueError: If there is no such part, or the batch does not fit it.
        OSError: If the disk refuses.
    """
    path = Path(location)
    try:
        commit = Commit.read(path)
        if not commit.provenance.get(COMPLETE):
            _write_part(path, commit, number, batch)
    except FileNotFoundError:
        if not (path / COMMIT_FILE).is_file() or not Commit.read(path).provenance.get(COMPLETE):
            raise  # else somebody else wrote the part, and all was committed meanwhile


def _write_part(path: Path, commit: Commit, number: int, batch: Batch) -> None:
    plan, folder = _plan(path), path / PARTS
    first, stop = plan.span(number)
    if not 0 <= number < plan.parts or not len(batch.items) == len(batch.vectors) == stop - first:
        raise ValueError(
            f"part {number} of {path} got {len(batch.items)} items and {len(batch.vectors)} vectors, expected "
            f"{max(stop - first, 0)} of {plan.parts} parts; begin again"
        )
    items = checked_items(batch.items, None, KnownIds(pl.Series([])))
    vectors = finite_vectors(items, batch.vectors, commit.layout.number)
    with _alone(folder / f"{number}.lock"):
        record = folder / f"{number}.json"
        if record.is_file():
            return
        checksums = _write_vectors(path, commit, first, vectors)
        buffer = io.BytesIO()
        items.write_parquet(buffer)
        write_atomically(_items_file(folder, number), [buffer.getbuffer()])
        body = {
            "format_version": FORMAT_VERSION,
            "checksums": base64.b64encode(checksums).decode(),
            "items_sha256": hashlib.sha256(buffer.getbuffer()).hexdigest(),
        }
        write_atomically(record, [seal(body)])
        sync_folder(folder)


def _write_vectors(path: Path, commit: Commit, first: int, vectors: np.ndarray) -> bytes:
    """Write the files that hold a part's rows, flushed to disk, and return the checksums of their chunks."""
    chunks, size = commit.chunks(path), commit.layout.file_rows
    try:
        # In place: without its part's record a file counts for nothing, and is written again.
        checksums = [
            chunks.write((first + start) // size, vectors[start : start + size], replace=False)
            for start in range(0, len(vectors), size)
        ]
        chunks.sync()
    finally:
        chunks.close()
    return b"".join(checksums)


def finish_parts(location: str) -> None:
    """Commit the store, when every part is done; see `PartsEngine`.

    Memory holds the items of a part or two, and the hashes of some million ids.

    Raises:
        ValueError: If a part is missing, their columns differ, or an id occurs twice.
        DamagedStore: If a file of a part was altered or lost; one that is lost is written by the next run.
        StoreLocked: If another process is finishing it.
    """
    path = Path(location)
    folder = path / PARTS
    if not folder.is_dir() and Commit.read(path).provenance.get(COMPLETE):
        return
    lock = WriterLock(folder)
    lock.acquire()
    try:
        commit = Commit.read(path)
        if not commit.provenance.get(COMPLETE):
            _commit_parts(path, commit, _plan(path), lock)
        shutil.rmtree(folder)
    finally:
        lock.release()


def _commit_parts(path: Path, commit: Commit, plan: _Plan, lock: WriterLock) -> None:
    folder = path / PARTS
    missing = sorted(set(range(plan.parts)) - parts_done(str(path)))
    if missing:
        raise ValueError(f"{len(missing)} parts of {path} are missing, the first is {missing[0]}; run again")
    chunks = commit.chunks(path)
    lost = chunks.missing(plan.rows)
    if lost:  # another writer opened the store and took the rows for leftovers
        for number in {int(file.parent.name) * commit.layout.file_rows // plan.part_rows for file in lost}:
            (folder / f"{number}.json").unlink()
        raise DamagedStore(f"{len(lost)} files of {path} are gone, the first is {lost[0]}; run again")
    records = [_record(folder, number) for number in range(plan.parts)]
    parts = _write_items(commit.items_folder(path), folder, records, plan)
    chunks.set_rows(plan.rows)
    chunks.sync()
    lock.require_held()
    replace(
        commit,
        rows=plan.rows,
        parts=parts,
        provenance=commit.provenance | {COMPLETE: True},
        checksums=b"".join(record.checksums for record in records),
    ).publish(path)


def _write_items(items: Path, folder: Path, records: list[_Record], plan: _Plan) -> tuple[ItemPart, ...]:
    """Write the item table of the parts' rows as one writer would, and make sure that no id occurs twice."""
    flushing = BackgroundSync()
    written: list[ItemPart] = []
    waiting: list[pl.DataFrame] = []
    schema: pl.Schema | None = None
    none = KnownIds(pl.Series(dtype=pl.String))

    def write(table: pl.DataFrame) -> None:
        written.append(write_item_part(items, table, sum(part.rows for part in written)))
        flushing.add(items / written[-1].name)

    try:
        with _IdHashes(folder, plan.rows) as hashes:
            for number, record in enumerate(records):
                table = _read_items(folder, number, record)
                schema = checked_items(table, schema, none).schema
                hashes.add(table["item_id"])
                waiting.append(table)
                if sum(map(len, waiting)) >= PART_ROWS:
                    joined = pl.concat(waiting, rechunk=True)
                    whole = len(joined) - len(joined) % PART_ROWS
                    for start in range(0, whole, PART_ROWS):
                        write(joined[start : start + PART_ROWS])
                    waiting = [joined[whole:]]
            rest = pl.concat(waiting, rechunk=True) if waiting else pl.DataFrame()
            if len(rest):
                write(rest)
            suspects = hashes.repeated()
        if len(suspects):
            _require_unique(folder, records, suspects)
        flushing.wait()
    finally:
        flushing.stop()
    return tuple(written)


class _IdHashes:
    """The 64-bit hashes of all ids, in files by their first bits, each of which fits in memory."""

    def __init__(self, folder: Path, rows: int) -> None:
        self._paths = [folder / f"hashes-{bucket}" for bucket in range(-(-rows // _BUCKET_IDS) or 1)]
        self._open = ExitStack()

    def __enter__(self) -> _IdHashes:
        self._files = [self._open.enter_context(path.open("wb")) for path in self._paths]
        return self

    def __exit__(self, *error: object) -> None:
        self._open.close()
        for path in self._paths:
            path.unlink()

    def add(self, ids: pl.Series) -> None:
        """Take in ids."""
        hashes = np.sort(ids.hash().to_numpy())
        # What a file is for is told by the first 32 bits.
        bounds = np.arange(1, len(self._files), dtype=np.uint64) * np.uint64(2**32) // np.uint64(len(self._files))
        for file, some in zip(
            self._files, np.split(hashes, np.searchsorted(hashes >> np.uint64(32), bounds)), strict=True
        ):
            file.write(some.tobytes())

    def repeated(self) -> np.ndarray:
        """Hashes, uint64, that occur more than once: some of them, where there are very many."""
        self._open.close()
        found: list[np.ndarray] = []
        for path in self._paths:
            hashes = np.sort(np.fromfile(path, np.uint64))
            found.append(np.unique(hashes[1:][hashes[1:] == hashes[:-1]])[:_MOST_SUSPECTS])
        return np.concatenate(found)[:_MOST_SUSPECTS]


def _require_unique(folder: Path, records: list[_Record], suspects: np.ndarray) -> None:
    """Look at the ids themselves, whose hashes may be alike by chance."""
    ids = []
    for number, record in enumerate(records):
        some = _read_items(folder, number, record)["item_id"]
        ids.append(some.filter(pl.Series(np.isin(some.hash().to_numpy(), suspects))))
    alike = pl.concat(ids)
    again = alike.filter(~alike.is_first_distinct())
    if len(again):
        raise ValueError(f"item_id must be unique in a store; {again[0]!r} and {len(again) - 1} more occur again")


def _read_items(folder: Path, number: int, record: _Record) -> pl.DataFrame:
    path = _items_file(folder, number)
    content = path.read_bytes() if path.is_file() else b""
    if hashlib.sha256(content).hexdigest() != record.items_sha256:
        (folder / f"{number}.json").unlink()
        raise DamagedStore(f"{path} was lost or altered; run again, and the part is written anew")
    return pl.read_parquet(io.BytesIO(content))


def _record(folder: Path, number: int) -> _Record:
    body = unseal(folder / f"{number}.json", version=FORMAT_VERSION)
    return _Record(base64.b64decode(body["checksums"]), body["items_sha256"])


def _plan(path: Path) -> _Plan:
    file = path / PARTS / _PLAN
    if not file.is_file():
        raise FileNotFoundError(f"{path} was not begun to be written in parts; begin its parts first")
    body = unseal(file, version=FORMAT_VERSION)
    return _Plan(body["rows"], body["part_rows"])


def _part_rows(layout: VectorLayout, rows: int) -> int:
    """Rows of a part: whole files, of few bytes, and many parts where there are many rows."""
    files = max(1, _PART_BYTES // (4 * layout.dim * layout.file_rows))
    return layout.file_rows * min(files, max(1, rows // (_FEWEST_PARTS * layout.file_rows)))


def _items_file(folder: Path, number: int) -> Path:
    return folder / f"{number}.parquet"


@contextmanager
def _alone(path: Path) -> Iterator[None]:
    """Wait until no other process has the file's lock, and have it for the block; the kernel gives up a dead one's."""
    with path.open("ab") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield
