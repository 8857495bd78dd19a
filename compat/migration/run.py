"""Rewriting a gallery into the space that the new model's queries search, resumable, in bounded memory.

Rows that come, change or go in the source meanwhile are followed; a file is a snapshot and must stay as it is.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from compat.migration.changes import MOST_PASSES, LiveGallery, SourceChanges, catch_up
from compat.migration.copying import BATCH_ROWS, BATCHES_PER_COMMIT, OnRows, Pause, copy_rows, serving
from compat.migration.records import IdSet, RecordFile, hash_scheme, sort_records
from compat.migration.state import MigrationState, StateFolder, live_engine, state_folder, tells_contents
from compat.migration.verify import MigrationCheck, Search, SearchCheck, engine_search, verify_migration, verify_search
from compat.transformers.artefact import Transformer, WrongSpace
from compat.transformers.serving import SEARCH, search_record
from stores.durable import WriterLock
from stores.galleries import digest, locate, open_source, open_target, redact, zarr_store
from stores.galleries.card import partial_path
from stores.galleries.gallery import GallerySource, GalleryTarget
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
    "open_mappable",
    "require_apart",
    "require_mappable",
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
    """

    source: str
    target: str
    rows: int
    rows_before: int
    check: MigrationCheck
    queries: str = ""
    changes: SourceChanges | None = None

    def __str__(self) -> str:
        before = f" ({self.rows_before} of them from an earlier run)" if self.rows_before else ""
        search = f"; search it by inner product, each query {self.queries}" if self.queries else ""
        changes = f"; {self.changes}" if self.changes and self.changes.passes else ""
        return f"{self.rows} vectors{before} migrated to {self.target}{changes}; {self.check}{search}"


