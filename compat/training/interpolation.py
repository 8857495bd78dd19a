"""Synthetic identities: the samples of two identities averaged one by one, in both spaces at once.

Only which sample goes with which is decided here; `compat.training.rows` mixes the vectors when a batch is taken, so
nothing is copied. The mean of two embeddings of the new model is paired with the mean of the same two items' embeddings of the
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
    """Sample i is share[i] of the pair numbered first[i] and the rest of second[i], and belongs to identity label[i].

    Attributes:
        first: int64 [m].
        second: int64 [m].
        label: int64 [m], numbers that no real identity has.
        rate: Synthetic samples for each real one.
        note: Why there are fewer than were asked for, or empty.
        share: float32 [m] between 0 and 1, or None where all are half and half.
    """

    first: np.ndarray
    second: np.ndarray
    label: np.ndarray
    rate: float
    note: str = ""
    share: np.ndarray | None = None

    def __len__(self) -> int:
        return len(self.first)


NO_SAMPLES = SyntheticSamples(np.empty(0, np.int64), np.empty(0, np.int64), np.empty(0, np.int64), 0.0)


def plan_synthetic(pairs: Pairs, options: InterpolationOptions, direction: Direction, *, seed: int) -> SyntheticSamples:
    """Choose which samples to average.

    `linear` takes identities 0 and 1, 2 and 3, ... and their samples until the shorter runs out. `sorted` orders
    identities by number of samples first, `proximity` pairs those with the nearest centroids in the source space; both
    leave out identities of fewer than `minimum` samples and take no more than `cap` from a pair, and no fewer than
    `minimum` even where the rate asks for fewer. While the rate is not reached, `sorted` and `proximity` go on to
    further neighbours, so an identity may be used again.

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
    linear = options.pairing == "linear"
    minimum, cap = (1, len(pairs)) if linear else (options.minimum, options.cap)
    identities = _members(pairs.labels)
    members = [rows for rows in identities if len(rows) >= minimum]
    if len(members) < 2:
        largest = sorted(map(len, identities))[-2:]
        return _none(
            f"no two identities give the {minimum} samples that a synthetic one needs "
            f"(the largest have {' and '.join(map(str, largest))}); lower interpolation.minimum"
        )
    if linear:
        candidates: Iterable[tuple[int, int]] = zip(range(0, len(members), 2), range(1, len(members), 2), strict=False)
    elif options.pairing == "sorted":
        candidates = _by_count(members)
    else:
        candidates = _by_proximity(pairs, members, direction, seed)
    wanted = max(1, round(options.rate * len(pairs)))
    generator = np.random.default_rng(seed)
    first, second, label, count = [], [], [], 0
    for a, b in candidates:
        size = min(len(members[a]), len(members[b]), cap, max(minimum, wanted - count))
        first.append(generator.permutation(members[a])[:size])
        second.append(generator.permutation(members[b])[:size])
        label.append(np.full(size, len(identities) + len(label)))
        count += size
        if count >= wanted:
            break
    rate = count / len(pairs)
    notes = []
    if count < wanted:
        notes.append(f"synthetic samples reached a rate of {rate:.3f} of the {wanted / len(pairs):.3f} asked for")
    if options.pairing == "sorted" and len(set(map(len, members))) == 1:
        notes.append("all identities have equally many samples, so the order of `sorted` is arbitrary")
    return SyntheticSamples(
        np.concatenate(first), np.concatenate(second), np.concatenate(label), rate, "; ".join(notes)
    )


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
    rows = np.concatenate(members)
    code = np.repeat(np.arange(len(members)), [len(m) for m in members])
    order = np.argsort(rows)  # neighbouring rows lie together
    for block in np.split(order, range(BLOCK_ROWS, len(order), BLOCK_ROWS)):
        np.add.at(sums, code[block], pairs.take(rows[block], direction)[0])
    return sums / np.array([[len(m)] for m in members])
