"""Who is near whom, in both spaces at once: centroids of identities, or single samples.

The mean of two vectors lies near the manifold that real ones lie on only if the two are near each other, and a
synthetic pair has a mean in either space. So nearness is the cosine of the unit source vector followed by the unit
target vector, which is the mean of the two cosines: what is near in one space alone is not near.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from compat.neighbors import nearest_approximate, search_rows, unit_rows
from compat.options import Direction
from compat.pairs import BLOCK_ROWS, Pairs

Say = Callable[[str], None]

MOST_APPROXIMATE = 128
"""Neighbours of one vector that pynndescent is asked for at most: its cost grows with their square."""


class JointRows:
    """Pairs of the given numbers, integers [m], as vectors [m, d_source + d_target] that are read by range."""

    def __init__(self, pairs: Pairs, numbers: np.ndarray, direction: Direction) -> None:
        self._pairs, self._numbers = pairs, numbers
        self._direction: Direction = direction

    def __len__(self) -> int:
        return len(self._numbers)

    def rows(self, start: int, stop: int) -> np.ndarray:
        """Vectors start..stop-1, float32, either half of unit length."""
        return self.take(np.arange(start, stop))

    def take(self, rows: np.ndarray) -> np.ndarray:
        """Vectors of row numbers [q], float32 [q, d_source + d_target]."""
        return np.hstack([unit_rows(side) for side in self._pairs.take(self._numbers[rows], self._direction)])


class ArrayJointRows:
    """Joint vectors in memory, float32 [m, d_source + d_target]."""

    def __init__(self, vectors: np.ndarray) -> None:
        self._vectors = vectors

    def __len__(self) -> int:
        return len(self._vectors)

    def rows(self, start: int, stop: int) -> np.ndarray:
        """Vectors start..stop-1."""
        return self._vectors[start:stop]

    def take(self, rows: np.ndarray) -> np.ndarray:
        """Vectors of row numbers [q]."""
        return self._vectors[rows]


def centroids(pairs: Pairs, place: np.ndarray, count: int, direction: Direction) -> np.ndarray:
    """Mean vectors of groups of pairs, float32 [count, d_source + d_target], each half scaled to unit length.

    Args:
        pairs: Read once, block by block.
        place: int64 [n], the group of each pair from 0, or -1 for none. Every group has a pair.
        count: Number of groups.
        direction: Decides which side is the source.
    """
    source, target = (space.dim for space in pairs.spaces(direction))
    halves = (slice(0, source), slice(source, source + target))
    sums = np.zeros((count, source + target), np.float32)
    for start in range(0, len(pairs), BLOCK_ROWS):
        here = start + np.flatnonzero(place[start : start + BLOCK_ROWS] >= 0)
        if not len(here):
            continue
        order = np.argsort(place[here], kind="stable")
        groups, firsts = np.unique(place[here][order], return_index=True)
        for half, side in zip(halves, pairs.take(here, direction), strict=True):
            sums[groups, half] += np.add.reduceat(side[order], firsts)
    for start in range(0, count, BLOCK_ROWS):
        for half in halves:
            sums[start : start + BLOCK_ROWS, half] = unit_rows(sums[start : start + BLOCK_ROWS, half])
    return sums


def neighbours(
    rows: JointRows | ArrayJointRows,
    asked: np.ndarray,
    k: int,
    *,
    approximate_from: int,
    seed: int,
    say: Say | None = None,
) -> tuple[np.ndarray, np.ndarray]:
    """The k rows nearest to each row asked for, itself left out.

    Args:
        rows: Joint vectors, [m, d]. A search by pynndescent holds them in memory, an exact one only a block.
        asked: Row numbers, integers [q], in rising order.
        k: Neighbours wanted, less than m.
        approximate_from: From so many rows on pynndescent is used, and no more than `MOST_APPROXIMATE` are found.
        seed: Of pynndescent.
        say: Told before pynndescent compiles.

    Returns:
        Cosines, float32 [q, k], and row numbers, int64 [q, k], the nearest first; -1 for one that was not found.

    Raises:
        ImportError: If pynndescent is needed and missing.
    """
    # Graph descent wants more rows than neighbours, and gains nothing on few.
    if len(rows) < max(approximate_from, 4 * (k + 1)):
        cosines = np.empty((len(asked), k), np.float32)
        found = np.empty((len(asked), k), np.int64)
        for start in range(0, len(asked), 2 * BLOCK_ROWS):
            some = asked[start : start + 2 * BLOCK_ROWS]
            here = slice(start, start + len(some))
            best = search_rows(rows.take(some), rows, k + 1, block=2 * BLOCK_ROWS)
            cosines[here], found[here] = _without_self(*best, some)
        return cosines, found
    if say:
        say(
            f"looking for neighbours among {len(rows):,} with pynndescent, whose first use compiles for about a "
            "minute, several on a busy machine"
        )
    try:
        best = nearest_approximate(rows.rows(0, len(rows)), min(k, MOST_APPROXIMATE) + 1, seed=seed)
    except ImportError as error:
        raise ImportError(f"{error}, or raise interpolation.approximate_from above {len(rows)}") from None
    return _without_self(best[0][asked], best[1][asked], asked)


def _without_self(cosines: np.ndarray, rows: np.ndarray, asked: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """One column less: the row itself where it is there (equal vectors may come before it), else the farthest."""
    own = rows == asked[:, None]
    own[~own.any(axis=1), -1] = True
    shape = len(rows), rows.shape[1] - 1
    return cosines[~own].reshape(shape), rows[~own].reshape(shape)
