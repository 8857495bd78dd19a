"""Batches of one size out of whatever pieces a file gives."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

import numpy as np
import polars as pl

from stores.store import Batch


def of_size(pieces: Iterable[Batch], size: int) -> Iterator[Batch]:
    """The same rows in the same order, `size` at a time, the last batch perhaps shorter.

    A batch that lies within one piece is a view of it; others are copied together.
    """
    waiting: list[Batch] = []
    missing = size
    for items, vectors in pieces:
        first = 0
        while first < len(vectors):
            stop = min(first + missing, len(vectors))
            waiting.append(Batch(items[first:stop], vectors[first:stop]))
            missing -= stop - first
            first = stop
            if not missing:
                yield _joined(waiting)
                waiting, missing = [], size
    if waiting:
        yield _joined(waiting)


def _joined(pieces: list[Batch]) -> Batch:
    if len(pieces) == 1:
        return pieces[0]
    return Batch(pl.concat([piece.items for piece in pieces]), np.concatenate([piece.vectors for piece in pieces]))
