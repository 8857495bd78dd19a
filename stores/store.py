"""A folder of embeddings and of what they are embeddings of, larger than memory, whole after any interruption.

Layout, format version 1::

    STORE/store.json     what is committed: space, row count, item parts with digests, provenance; replaced in one step
    STORE/vectors/       Zarr v3 array float32 [rows, dim], uncompressed chunks of whole rows, each with its CRC-32C
    STORE/items/         the item table in Parquet parts; row i of the table is row i of the array

Everything that `store.json` does not name is invisible, so a writer that dies leaves the last commit readable.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from types import TracebackType
from typing import Any, NamedTuple

import numpy as np
import polars as pl

from stores.chunks import DamagedStore, VectorChunks
from stores.commit import Commit
from stores.durable import WriterLock, sync_folder
from stores.item_parts import PART_ROWS, KnownIds, checked_items, read_part, require_finite, write_parts
from stores.space import EmbeddingSpace
from stores.stream import shuffled_rows

CHUNK_ROWS = 4096


class Batch(NamedTuple):
    """Some rows of a store: the item table's rows and float32 [b, d] vectors, in the same order."""

    items: pl.DataFrame
    vectors: np.ndarray


@dataclass(frozen=True)
class StoreCheck:
    """What `EmbeddingStore.verify` found: rows and chunk files looked at, and one line for each damaged file."""

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
        self._commit = commit
        self._chunks = VectorChunks(path / "vectors", commit.space.dim, commit.chunk_rows)
        self._lock = WriterLock(path)
        self._committed_items: pl.DataFrame | None = None
        self._known_ids: KnownIds | None = None
        self._schema: pl.Schema | None = None
        self._new_items: list[pl.DataFrame] = []
        self._tail = np.empty((0, commit.space.dim), np.float32)  # appended rows of the chunk not yet full
        self._rows_appended = commit.rows

    @classmethod
    def create(
        cls,
        path: str | Path,
        space: EmbeddingSpace,
        *,
        chunk_rows: int = CHUNK_ROWS,
        provenance: dict[str, Any] | None = None,
    ) -> EmbeddingStore:
        """Make an empty store, the folder included.

        Args:
            path: A folder that does not exist yet, or is empty.
            space: What the vectors are.
            chunk_rows: Rows in a chunk file.
            provenance: JSON values that say where the vectors come from.

        Raises:
            FileExistsError: If the folder holds anything.
            ValueError: If chunk_rows is not positive.
        """
        path = Path(path)
        if chunk_rows < 1:
            raise ValueError(f"chunk_rows must be at least 1, found {chunk_rows}")
        _require_vacant(path)
        path.mkdir(parents=True, exist_ok=True)
        store = cls(path, Commit(space, 0, chunk_rows, (), dict(provenance or {})))
        store._lock.acquire()
        try:
            _require_vacant(path)  # somebody may have been faster
            # A creator that died before its first commit may have left an array, perhaps of another dimension.
            (path / "vectors" / "zarr.json").unlink(missing_ok=True)
            VectorChunks.create(path / "vectors", space.dim, chunk_rows)
            (path / "items").mkdir(exist_ok=True)
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
        """
        path = Path(path)
        if not path.exists():
            raise FileNotFoundError(f"no embedding store at {path}: the path does not exist")
        if not (path / "store.json").is_file():
            raise FileNotFoundError(f"no embedding store at {path}: it has no file store.json")
        store = cls(path, Commit.read(path))
        store._chunks.check_metadata(len(store))
        missing = store._chunks.missing(len(store))
        parts = [path / "items" / part.name for part in store._commit.parts]
        missing += [part for part in parts if not part.is_file()]
        if missing:
            if Commit.read(path) != store._commit:  # a writer merged item parts under our eyes
                return cls.open(path)
            more = f" and {len(missing) - 1} more" if len(missing) > 1 else ""
            raise DamagedStore(f"{missing[0]}{more} is missing; restore it from a copy or extract again")
        return store

    def __enter__(self) -> EmbeddingStore:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Drop what was appended and not committed, and let others write."""
        self._forget_uncommitted()
        self._lock.release()

    def __len__(self) -> int:
        """Committed rows."""
        return self._commit.rows

    @property
    def space(self) -> EmbeddingSpace:
        """What the vectors are."""
        return self._commit.space

    @property
    def provenance(self) -> dict[str, Any]:
        """Where the vectors come from, as JSON values; a copy."""
        return json.loads(json.dumps(self._commit.provenance))

    @property
    def chunk_rows(self) -> int:
        """Rows in a chunk file."""
        return self._commit.chunk_rows

    @property
    def items(self) -> pl.DataFrame:
        """The committed item table: `item_id`, perhaps `label`, `split` and further columns; row i is vector i.

        Raises:
            DamagedStore: If a part was altered.
        """
        if self._committed_items is None:
            parts = self._read_parts()
            empty = pl.DataFrame(schema={"item_id": pl.String})
            self._committed_items = pl.concat(parts).head(len(self)) if parts else empty
        return self._committed_items

    def rows(self, start: int, stop: int) -> np.ndarray:
        """Vectors start..stop-1, float32 [stop - start, d], read-only: a map of the file where one chunk holds them.

        Raises:
            IndexError: If the range is not within the committed rows.
            DamagedStore: If a chunk is missing or was altered.
        """
        if not 0 <= start <= stop <= len(self):
            raise IndexError(f"rows {start}:{stop} are not within the {len(self)} committed rows of {self.path}")
        if start == stop:
            return np.empty((0, self.space.dim), np.float32)
        size = self.chunk_rows
        pieces = []
        for chunk in range(start // size, (stop - 1) // size + 1):
            first = chunk * size
            pieces.append(self._chunks.block(chunk)[max(start - first, 0) : stop - first])
        if len(pieces) == 1:
            return pieces[0]
        joined = np.concatenate(pieces)
        joined.flags.writeable = False
        return joined

    def take(self, rows: np.ndarray) -> np.ndarray:
        """The vectors of the given row numbers, integers [b] in any order, as a new float32 [b, d] array.

        Raises:
            IndexError: If a row is not within the committed rows.
            DamagedStore: If a chunk is missing or was altered.
        """
        rows = np.asarray(rows, dtype=np.int64)
        if len(rows) and (rows.min() < 0 or rows.max() >= len(self)):
            raise IndexError(f"rows {rows.min()}..{rows.max()} are not within the {len(self)} rows of {self.path}")
        out = np.empty((len(rows), self.space.dim), np.float32)
        chunks, local = np.divmod(rows, self.chunk_rows)
        order = np.argsort(chunks, kind="stable")
        bounds = np.flatnonzero(np.diff(chunks[order])) + 1
        for positions in np.split(order, bounds) if len(rows) else []:
            out[positions] = self._chunks.block(int(chunks[positions[0]]))[local[positions]]
        return out

    def batches(self, size: int, *, shuffle: bool = False, seed: int = 0) -> Iterator[Batch]:
        """All committed rows in batches of `size`, the last perhaps shorter, in bounded memory.

        Args:
            size: Rows in a batch.
            shuffle: Whether to mix the rows (see `stores.stream`); otherwise they come in row order, read-only.
            seed: The same seed gives the same order.

        Raises:
            ValueError: If size is not positive.
            DamagedStore: If a chunk is missing or was altered.
        """
        if shuffle:
            for rows in shuffled_rows(len(self), size, chunk_rows=self.chunk_rows, seed=seed):
                yield Batch(self.items[rows], self.take(rows))
            return
        if size < 1:
            raise ValueError(f"a batch needs at least 1 row, found size={size}")
        for start in range(0, len(self), size):
            stop = min(start + size, len(self))
            yield Batch(self.items[start:stop], self.rows(start, stop))

    def append(self, items: pl.DataFrame, vectors: np.ndarray) -> None:
        """Add rows, invisible until `commit`.

        Args:
            items: A table with a column `item_id` (strings or integers, each new to the store) and the same columns
                in every call.
            vectors: Floats [len(items), dim], kept as float32.

        Raises:
            ValueError: If shapes, columns or ids do not fit, or a vector holds NaN or infinity.
            StoreLocked: If another process is writing.
        """
        self._start_writing()
        with np.errstate(over="ignore"):  # what is too large for float32 becomes infinite and is refused below
            vectors = np.ascontiguousarray(vectors, dtype=np.float32)
        if vectors.ndim != 2 or vectors.shape[1] != self.space.dim:
            raise ValueError(f"vectors have shape {list(vectors.shape)}, expected [n, {self.space.dim}]")
        if len(items) != len(vectors):
            raise ValueError(f"{len(items)} items and {len(vectors)} vectors; row i of the table must be vector i")
        if not len(vectors):
            return
        if self._known_ids is None:
            self._known_ids = KnownIds(self.items["item_id"])
            self._schema = self.items.schema if len(self) else None
        items = checked_items(items, self._schema, self._known_ids)
        require_finite(items, vectors)
        self._write_rows(vectors)  # first, so that nothing is counted when the disk refuses
        self._rows_appended += len(vectors)
        self._new_items.append(items)
        self._known_ids.add(items["item_id"])
        self._schema = items.schema

    def commit(self, provenance: dict[str, Any] | None = None) -> None:
        """Make everything appended so far visible and durable; with `provenance`, replace that too.

        Raises:
            OSError: If the disk refuses; the previous commit stays readable.
            StoreLocked: If another process is writing.
        """
        self._start_writing()
        parts = self._commit.parts
        superseded: list[str] = []
        if self._new_items:
            fresh = pl.concat(self._new_items, rechunk=True)
            if parts and parts[-1].rows < PART_ROWS:
                fresh = pl.concat([read_part(self.path / "items", parts[-1]), fresh], rechunk=True)
                superseded.append(parts[-1].name)
                parts = parts[:-1]
            if len(self._tail):
                self._chunks.write(self._rows_appended // self.chunk_rows, self._tail)
            self._chunks.set_rows(self._rows_appended)
            self._sync_chunks()
            parts += write_parts(self.path / "items", fresh, self._rows_appended - len(fresh))
        commit = replace(
            self._commit,
            rows=self._rows_appended,
            parts=parts,
            provenance=self._commit.provenance if provenance is None else dict(provenance),
        )
        commit.publish(self.path)
        self._commit = commit
        for name in superseded:
            (self.path / "items" / name).unlink(missing_ok=True)
        self._new_items = []
        self._committed_items = None

    def digest(self) -> str:
        """Digest over the committed items and vectors, hexadecimal, from the checksums that the files carry."""
        digest = hashlib.sha256("\n".join(part.sha256 for part in self._commit.parts).encode())
        full, rest = divmod(len(self), self.chunk_rows)
        for chunk in range(full):
            digest.update(self._chunks.checksum(chunk))
        digest.update(self.rows(len(self) - rest, len(self)).tobytes())  # a writer may rewrite what follows in its file
        return digest.hexdigest()

    def verify(self, *, on_chunk: Callable[[int, int], None] | None = None) -> StoreCheck:
        """Read every file once and compare it with its checksum.

        Args:
            on_chunk: Called with (chunks done, chunks in all) for progress.
        """
        problems = []
        fresh = VectorChunks(self.path / "vectors", self.space.dim, self.chunk_rows)
        chunks = -(-len(self) // self.chunk_rows)
        for check in (lambda: fresh.check_metadata(len(self)), lambda: Commit.read(self.path)):
            problems += _problem(check)
        for part in self._commit.parts:
            problems += _problem(lambda part=part: read_part(self.path / "items", part))
        for chunk in range(chunks):
            problems += _problem(lambda chunk=chunk: fresh.block(chunk))
            if on_chunk:
                on_chunk(chunk + 1, chunks)
        return StoreCheck(rows=len(self), chunks=chunks, problems=tuple(problems))

    def _read_parts(self) -> list[pl.DataFrame]:
        commit = self._commit
        while True:
            try:
                return [read_part(self.path / "items", part) for part in commit.parts]
            except DamagedStore:
                # A writer may have merged small parts since we opened; the rows we know are still the first ones.
                newest = Commit.read(self.path)
                if newest.parts == commit.parts:
                    raise
                commit = newest

    def _start_writing(self) -> None:
        if self._lock.held:
            return
        self._lock.acquire()
        # Somebody may have committed between our opening and the lock.
        self._commit = Commit.read(self.path)
        self._committed_items = None
        self._chunks = VectorChunks(self.path / "vectors", self.space.dim, self.chunk_rows)
        self._discard_leftovers()
        self._forget_uncommitted()

    def _discard_leftovers(self) -> None:
        # What writers that died had not committed, or had no time to remove.
        self._chunks.truncate(len(self))
        named = {part.name for part in self._commit.parts}
        leftovers = [entry for entry in (self.path / "items").iterdir() if entry.name not in named]
        for entry in (*leftovers, *self.path.glob(".*.tmp")):
            entry.unlink()

    def _forget_uncommitted(self) -> None:
        self._new_items = []
        self._known_ids = None
        self._rows_appended = len(self)
        full = len(self) - len(self) % self.chunk_rows
        self._tail = np.array(self.rows(full, len(self))) if self._lock.held else self._tail[:0]

    def _write_rows(self, vectors: np.ndarray) -> None:
        size = self.chunk_rows
        chunk = self._rows_appended // size
        pending = np.concatenate([self._tail, vectors]) if len(self._tail) else vectors
        whole = len(pending) - len(pending) % size
        for start in range(0, whole, size):
            self._chunks.write(chunk + start // size, pending[start : start + size])
        self._tail = np.array(pending[whole:])

    def _sync_chunks(self) -> None:
        first, last = len(self) // self.chunk_rows, (self._rows_appended - 1) // self.chunk_rows
        for chunk in range(first, last + 1):
            sync_folder(self._chunks.path(chunk).parent)
        sync_folder(self._chunks.folder / "c")
        sync_folder(self._chunks.folder)


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
