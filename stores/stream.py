"""Orders in which to read a store that is larger than memory."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

BUFFER_ROWS = 65_536
"""Rows shuffled together. 65,536 rows of 512-D float32 are 128 MiB on disk, mapped, not copied."""


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
    if size < 1:
        raise ValueError(f"a batch needs at least 1 row, found size={size}")
    generator = np.random.default_rng(seed)
    chunks = generator.permutation(-(-rows // chunk_rows))
    together = max(1, buffer_rows // chunk_rows)
    rest = np.empty(0, np.int64)
    for first in range(0, len(chunks), together):
        starts = chunks[first : first + together] * chunk_rows
        buffer = np.concatenate([np.arange(s, min(s + chunk_rows, rows)) for s in starts])
        generator.shuffle(buffer)
        buffer = np.concatenate([rest, buffer])
        whole = len(buffer) - len(buffer) % size
        for start in range(0, whole, size):
            yield buffer[start : start + size]
        rest = buffer[whole:]
    if len(rest):
        yield rest
