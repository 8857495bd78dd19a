"""The steps of one migration: copy, follow what changes, check."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from compat.migration.adoption import record_held_rows
from compat.migration.changes import LiveGallery, SourceChanges, catch_up
from compat.migration.copying import OnRows, Pause, WatchedSource, copy_rows, serving
from compat.migration.distribute import copy_in_parts
from compat.migration.early import require_parts, require_scheduler
from compat.migration.mappable import open_mappable
from compat.migration.records import IdSet, RecordFile, hash_scheme, sort_records
from compat.migration.state import MigrationState, StateFolder, live_engine, same_gallery, tells_contents
from compat.migration.verify import MigrationCheck, keeps_halves, verify_migration
from compat.transformers.artefact import Transformer
from compat.transformers.serving import SEARCH, search_record
from stores.galleries import digest, locate, open_source, open_target, redact, zarr_store
from stores.galleries.card import partial_path
from stores.galleries.gallery import GallerySource, GalleryTarget


class Migration:
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
        on_look: OnRows | None = None,
    ) -> None:
        self.source, self.target, self.folder = source, target, folder
        self.transformer, self.served, self.source_space = transformer, served, source_space
        self.batch_rows, self.pause, self.on_look = batch_rows, pause, on_look
        self.source_scheme = locate(source)[0]
        self.live = live_engine(self.source_scheme) is not None
        self.provenance: dict[str, Any] = {}
        self.state = MigrationState(source=folder.source, target=folder.target)

    def copy(self, gallery: GallerySource, on_rows: OnRows | None, workers: int, scheduler: str | None) -> int:
        """Copy every row once, and return how many were there from an earlier run."""
        now = digest(self.source)
        if self.live:  # opened after the digest was taken, it holds no less than that tells of
            gallery = open_mappable(self.source, self.served, self.source_space)
        self.provenance = self._provenance(now, len(gallery))
        found = self.folder.read()
        earlier = found.provenance if found else self._finished_before()
        if self.live and _same_work(earlier, self.provenance):
            self.provenance = earlier  # what the target was begun with, whatever changed since
        many = (workers > 1 or scheduler is not None) and not (found is not None and found.reached("copied"))
        if many:
            require_parts(self.source, self.target)
            if scheduler is not None:  # before anything is made
                require_scheduler(scheduler)
            if now != self.provenance["source_digest"]:  # of an earlier run; its parts are of another version
                self._require_same_source()
        if found is None:  # first, so that a target that is begun is known to be ours, whatever the source becomes
            self.state = self._begun(finished=False)
        before = None
        try:
            if many:
                before = self._copy_in_parts(on_rows, workers, scheduler)
                found = self.state = self._begun(finished=True)
            written = open_target(self.target, self.served.served_space, self.provenance)
        except FileExistsError:
            if found is None:
                self.folder.remove()
            raise
        try:
            before = written.rows_committed if before is None else before
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

    def _finished_before(self) -> dict[str, Any]:
        """What a target says of its origin that was whole before there was any state; empty where none is."""
        try:
            return open_source(self.target).provenance
        except (FileNotFoundError, ValueError):  # nothing, or unfinished
            return {}

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

    def _copy_in_parts(self, on_rows: OnRows | None, workers: int, scheduler: str | None) -> int:
        return copy_in_parts(
            self.source,
            self.served,
            self.target,
            self.provenance,
            workers=workers,
            scheduler=scheduler,
            batch_rows=self.batch_rows,
            on_rows=on_rows,
            pause=self.pause,
        )

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
        if self.state.step == "verified":  # until all that changed is there, and checked
            self.state = self.folder.write(self.state.at("copied"))
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
        elif not tells_contents(self.source_scheme) or digest(self.source) != self.state.seen:
            self._adopt(live)
        changes = catch_up(
            self._looked_at,
            serving(self.served, None),
            live,
            self.folder,
            batch_rows=self.batch_rows,
            most_passes=most_passes,
            settled_below=settled_below,
            unseen=unseen if tells_contents(self.source_scheme) else None,
            on_pass=self._count,
            pause=self.pause,
        )
        if seen and changes.settled and seen[-1] != self.state.seen:
            self.state = self.folder.write(replace(self.state, seen=seen[-1]))
        return changes

    def _adopt(self, live: LiveGallery | None) -> None:
        """Find out what a whole target holds of the source, where no record tells, as after it was final."""
        held = live.engine.open_source(live.location) if live else open_source(self.target)
        record_held_rows(
            self._looked_at(),
            serving(self.served, None),
            held,
            self.folder.sorted,
            cosine=self.served.served_space.similarity == "cosine",
            halves=keeps_halves(held),
            batch_rows=self.batch_rows,
            pause=self.pause,
        )
        self.state = self.folder.write(replace(self.state, hashes=hash_scheme()))

    def _count(self, found: SourceChanges) -> None:
        state = self.state
        self.state = self.folder.write(
            replace(
                state,
                inserted=state.inserted + found.inserted,
                updated=state.updated + found.updated,
                removed=state.removed + found.removed,
                passes=state.passes + found.passes,
            )
        )

    def check(self) -> MigrationCheck:
        """Compare the target with the source as they are now."""
        gallery = self._looked_at()
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

    def _looked_at(self) -> GallerySource:
        gallery = open_mappable(self.source, self.served, self.source_space)

        def look(done: int, rows: int) -> None:
            self.pause.check()
            if self.on_look:
                self.on_look(done, rows)

        return WatchedSource(gallery, look)

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
    """Whether two provenances differ in nothing but how the source was at the time, and with which options."""
    moving = {"source_rows", "source_digest", "migrated_from"}
    same = all(found.get(key) == expected.get(key) for key in {*found, *expected} - moving)
    return same and same_gallery(found.get("migrated_from"), expected["migrated_from"])
