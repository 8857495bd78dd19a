"""The rows that a network is trained on: real pairs, then synthetic ones, which are mixed when they are read.

Rows are streamed in an order that is quick to gather from files larger than memory. Real pairs come chunk by chunk,
mixed within a buffer of chunks. Synthetic ones come in the order in which their first parents' chunks do, so those are
at hand; their second parents lie anywhere, so the rows of several batches are read at once, chunk after chunk.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import pairwise
from typing import NamedTuple

import numpy as np

from compat.options import Direction
from compat.pairs import Pairs
from compat.training.compactness import IdentityCentres
from compat.training.interpolation import SyntheticSamples
from stores.stream import BUFFER_ROWS

READ_ROWS = 1024
"""Real rows read at a time: a batch alone would take a few rows of each of the buffer's chunks, in as many calls."""
SYNTHETIC_BYTES = 16 * 2**20
"""Vectors of parents of synthetic rows read at a time, or of one batch; reading takes as much again for a moment."""


class _Read(NamedTuple):
    """Vectors of pairs in an order that was quick to read, as source and target, and where those that are meant are."""

    sides: tuple[np.ndarray, np.ndarray]
    places: np.ndarray

    def only(self, start: int, stop: int) -> _Read:
        return _Read(self.sides, self.places[start:stop])


class TrainingBatch(NamedTuple):
    """Some rows of `TrainingRows`, real ones first.

    Attributes:
        rows: int64 [b], their numbers.
        source: float32 [b, d_source].
        target: float32 [b, d_target].
        weights: float32 [b], how much each counts, or None where all count alike.
        centres: float32 [b, d_target], the mean target of each row's identity, or None where nobody asks.
    """

    rows: np.ndarray
    source: np.ndarray
    target: np.ndarray
    weights: np.ndarray | None
    centres: np.ndarray | None


