"""A folder of embeddings and of what they are embeddings of, larger than memory, whole after any interruption.

Layout::

    STORE/store.json     what is committed: space, row count, item parts with digests, provenance; replaced in one step
    STORE/vectors/       Zarr v3 array [rows, dim], uncompressed chunks of whole rows, each with its CRC-32C
    STORE/items/         the item table in Parquet parts; row i of the table is row i of the array

Everything that `store.json` does not name is invisible, so a writer that dies leaves the last commit readable. Which
rows were forgotten stands there too, until `compact` moves the others to `vectors-1` and `items-1`, and so on.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from itertools import pairwise
from pathlib import Path
from types import TracebackType
from typing import Any, NamedTuple

import numpy as np
import polars as pl

from stores.chunks import DamagedStore, VectorChunks
from stores.commit import COMMIT_FILE, Commit, ItemPart
from stores.compaction import compact, remove_other_generations
from stores.durable import WriterLock, sync_folder
from stores.forgotten import ForgottenRows
from stores.item_parts import read_part
from stores.item_table import ItemTable
from stores.layout import CHECKSUM_BYTES, VectorLayout, VectorType
from stores.new_items import KnownIds, checked_items, finite_vectors
from stores.space import EmbeddingSpace
from stores.stream import shuffled_batches
from stores.writer import StoreWriter

CHUNK_ROWS = 4096
_FEW_ROWS = 8  # so few rows of a chunk one after the other are better sorted before they are read


class Batch(NamedTuple):
    """Some rows of a store: the item table's rows and float32 [b, d] vectors, in the same order."""

    items: pl.DataFrame
    vectors: np.ndarray


class StaleStore(ValueError):
    """The store was compacted after it was opened."""


@dataclass(frozen=True)
class StoreCheck:
    """What `EmbeddingStore.verify` found: rows and chunks looked at, and one line for each damaged file."""

    rows: int
    chunks: int
    problems: tuple[str, ...]

    @property
    def ok(self) -> bool:
        """Whether nothing is damaged."""
        return not self.problems


