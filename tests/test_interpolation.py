"""Synthetic identities: who is paired with whom, how many samples that gives, and what their vectors are."""

from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from planted import plant

from compat.options import Direction, InterpolationOptions
from compat.pairs import Pairs
from compat.training.interpolation import NO_SAMPLES, plan_synthetic
from compat.training.rows import TrainingRows

DIRECTIONS = ("new-to-old", "old-to-new")


def of_sizes(sizes, dim=4, seed=0):
    """Pairs of identities 0, 1, ... with the given numbers of samples, in mixed order."""
    generator = np.random.default_rng(seed)
    labels = generator.permutation(np.repeat(np.arange(len(sizes)), sizes))
    people = generator.normal(size=(len(sizes), dim))[labels]
    new = people + 0.1 * generator.normal(size=people.shape)
    return Pairs.from_arrays(new[:, : dim - 1].copy(), new, labels)


def plan(pairs, direction: Direction = "new-to-old", seed=0, **options):
    return plan_synthetic(pairs, InterpolationOptions(**options), direction, seed=seed)


def groups(pairs, synthetic):
    """Each new label in order: the identities it mixes, and its number of samples."""
    found = []
    for label in dict.fromkeys(synthetic.label.tolist()):
        rows = synthetic.label == label
        a, b = set(pairs.labels[synthetic.first[rows]]), set(pairs.labels[synthetic.second[rows]])
        assert len(a) == len(b) == 1
        assert a != b
        found.append((int(a.pop()), int(b.pop()), int(rows.sum())))
    return found


def test_linear_pairs_0_with_1_and_2_with_3_until_the_shorter_runs_out():
    pairs = of_sizes([3, 5, 7, 2, 9])
    assert groups(pairs, plan(pairs, pairing="linear", rate=10)) == [(0, 1, 3), (2, 3, 2)]


def test_linear_stops_at_the_rate():
    pairs = of_sizes([10] * 10)
    synthetic = plan(pairs, pairing="linear", rate=0.25)
    assert groups(pairs, synthetic) == [(0, 1, 10), (2, 3, 10), (4, 5, 5)]
    assert synthetic.rate == 0.25
    assert synthetic.note == ""
    scarce = plan(pairs, pairing="linear", rate=0.8)
    assert scarce.rate == 0.5
    assert scarce.note == "synthetic samples reached a rate of 0.500 of the 0.800 asked for"


def test_sorted_pairs_neighbours_by_number_of_samples_and_caps_them():
    pairs = of_sizes([25, 100, 22, 40, 19, 90, 28])  # 19 are too few
    assert groups(pairs, plan(pairs, pairing="sorted", rate=0.245)) == [(1, 5, 30), (3, 6, 28), (0, 2, 21)]
    synthetic = plan(pairs, pairing="sorted", rate=0.2)  # 65 of 324, but a new identity has 20 samples at least
    assert groups(pairs, synthetic) == [(1, 5, 30), (3, 6, 28), (0, 2, 20)]
    assert synthetic.rate == 78 / 324


def test_sorted_goes_on_to_further_neighbours_when_the_rate_asks_for_more():
    pairs = of_sizes([26, 25, 24, 23])
    found = groups(pairs, plan(pairs, pairing="sorted", rate=1.3))
    assert found == [(0, 1, 25), (2, 3, 23), (1, 2, 24), (0, 2, 24), (1, 3, 23), (0, 3, 20)]
    everything = plan(pairs, pairing="sorted", rate=9)
    assert len(groups(pairs, everything)) == 6
    assert everything.rate == (25 + 23 + 24 + 24 + 23 + 23) / 98
    assert "of the 9.000 asked for" in everything.note


def test_proximity_pairs_the_nearest_identities():
    # Six couples: far apart from each other, the two of a couple close together.
    generator = np.random.default_rng(0)
    couples = np.linalg.qr(generator.normal(size=(16, 16)))[0][:6]
    partner = generator.permutation(12).reshape(6, 2)
    centres = np.empty((12, 16))
    for couple, (a, b) in zip(couples, partner, strict=True):
        centres[a], centres[b] = couple, couple + 0.05 * generator.normal(size=16)
    labels = generator.permutation(np.repeat(np.arange(12), 21))
    new = centres[labels] + 0.02 * generator.normal(size=(252, 16))
    old = generator.normal(size=(252, 5))  # says nothing of who is near whom
    pairs = Pairs.from_arrays(old, new, labels)
    synthetic = plan(pairs, pairing="proximity", rate=0.5)
    assert {frozenset(g[:2]) for g in groups(pairs, synthetic)} == {frozenset(map(int, p)) for p in partner}
    assert [g[2] for g in groups(pairs, synthetic)] == [21] * 6
    swapped = Pairs.from_arrays(new, old, labels)
    back = plan(swapped, "old-to-new", pairing="proximity", rate=0.5)
    np.testing.assert_array_equal(back.first, synthetic.first)
    assert len(groups(pairs, plan(pairs, pairing="proximity", rate=1.5))) > 12  # further neighbours


def test_proximity_takes_no_identity_twice_before_all_were_taken_once():
    pairs = of_sizes([20] * 14, dim=6, seed=3)
    found = groups(pairs, plan(pairs, pairing="proximity", rate=4))
    assert len(set(found)) == len(found) > 30
    used: set[int] = set()
    rounds = 1
    for a, b, _ in found:
        if {a, b} & used:  # a new round of disjoint pairs begins only when the nearest left are in use
            used, rounds = set(), rounds + 1
        used |= {a, b}
    assert rounds < len(found) / 3


