"""What changed in a gallery while it was migrated: rows that came, changed or went are found and brought over.

Each row that was copied is recorded by two hashes. A pass reads the source again, compares, and applies what differs.
Before it does, it records every row that it may write, so that whatever interrupts it, the next pass sees them all.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
import polars as pl

from compat.migration.copying import Pause, Serve, ahead
from compat.migration.records import (
    FRESH,
    RECORD,
    UNKNOWN,
    IdSet,
    RecordFile,
    differences,
    id_hashes,
    row_records,
    sort_records,
)
from compat.migration.state import StateFolder
from stores.durable import sync_folder
from stores.galleries.gallery import ErasingEngine, GallerySource, LiveEngine
from stores.store import Batch

MOST_PASSES = 5
_PUT_ROWS = 16_384
_IDS_AT_A_TIME = 100_000
_TEMPORARY = ("now.records", "now-sorted.records", "wanted.records", "gone.records", "merged.records")


@dataclass(frozen=True)
class SourceChanges:
    """What was found in a source after its rows had been copied, and brought over.

    Attributes:
        inserted: Rows that came.
        updated: Rows whose vector, label or other column changed.
        removed: Rows that went.
        passes: How often the source was read again.
        settled: Whether the last look found so few changes that there is nothing left to follow.
    """

    inserted: int = 0
    updated: int = 0
    removed: int = 0
    passes: int = 0
    settled: bool = True

    @property
    def count(self) -> int:
        """All of them."""
        return self.inserted + self.updated + self.removed

    def __str__(self) -> str:
        if not self.passes:
            return "the source did not change meanwhile"
        found = f"{self.inserted} inserted, {self.updated} updated and {self.removed} removed meanwhile"
        passes = f"{self.passes} {'passes' if self.passes > 1 else 'pass'} over the source"
        return f"{found}, brought over in {passes}{'' if self.settled else '; it is still changing: run again'}"

    @property
    def in_all(self) -> str:
        """The same in few words, of the whole migration."""
        return f"since it began {self.inserted} inserted, {self.updated} updated and {self.removed} removed"

    def __add__(self, other: SourceChanges) -> SourceChanges:
        return SourceChanges(
            self.inserted + other.inserted,
            self.updated + other.updated,
            self.removed + other.removed,
            self.passes + other.passes,
            other.settled,
        )


class LiveGallery(NamedTuple):
    """A finished gallery that changes are applied to: its engine, and where it is there."""

    engine: LiveEngine
    location: str


def catch_up(
    open_gallery: Callable[[], GallerySource],
    serve: Serve,
    target: LiveGallery | None,
    folder: StateFolder,
    *,
    batch_rows: int,
    most_passes: int = MOST_PASSES,
    settled_below: int = 1,
    unseen: Callable[[], bool] | None = None,
    on_pass: Callable[[SourceChanges], None] | None = None,
    pause: Pause | None = None,
) -> SourceChanges:
    """Read a source again until it has nothing new, and apply what changed to the target.

    Args:
        open_gallery: Opens the source as it is now.
        serve: What becomes of its vectors; no offsets are known of rows that came later.
        target: Where changes go; None for a file, which takes none.
        folder: Holds the records of what was copied.
        batch_rows: Rows read at a time.
        most_passes: How often to read the source at most.
        settled_below: A pass that finds fewer changes is the last.
        unseen: Whether the source is another than when it was last looked at; None where only reading it tells.
        on_pass: Called after each pass with what it brought over; one that is cut short is counted when it is done.
        pause: Asked between batches.

    Raises:
        Paused: If `pause` was asked to; the next call begins this pass again.
        ValueError: If something changed and the target takes no changes, or no records of the copied rows are there.
    """
    pause = pause or Pause()
    total = SourceChanges()
    while unseen is None or unseen():
        if total.passes == most_passes:
            return total + SourceChanges(settled=False)
        if not folder.sorted.is_file():
            if not folder.copied.is_file():
                raise ValueError(
                    f"{folder.source} may have changed since it was copied, and {folder.folder} has no record of its "
                    "rows; name the folder that has it, --state DIR, or begin again with --step discard"
                )
            sort_records(folder.copied, folder.sorted)
            folder.copied.unlink()
        found = _one_pass(open_gallery(), serve, target, folder, batch_rows, pause)
        total += found
        if on_pass:
            on_pass(found)
        if unseen is None:
            if found.count < settled_below:
                break
            if total.passes == most_passes:
                return total + SourceChanges(settled=False)
    return total


def _one_pass(
    source: GallerySource,
    serve: Serve,
    target: LiveGallery | None,
    folder: StateFolder,
    batch_rows: int,
    pause: Pause,
) -> SourceChanges:
    paths = [folder.folder / name for name in _TEMPORARY]
    now, now_sorted, wanted, gone, merged = paths
    try:
        record_rows(source, now, batch_rows, pause)
        sort_records(now, now_sorted)
        found = _compare(folder.sorted, now_sorted, wanted, gone, merged)
        if found.count:
            if target is None:
                raise ValueError(
                    f"{source_changed(folder, found)}, and {folder.target} is a file, which takes no changes; migrate "
                    "to another target, or remove this one"
                )
            _replace(merged, folder.sorted)
            if found.removed:
                _remove(target, IdSet(gone), batch_rows, pause)
            if found.inserted or found.updated:
                _put(source, serve, target, IdSet(wanted), batch_rows, pause)
        _replace(now_sorted, folder.sorted)
        return found
    finally:
        for path in paths:
            path.unlink(missing_ok=True)


def not_brought_over(source: GallerySource, folder: StateFolder, batch_rows: int) -> SourceChanges:
    """What a source holds otherwise than when it was last read; nothing is done about it.

    Raises:
        ValueError: If there is no record of how it was.
    """
    names = ("now.records", "now-sorted.records", "before-sorted.records")
    now, now_sorted, before = paths = [folder.folder / name for name in names]
    try:
        known = folder.sorted
        if not known.is_file():
            if not folder.copied.is_file():
                raise ValueError(
                    f"{folder.folder} has no record of the rows of {folder.source}, which may have changed since they "
                    "were copied; nothing was deleted. --step run compares the two and records them"
                )
            sort_records(folder.copied, before)
            known = before
        record_rows(source, now, batch_rows, Pause())
        sort_records(now, now_sorted)
        total = SourceChanges()
        for each in differences(known, now_sorted):
            total += SourceChanges(len(each.fresh), len(each.altered), len(each.gone))
        return total
    finally:
        for path in paths:
            path.unlink(missing_ok=True)


def source_changed(folder: StateFolder, found: SourceChanges) -> str:
    """What changed in a source, in words."""
    return (
        f"{folder.source} changed after its rows were copied ({found.inserted} rows inserted, {found.updated} updated, "
        f"{found.removed} removed)"
    )


def record_rows(source: GallerySource, path: Path, batch_rows: int, pause: Pause) -> None:
    """Write the records of all rows of a source to a file, in their order."""
    file = RecordFile(path)
    try:
        with closing(ahead(_records(source, batch_rows))) as records:
            for each in records:
                pause.check()
                file.add(each)
        file.flush()
    finally:
        file.close()


def _records(source: GallerySource, batch_rows: int) -> Iterator[np.ndarray]:
    for batch in source.scan(batch_rows):
        yield row_records(batch.items, batch.vectors)


def _compare(before: Path, now: Path, wanted: Path, gone: Path, merged: Path) -> SourceChanges:
    """Write which ids to put, which to remove, and what the target may hold until both are done."""
    files = [RecordFile(path) for path in (wanted, gone, merged)]
    fresh = altered = removed = 0
    try:
        for each in differences(before, now):
            files[0].add(_marked(np.union1d(each.fresh, each.altered)))
            files[1].add(_marked(each.gone))
            begun = np.unique(each.before["id"][each.before["vector"] == FRESH])  # by a pass that was cut short
            new = np.union1d(each.fresh, np.intersect1d(begun, each.altered))
            other = np.setdiff1d(each.altered, begun)
            kept = each.before[~np.isin(each.before["id"], each.altered)]
            held = np.concatenate([kept, _marked(new, FRESH), _marked(other)])
            files[2].add(held[np.argsort(held["id"], kind="stable")])
            fresh, altered, removed = fresh + len(new), altered + len(other), removed + len(each.gone)
        for file in files:
            file.flush()
    finally:
        for file in files:
            file.close()
    return SourceChanges(fresh, altered, removed, passes=1)


def _marked(ids: np.ndarray, mark: int = UNKNOWN) -> np.ndarray:
    records = np.empty(len(ids), RECORD)
    records["id"], records["vector"] = ids, mark
    return records


def _replace(path: Path, target: Path) -> None:
    path.replace(target)
    sync_folder(target.parent)


def _remove(target: LiveGallery, gone: IdSet, batch_rows: int, pause: Pause) -> None:
    found: list[pl.Series] = [pl.Series()]
    while found:
        found = []
        with closing(ahead(target.engine.open_source(target.location).scan(batch_rows), 1)) as batches:
            for batch in batches:
                pause.check()
                ids = batch.items["item_id"]
                hits = gone.holds(id_hashes(ids))
                if hits.any():
                    found.append(ids.filter(pl.Series(hits)))
                if sum(map(len, found)) >= _IDS_AT_A_TIME:
                    break
        if found:
            ids = pl.concat(found)
            if isinstance(target.engine, ErasingEngine):  # who was taken out of the source is to leave no byte here
                target.engine.erase(target.location, ids)
            else:
                target.engine.remove(target.location, ids)


def _put(
    source: GallerySource, serve: Serve, target: LiveGallery, wanted: IdSet, batch_rows: int, pause: Pause
) -> None:
    waiting: list[Batch] = []

    def put() -> None:
        items = pl.concat([batch.items for batch in waiting])
        vectors = np.concatenate([batch.vectors for batch in waiting])
        target.engine.put(target.location, Batch(items, serve(vectors, items["item_id"], 0)))
        waiting.clear()

    with closing(ahead(_chosen(source, wanted, batch_rows))) as batches:
        for batch in batches:
            pause.check()
            waiting.append(batch)
            if sum(len(each.vectors) for each in waiting) >= _PUT_ROWS:
                put()
    if waiting:
        put()


def _chosen(source: GallerySource, wanted: IdSet, batch_rows: int) -> Iterator[Batch]:
    for batch in source.scan(batch_rows):
        chosen = wanted.holds(id_hashes(batch.items["item_id"]))
        if chosen.any():
            yield Batch(batch.items.filter(pl.Series(chosen)), batch.vectors[chosen])