class EmbeddingStore:
    """Embeddings on disk. Make one with `create`, open one with `open`; close it, or use it in a `with` block.

    Rows become visible to others by `commit` alone. One process writes at a time, any number read what was committed
    when they opened. Vectors are kept as the network put them out; normalising is the business of whoever searches.
    """

    def __init__(self, path: Path, commit: Commit) -> None:
        self.path = path
        self._lock = WriterLock(path)
        self._look_at(commit)

    @classmethod
    def create(
        cls,
        path: str | Path,
        space: EmbeddingSpace,
        *,
        chunk_rows: int = CHUNK_ROWS,
        dtype: VectorType = "float32",
        shard_chunks: int = 1,
        provenance: dict[str, Any] | None = None,
    ) -> EmbeddingStore:
        """Make an empty store, the folder included.

        Args:
            path: A folder that does not exist yet, or is empty.
            space: What the vectors are.
            chunk_rows: Rows that are checked and read together.
            dtype: What the numbers are kept as. float16 takes half the space and keeps three digits; vectors are read
                as float32 all the same.
            shard_chunks: Chunks in one file. Several make fewer files, for stores of very many rows; the last file is
                written anew with every commit.
            provenance: JSON values that say where the vectors come from.

        Raises:
            FileExistsError: If the folder holds anything.
            ValueError: If chunk_rows or shard_chunks is not positive, or dtype is unknown.
        """
        path = Path(path)
        layout = VectorLayout(space.dim, chunk_rows, dtype, shard_chunks)
        _require_vacant(path)
        path.mkdir(parents=True, exist_ok=True)
        store = cls(path, Commit(space, 0, layout, (), dict(provenance or {})))
        store._lock.acquire()
        try:
            _require_vacant(path)  # somebody may have been faster
            # A creator that died before its first commit may have left an array, perhaps of another dimension.
            VectorChunks.create(path / "vectors", layout)
            (path / "items").mkdir(exist_ok=True)
            sync_folder(path)
            store._commit.publish(path)
        except BaseException:
            store._lock.release()
            raise
        return store

    @classmethod
    def open(cls, path: str | Path) -> EmbeddingStore:
        """Open what was last committed.

        Raises:
            FileNotFoundError: If there is no store at path.
            DamagedStore: If a file is missing or was altered. Chunks are checked when first read; see `verify`.
            ValueError: If a later version of the toolkit wrote it.
        """
        path = Path(path)
        if not path.exists():
            raise FileNotFoundError(f"no embedding store at {path}: the path does not exist")
        if not (path / COMMIT_FILE).is_file():
            raise FileNotFoundError(f"no embedding store at {path}: it has no file {COMMIT_FILE}")
        store = cls(path, Commit.read(path))
        try:
            store._require_files()
        except DamagedStore:
            if Commit.read(path) != store._commit:  # a writer merged item parts, or compacted, under our eyes
                return cls.open(path)
            raise
        return store

    def __enter__(self) -> EmbeddingStore:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Drop what was appended and not committed, and let others write."""
        self._writer = self._known_ids = None
        self._chunks.close()
        self._lock.release()

    def __len__(self) -> int:
        """Committed rows that were not forgotten."""
        return self._commit.rows - len(self._forgotten)

    @property
    def space(self) -> EmbeddingSpace:
        """What the vectors are."""
        return self._commit.space

    @property
    def provenance(self) -> dict[str, Any]:
        """Where the vectors come from, as JSON values; a copy."""
        return json.loads(json.dumps(self._commit.provenance))

    @property
    def layout(self) -> VectorLayout:
        """How the vectors lie on disk."""
        return self._commit.layout

    @property
    def chunk_rows(self) -> int:
        """Rows that are checked and read together."""
        return self._commit.layout.chunk_rows

    @property
    def items(self) -> pl.DataFrame:
        """The committed item table: `item_id`, perhaps `label`, `split` and further columns; row i is vector i.

        All of it is kept in memory from the first call on; `batches` needs no such thing.

        Raises:
            DamagedStore: If a part was altered.
        """
        if self._items is None:
            table = self._table.whole()
            gone = self._forgotten.within(0, self._commit.rows)
            self._items = table if not len(gone) else _without(table, gone)
        return self._items

    @property
    def forgotten_items(self) -> pl.DataFrame:
        """The item table's rows that were forgotten and whose bytes are there until `compact`."""
        return self._table.whole()[self._forgotten.within(0, self._commit.rows)]

    def rows(self, start: int, stop: int) -> np.ndarray:
        """Vectors start..stop-1, float32 [stop - start, d], read-only: a map of the file where one chunk holds them.

        Raises:
            IndexError: If the range is not within the committed rows.
            DamagedStore: If a chunk is missing or was altered.
            StaleStore: If the store was compacted since it was opened.
        """
        self._require_range(start, stop)
        if start == stop:
            return np.empty((0, self.space.dim), np.float32)
        first, last = self._forgotten.on_disk(np.array([start, stop - 1])).tolist()
        size = self.chunk_rows
        pieces = []
        for chunk in range(first // size, last // size + 1):
            begin = chunk * size
            low, high = max(first - begin, 0), min(last + 1 - begin, size)
            piece = self._block(chunk)[low:high]
            gone = self._forgotten.within(begin + low, begin + high)
            pieces.append(np.delete(piece, gone, axis=0) if len(gone) else piece)
        joined = pieces[0] if len(pieces) == 1 else np.concatenate(pieces)
        vectors = joined.astype(np.float32, copy=False)
        vectors.flags.writeable = False
        return vectors

    def take(self, rows: np.ndarray) -> np.ndarray:
        """The vectors of the given row numbers, integers [b] in any order, as a new float32 [b, d] array.

        Raises:
            IndexError: If a row is not within the committed rows.
            DamagedStore: If a chunk is missing or was altered.
            StaleStore: If the store was compacted since it was opened.
        """
        rows = np.asarray(rows, dtype=np.int64)
        if len(rows) and (rows.min() < 0 or rows.max() >= len(self)):
            raise IndexError(f"rows {rows.min()}..{rows.max()} are not within the {len(self)} rows of {self.path}")
        on_disk = self._forgotten.on_disk(rows)
        out = np.empty((len(rows), self.space.dim), np.float32)
        if np.count_nonzero(np.diff(on_disk // self.chunk_rows)) * _FEW_ROWS < len(rows):
            self._gather(on_disk, out)
            return out
        order = np.argsort(on_disk)  # so that each chunk is read in one go
        gathered = np.empty_like(out)
        self._gather(on_disk[order], gathered)
        out[order] = gathered
        return out

    def batch(self, start: int, stop: int) -> Batch:
        """Items and vectors of rows start..stop-1, read-only, without more of the item table in memory than that takes.

        Raises:
            IndexError: If the range is not within the committed rows.
            DamagedStore: If a file is missing or was altered.
            StaleStore: If the store was compacted since it was opened.
        """
        vectors = self.rows(start, stop)
        return Batch(self._items_of(start, stop), vectors)

    def batches(self, size: int, *, shuffle: bool = False, seed: int = 0) -> Iterator[Batch]:
        """All committed rows in batches of `size`, the last perhaps shorter, in bounded memory.

        Args:
            size: Rows in a batch.
            shuffle: Whether to mix the rows (see `stores.stream`); otherwise they come in row order, read-only.
            seed: The same seed gives the same order.

        Raises:
            ValueError: If size is not positive.
            DamagedStore: If a chunk is missing or was altered.
            StaleStore: If the store was compacted since it was opened.
        """
        if shuffle:
            for rows, items in shuffled_batches(
                lambda start, stop: (np.arange(start, stop), self._items_of(start, stop)),
                len(self),
                size,
                chunk_rows=self.chunk_rows,
                seed=seed,
                by_chunk=True,
            ):
                yield Batch(items, self.take(rows))
            return
        if size < 1:
            raise ValueError(f"a batch needs at least 1 row, found size={size}")
        for start in range(0, len(self), size):
            yield self.batch(start, min(start + size, len(self)))

    def append(self, items: pl.DataFrame, vectors: np.ndarray) -> None:
        """Add rows, invisible until `commit`.

        Args:
            items: A table with a column `item_id` (strings or integers, each new to the store) and the same columns
                in every call.
            vectors: Floats [len(items), dim], kept as the store's type.

        Raises:
            ValueError: If shapes, columns or ids do not fit, or a vector holds NaN, infinity, or a number that is too
                large for the store's type.
            StoreLocked: If another process is writing.
        """
        writer = self._start_writing()
        vectors = np.asarray(vectors)
        if vectors.ndim != 2 or vectors.shape[1] != self.space.dim:
            raise ValueError(f"vectors have shape {list(vectors.shape)}, expected [n, {self.space.dim}]")
        if len(items) != len(vectors):
            raise ValueError(f"{len(items)} items and {len(vectors)} vectors; row i of the table must be vector i")
        if not len(vectors):
            return
        if self._known_ids is None:
            self._known_ids = KnownIds(self.items["item_id"])
            self._schema = self.items.schema if self._commit.rows else None
        items = checked_items(items, self._schema, self._known_ids)
        writer.append(items, finite_vectors(items, vectors, self._commit.layout.number))
        self._known_ids.add(items["item_id"])  # last, so that nothing is counted when the disk refuses
        self._schema = items.schema

    def commit(self, provenance: dict[str, Any] | None = None) -> None:
        """Make everything appended so far visible and durable; with `provenance`, replace that too.

        Raises:
            OSError: If the disk refuses; the previous commit stays readable.
            StoreLocked: If another process is writing.
        """
        writer = self._start_writing()
        self._lock.require_held()
        self._commit = writer.publish(provenance)
        self._view()

    def forget(self, item_ids: Iterable[str] | Iterable[int], *, missing_ok: bool = False) -> int:
        """Take items out of the store, at once and for good; `compact` then removes their bytes from its files.

        Args:
            item_ids: Ids of the items.
            missing_ok: Whether ids that the store does not have are passed over.

        Returns:
            How many items were forgotten.

        Raises:
            ValueError: If an id is not in the store, or rows were appended and not committed.
            StoreLocked: If another process is writing.
        """
        self._start_writing()
        self._require_nothing_pending("forget")
        ids = self.items["item_id"]
        wanted = pl.Series(list(item_ids), dtype=ids.dtype).unique()
        rows = ids.is_in(wanted.implode()).arg_true().to_numpy().astype(np.int64)
        if len(rows) < len(wanted) and not missing_ok:
            raise ValueError(
                f"{len(wanted) - len(rows)} of {len(wanted)} items are not in {self.path}; check the ids, or pass over "
                "them by missing_ok"
            )
        if len(rows):
            forgotten = self._forgotten.with_rows(self._forgotten.on_disk(rows).tolist())
            commit = replace(self._commit, forgotten=forgotten)
            self._lock.require_held()
            commit.publish(self.path)
            self._use(commit)
        return len(rows)

    def compact(self) -> None:
        """Write the store anew without the rows it forgot, so that no file of it holds their bytes any more.

        What is left of them on the disk's free space, in snapshots and in backups is beyond a program's reach. Others
        who have the store open must open it again.

        Raises:
            ValueError: If rows were appended and not committed.
            OSError: If the disk refuses; the store stays as it was.
            StoreLocked: If another process is writing.
        """
        self._start_writing()
        self._require_nothing_pending("compact")
        commit = self._commit
        self._lock.require_held()
        if commit.forgotten:
            commit = compact(self.path, commit, len(self), self.batch)
        remove_other_generations(self.path, commit)
        self._use(commit)

    def digest(self) -> str:
        """Digest over the committed items and vectors, hexadecimal, from the checksums that the files carry."""
        commit = self._commit
        digest = hashlib.sha256("\n".join(part.sha256 for part in commit.parts).encode())
        full, rest = divmod(commit.rows, self.chunk_rows)
        digest.update(self._chunks.checksums()[: full * CHECKSUM_BYTES])
        if rest:
            digest.update(self._block(full)[:rest].tobytes())
        if commit.forgotten:
            digest.update(json.dumps(commit.forgotten).encode())
        return digest.hexdigest()

    def verify(self, *, on_chunk: Callable[[int, int], None] | None = None) -> StoreCheck:
        """Read every file once and compare it with its checksum.

        Args:
            on_chunk: Called with (chunks done, chunks in all) for progress.
        """
        commit, problems = self._commit, []
        fresh = commit.chunks(self.path)
        chunks = -(-commit.rows // self.chunk_rows)
        for check in (lambda: fresh.check_metadata(commit.rows), lambda: Commit.read(self.path)):
            problems += _problem(check)
        for part in commit.parts:
            problems += _problem(lambda part=part: read_part(commit.items_folder(self.path), part))
        for chunk in range(chunks):
            problems += _problem(lambda chunk=chunk: fresh.block(chunk))
            if on_chunk:
                on_chunk(chunk + 1, chunks)
        return StoreCheck(rows=len(self), chunks=chunks, problems=tuple(dict.fromkeys(problems)))

    def _use(self, commit: Commit) -> StoreWriter:
        """Begin again with what a commit holds, as the one who writes."""
        self._look_at(commit)
        self._writer = StoreWriter(self.path, commit, self._chunks)
        return self._writer

    def _look_at(self, commit: Commit) -> None:
        """Begin again with what a commit holds."""
        self._commit = commit
        self._chunks = commit.chunks(self.path)
        self._writer: StoreWriter | None = None
        self._known_ids: KnownIds | None = None
        self._schema: pl.Schema | None = None
        self._view()

    def _view(self) -> None:
        commit = self._commit
        self._forgotten = ForgottenRows(commit.forgotten)
        self._table = ItemTable(commit.items_folder(self.path), commit.parts, commit.rows, self._newest_parts)
        self._items: pl.DataFrame | None = None

    def _newest_parts(self) -> tuple[ItemPart, ...]:
        newest = Commit.read(self.path)
        self._require_generation(newest)
        return newest.parts

    def _require_generation(self, newest: Commit) -> None:
        if newest.generation != self._commit.generation:
            raise StaleStore(f"{self.path} was compacted after it was opened; open it again")

    def _require_files(self) -> None:
        self._chunks.check_metadata(self._commit.rows)
        folder = self._commit.items_folder(self.path)
        missing = self._chunks.missing(self._commit.rows)
        missing += [folder / part.name for part in self._commit.parts if not (folder / part.name).is_file()]
        if missing:
            more = f" and {len(missing) - 1} more" if len(missing) > 1 else ""
            raise DamagedStore(f"{missing[0]}{more} is missing; restore it from a copy or extract again")

    def _require_range(self, start: int, stop: int) -> None:
        if not 0 <= start <= stop <= len(self):
            raise IndexError(f"rows {start}:{stop} are not within the {len(self)} committed rows of {self.path}")

    def _require_nothing_pending(self, what: str) -> None:
        if self._writer and self._writer.pending:
            raise ValueError(f"rows were appended to {self.path} and not committed; commit or close it, then {what}")

    def _block(self, chunk: int) -> np.ndarray:
        try:
            return self._chunks.block(chunk)
        except DamagedStore:
            self._require_generation(Commit.read(self.path))
            raise

    def _gather(self, on_disk: np.ndarray, out: np.ndarray) -> None:
        """Copy rows on disk to `out`, a run of neighbours within one chunk at a time."""
        chunks, local = np.divmod(on_disk, self.chunk_rows)
        bounds = [0, *(np.flatnonzero(np.diff(chunks)) + 1).tolist(), len(chunks)]
        for start, stop in pairwise(bounds):
            if start == stop:
                continue
            block = self._block(int(chunks[start]))
            if block.dtype == out.dtype:  # with a mode, take writes there without a copy in between
                np.take(block, local[start:stop], axis=0, out=out[start:stop], mode="clip")
            else:
                out[start:stop] = block[local[start:stop]]

    def _items_of(self, start: int, stop: int) -> pl.DataFrame:
        """Items of rows start..stop-1, without more of the table in memory than that takes."""
        if self._items is not None or start == stop:
            return self.items[start:stop]
        first, last = self._forgotten.on_disk(np.array([start, stop - 1])).tolist()
        table, gone = self._table.slice(first, last + 1), self._forgotten.within(first, last + 1)
        return _without(table, gone) if len(gone) else table

    def _start_writing(self) -> StoreWriter:
        if self._writer is not None:
            return self._writer
        self._lock.acquire()
        commit = Commit.read(self.path)  # somebody may have committed between our opening and the lock
        self._discard_leftovers(commit, commit.chunks(self.path))
        return self._use(commit)

    def _discard_leftovers(self, commit: Commit, chunks: VectorChunks) -> None:
        # What writers that died had not committed, or had no time to remove.
        chunks.truncate(commit.rows)
        named = {part.name for part in commit.parts}
        leftovers = [entry for entry in commit.items_folder(self.path).iterdir() if entry.name not in named]
        for entry in (*leftovers, *self.path.glob(".*.tmp")):
            entry.unlink()
        remove_other_generations(self.path, commit)


def _without(table: pl.DataFrame, rows: np.ndarray) -> pl.DataFrame:
    keep = np.ones(len(table), bool)
    keep[rows] = False
    return table.filter(pl.Series(keep))


def _problem(check: Callable[[], object]) -> list[str]:
    try:
        check()
    except (ValueError, OSError) as error:
        return [str(error)]
    return []


def _require_vacant(path: Path) -> None:
    # What a creator that died before the first commit leaves behind does not make a folder taken.
    leftovers = {path / ".lock", path / "vectors", path / "vectors" / "zarr.json", path / "items"}
    if path.is_file() or any(
        entry not in leftovers and entry.suffix not in {".tmp", ".partial"} for entry in path.rglob("*")
    ):
        raise FileExistsError(f"{path} already exists and is not empty; name another folder or remove it")