@settings(max_examples=60, deadline=None)
@given(
    sizes=st.lists(st.integers(1, 40), min_size=1, max_size=12),
    pairing=st.sampled_from(["sorted", "proximity", "linear"]),
    rate=st.floats(0.01, 3),
    limits=st.tuples(st.integers(1, 25), st.integers(0, 10)),
    direction=st.sampled_from(DIRECTIONS),
)
def test_limits_hold_for_every_pairing(sizes, pairing, rate, limits, direction):
    pairs = of_sizes(sizes)
    minimum, cap = limits[0], sum(limits)
    synthetic = plan(pairs, direction, pairing=pairing, rate=rate, minimum=minimum, cap=cap)
    found = groups(pairs, synthetic)
    assert synthetic.rate == len(synthetic) / len(pairs)
    assert len({frozenset(g[:2]) for g in found}) == len(found)  # no two identities are mixed twice
    least, most = (1, len(pairs)) if pairing == "linear" else (minimum, cap)
    for a, b, count in found:
        assert min(least, sizes[a], sizes[b]) <= count <= min(most, sizes[a], sizes[b])
        assert pairing == "linear" or count >= minimum
    wanted = max(1, round(rate * len(pairs)))
    assert len(synthetic) < wanted + least
    able = [size for size in sizes if size >= least]
    if len(able) < 2:
        assert not len(synthetic)
        assert "lower interpolation.minimum" in synthetic.note
    elif len(synthetic) < wanted:
        assert f"of the {wanted / len(pairs):.3f} asked for" in synthetic.note
    assert set(synthetic.label).isdisjoint(range(len(sizes)))
    for label in set(synthetic.label):  # within one, no sample is used twice
        for side in (synthetic.first, synthetic.second):
            assert np.unique(side[synthetic.label == label]).size == (synthetic.label == label).sum()


def test_too_few_samples_or_no_labels_leave_nothing_and_say_why():
    few = of_sizes([6] * 10)
    for pairing in ("sorted", "proximity"):
        synthetic = plan(few, pairing=pairing)
        assert len(synthetic) == synthetic.rate == 0
        assert synthetic.note == (
            "no two identities give the 20 samples that a synthetic one needs (the largest have 6 and 6); "
            "lower interpolation.minimum"
        )
    bare = Pairs.from_arrays(np.ones((4, 2)), np.ones((4, 3)))
    assert "have no labels" in plan(bare, pairing="linear").note
    assert plan(bare, pairing="none") is NO_SAMPLES


def test_equal_numbers_of_samples_make_sorted_arbitrary_which_is_said():
    assert "order of `sorted` is arbitrary" in plan(of_sizes([25] * 6), pairing="sorted").note
    assert plan(of_sizes([25] * 5 + [26]), pairing="sorted").note == ""
    assert plan(of_sizes([25] * 6), pairing="proximity", rate=0.2).note == ""


def test_many_small_identities_are_passed_over_at_once():
    labels = np.repeat(np.arange(20_000), 2)
    pairs = Pairs.from_arrays(np.zeros((40_000, 1)), np.zeros((40_000, 1)), labels)
    assert "the largest have 2 and 2" in plan(pairs, pairing="sorted").note  # all 2e8 couples would take minutes


@pytest.mark.parametrize("direction", DIRECTIONS)
def test_vectors_are_averaged_in_both_spaces_with_the_same_items(direction):
    world = plant(identities=6, samples=22, old_dim=5, new_dim=9)
    pairs = Pairs.from_arrays(world.old, world.new, world.labels)
    synthetic = plan(pairs, direction, pairing="sorted", rate=0.5)
    rows = TrainingRows(pairs, synthetic, direction)
    assert len(rows) == 132 + 66
    asked = np.array([140, 3, 197, 131, 132, 0])
    source, target = rows.take(asked)
    sides = {"new": source, "old": target} if direction == "new-to-old" else {"old": source, "new": target}
    order = [3, 131, 0, 140, 197, 132]  # real ones come first
    for name, found in sides.items():
        vectors = getattr(world, name)
        expected = [
            vectors[row]
            if row < 132
            else (vectors[synthetic.first[row - 132]] + vectors[synthetic.second[row - 132]]) / 2
            for row in order
        ]
        np.testing.assert_allclose(found, expected, rtol=1e-6)
        assert found.dtype == np.float32
    real, _ = rows.take(np.array([5, 2]))
    np.testing.assert_array_equal(real, (world.new if direction == "new-to-old" else world.old)[[5, 2]])


def test_the_seed_decides_which_samples_are_taken():
    pairs = of_sizes([60] * 8)
    chosen = [plan(pairs, pairing="sorted", seed=seed).first.tolist() for seed in (0, 0, 1)]
    assert chosen[0] == chosen[1] != chosen[2]
    assert all(a != b for a, b in pairwise(sorted(chosen[0])))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"rate": 0}, "rate must be above 0"),
        ({"rate": 11}, "at most 10, found 11"),
        ({"minimum": 0}, "minimum must be between 1 and"),
        ({"minimum": 31}, "found 31 and 30"),
    ],
)
def test_impossible_options_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        InterpolationOptions(**options)
