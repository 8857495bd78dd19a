"""Orders in which to read a store that is larger than memory."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import polars as pl

BUFFER_ROWS = 65_536
"""Rows shuffled together. 65,536 rows of 512-D float32 are 128 MiB."""


def shuffled_rows(
    rows: int, size: int, *, chunk_rows: int, seed: int, buffer_rows: int = BUFFER_ROWS
) -> Iterator[np.ndarray]:
    """Row numbers 0..rows-1, each once, in batches: chunks in random order, rows mixed within a buffer of chunks.

    Only the chunks of one buffer are touched at a time, so a disk reads long runs and a store of any size streams in
    bounded memory; a full permutation would touch every chunk for every batch.

    Args:
        rows: Number of rows.
        size: Rows in a batch; only the last may be shorter.
        chunk_rows: Rows that lie together on disk.
        seed: The same seed gives the same order.
        buffer_rows: Rows mixed at a time, rounded down to whole chunks (one at least).

    Yields:
        int64 [size] row numbers.

    Raises:
        ValueError: If size is not positive.
    """

    def numbers(start: int, stop: int) -> tuple[np.ndarray]:
        return (np.arange(start, stop),)

    batches = shuffled_batches(numbers, rows, size, chunk_rows=chunk_rows, seed=seed, buffer_rows=buffer_rows)
    for (batch,) in batches:
        yield batch


def shuffled_batches(
    read: Callable[[int, int], tuple[Any, ...]],
    rows: int,
    size: int,
    *,
    chunk_rows: int,
    seed: int,
    buffer_rows: int = BUFFER_ROWS,
    by_chunk: bool = False,
) -> Iterator[tuple[Any, ...]]:
    """What `read` gives of all rows, in the order of `shuffled_rows`; each chunk is read once.

    Args:
        read: Gives columns of rows start..stop-1: arrays [stop - start, ...] or tables of so many rows.
        rows: See `shuffled_rows`, as all further arguments.
        size: Rows in a batch.
        chunk_rows: Rows that lie together on disk.
        seed: The same seed gives the same order.
        buffer_rows: Rows mixed at a time.
        by_chunk: Whether rows of one chunk come one after the other within a batch, which makes them quick to gather.

    Yields:
        The same columns, `size` rows of each.

    Raises:
        ValueError: If size is not positive.
    """
    if size < 1:
        raise ValueError(f"a batch needs at least 1 row, found size={size}")
    generator = np.random.default_rng(seed)
    chunks = generator.permutation(-(-rows // chunk_rows))
    together = max(1, buffer_rows // chunk_rows)
    rest: tuple[Any, ...] | None = None  # too few rows for a batch, left over from the last buffer
    for first in range(0, len(chunks), together):
        starts = (chunks[first : first + together] * chunk_rows).tolist()
        pieces = [read(start, min(start + chunk_rows, rows)) for start in starts]
        order = np.arange(sum(len(piece[0]) for piece in pieces))
        generator.shuffle(order)
        if rest is not None:
            pieces.insert(0, rest)
            order = np.concatenate([np.arange(len(rest[0])), len(rest[0]) + order])
        if by_chunk:
            order = np.concatenate([np.sort(order[start : start + size]) for start in range(0, len(order), size)])
        columns = [_joined(parts)[order] for parts in zip(*pieces, strict=True)]
        whole = len(order) - len(order) % size
        for start in range(0, whole, size):
            yield tuple(column[start : start + size] for column in columns)
        rest = tuple(column[whole:] for column in columns) if whole < len(order) else None
    if rest is not None:
        yield rest


def _joined(parts: tuple[Any, ...]) -> Any:
    if len(parts) == 1:
        return parts[0]
    return pl.concat(parts, rechunk=True) if isinstance(parts[0], pl.DataFrame) else np.concatenate(parts)
