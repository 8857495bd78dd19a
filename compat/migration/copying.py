"""The inner loop of a migration: one thread reads ahead, this one maps, one writes; memory holds a few batches."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import closing
from queue import Queue
from typing import NamedTuple, TypeVar

import numpy as np
import polars as pl

from compat.migration.records import IdSet, RecordFile, id_hashes, row_records
from compat.transformers.artefact import Transformer
from stores.galleries.gallery import GallerySource, GalleryTarget, notes_of
from stores.store import Batch

BATCH_ROWS = 4096
BATCHES_PER_COMMIT = 16
_AHEAD = 2

Item = TypeVar("Item")
OnRows = Callable[[int, int], None]
Serve = Callable[[np.ndarray, pl.Series, int], np.ndarray]
"""Vectors, their ids and the first one's row in the source, to the vectors that are written."""


class Paused(KeyboardInterrupt):
    """Somebody asked to stop: everything so far is committed, and the same call goes on from there."""


class Pause:
    """Asked between two batches whether to stop; `ask` may come from a signal or another thread."""

    def __init__(self) -> None:
        self._asked = threading.Event()

    def ask(self) -> None:
        """Stop at the next batch."""
        self._asked.set()

    @property
    def asked(self) -> bool:
        """Whether somebody asked."""
        return self._asked.is_set()

    def check(self) -> None:
        """Stop here if somebody asked.

        Raises:
            Paused: If so.
        """
        if self.asked:
            raise Paused


class _Read(NamedTuple):
    batch: Batch
    first: int
    read: int
    records: np.ndarray | None


class WatchedSource:
    """A gallery that tells how far it is read.

    Args:
        gallery: It.
        on_rows: Called by the thread that reads with (rows read, rows in all), in each scan from its start.
    """

    def __init__(self, gallery: GallerySource, on_rows: OnRows) -> None:
        self._gallery, self._on_rows = gallery, on_rows
        self.space, self.dim, self.provenance = gallery.space, gallery.dim, gallery.provenance
        self.notes = notes_of(gallery)

    def __len__(self) -> int:
        return len(self._gallery)

    def scan(self, size: int, *, start: int = 0) -> Iterator[Batch]:
        """Rows start.. in order; see `GallerySource`."""
        for batch in self._gallery.scan(size, start=start):
            start += len(batch.vectors)
            self._on_rows(start, len(self))
            yield batch


def serving(transformer: Transformer, offsets: np.ndarray | None) -> Serve:
    """How rows of a gallery are written, with the correction's offsets of all its rows where they are known."""

    def serve(vectors: np.ndarray, item_ids: pl.Series, first: int) -> np.ndarray:
        known = None if offsets is None else offsets[first : first + len(vectors)]
        return transformer.serve_gallery(vectors, item_ids, offsets=known)

    return serve


def copy_rows(
    source: GallerySource,
    serve: Serve,
    target: GalleryTarget,
    *,
    start: int = 0,
    batch_rows: int = BATCH_ROWS,
    records: RecordFile | None = None,
    known: IdSet | None = None,
    on_rows: OnRows | None = None,
    pause: Pause | None = None,
) -> int:
    """Write the rows start.. of a source to a target, committing now and then and at the end; how many were written.

    Args:
        source: Read by a thread of its own.
        serve: What becomes of the vectors.
        target: Written to by a thread of its own, which is alone with it until this returns or raises.
        start: Row of the source to begin with.
        batch_rows: Rows in a batch; about six are in memory.
        records: Takes the records of the rows, on disk before the rows are committed.
        known: Ids of rows that are in the target, which are passed over.
        on_rows: Called with (rows of the source done, rows in all).
        pause: Asked before each batch.

    Raises:
        Paused: If `pause` was asked to; what was mapped is committed.
    """
    pause = pause or Pause()
    pending: deque[tuple[Future[None], int]] = deque()
    written = 0

    def write(batch: Batch, recorded: np.ndarray | None) -> None:
        if records is not None and recorded is not None:
            records.add(recorded)
        target.write(batch)

    def commit() -> None:
        if records is not None:
            records.flush()
        target.commit()

    def settle(most: int) -> None:
        while len(pending) > most:
            done, read = pending.popleft()
            done.result()
            if on_rows and read >= 0:
                on_rows(read, len(source))

    reading = _read(source, start, batch_rows, records is not None, known)
    with ThreadPoolExecutor(1, thread_name_prefix="write") as writer, closing(ahead(reading)) as batches:
        try:
            for number, read in enumerate(batches, start=1):
                if pause.asked:
                    settle(0)
                    writer.submit(commit).result()
                    raise Paused
                if len(read.batch.vectors):
                    vectors = serve(read.batch.vectors, read.batch.items["item_id"], read.first)
                    pending.append(
                        (writer.submit(write, read.batch._replace(vectors=vectors), read.records), read.read)
                    )
                    written += len(vectors)
                if number % BATCHES_PER_COMMIT == 0:
                    pending.append((writer.submit(commit), -1))
                settle(_AHEAD)
            settle(0)
            writer.submit(commit).result()
        except BaseException:
            for done, _ in pending:
                done.cancel()
            raise
    return written


def _read(source: GallerySource, start: int, batch_rows: int, record: bool, known: IdSet | None) -> Iterator[_Read]:
    first = start
    for batch in source.scan(batch_rows, start=start):
        stop = first + len(batch.vectors)
        if known is not None:
            new = ~known.holds(id_hashes(batch.items["item_id"]))
            if not new.all():
                batch = Batch(batch.items.filter(pl.Series(new)), batch.vectors[new])
        records = row_records(batch.items, batch.vectors) if record else None
        yield _Read(batch, first, stop, records)
        first = stop


class _End(NamedTuple):
    error: BaseException | None


def ahead(items: Iterable[Item], depth: int = _AHEAD) -> Generator[Item, None, None]:
    """The items, made by a thread of its own, a few ahead; what it raises is raised here.

    Closing the iterator ends the thread after the item that it is at.
    """
    ready: Queue[Item | _End] = Queue(depth)
    ended = threading.Event()

    def make() -> None:
        made = iter(items)
        error = None
        try:
            for item in made:
                ready.put(item)
                if ended.is_set():
                    break
        except BaseException as raised:
            error = raised
        finally:
            close = getattr(made, "close", None)
            if close:
                close()
        ready.put(_End(error))

    thread = threading.Thread(target=make, name="read", daemon=True)
    thread.start()
    try:
        while not isinstance(item := ready.get(), _End):
            yield item
        if item.error is not None:
            raise item.error
    finally:
        ended.set()
        while thread.is_alive():  # it may be waiting for room
            while not ready.empty():
                ready.get()
            thread.join(0.01)
