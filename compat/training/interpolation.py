"""Synthetic identities: the samples of two identities mixed one by one, in both spaces at once.

Only which sample goes with which is decided here; `compat.training.rows` mixes the vectors when a batch is taken, so
nothing is copied. The mix of two embeddings of the new model is paired with the same mix of the same two items'
embeddings of the old model, under a new label. The pairings `linear` and `sorted` and the improvement `proximity` are
those of the backward-compatibility study that compares MSResNet and MLP maps between ArcFace backbones on MS1M.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from compat.options import Direction, InterpolationOptions
from compat.pairs import Pairs
from compat.training.nearness import Say
from compat.training.pairing import Couples, by_count, by_nearness, gains, in_order, near_samples


@dataclass(frozen=True)
class SyntheticSamples:
    """Sample i is share[i] of the pair numbered first[i] and the rest of second[i], and belongs to identity label[i].

    A sample takes 24 bytes, 28 with shares, whatever the dimensions.

    Attributes:
        first: int64 [m].
        second: int64 [m].
        label: int64 [m], numbers that no real identity has.
        rate: Synthetic samples for each real one, 0 where there are none.
        note: Why there are fewer than were asked for, or empty.
        share: float32 [m] between 0 and 1, both excluded, or None where all are half and half.
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


def plan_synthetic(
    pairs: Pairs, options: InterpolationOptions, direction: Direction, *, seed: int, say: Say | None = None
) -> SyntheticSamples:
    """Choose which samples to mix.

    `linear` takes identities 0 and 1, 2 and 3, ... and their samples until the shorter runs out. `sorted` orders
    identities by number of samples first, `proximity` pairs those whose centroids are near each other in both spaces
    (see `compat.training.nearness`); both leave out identities of fewer than `minimum` samples and take no more than
    `cap` from a pair, and no fewer than `minimum` even where the rate asks for fewer. While the rate is not reached,
    `sorted` and `proximity` go on to further neighbours, so an identity may be used again; each of its samples is used
    once before any is used again.

    Where no two pairs share a label, or there are none, `proximity` mixes a sample with one of the samples near it, and
    each mix is an identity of its own; `minimum` and `cap` say nothing then.

    Views of one original are never mixed: identities that have a view of the same original are one.

    Besides the plan, 24 or 28 bytes for a synthetic sample, about 60 bytes for each real pair are held while planning,
    and by `proximity` the centroids, or so many samples as `compat.training.pairing.PART_ROWS` says.

    Args:
        pairs: Real pairs, those of the training folds alone where others are held out.
        options: Pairing, rate, limits and weight.
        direction: Decides which side is the source. Both count alike.
        seed: Chooses among an identity's samples where it has more than are taken, and the shares.
        say: Told in one line before something slow begins.

    Raises:
        ImportError: If there are so many identities that pynndescent is needed, and it is missing.
        ValueError: If a vector holds NaN.
    """
    if options.pairing == "none":
        return NO_SAMPLES
    identities, items = _groups(pairs)
    counts = np.bincount(identities)
    if len(counts) < 2:
        return _none(f"all {len(pairs)} pairs are of one identity; synthetic samples need two")
    wanted = max(1, round(options.rate * len(pairs)))
    if len(counts) == items.max() + 1:
        synthetic = _of_near_samples(pairs, items, wanted, options, direction, seed, say)
    else:
        synthetic = _of_identities(pairs, identities, wanted, options, direction, seed, say)
    if options.weight == "mean" or not len(synthetic):
        return synthetic
    halves = np.random.default_rng([seed, len(synthetic)]).integers(0, 2**23, len(synthetic)) + 0.5
    return replace(synthetic, share=(halves / 2**23).astype(np.float32))


def _none(note: str) -> SyntheticSamples:
    return replace(NO_SAMPLES, note=note)


def _groups(pairs: Pairs) -> tuple[np.ndarray, np.ndarray]:
    """Identity and original item of each pair, int64 [n] each, numbered from 0 in the order of labels."""
    own = np.arange(len(pairs))
    items = own if pairs.originals is None else np.unique(pairs.originals, return_inverse=True)[1]
    if pairs.labels is None:
        return items, items
    codes = np.unique(pairs.labels, return_inverse=True)[1]
    if pairs.originals is None:
        return codes, items
    # Labels that share an original are one: unlabelled views are labelled apart, and sources may disagree.
    first = np.full(items.max(initial=-1) + 1, len(pairs))
    np.minimum.at(first, items, codes)
    same = codes != first[items]
    a, b = codes[same], first[items][same]
    parent = np.arange(codes.max(initial=-1) + 1)
    while not np.array_equal(parent[a], parent[b]):
        low, high = np.minimum(parent[a], parent[b]), np.maximum(parent[a], parent[b])
        np.minimum.at(parent, high, low)
        while not np.array_equal(parent, parent[parent]):
            parent = parent[parent]
    return np.unique(parent[codes], return_inverse=True)[1], items


