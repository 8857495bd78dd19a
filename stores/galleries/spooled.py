"""Writing a format that cannot append: rows gather in a hidden store beside the target, then the file is made whole."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Collection, Sequence
from pathlib import Path
from typing import Any

from stores.chunks import DamagedStore
from stores.durable import sha256_of, sync_folder
from stores.galleries.card import GalleryCard, card_path, partial_path
from stores.galleries.zarr_store import StoreTarget, already_finished, require_same_origin
from stores.space import EmbeddingSpace
from stores.store import Batch, EmbeddingStore


class SpooledTarget:
    """A gallery file FILE that is absent until `finish`, which renames it into place and writes its card last.

    Args:
        path: FILE: absent, or left by an interrupted or finished run with the same space and provenance.
        space: What the vectors are.
        provenance: JSON values that say where the vectors come from.
        build: Writes the rows of a store to a file of the given name, flushed to disk, and returns that file and its
            companions in the same folder.
        reserved: Item columns that the format needs for itself.

    Raises:
        FileExistsError: If FILE is there and something else.
        StoreLocked: If another process is writing it.
    """

    def __init__(
        self,
        path: Path,
        space: EmbeddingSpace,
        provenance: dict[str, Any],
        build: Callable[[EmbeddingStore, Path], Sequence[Path]],
        *,
        reserved: Collection[str] = (),
    ) -> None:
        self._path = path
        self._build = build
        self._reserved = reserved
        self._partial = partial_path(path)
        self._card = GalleryCard.beside(path)
        self._spool: StoreTarget | None = None
        if self._card is None:
            if path.exists() and not (self._partial / "store.json").is_file():
                raise FileExistsError(f"{path} already exists; name another target, or remove it")
            self._spool = StoreTarget(self._partial, space, provenance)
            return
        require_same_origin(path, self._card.space, self._card.provenance, space, provenance)
        gone = [name for name in self._card.files if not (path.parent / name).is_file()]
        if gone:
            raise DamagedStore(
                f"{path.parent / gone[0]} is missing beside {card_path(path)}; restore it, or remove the card to write "
                "the gallery again"
            )
        shutil.rmtree(self._partial, ignore_errors=True)  # of a run killed while it tidied up

    @property
    def rows_committed(self) -> int:
        """Rows that survive an interruption."""
        if self._spool is not None:
            return self._spool.rows_committed
        return self._card.rows if self._card else 0

    @property
    def finished(self) -> bool:
        """Whether the file is whole."""
        return self._card is not None

    def write(self, batch: Batch) -> None:
        """Add rows; see `GalleryTarget`."""
        taken = sorted(set(batch.items.columns).intersection(self._reserved))
        if taken:
            raise ValueError(f"item column {taken[0]!r} is reserved by the format of {self._path}; rename it")
        self._begun().write(batch)

    def commit(self) -> None:
        """Make what was written outlive an interruption."""
        self._begun().commit()

    def finish(self) -> None:
        """Build the file from the rows, put it in place, and remove the hidden store."""
        if self.finished:
            return
        spool = self._begun()
        spool.commit()
        built = self._build(spool.store, self._partial / self._path.name)
        card = GalleryCard(
            space=spool.store.space,
            rows=len(spool.store),
            provenance=spool.provenance,
            files={path.name: sha256_of(path) for path in built},
        )
        for path in built:
            path.replace(self._path.parent / path.name)
        sync_folder(self._path.parent)
        card.write(self._path)
        sync_folder(self._path.parent)
        self._card = card
        self.close()
        shutil.rmtree(self._partial)

    def close(self) -> None:
        """Let others write."""
        if self._spool is not None:
            self._spool.close()
            self._spool = None

    def _begun(self) -> StoreTarget:
        if self._spool is None:
            raise already_finished(self._path) if self.finished else ValueError(f"{self._path} is closed")
        return self._spool
