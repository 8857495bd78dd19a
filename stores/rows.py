"""Reading what a commit of a store holds: rows by range, by number, or in batches, in bounded memory."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import polars as pl

from stores.chunks import DamagedStore
from stores.commit import Commit, ItemPart
from stores.forgotten import ForgottenRows
from stores.item_parts import read_part
from stores.item_table import ItemTable
from stores.layout import CHECKSUM_BYTES, VectorLayout
from stores.space import EmbeddingSpace
from stores.stream import shuffled_batches

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


class StoredRows:
    """The rows of one commit, forgotten ones left out; see `stores.store.EmbeddingStore`, which opens them.

    Args:
        path: The store's folder.
        commit: What it holds.
    """

    def __init__(self, path: Path, commit: Commit) -> None:
        self.path = path
        self._look_at(commit)

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
        chunks = on_disk // self.chunk_rows
        borders = np.flatnonzero(np.diff(chunks))
        if len(borders) * _FEW_ROWS < len(rows):
            self._gather(on_disk, chunks, borders, out)
            return out
        order = np.argsort(on_disk)  # so that each chunk is read in one go
        gathered, chunks = np.empty_like(out), chunks[order]
        self._gather(on_disk[order], chunks, np.flatnonzero(np.diff(chunks)), gathered)
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

        Raises:
            StaleStore: If the store was compacted since it was opened.
        """
        commit = self._commit
        fresh = commit.chunks(self.path)
        chunks = -(-commit.rows // self.chunk_rows)
        problems = _problem(lambda: Commit.read(self.path)) + self._part_problems()
        problems += _problem(lambda: fresh.check_metadata(commit.rows))
        for chunk in range(chunks):
            problems += _problem(lambda chunk=chunk: fresh.block(chunk))
            if on_chunk:
                on_chunk(chunk + 1, chunks)
        if problems:
            self._require_generation(self._newest())
        return StoreCheck(rows=len(self), chunks=chunks, problems=tuple(dict.fromkeys(problems)))

    def _part_problems(self) -> list[str]:
        """What is wrong with the item table, as it is now: a writer merges small parts, and keeps their rows."""
        commit = self._commit
        while True:
            folder = commit.items_folder(self.path)
            found = [_problem(lambda part=part, folder=folder: read_part(folder, part)) for part in commit.parts]
            problems = [text for texts in found for text in texts]
            newest = self._newest() if problems else commit
            if newest.parts == commit.parts:
                return problems
            self._require_generation(newest)
            commit = newest

    def _newest(self) -> Commit:
        """What is committed now, as far as anybody can read it."""
        try:
            return Commit.read(self.path)
        except (ValueError, OSError):
            return self._commit

    def _look_at(self, commit: Commit) -> None:
        """Begin again with what a commit holds."""
        self._chunks = commit.chunks(self.path)
        self._view(commit)

    def _view(self, commit: Commit) -> None:
        """Go on with what a commit holds beyond the one before, whose chunks are verified already."""
        self._commit = commit
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

    def _block(self, chunk: int) -> np.ndarray:
        try:
            return self._chunks.block(chunk)
        except DamagedStore:
            self._require_generation(Commit.read(self.path))
            raise

    def _gather(self, on_disk: np.ndarray, chunks: np.ndarray, borders: np.ndarray, out: np.ndarray) -> None:
        """Copy rows on disk to `out`, a run of neighbours within one chunk at a time.

        Args:
            on_disk: Row numbers, int64 [b].
            chunks: Of each row, int64 [b].
            borders: The last place of each run but the last one.
            out: float32 [b, d].
        """
        local = on_disk - chunks * self.chunk_rows
        for start, stop in pairwise([0, *(borders + 1).tolist(), len(chunks)]):
            if start == stop:
                continue
            block = self._block(int(chunks[start]))
            if block.dtype == out.dtype:  # with a mode, take writes there without a copy in between
                block.take(local[start:stop], 0, out[start:stop], "clip")
            else:
                out[start:stop] = block[local[start:stop]]

    def _items_of(self, start: int, stop: int) -> pl.DataFrame:
        """Items of rows start..stop-1, without more of the table in memory than that takes."""
        if self._items is not None:
            return self._items[start:stop]
        if start == stop:
            return self._table.slice(0, 0)
        first, last = self._forgotten.on_disk(np.array([start, stop - 1])).tolist()
        table, gone = self._table.slice(first, last + 1), self._forgotten.within(first, last + 1)
        return _without(table, gone) if len(gone) else table


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