def migrate_gallery(
    source: str,
    transformer: Transformer,
    target: str,
    *,
    correction: bool = True,
    batch_rows: int = BATCH_ROWS,
    on_rows: OnRows | None = None,
    source_space: str | None = None,
    state: str | Path | None = None,
    most_passes: int = MOST_PASSES,
    settled_below: int = 1,
    pause: Pause | None = None,
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
            the old space and is what their extra dimension is for.
        target: URI of the gallery to write.
        correction: Whether to write the transformer's correction, if it carries one.
        batch_rows: Rows in memory at a time.
        on_rows: Called with (rows done, rows in all).
        source_space: Name of the model that made the vectors, for a source that cannot tell: that of the space the
            transformer expects.
        state: Folder of the migration's state; None for the one `compat.migration.state` tells.
        most_passes: How often to look for changes in the source at most.
        settled_below: A look that finds fewer changes is the last.
        pause: Stops the migration when asked to, with everything so far committed.

    Raises:
        WrongSpace: If the transformer maps queries, or another space than the gallery's.
        FileExistsError: If something else is at the target.
        StoreLocked: If another process migrates there.
        Paused: If `pause` was asked to.
        ValueError: If the copy does not check out, or the source is a file and changed meanwhile.
    """
    require_apart(source, target)
    served = transformer if correction else transformer.without_correction()
    gallery = open_mappable(source, served, source_space)
    folder = state_folder(source, target, state)
    with _alone(folder):
        work = _Migration(source, target, transformer, served, source_space, folder, batch_rows, pause or Pause())
        before = work.copy(gallery, on_rows)
        changes = work.follow(most_passes, settled_below)
        try:
            check = work.check()
        except ValueError as error:
            if changes is None or changes.settled:
                raise
            raise ValueError(f"{changes} ({error})") from None
    queries = str(work.provenance[SEARCH]["queries"]) if SEARCH in work.provenance else ""
    return MigrationResult(redact(source), redact(target), check.rows, before, check, queries, changes)


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

    Raises:
        WrongSpace: If the transformer is of other spaces than the gallery or the queries.
        ValueError: If the copy does not check out, or is not whole.
    """
    served = transformer if correction else transformer.without_correction()
    open_mappable(source, served, source_space)
    folder = state_folder(source, target, state)
    work = _Migration(source, target, transformer, served, source_space, folder, BATCH_ROWS, Pause())
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


@contextmanager
def _alone(folder: StateFolder) -> Iterator[None]:
    """The one migration to a target, for the block; leaves no empty folder where nothing was begun."""
    folder.folder.mkdir(parents=True, exist_ok=True)
    lock = WriterLock(folder.folder)
    lock.acquire()
    try:
        yield
    finally:
        if not folder.begun:
            folder.remove()
        lock.release()


class _Migration:
    """The steps of one migration, each of which goes on where an earlier run left it."""

    def __init__(
        self,
        source: str,
        target: str,
        transformer: Transformer,
        served: Transformer,
        source_space: str | None,
        folder: StateFolder,
        batch_rows: int,
        pause: Pause,
    ) -> None:
        self.source, self.target, self.folder = source, target, folder
        self.transformer, self.served, self.source_space = transformer, served, source_space
        self.batch_rows, self.pause = batch_rows, pause
        self.source_scheme = locate(source)[0]
        self.live = live_engine(self.source_scheme) is not None
        self.provenance: dict[str, Any] = {}
        self.state = MigrationState(source=folder.source, target=folder.target)

    def copy(self, gallery: GallerySource, on_rows: OnRows | None) -> int:
        """Copy every row once, and return how many were there from an earlier run."""
        now = digest(self.source)
        if self.live:  # opened after the digest was taken, it holds no less than that tells of
            gallery = open_mappable(self.source, self.served, self.source_space)
        self.provenance = self._provenance(now, len(gallery))
        found = self.folder.read()
        if found is not None and self.live and _same_work(found.provenance, self.provenance):
            self.provenance = found.provenance  # what the target was begun with, whatever changed since
        if found is None:  # first, so that a target that is begun is known to be ours, whatever the source becomes
            self.state = self._begun(finished=False)
        try:
            written = open_target(self.target, self.served.served_space, self.provenance)
        except Exception:
            if found is None:
                self.folder.remove()
            raise
        try:
            before = written.rows_committed
            fresh = found is None or found.provenance != self.provenance or not (before or written.finished)
            self.state = self._begun(finished=written.finished) if fresh else found or self.state
            if not self.state.reached("copied"):
                self._copy(gallery, written, now, on_rows)
            if not self.live:
                self._require_same_source()
                written.finish()
        finally:
            written.close()
        return before

    def look(self, written: GallerySource) -> None:
        """Take up a migration whose target is there, without writing to it."""
        found = self.folder.read()
        if found is None:
            seen = digest(self.source) if tells_contents(self.source_scheme) else ""
            found = replace(self.state, step="copied", seen=seen, provenance=written.provenance)
        self.state, self.provenance = found, found.provenance

    def _begun(self, *, finished: bool) -> MigrationState:
        state = MigrationState(
            source=self.folder.source,
            target=self.folder.target,
            provenance=self.provenance,
            space=self.served.served_space.to_dict(),
            hashes=hash_scheme() if self.live and not finished else "",
        )
        if finished:  # by a run that kept no state, or whose state is gone
            state = replace(state, step="copied", seen=self.provenance["source_digest"])
        return self.folder.begin(state)

    def _copy(self, gallery: GallerySource, written: GalleryTarget, now: str, on_rows: OnRows | None) -> None:
        before = written.rows_committed
        same = tells_contents(self.source_scheme) and now == self.provenance["source_digest"]
        offsets = self._offsets(now, len(gallery)) if same or not before else None
        records = known = None
        try:
            if self.live:
                self._require_hashes()
                records = RecordFile(self.folder.copied, before)
                if before and not same:  # rows may have moved: those that are there are known by their ids
                    sort_records(self.folder.copied, self.folder.sorted)
                    known = IdSet(self.folder.sorted)
                self.folder.sorted.unlink(missing_ok=True)
            copy_rows(
                gallery,
                serving(self.served, offsets if known is None else None),
                written,
                start=min(before, len(gallery)),
                batch_rows=self.batch_rows,
                records=records,
                known=known,
                on_rows=on_rows,
                pause=self.pause,
            )
        finally:
            if records is not None:
                records.close()
        self.state = self.folder.write(replace(self.state.at("copied"), seen=now if same or not before else ""))

    def _require_hashes(self) -> None:
        if self.state.hashes != hash_scheme():
            raise ValueError(
                f"{self.folder.folder} was begun with {self.state.hashes or 'another release'}, here is "
                f"{hash_scheme()}, whose records cannot be compared; go on with that, or begin again: --step discard"
            )

    def _require_same_source(self) -> None:
        if digest(self.source) != self.provenance["source_digest"]:
            raise ValueError(
                f"{self.folder.source} changed while it was copied, so that the copy is of neither version; leave it "
                "alone, and begin again: --step discard, then --step run"
            )

    def follow(self, most_passes: int, settled_below: int) -> SourceChanges | None:
        """Finish the target, and bring over what changed in the source."""
        if not self.live:
            return None
        scheme, location = locate(self.target)
        engine = live_engine(scheme)
        partial = partial_path(Path(location))
        live = None
        if engine is not None:
            self._finish()
            live = LiveGallery(engine, location)
        elif (partial / "store.json").is_file():  # the file is not built yet, and takes changes until then
            spool = zarr_store.StoreTarget(partial, self.served.served_space, self.provenance)
            spool.finish()
            spool.close()
            engine = live_engine("zarr")
            live = LiveGallery(engine, str(partial)) if engine else None
        changes = self._catch_up(live, most_passes, settled_below)
        if scheme != "zarr" and live_engine(scheme) is None:
            self._finish()
        return changes

    def _finish(self) -> None:
        written = open_target(self.target, self.served.served_space, self.provenance)
        try:
            written.finish()
        finally:
            written.close()

    def _catch_up(self, live: LiveGallery | None, most_passes: int, settled_below: int) -> SourceChanges:
        seen: list[str] = []

        def unseen() -> bool:
            seen.append(digest(self.source))
            return seen[-1] != (seen[-2] if len(seen) > 1 else self.state.seen)

        if self.folder.copied.is_file() or self.folder.sorted.is_file():
            self._require_hashes()
        elif not tells_contents(self.source_scheme):
            return SourceChanges(settled=False)  # no record tells; what came and went is seen by the check
        changes = catch_up(
            lambda: open_mappable(self.source, self.served, self.source_space),
            serving(self.served, None),
            live,
            self.folder,
            batch_rows=self.batch_rows,
            most_passes=most_passes,
            settled_below=settled_below,
            unseen=unseen if tells_contents(self.source_scheme) else None,
            pause=self.pause,
        )
        if seen and changes.settled and seen[-1] != self.state.seen:
            self.state = self.folder.write(replace(self.state.at("copied"), seen=seen[-1], name=None, before=None))
        return changes

    def check(self) -> MigrationCheck:
        """Compare the target with the source as they are now."""
        gallery = open_mappable(self.source, self.served, self.source_space)
        unchanged = tells_contents(self.source_scheme) and self.state.seen == self.provenance.get("source_digest")
        check = verify_migration(
            gallery,
            self.served,
            open_source(self.target),
            offsets=self._offsets(self.state.seen, len(gallery)) if unchanged else None,
            any_order=not (unchanged and tells_contents(locate(self.target)[0])),
        )
        if self.folder.begun and not self.state.reached("verified"):
            self.state = self.folder.write(self.state.at("verified"))
        return check

    def _offsets(self, source_digest: str, rows: int) -> np.ndarray | None:
        return self.served.known_offsets(source_digest, rows)

    def _provenance(self, source_digest: str, rows: int) -> dict[str, Any]:
        search = search_record(self.served) if self.served.correction else None
        return {
            "migrated_from": redact(self.source),
            "source_rows": rows,
            "source_digest": source_digest,
            "source_space": self.served.gallery_space.to_dict(),
            "transformer": {"family": self.transformer.family, "digest": self.transformer.digest()},
            **({SEARCH: search} if search else {}),
        }


def _same_work(found: dict[str, Any], expected: dict[str, Any]) -> bool:
    """Whether two provenances differ in nothing but how the source was at the time."""
    moving = {"source_rows", "source_digest"}
    return {k: v for k, v in found.items() if k not in moving} == {k: v for k, v in expected.items() if k not in moving}


def require_apart(source: str, target: str) -> None:
    """Make sure that a gallery is not to be written over itself.

    Raises:
        ValueError: If source and target are the same place.
    """
    if locate(source) == locate(target):
        raise ValueError(
            f"source and target are both {redact(source)}; the old gallery is never overwritten, name another"
        )


def open_mappable(uri: str, transformer: Transformer, source_space: str | None = None) -> GallerySource:
    """Open a gallery that a transformer changes; see `require_mappable`.

    Args:
        uri: Where it is.
        transformer: Maps it, or corrects it.
        source_space: Name of the space of a gallery that cannot tell.

    Raises:
        WrongSpace: If the name is not that of the space that the transformer expects.
    """
    space = None
    if source_space is not None:
        space = transformer.gallery_space
        if space.name != source_space:
            raise WrongSpace(
                f"the transformer's gallery is in {space}, the name given is {source_space!r}; "
                "use a transformer of that space"
            )
    gallery = open_source(uri, space=space)
    require_mappable(gallery, transformer, redact(uri))
    return gallery


def require_mappable(gallery: GallerySource, transformer: Transformer, uri: str) -> None:
    """Make sure that a transformer changes this gallery: maps it, or corrects it.

    Raises:
        WrongSpace: If it maps queries and corrects nothing, or is of another space.
        ValueError: If the gallery is empty, or cannot tell its space.
    """
    if not len(gallery):
        raise ValueError(f"the gallery {uri} is empty; there is nothing to migrate")
    if gallery.space is None:
        raise ValueError(
            f"{uri} does not tell which model made its vectors; make a store of it with python -m stores.convert and "
            "--space-name, and migrate that, or name the model here: --source-space"
        )
    if transformer.direction == "new-to-old" and transformer.correction:
        transformer.require("new-to-old", transformer.source, gallery.space)
    else:
        transformer.require("old-to-new", gallery.space)
