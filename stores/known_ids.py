"""Which ids a gallery holds, for more of them than fit in memory."""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from itertools import chain

import numpy as np
import polars as pl

_IN_MEMORY = 1 << 17  # hashes; longer runs lie in files
_BLOCK = 1 << 18
_SECOND = 1  # seed of the second hash; polars takes 0 for the first
_RUNS = 16  # that many of one level become one of the next
_BITS = 27  # 16 MiB; of ten million known ids, one new id in fourteen looks known at first


class KnownIds:
    """Ids as two 64-bit hashes each: sorted runs, the long ones in files that nobody sees, behind a map of bits.

    Two ids of a billion share both hashes once in 10^20 galleries.

    Args:
        ids: Those that are there.
    """

    def __init__(self, ids: pl.Series) -> None:
        self._seen = np.zeros(0, np.uint8)
        self._levels: list[list[np.ndarray]] = []
        for start in range(0, len(ids), _BLOCK):
            self.add(ids[start : start + _BLOCK])

    def add(self, ids: pl.Series) -> None:
        """Take in new ids."""
        if not len(ids):
            return
        if not len(self._seen):
            self._seen = np.zeros(1 << (_BITS - 3), np.uint8)
        hashes = _hashes(ids)
        run = hashes[:, np.argsort(hashes[0])]
        np.bitwise_or.at(self._seen, *_bits(run[0]))
        for level in self._levels:
            level.append(run)
            if len(level) < _RUNS:
                return
            run = _merged(level)
            level.clear()
        self._levels.append([run])

    def among(self, ids: pl.Series) -> pl.Series:
        """Those of the given ids that are known."""
        if not len(self._seen):
            return ids[:0]
        hashes = _hashes(ids)
        places, bits = _bits(hashes[0])
        suspects = np.flatnonzero(self._seen[places] & bits)
        suspects = suspects[np.argsort(hashes[0, suspects])]  # neighbours ask for what lies together
        known = np.zeros(len(ids), bool)
        for run in chain.from_iterable(self._levels):
            known[suspects] |= _holds(run, hashes[:, suspects])
        return ids.filter(pl.Series(known))


def _hashes(ids: pl.Series) -> np.ndarray:
    """Both hashes of each id, uint64 [2, n]."""
    return np.stack([ids.hash().to_numpy(), ids.hash(_SECOND).to_numpy()])


def _bits(hashes: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Of each hash [n]: a place in the map, int64 [n], and the bit there, uint8 [n]."""
    bits = (hashes >> np.uint64(64 - _BITS)).astype(np.int64)
    return bits >> 3, np.left_shift(1, bits & 7).astype(np.uint8)


def _holds(run: np.ndarray, asked: np.ndarray) -> np.ndarray:
    """Which hashes [2, m] are in a sorted run [2, n], bool [m]."""
    found = np.zeros(asked.shape[1], bool)
    first = np.searchsorted(run[0], asked[0])
    there = np.flatnonzero(first < run.shape[1])
    there = there[run[0][first[there]] == asked[0][there]]
    for row in there.tolist():  # few, and nearly always those that are known
        stop = np.searchsorted(run[0], asked[0, row], side="right")
        found[row] = bool((run[1, first[row] : stop] == asked[1, row]).any())
    return found


def _merged(runs: Sequence[np.ndarray]) -> np.ndarray:
    """One sorted run of several; in a file without a name when it is long."""
    size = sum(run.shape[1] for run in runs)
    out = np.empty((2, size), np.uint64) if size < _IN_MEMORY else _unnamed(size)
    blocks = 1 + size // _BLOCK  # of equal ranges, as hashes are spread evenly
    bounds = np.array([number * 2**64 // blocks for number in range(1, blocks)], np.uint64)
    edges = [[0, *np.searchsorted(run[0], bounds).tolist(), run.shape[1]] for run in runs]
    place = 0
    for number in range(blocks):
        parts = [run[:, edge[number] : edge[number + 1]] for run, edge in zip(runs, edges, strict=True)]
        block = np.concatenate(parts, axis=1)
        out[:, place : place + block.shape[1]] = block[:, np.argsort(block[0])]
        place += block.shape[1]
    return out


def _unnamed(size: int) -> np.ndarray:
    with tempfile.TemporaryFile(prefix="known-ids-") as file:
        return np.memmap(file, np.uint64, "w+", shape=(2, size))
