"""The rows that a network is trained on: real pairs, then synthetic ones, which are mixed when they are read.

Rows are streamed in an order that is quick to gather from files larger than memory. Real pairs come chunk by chunk,
mixed within a buffer of chunks; synthetic ones come in the order in which their first parents' chunks do, and their
second parents lie anywhere. A large batch of real pairs is read alone, sorted as it lies on disk. Smaller ones, and
those with synthetic rows, are read several at once, chunk after chunk, and gathered from that.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from itertools import pairwise
from typing import NamedTuple

import numpy as np
import torch

from compat.options import Direction
from compat.pairs import Pairs
from compat.training.compactness import IdentityCentres
from compat.training.interpolation import SyntheticSamples
from stores.stream import BUFFER_ROWS

FORM = 2
"""Another number wherever the same seed gives other batches: a checkpoint of another form is of another run."""
RUN_ROWS = 8
"""Rows of a batch in each chunk of the buffer from which on the batch is read alone. Nothing is then copied a second
time, and the rows are still in the processor's cache when they are used."""
READ_ROWS = 1024
"""Real rows read at a time where batches are smaller: one alone would take a row here and there, in as many calls."""
MIXED_BYTES = 8 * 2**20
"""Bytes of vectors read at a time, or for one batch, where some rows are synthetic; reading takes as much again for a
moment."""


class _BatchRows(NamedTuple):
    """The rows of a batch: numbers of real pairs, int64 [r], and of synthetic rows, counted from 0, int64 [m]."""

    real: np.ndarray
    mixed: np.ndarray


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
    source: torch.Tensor
    target: torch.Tensor
    weights: torch.Tensor | None
    centres: torch.Tensor | None


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
        for group in self._groups(size, seed):
            for batch, (source, target) in zip(group, self._vectors(group), strict=True):
                rows = np.concatenate([batch.real, len(self._pairs) + batch.mixed])
                yield TrainingBatch(rows, source, target, self._weights_of(batch), self._centres_of(batch))

    def _groups(self, size: int, seed: int) -> Iterator[list[_BatchRows]]:
        """Rows of batches that are read together."""
        share, count = self._real_share(size), self.batch_count(size)
        together = self._together(share, -(-len(self._synthetic) // count))
        order = self._synthetic_order(seed)
        bounds = np.linspace(0, len(order), count + 1).astype(np.int64).tolist()
        reads = self._pairs.shuffled(share * together, seed=seed)
        for begin, real in zip(range(0, count, together), reads, strict=True):
            # a batch that is read alone may have the order in which it is read
            numbers = np.sort(real) if len(real) <= share else real
            parts = [numbers[start : start + share] for start in range(0, len(real), share)]
            inside = pairwise(bounds[begin : begin + len(parts) + 1])
            yield [_BatchRows(part, order[start:stop]) for part, (start, stop) in zip(parts, inside, strict=True)]

    def _real_share(self, size: int) -> int:
        return max(1, size * len(self._pairs) // len(self))

    def _together(self, real: int, mixed: int) -> int:
        """How many batches, of so many rows each, are read at once."""
        if mixed:
            of_one = 4 * sum(space.dim for space in self._pairs.spaces(self._direction)) * (real + 2 * mixed)
            return max(1, MIXED_BYTES // of_one)
        chunk_rows = min(self._pairs.old.chunk_rows, self._pairs.new.chunk_rows)
        chunks = min(-(-len(self._pairs) // chunk_rows), max(1, BUFFER_ROWS // chunk_rows))
        return 1 if real >= RUN_ROWS * chunks else max(1, READ_ROWS // real)

    def _vectors(self, group: list[_BatchRows]) -> Iterator[Sequence[torch.Tensor]]:
        """Source and target of each batch of a group, float32 [b, d]; all are read before the first one comes."""
        if len(group) == 1 and not len(group[0].mixed):
            yield self._read(group[0].real)
            return
        parts = [np.concatenate([batch.real, self._parents_of(batch.mixed).ravel()]) for batch in group]
        numbers = np.concatenate(parts)
        order = np.argsort(numbers, kind="stable")  # chunk after chunk
        sides = self._read(numbers[order])
        places = np.empty_like(order)
        places[order] = np.arange(len(order))
        stop = 0
        for batch, part in zip(group, parts, strict=True):
            start, stop = stop, stop + len(part)
            yield self._gathered(sides, places[start:stop], batch)

    def _read(self, numbers: np.ndarray) -> Sequence[torch.Tensor]:
        return [torch.from_numpy(side) for side in self._pairs.take(numbers, self._direction)]

    def _gathered(self, sides: Sequence[torch.Tensor], places: np.ndarray, batch: _BatchRows) -> list[torch.Tensor]:
        """Source and target of a batch, float32 [b, d], from vectors at the places of its real rows and then of the two
        parents of each synthetic one.

        Torch does it on all its threads, as it does the step that follows; numpy would keep the others waiting.
        """
        taken, real = torch.from_numpy(places), len(batch.real)
        if not len(batch.mixed):
            return [side.index_select(0, taken) for side in sides]
        shares = self._shares(batch.mixed)
        weights = np.ones(len(places), np.float32)
        weights[real::2], weights[real + 1 :: 2] = shares, 1 - shares
        starts = np.arange(real + len(batch.mixed))
        starts[real:] += np.arange(len(batch.mixed))
        given = {"mode": "sum", "per_sample_weights": torch.from_numpy(weights)}
        return [torch.nn.functional.embedding_bag(taken, side, torch.from_numpy(starts), **given) for side in sides]

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

    def _weights_of(self, batch: _BatchRows) -> torch.Tensor | None:
        weights = self._pairs.weights
        if weights is None:
            return None
        return self._of_rows(batch, lambda pairs: weights[pairs].astype(np.float32))

    def _centres_of(self, batch: _BatchRows) -> torch.Tensor | None:
        return None if self._centres is None else self._of_rows(batch, self._centres.take)

    def _of_rows(self, batch: _BatchRows, of_pairs: Callable[[np.ndarray], np.ndarray]) -> torch.Tensor:
        """What rows have of something that pairs have, float32 [b] or [b, d]."""
        first, second = (torch.from_numpy(of_pairs(numbers)) for numbers in self._parents_of(batch.mixed).T)
        shares = torch.from_numpy(self._shares(batch.mixed)).reshape(-1, *[1] * (first.ndim - 1))
        return torch.cat([torch.from_numpy(of_pairs(batch.real)), torch.lerp(second, first, shares)])

    def _shares(self, mixed: np.ndarray) -> np.ndarray:
        """How much synthetic rows are of their first parents, float32 [m]."""
        shares = self._synthetic.share
        return np.full(len(mixed), 0.5, np.float32) if shares is None else shares[mixed]

    def _parents_of(self, mixed: np.ndarray) -> np.ndarray:
        """Numbers of the pairs that synthetic rows are mixed of, int64 [m, 2]."""
        return np.stack([self._synthetic.first[mixed], self._synthetic.second[mixed]], axis=1)
