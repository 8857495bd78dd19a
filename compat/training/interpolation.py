"""Synthetic identities: the samples of two identities averaged one by one, in both spaces at once.

Only which sample goes with which is decided here; `TrainingRows` averages the vectors when a batch is taken, so nothing
is copied. The mean of two embeddings of the new model is paired with the mean of the same two items' embeddings of the
old model, under a new label.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import numpy as np

from compat.neighbors import nearest, nearest_approximate
from compat.options import Direction, InterpolationOptions
from compat.pairs import BLOCK_ROWS, Pairs

APPROXIMATE_FROM = 90_000
"""Identities from which pynndescent is faster than exact search on two cores."""
_NEIGHBOURS = 32


@dataclass(frozen=True)
class SyntheticSamples:
    """Sample i is the mean of the pairs numbered first[i] and second[i] (int64 [m]) and belongs to identity label[i].

    `note` says why there are fewer than were asked for, or is empty.
    """

    first: np.ndarray
    second: np.ndarray
    label: np.ndarray
    rate: float
    note: str = ""

    def __len__(self) -> int:
        return len(self.first)


NO_SAMPLES = SyntheticSamples(np.empty(0, np.int64), np.empty(0, np.int64), np.empty(0, np.int64), 0.0)


class TrainingRows:
    """Real pairs followed by synthetic ones, read by number."""

    def __init__(self, pairs: Pairs, synthetic: SyntheticSamples, direction: Direction) -> None:
        self._pairs, self._synthetic = pairs, synthetic
        self._direction: Direction = direction

    def __len__(self) -> int:
        return len(self._pairs) + len(self._synthetic)

    def take(self, rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Source and target vectors, float32 [b, d_source] and [b, d_target], of row numbers [b]; real rows first."""
        real = len(self._pairs)
        mixed = rows[rows >= real] - real
        source, target = self._pairs.take(rows[rows < real], self._direction)
        if not len(mixed):
            return source, target
        a = self._pairs.take(self._synthetic.first[mixed], self._direction)
        b = self._pairs.take(self._synthetic.second[mixed], self._direction)
        return np.concatenate([source, (a[0] + b[0]) / 2]), np.concatenate([target, (a[1] + b[1]) / 2])


def plan_synthetic(pairs: Pairs, options: InterpolationOptions, direction: Direction, *, seed: int) -> SyntheticSamples:
    """Choose which samples to average.

    `linear` takes identities 0 and 1, 2 and 3, ... and their samples until the shorter runs out. `sorted` orders
    identities by number of samples first, `proximity` pairs those with the nearest centroids in the source space; both
    skip a pair of identities that gives fewer than `minimum` samples and take no more than `cap` from one. While the
    rate is not reached, `sorted` and `proximity` go on to further neighbours, so an identity may be used again.

    Args:
        pairs: Real pairs; without labels there is nothing to interpolate.
        options: Pairing, rate and limits.
        direction: Decides which side is the source.
        seed: Chooses among an identity's samples where it has more than are taken.
    """
    if options.pairing == "none":
        return NO_SAMPLES
    if pairs.labels is None:
        return _none("the pairs have no labels: synthetic identities need them")
    members = _members(pairs.labels)
    if options.pairing == "linear":
        minimum, cap = 1, len(pairs)
        candidates: Iterable[tuple[int, int]] = zip(range(0, len(members), 2), range(1, len(members), 2), strict=False)
    else:
        minimum, cap = options.minimum, options.cap
        by_count = options.pairing == "sorted"
        candidates = _by_count(members) if by_count else _by_proximity(pairs, members, direction, seed)
    wanted = round(options.rate * len(pairs))
    return _collect(members, candidates, wanted, minimum, cap, len(pairs), np.random.default_rng(seed))


def _collect(
    members: list[np.ndarray],
    candidates: Iterable[tuple[int, int]],
    wanted: int,
    minimum: int,
    cap: int,
    real: int,
    generator: np.random.Generator,
) -> SyntheticSamples:
    first, second, label, count = [], [], [], 0
    for a, b in candidates:
        if count >= wanted:
            break
        size = min(len(members[a]), len(members[b]), cap)
        if size < minimum:
            continue
        size = min(size, wanted - count)
        first.append(generator.permutation(members[a])[:size])
        second.append(generator.permutation(members[b])[:size])
        label.append(np.full(size, len(members) + len(label)))
        count += size
    if not count:
        largest = sorted(len(m) for m in members)[-2:]
        return _none(
            f"no two identities give the {minimum} samples that a synthetic one needs "
            f"(the two largest have {' and '.join(map(str, largest))}); lower interpolation.minimum"
        )
    rate = count / real
    note = "" if count >= wanted else f"reached a rate of {rate:.3f} of the {wanted / real:.3f} asked for"
    return SyntheticSamples(np.concatenate(first), np.concatenate(second), np.concatenate(label), rate, note)


def _none(note: str) -> SyntheticSamples:
    return SyntheticSamples(NO_SAMPLES.first, NO_SAMPLES.second, NO_SAMPLES.label, 0.0, note)


def _members(labels: np.ndarray) -> list[np.ndarray]:
    order = np.argsort(labels, kind="stable")
    return np.split(order, np.flatnonzero(np.diff(labels[order])) + 1)


def _by_count(members: list[np.ndarray]) -> Iterator[tuple[int, int]]:
    # Largest first, so that those able to give a whole synthetic identity come before the rate is used up.
    order = np.argsort([-len(m) for m in members], kind="stable")
    for start in range(0, len(order) - 1, 2):
        yield int(order[start]), int(order[start + 1])
    for offset in range(1, len(order)):
        for start in range(len(order) - offset):
            if offset > 1 or start % 2 == 1:  # the disjoint neighbours came first
                yield int(order[start]), int(order[start + offset])


def _by_proximity(
    pairs: Pairs, members: list[np.ndarray], direction: Direction, seed: int
) -> Iterator[tuple[int, int]]:
    if len(members) < 2:
        return
    neighbours = min(_NEIGHBOURS, len(members) - 1)
    centroids = _centroids(pairs, members, direction)
    if len(members) < APPROXIMATE_FROM:
        cosines, rows = nearest(centroids, centroids, neighbours + 1)
    else:
        cosines, rows = nearest_approximate(centroids, neighbours + 1, seed=seed)
    a = np.repeat(np.arange(len(members)), rows.shape[1])
    b, cosine = rows.ravel(), cosines.ravel()
    keep = (b >= 0) & (b != a)
    edges = np.stack([np.minimum(a, b), np.maximum(a, b)], axis=1)[keep]
    edges, once = np.unique(edges, axis=0, return_index=True)
    edges = edges[np.argsort(-cosine[keep][once], kind="stable")]
    # Rounds of disjoint pairs, nearest first: every identity is used once before any is used again.
    while len(edges):
        used: set[int] = set()
        rest = []
        for edge in edges:
            x, y = int(edge[0]), int(edge[1])
            if x in used or y in used:
                rest.append(edge)
            else:
                used |= {x, y}
                yield x, y
        edges = np.array(rest)


def _centroids(pairs: Pairs, members: list[np.ndarray], direction: Direction) -> np.ndarray:
    sums = np.zeros((len(members), pairs.spaces(direction)[0].dim))
    code = np.empty(len(pairs), np.int64)
    for identity, rows in enumerate(members):
        code[rows] = identity
    for start in range(0, len(pairs), BLOCK_ROWS):
        rows = np.arange(start, min(start + BLOCK_ROWS, len(pairs)))
        np.add.at(sums, code[rows], pairs.take(rows, direction)[0])
    return sums / np.array([[len(rows)] for rows in members])
