"""A migration tried on the beginning of a gallery, to tell how fast it goes; nothing that is written stays."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from tempfile import TemporaryDirectory

from compat.migration.copying import BATCHES_PER_COMMIT, ahead, copy_rows, serving
from compat.migration.state import FILE_SCHEMES
from compat.transformers.artefact import Transformer
from stores.galleries import locate, open_target
from stores.galleries.gallery import GallerySource
from stores.store import Batch


class _Sample:
    """The beginning of a gallery, until a time is over."""

    def __init__(self, gallery: GallerySource, seconds: float) -> None:
        self._gallery, self._seconds = gallery, seconds
        self.space, self.dim, self.provenance = gallery.space, gallery.dim, gallery.provenance
        self.rows = 0

    def __len__(self) -> int:
        return len(self._gallery)

    def scan(self, size: int, *, start: int = 0) -> Iterator[Batch]:
        began = time.monotonic()
        with closing(ahead(self._gallery.scan(size, start=start), 1)) as batches:
            for number, batch in enumerate(batches, start=1):
                yield batch
                self.rows += len(batch.vectors)
                if number % BATCHES_PER_COMMIT == 0 and time.monotonic() - began > self._seconds:
                    return
                if time.monotonic() - began > 2 * self._seconds:
                    return


class _Nowhere:
    """A target that keeps nothing."""

    rows_committed, finished = 0, False

    def write(self, batch: Batch) -> None:
        pass

    def commit(self) -> None:
        pass

    def finish(self) -> None:
        pass

    def close(self) -> None:
        pass


def try_migration(
    gallery: GallerySource, served: Transformer, target: str, batch_rows: int, seconds: float
) -> tuple[float, str]:
    """Migrate the beginning of a gallery to a scratch gallery, where the target is a file, or to nowhere.

    Args:
        gallery: The source.
        served: The map as the gallery goes through it.
        target: URI of the target, which is left alone.
        batch_rows: Rows in memory at a time.
        seconds: How long to try, about; at least one batch is.

    Returns:
        Rows per second, and what they went through, in words.
    """
    scheme, location = locate(target)
    sample = _Sample(gallery, seconds)
    if scheme not in FILE_SCHEMES:
        began = time.monotonic()
        copy_rows(sample, serving(served, None), _Nowhere(), batch_rows=batch_rows)
        took = time.monotonic() - began
        return sample.rows / took, "a sample read and mapped, not written; writing may take longer"
    with TemporaryDirectory(prefix=".plan-", dir=existing_folder(Path(location).parent)) as folder:
        place = str(Path(folder) / "scratch") + "".join(Path(location).suffixes[-1:])
        scratch = open_target(f"{scheme}:{place}", served.served_space, {})
        try:
            began = time.monotonic()
            copy_rows(sample, serving(served, None), scratch, batch_rows=batch_rows)
            scratch.finish()
            took = time.monotonic() - began
        finally:
            scratch.close()
    return sample.rows / took, f"{sample.rows} rows read, mapped and written to a scratch gallery"


def existing_folder(folder: Path) -> Path:
    """The folder, or the nearest one above it that is there."""
    while not folder.exists():
        folder = folder.parent
    return folder
