"""Rewriting a gallery into the space that the new model's queries search, resumable, in bounded memory."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from compat.migration.verify import MigrationCheck, verify_migration
from compat.transformers import PAIRED
from compat.transformers.artefact import Transformer
from compat.transformers.serving import SEARCH, search_record
from stores.galleries import digest, locate, open_source, open_target
from stores.galleries.gallery import GallerySource

BATCH_ROWS = 4096
BATCHES_PER_COMMIT = 16

OnRows = Callable[[int, int], None]


@dataclass(frozen=True)
class MigrationResult:
    """What a migration came to.

    Attributes:
        source: URI of the old gallery.
        target: URI of what was written.
        rows: Vectors in it.
        rows_before: How many were there from an interrupted run, all where it had finished.
        check: How the copy compares with the source.
        queries: What becomes of a query before it searches the copy; empty where it is searched by cosine as it is.
    """

    source: str
    target: str
    rows: int
    rows_before: int
    check: MigrationCheck
    queries: str = ""

    def __str__(self) -> str:
        before = f" ({self.rows_before} of them from an earlier run)" if self.rows_before else ""
        search = f"; search it by inner product, each query {self.queries}" if self.queries else ""
        return f"{self.rows} vectors{before} migrated to {self.target}; {self.check}{search}"


def migrate_gallery(
    source: str,
    transformer: Transformer,
    target: str,
    *,
    correction: bool = True,
    batch_rows: int = BATCH_ROWS,
    on_rows: OnRows | None = None,
) -> MigrationResult:
    """Write every vector of a gallery, as new queries search it, to another gallery, and check the result.

    The target carries its space and where it came from (source, transformer), so it is searchable with new queries and
    never taken for a native extraction. With a hubness correction it is in `Transformer.served_space`: unit vectors and
    one dimension more, for unit queries with a 1 appended, by inner product; the provenance entry `search` says so. An
    interrupted migration goes on when called again.

    Args:
        source: URI of the old gallery; a bare path is a store.
        transformer: A map of direction `old-to-new`; or `new-to-old` with a correction, which leaves the vectors in
            the old space and is what their extra dimension is for; or either half of a unified transformer, which
            brings its model's vectors, gallery or queries, into the unified space.
        target: URI of the gallery to write.
        correction: Whether to write the transformer's correction, if it carries one.
        batch_rows: Rows in memory at a time.
        on_rows: Called with (rows done, rows in all).

    Raises:
        WrongSpace: If the transformer maps queries, or another space than the gallery's.
        FileExistsError: If something else is at the target.
        ValueError: If the copy does not check out.
    """
    if locate(source) == locate(target):
        raise ValueError(f"source and target are both {source}; the old gallery is never overwritten, name another")
    gallery = open_source(source)
    served = transformer if correction else transformer.without_correction()
    if served.family in PAIRED:
        served = served.mapping_galleries()
    require_mappable(gallery, served, source)
    source_digest = digest(source)
    search = search_record(served) if served.correction else None
    provenance = {
        "migrated_from": source,
        "source_rows": len(gallery),
        "source_digest": source_digest,
        "source_space": served.gallery_space.to_dict(),
        "transformer": {"family": transformer.family, "digest": transformer.digest()},
        **({SEARCH: search} if search else {}),
    }
    offsets = served.known_offsets(source_digest, len(gallery))
    written = open_target(target, served.served_space, provenance)
    try:
        before = written.rows_committed
        if not written.finished:
            done = before
            for number, batch in enumerate(gallery.scan(batch_rows, start=before), start=1):
                rows = slice(done, done + len(batch.vectors))
                known = None if offsets is None else offsets[rows]
                vectors = served.serve_gallery(batch.vectors, batch.items["item_id"], offsets=known)
                written.write(batch._replace(vectors=vectors))
                done = rows.stop
                if number % BATCHES_PER_COMMIT == 0:
                    written.commit()
                if on_rows:
                    on_rows(done, len(gallery))
            written.finish()
    finally:
        written.close()
    check = verify_migration(gallery, served, open_source(target), offsets=offsets)
    return MigrationResult(source, target, len(gallery), before, check, search["queries"] if search else "")


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
            "--space-name, and migrate that"
        )
    if transformer.direction == "new-to-old" and transformer.correction:
        transformer.require("new-to-old", transformer.source, gallery.space)
    else:
        transformer.require("old-to-new", gallery.space)
