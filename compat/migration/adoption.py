"""Taking up a migration whose records are gone, as after it was final: source and target themselves are compared.

Of every row of the source that the target holds as the map makes it now, the record is written down again; any other
that the target holds is marked unknown. The next pass over the source then finds what came, changed and went.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import NamedTuple

import numpy as np
import polars as pl

from compat.migration.copying import Pause, Serve, ahead
from compat.migration.records import (
    RECORD,
    UNKNOWN,
    RecordFile,
    id_hashes,
    places_of,
    read_records,
    row_records,
    sort_records,
    write_records,
)
from compat.neighbors import unit_rows
from stores.galleries.gallery import GallerySource

_DIRECTIONS = 2
_NEAR, _HALF_NEAR = 2e-4, 1e-2
"""How far two projections of one unit vector lie apart, at most, when it was mapped in another block or kept in three
digits: standard deviations 1e-6 and 5e-4. Another vector of unit length is as near in both with a chance of 4e-8, or
of 1e-4."""
_SEED = 2015
_BLOCK = 1 << 18


def record_held_rows(
    source: GallerySource,
    serve: Serve,
    target: GallerySource,
    path: Path,
    *,
    cosine: bool,
    halves: bool,
    batch_rows: int,
    pause: Pause,
) -> None:
    """Write the records, sorted by id, of the rows that a target holds, for `compat.migration.changes.catch_up`.

    Both galleries are read once, in bounded memory.

    Args:
        source: What was migrated.
        serve: What becomes of its vectors.
        target: What came of it.
        path: The file of records; it appears whole or not at all.
        cosine: Whether vectors of the target are compared by cosine, so that their lengths say nothing.
        halves: Whether the target keeps three digits of a number.
        batch_rows: Rows read at a time.
        pause: Asked between batches.

    Raises:
        Paused: If `pause` was asked to.
    """
    columns = _columns(source) & _columns(target)
    with TemporaryDirectory(prefix="adoption-", dir=path.parent) as name:
        folder = Path(name)
        theirs = _Files(folder, "source")
        ours = _Files(folder, "target")
        for gallery, files in ((source, theirs), (target, ours)):
            writing = [RecordFile(each) for each in files.unsorted]
            try:
                with closing(ahead(gallery.scan(batch_rows))) as batches:
                    for items, vectors in batches:
                        pause.check()
                        held = serve(vectors, items["item_id"], 0) if gallery is source else vectors
                        found = (
                            row_records(items, vectors),
                            _projections(items, held, cosine),
                            row_records(_spelled(items, columns), np.empty((len(vectors), 0), np.float32)),
                        )
                        for file, records in zip(writing, found, strict=True):
                            file.add(records)
            finally:
                for file in writing:
                    file.close()
            for each, ordered in zip(files.unsorted, files.ordered, strict=True):
                sort_records(each, ordered)
                each.unlink()
        write_records(path, _held(theirs, ours, _HALF_NEAR if halves else _NEAR))


class _Files(NamedTuple):
    folder: Path
    name: str

    @property
    def unsorted(self) -> list[Path]:
        return [self.folder / f"{self.name}-{what}.unsorted" for what in ("rows", "vectors", "columns")]

    @property
    def ordered(self) -> list[Path]:
        return [each.with_suffix(".records") for each in self.unsorted]


def _columns(gallery: GallerySource) -> set[str]:
    with closing(ahead(gallery.scan(1), 1)) as batches:
        return next((set(batch.items.columns) for batch in batches), set())


def _spelled(items: pl.DataFrame, columns: set[str]) -> pl.DataFrame:
    """The columns that both have, numbers as text: engines keep them in types of their own."""
    shared = [column for column in items if column.name in columns and column.name != "item_id"]
    kinds = (pl.String, pl.Boolean)
    return pl.DataFrame(
        [
            items["item_id"],
            *(each.cast(pl.String) if each.dtype.is_integer() or each.dtype in kinds else each for each in shared),
        ]
    )


def _projections(items: pl.DataFrame, vectors: np.ndarray, cosine: bool) -> np.ndarray:
    """Records [n] of rows: their ids, and two projections, float32, of the vector in the place of its hash."""
    generator = np.random.Generator(np.random.PCG64(_SEED))
    directions = generator.choice([-1.0, 1.0], (vectors.shape[1], _DIRECTIONS)).astype(np.float32)
    records = np.empty(len(vectors), RECORD)
    records["id"] = id_hashes(items["item_id"])
    projected = (unit_rows(vectors) if cosine else vectors) @ directions
    records["vector"] = np.ascontiguousarray(projected, np.float32).view(np.uint64)[:, 0]
    return records


def _held(theirs: _Files, ours: _Files, near: float) -> Iterator[np.ndarray]:
    """The records of the target's rows, block by block."""
    rows, vectors, columns = (read_records(path) for path in theirs.ordered)
    _, own_vectors, own_columns = (read_records(path) for path in ours.ordered)
    for start in range(0, len(own_vectors), _BLOCK):
        own = np.array(own_vectors[start : start + _BLOCK])
        held = own.copy()
        held["vector"] = UNKNOWN
        first = int(np.searchsorted(vectors["id"], own["id"][0]))
        stop = int(np.searchsorted(vectors["id"], own["id"][-1], side="right"))
        places, known = places_of(np.array(vectors["id"][first:stop]), own["id"])
        places = first + places[known]
        mine, wanted = (each.view(np.float32).reshape(-1, _DIRECTIONS) for each in _both(own, vectors, known, places))
        scale = np.maximum(1.0, np.abs(wanted).max(axis=1, initial=0.0))
        alike = np.abs(mine - wanted).max(axis=1, initial=0.0) <= near * scale
        alike &= own_columns["vector"][start : start + _BLOCK][known] == columns["vector"][places]
        held["vector"][np.flatnonzero(known)[alike]] = rows["vector"][places[alike]]
        yield held


def _both(own: np.ndarray, vectors: np.ndarray, known: np.ndarray, places: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    return np.ascontiguousarray(own["vector"][known]), np.ascontiguousarray(vectors["vector"][places])
