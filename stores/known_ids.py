"""Which ids a gallery holds, for more of them than fit in memory."""

from __future__ import annotations

import tempfile
from collections.abc import Sequence

import numpy as np
import polars as pl

_IN_MEMORY = 1 << 17
_BLOCK = 1 << 18
_SECOND = 1  # seed of the second hash; polars takes 0 for the first
_SHARE = 8  # a run is merged into the next larger one when it has grown to this share of it


class KnownIds:
    """Ids as two 64-bit hashes each, sorted by the first, in files that nobody sees; memory holds the newest alone.

    Two ids of a billion share both hashes once in 10^20 galleries.

    Args:
        ids: Those that are there.
    """

    def __init__(self, ids: pl.Series) -> None:
        self._recent = _Run.of(ids[:0])
        self._older = [self._recent, self._recent]  # what came since the last great merge, and all before it
        for start in range(0, len(ids), _BLOCK):
            self.add(ids[start : start + _BLOCK])

    def add(self, ids: pl.Series) -> None:
        """Take in new ids."""
        self._recent = _Run.of(ids) if not len(self._recent) else _merged([self._recent, _Run.of(ids)])
        if len(self._recent) < _IN_MEMORY:
            return
        middle, large = self._older
        middle = _merged([middle, self._recent])
        if len(middle) * _SHARE > len(large):
            middle, large = self._recent[:0], _merged([large, middle])
        self._older, self._recent = [middle, large], self._recent[:0]

    def among(self, ids: pl.Series) -> pl.Series:
        """Those of the given ids that are known."""
        if not len(ids):
            return ids
        asked, order = _hashes(ids)
        found = np.zeros(len(ids), bool)
        for run in (self._recent, *self._older):
            found |= run.holds(asked)
        known = np.zeros(len(ids), bool)
        known[order[found]] = True
        return ids.filter(pl.Series(known))


class _Run:
    """Hashes uint64 [2, n] of ids, in the order of the first ones."""

    def __init__(self, hashes: np.ndarray) -> None:
        self.hashes = hashes

    @classmethod
    def of(cls, ids: pl.Series) -> _Run:
        return cls(_hashes(ids)[0])

    def __len__(self) -> int:
        return self.hashes.shape[1]

    def __getitem__(self, rows: slice) -> _Run:
        return _Run(self.hashes[:, rows])

    def holds(self, asked: np.ndarray) -> np.ndarray:
        """Which of other hashes [2, m], in order, are among these, bool [m]."""
        found = np.zeros(asked.shape[1], bool)
        if not len(self):
            return found
        first = np.searchsorted(self.hashes[0], asked[0])
        there = np.flatnonzero(first < len(self))
        there = there[self.hashes[0][first[there]] == asked[0][there]]
        for row in there.tolist():  # few, and nearly always those that are known
            stop = np.searchsorted(self.hashes[0], asked[0][row], side="right")
            found[row] = bool((self.hashes[1, first[row] : stop] == asked[1][row]).any())
        return found


def _hashes(ids: pl.Series) -> tuple[np.ndarray, np.ndarray]:
    """Both hashes of each id, uint64 [2, n], sorted by the first, and the order they were sorted by."""
    first, second = ids.hash().to_numpy(), ids.hash(_SECOND).to_numpy()
    order = np.argsort(first)
    return np.stack([first[order], second[order]]), order


def _merged(runs: Sequence[_Run]) -> _Run:
    """One run of several; in a file without a name when it is large."""
    size = sum(map(len, runs))
    out = np.empty((2, size), np.uint64) if size < 2 * _IN_MEMORY else _unnamed(size)
    ranges = 1 + size // _BLOCK  # hashes are spread evenly
    bounds = np.array([number * 2**64 // ranges for number in range(1, ranges)], np.uint64)
    edges = [[0, *np.searchsorted(run.hashes[0], bounds).tolist(), len(run)] for run in runs]
    place = 0
    for number in range(ranges):
        parts = [run.hashes[:, edge[number] : edge[number + 1]] for run, edge in zip(runs, edges, strict=True)]
        block = np.concatenate(parts, axis=1)
        order = np.argsort(block[0], kind="stable")
        out[:, place : place + len(order)] = block[:, order]
        place += len(order)
    return _Run(out)


def _unnamed(size: int) -> np.ndarray:
    with tempfile.TemporaryFile(prefix="known-ids-") as file:
        return np.memmap(file, np.uint64, "w+", shape=(2, size))
