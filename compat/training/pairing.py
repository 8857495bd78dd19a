"""Which two are mixed: identities in their order, by number of samples or by nearness; or samples near each other."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from compat.options import Direction, InterpolationOptions
from compat.pairs import Pairs
from compat.training.nearness import ArrayJointRows, JointRows, Say, centroids, neighbours

FEW, MANY = 16, 2**24
"""Neighbours of an identity looked at to begin with; neighbours of all of them looked at in the end, at most."""
NEAR = 8
"""A sample is mixed with one of so many nearest ones."""
PART_ROWS = 100_000
"""Samples among which near ones are looked for at a time, chosen by lot where there are more."""

Couples = tuple[np.ndarray, np.ndarray]


def gains(a: np.ndarray, b: np.ndarray, sizes: np.ndarray, cap: int) -> np.ndarray:
    """Synthetic samples that couples of identities, int64 [c] each, may give, int64 [c]."""
    return np.minimum(np.minimum(sizes[a], sizes[b]), cap)


def in_order(count: int) -> Couples:
    """0 with 1, 2 with 3, and so on."""
    first = np.arange(0, count - 1, 2)
    return first, first + 1


def by_count(sizes: np.ndarray, wanted: int, cap: int) -> Couples:
    """Neighbours in falling order of size, disjoint ones first, then ever further ones until `wanted` is reached.

    Args:
        sizes: Samples of each identity, int64 [m], m >= 2.
        wanted: Synthetic samples.
        cap: Most of them that a couple gives.
    """
    # Largest first, so that those able to give a whole synthetic identity come before the rate is used up.
    order = np.argsort(-sizes, kind="stable")
    chosen, reached = [], 0
    for first, second in _ever_further(len(sizes)):
        a, b = order[first], order[second]
        chosen.append((a, b))
        reached += int(gains(a, b, sizes, cap).sum())
        if reached >= wanted:
            break
    return np.concatenate([a for a, _ in chosen]), np.concatenate([b for _, b in chosen])


def _ever_further(count: int) -> Iterator[Couples]:
    yield in_order(count)
    between = np.arange(1, count - 1, 2)
    yield between, between + 1
    for offset in range(2, count):
        first = np.arange(count - offset)
        yield first, first + offset


def by_nearness(
    pairs: Pairs,
    place: np.ndarray,
    sizes: np.ndarray,
    wanted: int,
    options: InterpolationOptions,
    direction: Direction,
    *,
    seed: int,
    say: Say | None,
) -> Couples:
    """The nearest couple first, and every identity once where its neighbours allow, before any is taken again.

    More neighbours are looked at until the couples give what is wanted, all of them if need be where that is at most
    `MANY` couples.

    Args:
        pairs: All pairs.
        place: int64 [n], the identity of each from 0, or -1 where it does not take part.
        sizes: Samples of each identity, int64 [m], m >= 2.
        wanted: Synthetic samples.
        options: Cap, and where the search becomes approximate.
        direction: Decides which side is the source.
        seed: Of an approximate search.
        say: Told before something slow begins.
    """
    count = len(sizes)
    rows = ArrayJointRows(centroids(pairs, place, count, direction))
    most = min(count - 1, max(FEW, MANY // count))
    # A couple may be named by both: about half as many couples as neighbours, in the worst case.
    needed = 4 * wanted / (count * np.minimum(sizes, options.cap).mean())
    looked_at = min(most, max(FEW, int(np.ceil(needed))))
    while True:
        cosines, found = neighbours(
            rows, np.arange(count), looked_at, approximate_from=options.approximate_from, seed=seed, say=say
        )
        a, b = _nearest_first(cosines, found)
        if looked_at == most or found.shape[1] < looked_at or gains(a, b, sizes, options.cap).sum() >= wanted:
            break
        looked_at, say = min(most, 2 * looked_at), None  # it compiles once
    order = np.argsort(_turns(a, b, count), kind="stable")
    return a[order], b[order]


def _nearest_first(cosines: np.ndarray, found: np.ndarray) -> Couples:
    """Couples that a search named, each once, the nearest first; the lower number comes first in a couple."""
    count = len(found)
    a, b = np.repeat(np.arange(count), found.shape[1]), found.ravel()
    keep = b >= 0
    low, high = np.minimum(a, b)[keep], np.maximum(a, b)[keep]
    keys, once = np.unique(low * count + high, return_index=True)
    keys = keys[np.argsort(-cosines.ravel()[keep][once], kind="stable")]
    return keys // count, keys % count


def _turns(a: np.ndarray, b: np.ndarray, count: int) -> np.ndarray:
    """The turn of each couple, int64 [c], where a turn takes what it can of the couples left and nobody twice.

    A couple's turn is the first that has neither of the two yet, so one pass finds all turns: bit t of taken[i] says
    that identity i has a couple in turn t.
    """
    taken = [0] * count
    turns = np.empty(len(a), np.int64)
    for start in range(0, len(a), 2**16):  # lists of a few couples at a time: they take eight times the memory
        some = slice(start, start + 2**16)
        for number, (x, y) in enumerate(zip(a[some].tolist(), b[some].tolist(), strict=True), start):
            free = ~(taken[x] | taken[y])
            turn = free & -free
            taken[x] |= turn
            taken[y] |= turn
            turns[number] = turn.bit_length()
    return turns


def near_samples(
    pairs: Pairs,
    items: np.ndarray,
    wanted: int,
    options: InterpolationOptions,
    direction: Direction,
    *,
    seed: int,
    say: Say | None,
) -> Couples:
    """Pairs and one each of the `NEAR` pairs nearest to them, further ones where more are wanted.

    No two are mixed twice, and views of one original never: neighbours are looked for among one view of every item at a
    time, and among `PART_ROWS` of these by lot, so memory does not grow with the number of pairs. Only as many pairs
    are looked at as are wanted.

    Args:
        pairs: All pairs.
        items: int64 [n] from 0, equal for views of one original.
        wanted: Synthetic samples.
        options: Where the search becomes approximate.
        direction: Decides which side is the source.
        seed: Chooses samples and neighbours.
        say: Told before something slow begins.

    Returns:
        Pair numbers, int64 [m] each, with m <= wanted.
    """
    generator = np.random.default_rng(seed)
    parts = _parts(items, max(PART_ROWS, options.approximate_from), wanted, generator)
    rows = sum(map(len, parts))
    first, second, done, passed = [], [], 0, 0
    for part in parts:
        passed += len(part)
        share = round(wanted * passed / rows) - done  # what earlier parts could not give is made up for
        a, b = _mixed_within(JointRows(pairs, part, direction), share, options, generator, seed=seed, say=say)
        first.append(part[a])
        second.append(part[b])
        done += len(a)
        say = None  # it compiles once
    empty = np.empty(0, np.int64)
    return np.concatenate([empty, *first]), np.concatenate([empty, *second])


def _parts(items: np.ndarray, most: int, wanted: int, generator: np.random.Generator) -> list[np.ndarray]:
    """Disjoint sets of at least two and at most `most` rows, no two of one item; as few as have `wanted` rows."""
    order = np.lexsort((generator.random(len(items)), items))
    counts = np.bincount(items)
    rank = np.arange(len(items)) - np.repeat(np.cumsum(counts) - counts, counts)
    by_rank = order[np.argsort(rank, kind="stable")]
    parts, rows, start = [], 0, 0
    for size in np.bincount(rank).tolist():
        turn = generator.permutation(by_rank[start : start + size])
        start += size
        for begin in range(0, size, most):
            part = np.sort(turn[begin : begin + most])
            if rows >= wanted:
                return parts
            if len(part) > 1:
                parts.append(part)
                rows += len(part)
    return parts


def _mixed_within(
    rows: JointRows,
    wanted: int,
    options: InterpolationOptions,
    generator: np.random.Generator,
    *,
    seed: int,
    say: Say | None,
) -> Couples:
    count = len(rows)
    if wanted < 1:
        return np.empty(0, np.int64), np.empty(0, np.int64)
    # A tenth more than are wanted: two that choose each other are one.
    asked = np.sort(generator.permutation(count)[: wanted + wanted // 10 + 1])
    looked_at = min(count - 1, max(NEAR, 4 * -(-wanted // len(asked))))
    while True:
        _, found = neighbours(rows, asked, looked_at, approximate_from=options.approximate_from, seed=seed, say=say)
        a, b = _one_each_turn(asked, found, generator)
        if len(a) >= wanted or found.shape[1] < looked_at or looked_at == count - 1:
            return a[:wanted], b[:wanted]
        looked_at, asked = min(count - 1, 2 * looked_at), np.arange(count)


def _one_each_turn(asked: np.ndarray, found: np.ndarray, generator: np.random.Generator) -> Couples:
    """Every row with one of its neighbours by lot, then every row with another of them, and so on; no two twice."""
    generator.permuted(found, axis=1, out=found)
    lot = generator.permutation(len(asked))
    a, b = np.tile(asked[lot], found.shape[1]), found[lot].T.ravel()
    a, b = a[b >= 0], b[b >= 0]
    span = int(max(a.max(initial=0), b.max(initial=0))) + 1
    once = np.sort(np.unique(np.minimum(a, b) * span + np.maximum(a, b), return_index=True)[1])
    return a[once], b[once]
