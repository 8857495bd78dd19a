"""Rewriting a gallery into the space that the new model's queries search, resumable, in bounded memory.

Rows that come, change or go in the source meanwhile are followed; a file is a snapshot and must stay as it is.
"""

from __future__ import annotations

from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from compat.migration.changes import MOST_PASSES, SourceChanges
from compat.migration.copying import BATCH_ROWS, BATCHES_PER_COMMIT, OnRows, Pause
from compat.migration.early import require_apart
from compat.migration.mappable import open_mappable, served_form
from compat.migration.state import state_folder
from compat.migration.steps import Migration
from compat.migration.verify import MigrationCheck, Search, SearchCheck, engine_search, verify_search
from compat.transformers.artefact import Transformer, WrongSpace
from compat.transformers.serving import SEARCH
from stores.galleries import open_source, redact
from stores.galleries.gallery import GallerySource
from stores.store import EmbeddingStore

SEARCHED = 64
"""Queries that an index is tried with."""

__all__ = [
    "BATCHES_PER_COMMIT",
    "BATCH_ROWS",
    "MigrationResult",
    "OnRows",
    "Pause",
    "VerifiedGallery",
    "migrate_gallery",
    "verify_migrated",
]


@dataclass(frozen=True)
class MigrationResult:
    """What a migration came to.

    Attributes:
        source: URI of the old gallery, without a password.
        target: URI of what was written, without a password.
        rows: Vectors in it.
        rows_before: How many were there from an interrupted run, all where it had finished.
        check: How the copy compares with the source.
        queries: What becomes of a query before it searches the copy; empty where it is searched by cosine as it is.
        changes: What changed in the source meanwhile; None where it cannot.
        changes_in_all: The same of every run of this migration.
    """

    source: str
    target: str
    rows: int
    rows_before: int
    check: MigrationCheck
    queries: str = ""
    changes: SourceChanges | None = None
    changes_in_all: SourceChanges | None = None

    def __str__(self) -> str:
        before = f" ({self.rows_before} of them from an earlier run)" if self.rows_before else ""
        if self.rows_before > self.rows:
            before = f" (an earlier run had copied {self.rows_before})"
        search = f"; search it by inner product, each query {self.queries}" if self.queries else ""
        changes = f"; {self.changes}" if self.changes and self.changes.passes else ""
        if self.changes and self.changes_in_all and self.changes_in_all.count > self.changes.count:
            changes += f" ({self.changes_in_all.in_all})"
        return f"{self.rows} vectors{before} migrated to {self.target}{changes}; {self.check}{search}"


def migrate_gallery(
    source: str,
    transformer: Transformer,
    target: str,
    *,
    correction: bool = True,
    batch_rows: int = BATCH_ROWS,
    on_rows: OnRows | None = None,
    on_look: OnRows | None = None,
    source_space: str | None = None,
    state: str | Path | None = None,
    most_passes: int = MOST_PASSES,
    settled_below: int = 1,
    pause: Pause | None = None,
    workers: int = 1,
    scheduler: str | None = None,
) -> MigrationResult:
    """Write every vector of a gallery, as new queries search it, to another gallery, and check the result.

    The target carries its space and where it came from (source, transformer), so it is searchable with new queries and
    never taken for a native extraction. With a hubness correction it is in `Transformer.served_space`: unit vectors and
    one dimension more, for unit queries with a 1 appended, by inner product; the provenance entry `search` says so. An
    interrupted migration goes on when called again. Called again after it ended, it brings over what changed since.

    `source_rows` and `source_digest` of the provenance are those of the beginning.

    Args:
        source: URI of the old gallery; a bare path is a store.
        transformer: A map of direction `old-to-new`; or `new-to-old` with a correction, which leaves the vectors in
            the old space and is what their extra dimension is for; or either half of a unified transformer, which
            brings its model's vectors, gallery or queries, into the unified space.
        target: URI of the gallery to write.
        correction: Whether to write the transformer's correction, if it carries one.
        batch_rows: Rows in memory at a time.
        on_rows: Called with (rows done, rows in all).
        on_look: The same, each time the source is read again: for what changed in it, and to check the copy. Another
            thread calls it.
        source_space: Name of the model that made the vectors, for a source that cannot tell: that of the space the
            transformer expects.
        state: Folder of the migration's state; None for the one `compat.migration.state` tells.
        most_passes: How often to look for changes in the source at most.
        settled_below: A look that finds fewer changes is the last.
        pause: Stops the migration when asked to, with everything so far committed.
        workers: Processes that copy; several need a source that stays as it is, see `copy_in_parts`.
        scheduler: Address of a dask scheduler whose workers copy instead.

    Raises:
        WrongSpace: If the transformer maps queries, or another space than the gallery's.
        FileExistsError: If something else is at the target.
        StoreLocked: If another process migrates there.
        Paused: If `pause` was asked to.
        ValueError: If the copy does not check out, or the source is a file and changed meanwhile.
    """
    require_apart(source, target)
    served = served_form(transformer, correction=correction)
    gallery = open_mappable(source, served, source_space)
    folder = state_folder(source, target, state)
    with folder.alone():
        work = Migration(
            source, target, transformer, served, source_space, folder, batch_rows, pause or Pause(), on_look
        )
        before = work.copy(gallery, on_rows, workers, scheduler)
        changes = work.follow(most_passes, settled_below)
        try:
            check = work.check()
        except ValueError as error:
            if changes is None or changes.settled:
                raise
            raise ValueError(f"{changes} ({error})") from None
    queries = str(work.provenance[SEARCH]["queries"]) if SEARCH in work.provenance else ""
    state_now = work.state
    in_all = SourceChanges(state_now.inserted, state_now.updated, state_now.removed, state_now.passes)
    return MigrationResult(redact(source), redact(target), check.rows, before, check, queries, changes, in_all)


