"""A migration by many processes, of this machine or of a dask cluster: each maps a whole part of the target's rows.

A part is read, mapped and written by one process, which is told the places and the map, and may be done again; what
comes back is how many rows it had. The map travels as the bytes of its artefact, so that workers need no folder of it;
source and target must be reachable from every worker under the same names.
"""

from __future__ import annotations

import tempfile
import threading
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple, cast

import numpy as np
import polars as pl

from compat.migration.copying import BATCH_ROWS, OnRows, Pause, Serve, serving
from compat.migration.early import parts_place, require_parts
from compat.migration.state import FILE_SCHEMES
from compat.transformers.artefact import Transformer, load_transformer
from stores.galleries import GALLERIES, digest, locate, open_source, open_target, redact
from stores.galleries.gallery import GallerySource, PartsEngine
from stores.galleries.zarr_parts import parts_begun
from stores.parts import run_parts
from stores.store import Batch


class PartDone(NamedTuple):
    """What comes back of a part: its rows."""

    rows: int


@dataclass(frozen=True)
class PartsWork:
    """What every part of a migration shares. It shows no places: a database's has a password in it.

    Attributes:
        source: URI of the old gallery.
        source_digest: Its digest, by which the map may know its offsets.
        scheme: Engine that takes the parts.
        location: Where, for that engine.
        rows: Rows in all.
        part_rows: Rows of a part.
        batch_rows: Rows mapped at a time.
        artefact: Name and bytes of each file of the transformer.
    """

    source: str = field(repr=False)
    source_digest: str
    scheme: str
    location: str = field(repr=False)
    rows: int
    part_rows: int
    batch_rows: int
    artefact: dict[str, bytes] = field(repr=False)


def copy_in_parts(
    source: str,
    transformer: Transformer,
    target: str,
    provenance: dict[str, Any],
    *,
    workers: int = 1,
    scheduler: str | None = None,
    batch_rows: int = BATCH_ROWS,
    on_rows: OnRows | None = None,
    pause: Pause | None = None,
) -> int:
    """Write every row of a gallery, mapped, to a target, which is finished then; return the rows of an earlier run.

    A store that comes of it is, byte for byte, the one that one process makes, if all compute with as many threads. A
    file is gathered in its hidden store and made by this process in the end.

    Args:
        source: URI of the old gallery, one of `SOURCES`.
        transformer: As `Transformer.serve_gallery` is to be called.
        target: URI of the new one: of an engine that takes parts, or a file.
        provenance: What the target says of its origin; `source_digest` is that of the source now.
        workers: Processes of this machine, without a scheduler.
        scheduler: Address of a dask scheduler, whose workers have this package and reach source and target.
        batch_rows: Rows mapped at a time; the bytes may depend on it, as they do with one process.
        on_rows: Called with (rows done, rows in all).
        pause: Asked after each part whether to stop.

    Raises:
        FileExistsError: If something else is at the target.
        StoreLocked: If another process hands out its parts.
        Paused: If `pause` was asked to; the parts that are done stay done.
        ValueError: If a gallery can be read or written by one process only, or the source changed meanwhile.
    """
    require_parts(source, target)
    scheme, location = parts_place(target)
    gathered = (scheme, location) != locate(target)  # for a file, made in the end
    space = transformer.served_space
    if gathered and not parts_begun(Path(location)):
        with closing(open_target(target, space, provenance)) as written:
            if written.finished:
                return written.rows_committed
    engine = cast(PartsEngine, GALLERIES[scheme])
    rows = len(open_source(source))
    part_rows = engine.begin_parts(location, space, provenance, rows)
    with engine.hold_parts(location):
        done = engine.parts_done(location)
        if done:
            _require_unchanged(source, target, provenance)
        left = [number for number in range(-(-rows // part_rows)) if number not in done]
        before = rows - sum(min(part_rows, rows - number * part_rows) for number in left)
        if left:
            work = PartsWork(
                source=_from_anywhere(source),
                source_digest=provenance["source_digest"],
                scheme=scheme,
                location=str(Path(location).absolute()) if scheme in FILE_SCHEMES else location,
                rows=rows,
                part_rows=part_rows,
                batch_rows=batch_rows,
                artefact=_artefact(transformer),
            )
            counted = before
            results = run_parts(migrate_part, work, left, workers=workers, scheduler=scheduler, name="migrate-part")
            with closing(results):
                for _, part in results:
                    counted += part.rows
                    if on_rows:
                        on_rows(counted, rows)
                    if pause is not None:
                        pause.check()
            _require_unchanged(source, target, provenance)
        engine.finish_parts(location)
    if gathered:
        with closing(open_target(target, space, provenance)) as written:
            written.finish()
    return before


def _require_unchanged(source: str, target: str, provenance: dict[str, Any]) -> None:
    if digest(source) != provenance["source_digest"]:
        raise ValueError(
            f"{redact(source)} changed while it was copied, so that the copy is of neither version; remove "
            f"{redact(target)} and migrate again, with one process if the source cannot be left alone"
        )


def _from_anywhere(uri: str) -> str:
    """A file's URI that leads to it from any working folder; others unchanged."""
    scheme, location = locate(uri)
    return f"{scheme}:{Path(location).absolute()}" if scheme in FILE_SCHEMES else uri


def _artefact(transformer: Transformer) -> dict[str, bytes]:
    with tempfile.TemporaryDirectory(prefix="transformer-") as folder:
        transformer.save(folder)
        return {path.name: path.read_bytes() for path in Path(folder).iterdir()}


class _Ready(NamedTuple):
    work: PartsWork
    source: GallerySource
    serve: Serve


_ready = threading.local()  # a worker of dask may have several threads, and nothing here is for two at a time


def migrate_part(work: PartsWork, number: int) -> PartDone:
    """Read, map and write one part; what it needs besides is kept for the next one."""
    ready: _Ready | None = getattr(_ready, "value", None)
    if ready is None or ready.work is not work:
        _ready.value = ready = _made_ready(work)
    first = number * work.part_rows
    rows = min(work.part_rows, work.rows - first)
    items: list[pl.DataFrame] = []
    vectors: np.ndarray | None = None
    done = 0
    for batch in ready.source.scan(work.batch_rows, start=first):
        taken = min(len(batch.vectors), rows - done)
        some = batch.items[:taken]
        served = ready.serve(batch.vectors[:taken], some["item_id"], first + done)
        if vectors is None:
            vectors = np.empty((rows, served.shape[1]), np.float32)
        vectors[done : done + taken] = served
        items.append(some)
        done += taken
        if done == rows:
            break
    if vectors is None or done < rows:
        raise ValueError(f"the source ends at row {first + done}, expected {work.rows}; it changed while it was copied")
    cast(PartsEngine, GALLERIES[work.scheme]).write_part(work.location, number, Batch(pl.concat(items), vectors))
    return PartDone(rows)


def _made_ready(work: PartsWork) -> _Ready:
    with tempfile.TemporaryDirectory(prefix="transformer-") as folder:
        for name, content in work.artefact.items():
            (Path(folder) / name).write_bytes(content)
        transformer = load_transformer(folder)
    offsets = transformer.known_offsets(work.source_digest, work.rows)
    return _Ready(work, open_source(work.source), serving(transformer, offsets))