class TrainingRows:
    """Real pairs followed by synthetic ones.

    In memory are a few numbers of 4 or 8 bytes for each row, and the centres; vectors are read when asked for.

    Args:
        pairs: Real pairs. Where they have weights, a synthetic row has the same mixture of its parents'.
        synthetic: Which of them are mixed.
        direction: Decides which side is the source.
        centres: Of the pairs' identities; a synthetic row has the same mixture of its parents'.
    """

    def __init__(
        self,
        pairs: Pairs,
        synthetic: SyntheticSamples,
        direction: Direction,
        centres: IdentityCentres | None = None,
    ) -> None:
        self._pairs, self._synthetic, self._centres = pairs, synthetic, centres
        self._direction: Direction = direction

    def __len__(self) -> int:
        return len(self._pairs) + len(self._synthetic)

    def batch_count(self, size: int) -> int:
        """How many batches `batches` gives."""
        return -(-len(self._pairs) // self._real_share(size))

    def batches(self, size: int, *, seed: int) -> Iterator[TrainingBatch]:
        """All rows once, mixed, about `size` at a time; every batch has its share of synthetic ones.

        Args:
            size: Rows in a batch; one more where the synthetic ones do not divide evenly.
            seed: The same seed gives the same batches.
        """
        reads = zip(self._real_parts(size, seed), self._synthetic_parts(size, seed), strict=True)
        for (numbers, real), (mixed, first, second) in reads:
            source, target = (self._side(side, real, mixed, first, second) for side in (0, 1))
            rows = np.concatenate([numbers, len(self._pairs) + mixed])
            yield TrainingBatch(rows, source, target, self._weights_of(rows), self._centres_of(rows))

    def _side(self, side: int, real: _Read, mixed: np.ndarray, first: _Read, second: _Read) -> np.ndarray:
        """Real vectors and then mixed ones, float32 [b, d]; where real ones alone were read for this, they are it."""
        vectors = real.sides[side]
        count = len(real.places)
        if count == len(vectors) and not len(mixed):
            return vectors
        rows = np.empty((count + len(mixed), vectors.shape[1]), np.float32)
        # with a mode, take writes there without a copy in between
        np.take(vectors, real.places, axis=0, out=rows[:count], mode="clip")
        if len(mixed):
            np.take(first.sides[side], first.places, axis=0, out=rows[count:], mode="clip")
            self._mixture(mixed, rows[count:], second.sides[side][second.places])
        return rows

    def _real_share(self, size: int) -> int:
        return max(1, size * len(self._pairs) // len(self))

    def _real_parts(self, size: int, seed: int) -> Iterator[tuple[np.ndarray, _Read]]:
        """Numbers and vectors of each batch's real rows; those of several batches are read at once."""
        share = self._real_share(size)
        for numbers in self._pairs.shuffled(share * max(1, READ_ROWS // share), seed=seed):
            if len(numbers) <= share:  # a batch alone may have the order in which it is read
                numbers = np.sort(numbers)
            read = self._read(numbers)
            for start in range(0, len(numbers), share):
                yield numbers[start : start + share], read.only(start, start + share)

    def _synthetic_parts(self, size: int, seed: int) -> Iterator[tuple[np.ndarray, _Read, _Read]]:
        """Numbers, counted from 0, of each batch's synthetic rows, perhaps none, and the vectors of both parents."""
        count, order = self.batch_count(size), self._synthetic_order(seed)
        bounds = np.linspace(0, len(order), count + 1).astype(np.int64)
        bytes_of_one = 2 * 4 * sum(space.dim for space in self._pairs.spaces(self._direction))
        together = max(1, SYNTHETIC_BYTES // bytes_of_one * count // max(1, len(order)))
        for begin in range(0, count, together):
            inside = bounds[begin : begin + together + 1]
            numbers = order[inside[0] : inside[-1]]
            first, second = (self._read(parents[numbers]) for parents in self._parents)
            for start, stop in pairwise((inside - inside[0]).tolist()):
                yield numbers[start:stop], first.only(start, stop), second.only(start, stop)

    def _read(self, numbers: np.ndarray) -> _Read:
        """Vectors of pairs, read in rising order: chunk after chunk."""
        order = np.argsort(numbers, kind="stable")
        places = np.empty_like(order)
        places[order] = np.arange(len(order))
        return _Read(self._pairs.take(numbers[order], self._direction), places)

    def _synthetic_order(self, seed: int) -> np.ndarray:
        """Numbers of all synthetic rows, mixed among those whose first parents are in one buffer of chunks.

        The chunks come in the order in which `stores.stream` gives them with this seed. Were that another one, rows
        would still come mixed; only the first parents would be read twice in an epoch.
        """
        size = self._pairs.old.chunk_rows
        generator = np.random.default_rng(seed)
        chunks = generator.permutation(-(-len(self._pairs) // size))
        buffer = np.empty(len(chunks), np.int64)
        buffer[chunks] = np.arange(len(chunks)) // max(1, BUFFER_ROWS // size)
        mixed = generator.permutation(len(self._synthetic))
        return mixed[np.argsort(buffer[self._synthetic.first[mixed] // size], kind="stable")]

    def _mixture(self, numbers: np.ndarray, first: np.ndarray, second: np.ndarray) -> np.ndarray:
        """What synthetic rows are of their parents' values, float32 [m] or [m, d]; it takes the place of `first`."""
        shares = self._synthetic.share
        if shares is None:
            first += second
            first *= np.float32(0.5)
            return first
        share = shares[numbers].reshape(-1, *[1] * (first.ndim - 1))
        first *= share
        second *= 1 - share
        first += second
        return first

    def _weights_of(self, rows: np.ndarray) -> np.ndarray | None:
        weights = self._pairs.weights
        if weights is None:
            return None
        real, mixed = self._parted(rows)
        first, second = (weights[side[mixed]].astype(np.float32) for side in self._parents)
        return np.concatenate([weights[real].astype(np.float32), self._mixture(mixed, first, second)])

    def _centres_of(self, rows: np.ndarray) -> np.ndarray | None:
        if self._centres is None:
            return None
        real, mixed = self._parted(rows)
        first, second = (self._centres.take(side[mixed]) for side in self._parents)
        return np.concatenate([self._centres.take(real), self._mixture(mixed, first, second)])

    def _parted(self, rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        real = len(self._pairs)
        return rows[rows < real], rows[rows >= real] - real

    @property
    def _parents(self) -> tuple[np.ndarray, np.ndarray]:
        return self._synthetic.first, self._synthetic.second
