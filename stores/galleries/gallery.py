"""What a gallery is to the rest of the toolkit: rows that can be read in order, and a place rows can be written to."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager
from typing import Any, Protocol, runtime_checkable

import polars as pl

from stores.space import EmbeddingSpace
from stores.store import Batch


class GallerySource(Protocol):
    """Where a gallery is read from."""

    @property
    def space(self) -> EmbeddingSpace | None:
        """What the vectors are; None where the format cannot tell."""
        ...

    @property
    def dim(self) -> int:
        """Length of a vector."""
        ...

    @property
    def provenance(self) -> dict[str, Any]:
        """Where the vectors come from, as JSON values; empty where the format cannot tell."""
        ...

    def __len__(self) -> int:
        """Rows."""
        ...

    def scan(self, size: int, *, start: int = 0) -> Iterator[Batch]:
        """Rows start.. in row order, `size` at a time (the last batch perhaps shorter), in bounded memory.

        The vectors, float32 [b, d], may be read-only.

        Raises:
            ValueError: If size is not positive, start is not within 0..len, or the gallery is damaged.
        """
        ...


class GalleryTarget(Protocol):
    """Where a gallery is written to, batch after batch in the source's order."""

    @property
    def rows_committed(self) -> int:
        """Rows that survive an interruption: where the next run goes on."""
        ...

    @property
    def finished(self) -> bool:
        """Whether the gallery is whole and readable: by `finish`, or by an earlier run of the same work."""
        ...

    def write(self, batch: Batch) -> None:
        """Add rows.

        Raises:
            ValueError: If the batch does not fit the space or the rows before it.
            FileExistsError: If the gallery is finished.
        """
        ...

    def commit(self) -> None:
        """Make what was written outlive an interruption."""
        ...

    def finish(self) -> None:
        """Commit, and make the gallery whole and readable. Does nothing when it is already."""
        ...

    def close(self) -> None:
        """Let go of files and locks; what was not committed is lost."""
        ...


class GalleryEngine(Protocol):
    """A kind of place a gallery may live in: one module of this package with these functions."""

    def open_source(self, location: str) -> GallerySource:
        """Open the gallery at `location`, the part of a URI after `scheme:`."""
        ...

    def open_target(self, location: str, space: EmbeddingSpace, provenance: dict[str, Any]) -> GalleryTarget:
        """Begin a gallery at `location`, or go on with one that was interrupted."""
        ...

    def digest(self, location: str) -> str:
        """Whether a gallery is still what it was, hexadecimal: over its vectors and ids.

        Of an engine that others write to while one reads, a name that the table keeps whatever its rows: such changes
        are looked for afterwards, row by row.
        """
        ...


class LiveEngine(GalleryEngine, Protocol):
    """An engine whose galleries change in place and are reached by a name that can be moved from one to another."""

    def put(self, location: str, batch: Batch) -> None:
        """Add rows to a finished gallery; a row whose id is there is replaced. All of them or none."""
        ...

    def remove(self, location: str, item_ids: pl.Series) -> int:
        """Take rows out of a finished gallery and return how many there were; ids that it has not are passed over."""
        ...

    def serve(self, name: str, location: str) -> None:
        """Let `name` (a view, an alias, a link) lead to the gallery at `location`, in one step."""
        ...

    def served(self, name: str) -> str | None:
        """The location that `name` leads to; None where there is no such name."""
        ...

    def discard(self, location: str) -> None:
        """Delete a gallery that no name leads to. One that is gone already is passed over."""
        ...


@runtime_checkable
class ErasingEngine(LiveEngine, Protocol):
    """A live engine that can also see to it that the bytes of rows are gone, which `remove` need not."""

    def erase(self, location: str, item_ids: pl.Series) -> int:
        """Take rows out as `remove` does, and leave no byte of them, nor of rows removed earlier, in its files."""
        ...

    def erasing(self, location: str) -> bool:
        """Whether an `erase` was interrupted: rows that it took out already may be asked for again."""
        ...

    def residue(self, location: str) -> str | None:
        """What may hold bytes of erased rows all the same, beyond this engine's reach; None where nothing does."""
        ...


@runtime_checkable
class CompactingEngine(LiveEngine, Protocol):
    """A live engine whose removed rows leave bytes behind until all of a gallery is written anew, which takes long."""

    def compact(self, location: str) -> str | None:
        """Leave no byte of removed rows in a gallery's files.

        Returns:
            What may hold some all the same, beyond this engine's reach; None where nothing does.
        """
        ...

    def uncompacted(self, location: str) -> bool:
        """Whether rows were removed since the last `compact`: an interrupted `forget` may ask for them again."""
        ...


@runtime_checkable
class PartsEngine(GalleryEngine, Protocol):
    """An engine that many processes write one gallery to, each a part of its rows, in any order and more than once."""

    def begin_parts(self, location: str, space: EmbeddingSpace, provenance: dict[str, Any], rows: int) -> int:
        """Begin a gallery of so many rows, or go on with it; return the rows of a part (the last may be shorter)."""
        ...

    def hold_parts(self, location: str) -> AbstractContextManager[None]:
        """Be the one who hands out the parts of a gallery that was begun, for the block.

        Raises:
            StoreLocked: If somebody else does.
        """
        ...

    def parts_done(self, location: str) -> set[int]:
        """Numbers of the parts that are written and outlive an interruption; all of them of a finished gallery."""
        ...

    def write_part(self, location: str, number: int, batch: Batch) -> None:
        """Write all rows of a part; to write it again, from this process or another, changes nothing."""
        ...

    def finish_parts(self, location: str) -> None:
        """Make the gallery whole and readable, when every part is done.

        Raises:
            ValueError: If a part is missing.
        """
        ...


def notes_of(gallery: GallerySource | GalleryTarget) -> tuple[str, ...]:
    """What whoever uses a gallery's vectors should know, a line each: its `notes`, where it has some to make."""
    return getattr(gallery, "notes", ())


def row_ranges(rows: int, size: int, start: int) -> Iterator[tuple[int, int]]:
    """Cut rows start..rows-1 into [first, stop) ranges of `size`, the last perhaps shorter.

    Raises:
        ValueError: If size is not positive or start is not within 0..rows.
    """
    if size < 1:
        raise ValueError(f"a batch needs at least 1 row, found size={size}")
    if not 0 <= start <= rows:
        raise ValueError(f"cannot start at row {start} of a gallery of {rows} rows; begin again with start=0")
    return ((first, min(first + size, rows)) for first in range(start, rows, size))
