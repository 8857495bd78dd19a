"""A gallery in an `EmbeddingStore`, the toolkit's own format."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from stores.commit import COMPLETE
from stores.galleries.gallery import row_ranges
from stores.galleries.origin import already_finished, require_same_origin
from stores.galleries.zarr_live import discard, put, remove, serve, served
from stores.galleries.zarr_parts import begin_parts, finish_parts, hold_parts, parts_begun, parts_done, write_part
from stores.layout import VectorLayout
from stores.space import EmbeddingSpace
from stores.store import Batch, EmbeddingStore

__all__ = [
    "StoreSource",
    "StoreTarget",
    "already_finished",
    "begin_parts",
    "begin_target",
    "digest",
    "discard",
    "finish_parts",
    "hold_parts",
    "open_complete",
    "open_source",
    "open_target",
    "parts_done",
    "put",
    "remove",
    "require_same_origin",
    "serve",
    "served",
    "write_part",
]


class StoreSource:
    """A gallery read from an `EmbeddingStore`."""

    def __init__(self, store: EmbeddingStore) -> None:
        self._store = store
        self.space = store.space
        self.dim = store.space.dim
        self.provenance = {key: value for key, value in store.provenance.items() if key != COMPLETE}

    def __len__(self) -> int:
        return len(self._store)

    def scan(self, size: int, *, start: int = 0) -> Iterator[Batch]:
        """Rows start.. in row order; see `GallerySource`."""
        for first, stop in row_ranges(len(self), size, start):
            yield self._store.batch(first, stop)


class StoreTarget:
    """A gallery written to an `EmbeddingStore`, which holds the provenance given here and `complete`.

    Args:
        path: The store's folder: new, empty, or left by an interrupted run with the same space and provenance.
        space: What the vectors are.
        provenance: JSON values that say where the vectors come from.

    Raises:
        FileExistsError: If the folder holds anything else.
        StoreLocked: If another process is writing there.
    """

    def __init__(self, path: Path, space: EmbeddingSpace, provenance: dict[str, Any]) -> None:
        self._provenance = json.loads(json.dumps(provenance))
        if not (path / "store.json").is_file():
            self._store = EmbeddingStore.create(path, space, provenance=self._provenance | {COMPLETE: False})
            return
        self._store = EmbeddingStore.open(path)
        if COMPLETE not in self._store.provenance:
            raise FileExistsError(f"{path} already exists and is no copy or migration; name another target")
        require_same_origin(path, self._store.space, self._store.provenance, space, self._provenance)
        if not self.finished:
            if parts_begun(path):
                raise FileExistsError(
                    f"{path} was begun by several processes; go on with several (--workers 2), or remove it"
                )
            self._store.commit()  # takes the writer's lock, so that rows_committed stays true

    @property
    def rows_committed(self) -> int:
        """Rows that survive an interruption."""
        return len(self._store)

    @property
    def finished(self) -> bool:
        """Whether every row is in."""
        return self._store.provenance[COMPLETE]

    @property
    def provenance(self) -> dict[str, Any]:
        """Where the vectors come from, as it was given."""
        return self._provenance

    @property
    def store(self) -> EmbeddingStore:
        """The store itself."""
        return self._store

    def write(self, batch: Batch) -> None:
        """Add rows; see `GalleryTarget`."""
        if self.finished:
            raise already_finished(self._store.path)
        self._store.append(batch.items, batch.vectors)

    def commit(self) -> None:
        """Make what was written outlive an interruption."""
        self._store.commit()

    def finish(self) -> None:
        """Commit, and record that every row is in."""
        if not self.finished:
            self._store.commit(self._provenance | {COMPLETE: True})

    def close(self) -> None:
        """Let others write."""
        self._store.close()


def open_complete(path: str | Path) -> EmbeddingStore:
    """Open a store that was written to its end, where whoever wrote it kept record of that.

    Raises:
        FileNotFoundError: If there is none.
        ValueError: If it is damaged, or was not written to its end.
    """
    store = EmbeddingStore.open(path)
    if store.provenance.get(COMPLETE) is False:
        raise ValueError(f"{path} is unfinished, it has {len(store)} rows so far; run the command that writes it again")
    return store


def open_source(location: str) -> StoreSource:
    """Open the store in the folder `location`; see `open_complete`."""
    return StoreSource(open_complete(location))


def open_target(location: str, space: EmbeddingSpace, provenance: dict[str, Any]) -> StoreTarget:
    """Begin or go on with a store in the folder `location`; see `StoreTarget`."""
    return StoreTarget(Path(location), space, provenance)


def digest(location: str) -> str:
    """Digest over the vectors and ids of the store in the folder `location`, hexadecimal.

    Raises:
        FileNotFoundError: If there is no store.
    """
    return EmbeddingStore.open(location).digest()


def begin_target(location: str, space: EmbeddingSpace, provenance: dict[str, Any], layout: VectorLayout) -> None:
    """Make the store of a target with a layout, or find it there with that layout, for `open_target` to go on with.

    Raises:
        FileExistsError: If something else is there, or the same with another layout.
    """
    path = Path(location)
    if not (path / "store.json").is_file():
        EmbeddingStore.create(
            path,
            space,
            chunk_rows=layout.chunk_rows,
            dtype=layout.dtype,
            shard_chunks=layout.shard_chunks,
            provenance=json.loads(json.dumps(provenance)) | {COMPLETE: False},
        ).close()
        return
    found = EmbeddingStore.open(path).layout
    for option in ("dtype", "chunk_rows", "shard_chunks"):
        kept, wanted = getattr(found, option), getattr(layout, option)
        if kept != wanted:
            name = f"--{option.replace('_', '-')}"
            raise FileExistsError(
                f"{path} already exists with {name} {kept}, expected {wanted}; give {name} {kept} to go on with it, or "
                "name another target"
            )
