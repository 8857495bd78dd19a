"""A folder of embeddings and of what they are embeddings of, larger than memory, whole after any interruption.

Layout::

    STORE/store.json     what is committed: space, row count, item parts with digests, provenance; replaced in one step
    STORE/vectors/       Zarr v3 array [rows, dim], uncompressed chunks of whole rows, each with its CRC-32C
    STORE/items/         the item table in Parquet parts; row i of the table is row i of the array

Everything that `store.json` does not name is invisible, so a writer that dies leaves the last commit readable. Which
rows were forgotten stands there too, until `compact` moves the others to `vectors-1` and `items-1`, and so on.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np
import polars as pl

from stores.chunks import DamagedStore, VectorChunks
from stores.commit import COMMIT_FILE, COMPLETE, Commit
from stores.compaction import compacted, earlier_generations, remove_other_generations
from stores.durable import WriterLock, sync_folder
from stores.known_ids import KnownIds
from stores.layout import VectorLayout, VectorType
from stores.new_items import checked_items, finite_vectors, listed_ids
from stores.rows import Batch, StaleStore, StoreCheck, StoredRows
from stores.space import EmbeddingSpace
from stores.writer import StoreWriter

__all__ = ["CHUNK_ROWS", "Batch", "EmbeddingStore", "StaleStore", "StoreCheck"]

CHUNK_ROWS = 4096


class EmbeddingStore(StoredRows):
    """Embeddings on disk. Make one with `create`, open one with `open`; close it, or use it in a `with` block.

    Rows become visible to others by `commit` alone. One process writes at a time, any number read what was committed
    when they opened. Vectors are kept as the network put them out; normalising is the business of whoever searches.
    """

    def __init__(self, path: Path, commit: Commit) -> None:
        self._lock = WriterLock(path)
        super().__init__(path, commit)

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
        if path.is_symlink():  # which may lead elsewhere before this store is closed
            path = path.resolve()
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
        if self._writer is not None:
            self._writer.close()
        self._writer = self._known_ids = None
        self._lock.release()

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
        self._lock.require_held()
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
        self._view(writer.publish(provenance))

    def put(self, items: pl.DataFrame, vectors: np.ndarray) -> None:
        """Add rows and commit them; a row whose id is there is forgotten in the same commit. All of them or none.

        Args:
            items: As for `append`, but the ids need not be new to the store.
            vectors: As for `append`.

        Raises:
            ValueError: As `append` does, or if rows were appended and not committed.
            OSError: If the disk refuses; the store stays as it was.
            StoreLocked: If another process is writing.
        """
        self._start_writing()
        self._require_quiet("put")
        with self._reread_if_it_fails():
            if len(self) and "item_id" in items.columns:
                ids = self.items["item_id"]
                if items["item_id"].dtype.is_integer() == ids.dtype.is_integer():
                    again = ids.is_in(items["item_id"].cast(ids.dtype, strict=False).implode()).arg_true().to_numpy()
                    rows = self._forgotten.on_disk(again.astype(np.int64)).tolist()
                    self._use(replace(self._commit, forgotten=self._forgotten.with_rows(rows)))
            self.append(items, vectors)
            self.commit()

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
        self._require_quiet("forget")
        ids = self.items["item_id"]
        wanted = listed_ids(item_ids, ids.dtype)
        rows = ids.is_in(wanted.implode()).arg_true().to_numpy().astype(np.int64)
        if len(rows) < len(wanted) and not missing_ok:
            raise ValueError(
                f"{len(wanted) - len(rows)} of {len(wanted)} items are not in {self.path}; check the ids, or pass over "
                "them by missing_ok"
            )
        if len(rows):
            forgotten = self._forgotten.with_rows(self._forgotten.on_disk(rows).tolist())
            with self._reread_if_it_fails():
                self._lock.require_held()
                commit = replace(self._commit, forgotten=forgotten)
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
        self._require_quiet("compact")
        with self._reread_if_it_fails():
            if self._commit.forgotten:
                writer = compacted(self.path, self._commit, len(self), self.batch)
                self._lock.require_held()
                self._use(writer.publish(None))
            remove_other_generations(self.path, self._commit)

    def clean(self) -> bool:
        """Remove what writers that died left: rows nobody committed, and what a finished compaction had no time for.

        Whoever writes begins with this; here it is for its answer.

        Returns:
            Whether files of an earlier generation were there: a compaction was interrupted while it tidied up.

        Raises:
            ValueError: If rows were appended and not committed.
            StoreLocked: If another process is writing.
        """
        self._require_quiet("clean")
        interrupted = bool(earlier_generations(self.path, Commit.read(self.path)))
        self._start_writing()
        return interrupted

    def _use(self, commit: Commit) -> StoreWriter:
        """Begin again with what a commit holds, as the one who writes."""
        self._look_at(commit)
        self._writer = StoreWriter(self.path, commit, self._chunks)
        return self._writer

    def _look_at(self, commit: Commit) -> None:
        super()._look_at(commit)
        self._writer: StoreWriter | None = None
        self._known_ids: KnownIds | None = None
        self._schema: pl.Schema | None = None

    def _require_quiet(self, what: str) -> None:
        if self._writer and self._writer.pending:
            raise ValueError(f"rows were appended to {self.path} and not committed; commit or close it, then {what}")
        if self._commit.provenance.get(COMPLETE) is False:
            raise ValueError(f"{self.path} is unfinished; run the command that writes it to its end, then {what}")

    @contextmanager
    def _reread_if_it_fails(self) -> Iterator[None]:
        """Whatever happened, go on from what store.json says now; no rows are pending here that this could lose."""
        try:
            yield
        except BaseException:
            self._look_at(Commit.read(self.path))
            raise

    def _start_writing(self) -> StoreWriter:
        if self._writer is not None:
            return self._writer
        self._lock.acquire()
        try:
            commit = Commit.read(self.path)  # somebody may have committed between our opening and the lock
            self._discard_leftovers(commit, commit.chunks(self.path))
            return self._use(commit)
        except BaseException:
            self._lock.release()
            raise

    def _discard_leftovers(self, commit: Commit, chunks: VectorChunks) -> None:
        # What writers that died had not committed, or had no time to remove.
        chunks.discard_uncommitted()
        named = {part.name for part in commit.parts}
        folder = commit.items_folder(self.path)
        folder.mkdir(exist_ok=True)  # an archive may have left an empty one out
        for entry in (*folder.iterdir(), *self.path.glob(".*.tmp")):
            if entry.name not in named and entry.is_file():
                entry.unlink()
        remove_other_generations(self.path, commit)


def _require_vacant(path: Path) -> None:
    # What a creator that died before the first commit leaves behind does not make a folder taken.
    leftovers = {path / ".lock", path / "vectors", path / "vectors" / "zarr.json", path / "items"}
    if path.is_file() or any(
        entry not in leftovers and entry.suffix not in {".tmp", ".partial"} for entry in path.rglob("*")
    ):
        raise FileExistsError(f"{path} already exists and is not empty; name another folder or remove it")