def _of_near_samples(
    pairs: Pairs,
    items: np.ndarray,
    wanted: int,
    options: InterpolationOptions,
    direction: Direction,
    seed: int,
    say: Say | None,
) -> SyntheticSamples:
    if options.pairing != "proximity":
        why = "the pairs have no labels" if pairs.labels is None else "no two items have the same label"
        return _none(
            f"{why}, so `{options.pairing}` finds no identities to mix; use --interpolation.pairing proximity, which "
            "mixes samples that are near each other"
        )
    first, second = near_samples(pairs, items, wanted, options, direction, seed=seed, say=say)
    highest = len(pairs) - 1 if pairs.labels is None else int(pairs.labels.max())
    label = highest + 1 + np.arange(len(first))
    note = "" if len(first) == wanted else _short(len(first), wanted, len(pairs), "no two are mixed twice")
    return SyntheticSamples(first, second, label, len(first) / len(pairs), note)


def _of_identities(
    pairs: Pairs,
    identities: np.ndarray,
    wanted: int,
    options: InterpolationOptions,
    direction: Direction,
    seed: int,
    say: Say | None,
) -> SyntheticSamples:
    linear = options.pairing == "linear"
    minimum, cap = (1, len(pairs)) if linear else (options.minimum, options.cap)
    counts = np.bincount(identities)
    able = np.flatnonzero(counts >= minimum)
    sizes = counts[able]
    if len(able) < 2:
        largest = np.sort(counts)[:-3:-1].tolist()
        return _none(
            f"no two identities give the {minimum} samples that a synthetic one needs (the largest have "
            f"{largest[0]} and {largest[1]}); lower interpolation.minimum to {largest[1]} or less"
        )
    if linear:
        a, b = in_order(len(able))
    elif options.pairing == "sorted":
        a, b = by_count(sizes, wanted, cap)
    else:
        place = np.full(len(counts), -1)
        place[able] = np.arange(len(able))
        a, b = by_nearness(pairs, place[identities], sizes, wanted, options, direction, seed=seed, say=say)
    given = gains(a, b, sizes, cap)
    reached = np.cumsum(given)
    taken = min(len(a), int(np.searchsorted(reached, wanted)) + 1)
    a, b, given = a[:taken], b[:taken], given[:taken]
    given[-1] = min(given[-1], max(minimum, wanted - int(given[:-1].sum())))
    first, second = _samples(identities, (able[a], able[b]), given, seed)
    assert pairs.labels is not None
    label = int(pairs.labels.max()) + 1 + np.repeat(np.arange(taken), given)
    notes = []
    if len(first) < wanted:
        why = (
            "`linear` takes each identity once, `sorted` and `proximity` go on to further neighbours"
            if linear
            else f"{len(able)} of {len(counts)} identities have the {minimum} samples of interpolation.minimum, and a "
            f"pair gives {cap} at most (interpolation.cap)"
        )
        notes.append(_short(len(first), wanted, len(pairs), why))
    if options.pairing == "sorted" and sizes.min() == sizes.max():
        notes.append("all identities have equally many samples, so the order of `sorted` is arbitrary")
    return SyntheticSamples(first, second, label, len(first) / len(pairs), "; ".join(filter(None, notes)))


def _short(count: int, wanted: int, real: int, why: str) -> str:
    """What to say of fewer samples than wanted; nothing where the two rates read alike."""
    reached, asked = f"{count / real:.3f}", f"{wanted / real:.3f}"
    return "" if reached == asked else f"synthetic samples reached a rate of {reached} of the {asked} asked for: {why}"


def _samples(identities: np.ndarray, couples: Couples, given: np.ndarray, seed: int) -> Couples:
    """The samples that couples of identities, int64 [c] each, mix: given[i] of either, int64 [sum of given] each.

    Every identity deals its samples out in an order of its own, one couple after another, and from the start again when
    it has no more.
    """
    order = np.lexsort((np.random.default_rng(seed).random(len(identities)), identities))
    counts = np.bincount(identities)
    starts = np.cumsum(counts) - counts
    # Who deals, couple by couple, and how many samples each has dealt before.
    dealers, dealt = np.stack(couples, axis=1).ravel(), np.repeat(given, 2)
    by_dealer = np.argsort(dealers, kind="stable")
    sorted_dealers = dealers[by_dealer]
    before = np.cumsum(dealt[by_dealer]) - dealt[by_dealer]
    opens = np.flatnonzero(np.diff(sorted_dealers, prepend=-1))
    before -= np.repeat(before[opens], np.diff(opens, append=len(dealers)))
    offset = np.empty_like(before)
    offset[by_dealer] = before
    within = np.arange(given.sum()) - np.repeat(np.cumsum(given) - given, given)
    sides = []
    for side in (0, 1):
        dealer = np.repeat(dealers[side::2], given)
        sides.append(order[starts[dealer] + (np.repeat(offset[side::2], given) + within) % counts[dealer]])
    return sides[0], sides[1]