@dataclass(frozen=True)
class VerifiedGallery:
    """How a migrated gallery compares with its source, and how its index with exact search, where it has one."""

    check: MigrationCheck
    search: SearchCheck | None = None

    def __str__(self) -> str:
        return f"{self.check}; {self.search}" if self.search else str(self.check)


def verify_migrated(
    source: str,
    transformer: Transformer,
    target: str,
    *,
    correction: bool = True,
    source_space: str | None = None,
    state: str | Path | None = None,
    queries: str | Path | None = None,
    search: Search | None = None,
    on_look: OnRows | None = None,
) -> VerifiedGallery:
    """Check a migrated gallery again: every id once, vectors recomputed, its index against exact search.

    Args:
        source: URI of the old gallery.
        transformer: The map it was migrated with.
        target: URI of the migrated gallery.
        correction: Whether it was written with the transformer's correction.
        source_space: Name of the space of a source that cannot tell.
        state: Folder of the migration's state; None for the usual one.
        queries: Store of queries of the new model; None for vectors of the target itself.
        search: Searches the target through its index; None for the engine's own search, where it has one.
        on_look: Called by another thread with (rows read, rows in all), each time the source is read.

    Raises:
        WrongSpace: If the transformer is of other spaces than the gallery or the queries.
        StoreLocked: If another process migrates there.
        ValueError: If the copy does not check out, or is not whole.
    """
    served = served_form(transformer, correction=correction)
    open_mappable(source, served, source_space)
    folder = state_folder(source, target, state)
    work = Migration(source, target, transformer, served, source_space, folder, BATCH_ROWS, Pause(), on_look)
    with folder.alone() if folder.begun else nullcontext():
        work.look(open_source(target))
        check = work.check()
    search = search or engine_search(target, served.served_space.similarity)
    if search is None:
        return VerifiedGallery(check)
    gallery = open_source(target)
    return VerifiedGallery(check, verify_search(gallery, _queries(gallery, served, queries), search))


def _queries(gallery: GallerySource, served: Transformer, path: str | Path | None) -> np.ndarray:
    """Queries as the gallery takes them, float32 [at most `SEARCHED`, d]."""
    if path is not None:
        store = EmbeddingStore.open(path)
        if store.space != served.query_space:
            raise WrongSpace(f"{path} is in {store.space}, expected {served.query_space}, which the queries are in")
        return served.serve_queries(store.rows(0, min(len(store), SEARCHED)))
    step, first, found = max(1, len(gallery) // SEARCHED), 0, []
    for batch in gallery.scan(BATCH_ROWS):
        found.append(np.array(batch.vectors[np.arange(-first % step, len(batch.vectors), step)]))
        first += len(batch.vectors)
    vectors = np.concatenate(found)[:SEARCHED]
    if served.correction:
        vectors[:, -1] = 1.0  # where a gallery vector holds its offset
    return vectors
