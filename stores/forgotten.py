"""Rows that are on disk and no longer exist: which they are, and where the others lie between them."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import numpy as np


class ForgottenRows:
    """Turns the numbers of rows that exist into numbers of rows on disk.

    Args:
        ranges: Ranges [start, stop) of forgotten rows on disk, in order.
    """

    def __init__(self, ranges: Sequence[tuple[int, int]]) -> None:
        self._rows = np.concatenate([np.empty(0, np.int64), *(np.arange(*each) for each in ranges)])
        # Before row number r there are as many forgotten ones as have at most r others before them.
        self._others_before = self._rows - np.arange(len(self._rows))

    def __len__(self) -> int:
        return len(self._rows)

    def on_disk(self, rows: np.ndarray) -> np.ndarray:
        """Where rows that exist lie on disk, int64 [n] to int64 [n]; the same array where nothing was forgotten."""
        if not len(self._rows):
            return rows
        return rows + np.searchsorted(self._others_before, rows, side="right")

    def within(self, start: int, stop: int) -> np.ndarray:
        """The forgotten rows on disk from start to stop - 1, counted from start, int64 [m]."""
        first, last = np.searchsorted(self._rows, (start, stop))
        return self._rows[first:last] - start

    def with_rows(self, rows: Iterable[int]) -> tuple[tuple[int, int], ...]:
        """These rows and further ones on disk, as ranges [start, stop) in order, none touching the next."""
        together = np.unique(np.concatenate([self._rows, np.fromiter(rows, np.int64)]))
        gaps = np.flatnonzero(np.diff(together) > 1)
        starts = together[np.concatenate([[0], gaps + 1])] if len(together) else together
        stops = together[np.concatenate([gaps, [-1]])] + 1 if len(together) else together
        return tuple(zip(starts.tolist(), stops.tolist(), strict=True))
