"""Rewriting a gallery into the new model's space, resumable, in bounded memory."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from compat.migration.verify import MigrationCheck, verify_migration
from compat.transformers.artefact import Transformer
from stores.galleries import digest, locate, open_source, open_target
from stores.galleries.gallery import GallerySource

BATCH_ROWS = 4096
BATCHES_PER_COMMIT = 16

OnRows = Callable[[int, int], None]


@dataclass(frozen=True)
class MigrationResult:
    """What a migration came to; `rows_before` rows were there from an interrupted run, all where it had finished."""

    source: str
    target: str
    rows: int
    rows_before: int
    check: MigrationCheck

    def __str__(self) -> str:
        before = f" ({self.rows_before} of them from an earlier run)" if self.rows_before else ""
        return f"{self.rows} vectors{before} migrated to {self.target}; {self.check}"


def migrate_gallery(
    source: str, transformer: Transformer, target: str, *, batch_rows: int = BATCH_ROWS, on_rows: OnRows | None = None
) -> MigrationResult:
    """Write every vector of a gallery, mapped into the new model's space, to another gallery, and check the result.

    The target carries the new space and where it came from (source, transformer), so it is searchable with new
    queries and never taken for a native extraction. An interrupted migration goes on when called again.

    Args:
        source: URI of the old gallery; a bare path is a store.
        transformer: A map of direction `old-to-new`.
        target: URI of the gallery to write.
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
    require_mappable(gallery, transformer, source)
    provenance = {
        "migrated_from": source,
        "source_rows": len(gallery),
        "source_digest": digest(source),
        "source_space": transformer.source.to_dict(),
        "transformer": {"family": transformer.family, "digest": transformer.digest()},
    }
    written = open_target(target, transformer.target, provenance)
    try:
        before = written.rows_committed
        if not written.finished:
            done = before
            for number, batch in enumerate(gallery.scan(batch_rows, start=before), start=1):
                written.write(batch._replace(vectors=transformer.transform(batch.vectors)))
                done += len(batch.vectors)
                if number % BATCHES_PER_COMMIT == 0:
                    written.commit()
                if on_rows:
                    on_rows(done, len(gallery))
            written.finish()
    finally:
        written.close()
    check = verify_migration(gallery, transformer, open_source(target))
    return MigrationResult(source, target, len(gallery), before, check)


def require_mappable(gallery: GallerySource, transformer: Transformer, uri: str) -> None:
    """Make sure that a transformer maps this gallery.

    Raises:
        WrongSpace: If it maps queries, or another space.
        ValueError: If the gallery is empty, or cannot tell its space.
    """
    if not len(gallery):
        raise ValueError(f"the gallery {uri} is empty; there is nothing to migrate")
    if gallery.space is None:
        raise ValueError(
            f"{uri} does not tell which model made its vectors; make a store of it with python -m stores.convert and "
            "--space-name, and migrate that"
        )
    transformer.require("old-to-new", gallery.space)
