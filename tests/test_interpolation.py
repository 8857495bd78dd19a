"""Synthetic identities: who is mixed with whom, how many samples that gives, and that slow loops find the same."""

import sys
from collections import Counter
from dataclasses import replace
from itertools import combinations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from compat.neighbors import nearest
from compat.options import InterpolationOptions
from compat.pairs import Pairs
from compat.training import nearness, pairing
from compat.training.interpolation import NO_SAMPLES, plan_synthetic


def of_sizes(sizes, dim=4, seed=0):
    """Pairs of identities 0, 1, ... with the given numbers of samples, in mixed order."""
    generator = np.random.default_rng(seed)
    labels = generator.permutation(np.repeat(np.arange(len(sizes)), sizes))
    people = generator.normal(size=(len(sizes), dim))[labels]
    new = people + 0.1 * generator.normal(size=people.shape)
    return Pairs.from_arrays(new[:, : dim - 1].copy(), new, labels)


def unlabelled(count, dim=5, seed=0):
    generator = np.random.default_rng(seed)
    new = generator.normal(size=(count, dim))
    return Pairs.from_arrays(new @ generator.normal(size=(dim, 4)), new)


def plan(pairs, seed=0, say=None, **options):
    return plan_synthetic(pairs, InterpolationOptions(**options), "new-to-old", seed=seed, say=say)


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


def slow_cosines(pairs, sets):
    """Nearness of sets of rows, a list of lists: the mean over the two spaces of the cosines of their mean vectors."""
    new, old = pairs.take(np.arange(len(pairs)), "new-to-old")
    total = np.zeros((len(sets), len(sets)))
    for side in (new, old):
        means = [sum(side[row].astype(np.float64) for row in rows) for rows in sets]
        for i, a in enumerate(means):
            for j, b in enumerate(means):
                total[i, j] += np.dot(a, b) / np.sqrt(np.dot(a, a) * np.dot(b, b)) / 2
    return total


def slow_plan(pairs, *, pairing, rate, minimum, cap):
    """What `groups` should be, by plain loops over couples: all of them, where a plan looks at the nearest first."""
    rows = {label: np.flatnonzero(pairs.labels == label).tolist() for label in sorted(set(pairs.labels.tolist()))}
    if pairing == "linear":
        minimum, cap = 1, 10**9
    able = [label for label in rows if len(rows[label]) >= minimum]
    couples = []
    if pairing == "linear":
        couples = list(zip(able[::2], able[1::2], strict=False))
    elif pairing == "sorted":
        able.sort(key=lambda label: -len(rows[label]))
        couples = list(zip(able[::2], able[1::2], strict=False))
        couples += [c for gap in range(1, len(able)) for c in zip(able, able[gap:], strict=False) if c not in couples]
    else:
        cosines = slow_cosines(pairs, [rows[label] for label in able])
        left = sorted(combinations(range(len(able)), 2), key=lambda couple: -cosines[couple])
        while left:
            used = set()
            for a, b in list(left):
                if not {a, b} & used:
                    used |= {a, b}
                    couples.append((able[a], able[b]))
                    left.remove((a, b))
    wanted, reached, found = max(1, round(rate * len(pairs))), 0, []
    for a, b in couples:
        if reached >= wanted:
            break
        size = min(len(rows[a]), len(rows[b]), cap, max(minimum, wanted - reached))
        found.append((a, b, size))
        reached += size
    return found


@settings(max_examples=60)
@given(
    sizes=st.lists(st.integers(1, 40), min_size=2, max_size=12),
    pairing=st.sampled_from(["sorted", "proximity", "linear"]),
    rate=st.floats(0.01, 5),
    limits=st.tuples(st.integers(1, 25), st.integers(0, 10)),
    seed=st.integers(0, 9),
)
def test_plans_are_those_of_slow_loops_and_limits_hold(sizes, pairing, rate, limits, seed):
    pairs = of_sizes(sizes, seed=seed)
    minimum, cap = limits[0], sum(limits)
    options = {"pairing": pairing, "rate": rate, "minimum": minimum, "cap": cap}
    synthetic = plan(pairs, seed, **options)
    found = groups(pairs, synthetic)
    if max(sizes) == 1:  # then every sample is an identity
        return
    assert found == slow_plan(pairs, **options)
    assert synthetic.rate == len(synthetic) / len(pairs)
    assert len({frozenset(g[:2]) for g in found}) == len(found)  # no two identities are mixed twice
    least = 1 if pairing == "linear" else minimum
    assert all(count >= least and (pairing == "linear" or count <= cap) for _, _, count in found)
    wanted = max(1, round(rate * len(pairs)))
    assert len(synthetic) < wanted + least
    able = [size for size in sizes if size >= least]
    reachable = sum(min(a, b, cap) for a, b in combinations(able, 2))
    if pairing != "linear":
        assert len(synthetic) >= min(wanted, reachable)
    if len(able) < 2:
        assert not len(synthetic)
        assert synthetic.rate == 0
        assert f"lower interpolation.minimum to {sorted(sizes)[-2]} or less" in synthetic.note
    elif len(synthetic) < wanted:
        assert f"of the {wanted / len(pairs):.3f} asked for" in synthetic.note
    assert set(synthetic.label).isdisjoint(range(len(sizes)))
    for label in set(synthetic.label):  # within one, no sample is used twice
        for side in (synthetic.first, synthetic.second):
            assert np.unique(side[synthetic.label == label]).size == (synthetic.label == label).sum()
    again = plan(pairs, seed, **options)
    np.testing.assert_array_equal(again.first, synthetic.first)
    np.testing.assert_array_equal(again.second, synthetic.second)


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
    assert scarce.note.startswith("synthetic samples reached a rate of 0.500 of the 0.800 asked for: `linear` takes")
    one_missing = plan(of_sizes([16] * 118 + [16, 15]), pairing="linear", rate=0.5)
    assert len(one_missing) == 959
    assert one_missing.note == ""


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
    assert "4 of 4 identities have the 20 samples of interpolation.minimum" in everything.note


def test_proximity_asks_for_nearness_in_both_spaces():
    # Everybody has a partner at a cosine of 0.7 in both spaces, and one nearer in either space, far away in the other.
    def at(angle):
        return np.array([np.cos(angle), np.sin(angle)])

    far = np.eye(8)
    new, old = np.zeros((8, 9, 2)), np.zeros((8, 9, 2))
    person = {"me": 0, "partner": 1, "near in new": 2, "near in old": 3}
    for side, decoy in ((new, "near in new"), (old, "near in old")):
        side[0, 0] = at(0)
        side[1, 0] = at(0.79)
        side[person[decoy], 0] = at(0.1)
        for other in set(range(2, 8)) - {person[decoy]}:
            side[other, 1:, 0] = far[other]
    new, old = (np.repeat(side.reshape(8, -1), 20, axis=0) for side in (new, old))
    pairs = Pairs.from_arrays(old, new, np.repeat(np.arange(8), 20))
    assert groups(pairs, plan(pairs, pairing="proximity", rate=20 / 160)) == [(0, 1, 20)]
    reversed_ = plan_synthetic(pairs, InterpolationOptions(pairing="proximity", rate=20 / 160), "old-to-new", seed=0)
    assert groups(pairs, reversed_) == [(0, 1, 20)]


def test_proximity_pairs_every_identity_with_its_twin_whatever_their_length():
    generator = np.random.default_rng(0)
    couples = np.linalg.qr(generator.normal(size=(16, 16)))[0][:6]
    partner = generator.permutation(12).reshape(6, 2)
    centres = np.empty((12, 16))
    for couple, (a, b) in zip(couples, partner, strict=True):
        centres[a], centres[b] = couple, 7 * couple + 0.1 * generator.normal(size=16)
    labels = generator.permutation(np.repeat(np.arange(12), 21))
    new = centres[labels] + 0.02 * generator.normal(size=(252, 16))
    pairs = Pairs.from_arrays(new[:, :13].copy(), new, labels)
    synthetic = plan(pairs, pairing="proximity", rate=0.5)
    assert {frozenset(g[:2]) for g in groups(pairs, synthetic)} == {frozenset(map(int, p)) for p in partner}
    assert [g[2] for g in groups(pairs, synthetic)] == [21] * 6
    assert len(groups(pairs, plan(pairs, pairing="proximity", rate=1.5))) > 12  # further neighbours


def test_proximity_looks_at_ever_more_neighbours_until_the_rate_is_reached(monkeypatch):
    asked = []
    real = pairing.neighbours
    monkeypatch.setattr(
        pairing, "neighbours", lambda rows, who, k, **rest: asked.append(k) or real(rows, who, k, **rest)
    )
    monkeypatch.setattr(pairing, "FEW", 2)
    # Nearly all couples are wanted, but most samples are with few identities.
    pairs = of_sizes([40, 40, 40, *[3] * 27], dim=8)
    options = {"pairing": "proximity", "minimum": 1, "cap": 40}
    reachable = 3 * 40 + (3 * 27 + 27 * 26 // 2) * 3
    synthetic = plan(pairs, rate=reachable / len(pairs), **options)
    assert len(synthetic) == reachable
    assert synthetic.note == ""
    assert asked[-1] == 29
    assert asked == sorted(asked)
    asked.clear()
    more = plan(pairs, rate=reachable / len(pairs) + 0.5, **options)
    assert len(more) == reachable
    assert "asked for" in more.note
    assert len(asked) <= 6  # nothing endless


def test_samples_of_an_identity_are_all_used_before_any_is_used_again():
    pairs = of_sizes([50, 40, 37, 30, 29], dim=6)
    for name in ("sorted", "proximity"):
        synthetic = plan(pairs, pairing=name, rate=1.3, minimum=5, cap=20)
        used = Counter(np.concatenate([synthetic.first, synthetic.second]).tolist())
        for label in range(5):
            counts = [used[row] for row in np.flatnonzero(pairs.labels == label).tolist()]
            assert max(counts) - min(counts) <= 1
            assert max(counts) > 1


def test_the_seed_decides_which_samples_are_taken():
    pairs = of_sizes([60] * 8)
    chosen = [plan(pairs, seed, pairing="sorted").first.tolist() for seed in (0, 0, 1)]
    assert chosen[0] == chosen[1] != chosen[2]
    assert max(Counter(chosen[0]).values()) == 1


def test_shares_are_halves_or_drawn_between_0_and_1():
    pairs = of_sizes([60] * 8)
    even = plan(pairs, pairing="sorted", rate=1.75)
    mixed = plan(pairs, pairing="sorted", rate=1.75, weight="random")
    assert even.share is None
    assert mixed.share is not None
    assert mixed.share.dtype == np.float32
    assert len(mixed.share) == len(mixed) == 840
    assert 0 < mixed.share.min() < 0.01
    assert 0.99 < mixed.share.max() < 1
    assert abs(mixed.share.mean() - 0.5) < 0.03
    np.testing.assert_array_equal(mixed.first, even.first)  # the same samples, mixed otherwise
    again = plan(pairs, pairing="sorted", rate=1.75, weight="random").share
    assert again is not None
    np.testing.assert_array_equal(again, mixed.share)
    assert plan(of_sizes([3] * 4), pairing="sorted", weight="random").share is None


def test_new_labels_are_nobodys_even_where_labels_have_gaps():
    pairs = of_sizes([20] * 6)
    gaps = replace(pairs, labels=np.array([-5, 3, 7, 100, 2, 9])[pairs.labels])  # type: ignore[index]
    for name in ("linear", "sorted", "proximity"):
        assert plan(gaps, pairing=name, rate=0.6).label.min() == 101


def test_too_few_samples_leave_nothing_and_say_why():
    few = of_sizes([6] * 10)
    for name in ("sorted", "proximity"):
        synthetic = plan(few, pairing=name)
        assert len(synthetic) == synthetic.rate == 0
        assert synthetic.note == (
            "no two identities give the 20 samples that a synthetic one needs (the largest have 6 and 6); "
            "lower interpolation.minimum to 6 or less"
        )
    assert plan(few, pairing="none") is NO_SAMPLES
    for name in ("linear", "sorted", "proximity"):
        assert plan(of_sizes([30]), pairing=name).note == (
            "all 30 pairs are of one identity; synthetic samples need two"
        )


def test_equal_numbers_of_samples_make_sorted_arbitrary_which_is_said():
    assert "order of `sorted` is arbitrary" in plan(of_sizes([25] * 6), pairing="sorted").note
    assert plan(of_sizes([25] * 5 + [26]), pairing="sorted").note == ""
    assert plan(of_sizes([25] * 6), pairing="proximity", rate=0.2).note == ""


def test_many_identities_are_planned_at_once():
    labels = np.repeat(np.arange(50_000), 2)
    pairs = Pairs.from_arrays(np.zeros((100_000, 1)), np.zeros((100_000, 1)), labels)
    assert "the largest have 2 and 2" in plan(pairs, pairing="sorted").note  # all 1e9 couples would take minutes
    assert plan(pairs, pairing="sorted", rate=10, minimum=1).rate == 10


# --- without labels ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("labels", [None, np.arange(30)[::-1] * 3], ids=["none", "unique"])
def test_without_identities_linear_and_sorted_say_what_to_use_instead(labels):
    pairs = replace(unlabelled(30), labels=labels)
    why = "the pairs have no labels" if labels is None else "no two items have the same label"
    for name in ("linear", "sorted"):
        synthetic = plan(pairs, pairing=name)
        assert len(synthetic) == synthetic.rate == 0
        assert synthetic.note == (
            f"{why}, so `{name}` finds no identities to mix; use --interpolation.pairing proximity, which mixes "
            "samples that are near each other"
        )
    synthetic = plan(pairs, pairing="proximity", rate=0.5)
    assert len(synthetic) == 15
    assert set(synthetic.label).isdisjoint(range(30) if labels is None else labels)
    assert len(set(synthetic.label)) == 15


@settings(max_examples=60)
@given(count=st.integers(2, 40), rate=st.floats(0.02, 10), views=st.integers(1, 4), seed=st.integers(0, 99))
def test_samples_are_mixed_with_near_ones(count, rate, views, seed):
    pairs = unlabelled(count, seed=seed)
    originals = np.random.default_rng(seed).integers(0, -(-count // views), count)
    if views > 1:
        pairs = replace(pairs, originals=originals)
    else:
        originals = np.arange(count)
    synthetic = plan(pairs, seed, pairing="proximity", rate=rate)
    couples = list(zip(synthetic.first.tolist(), synthetic.second.tolist(), strict=True))
    assert len({frozenset(couple) for couple in couples}) == len(couples)
    assert all(originals[a] != originals[b] for a, b in couples)
    assert len(set(synthetic.label.tolist())) == len(couples)
    wanted = max(1, round(rate * count))
    assert len(couples) <= wanted
    assert synthetic.rate == len(couples) / count
    if views > 1:
        return
    assert len(couples) == min(wanted, count * (count - 1) // 2)
    assert ("asked for" in synthetic.note) == (len(couples) < wanted)
    cosines = slow_cosines(pairs, [[row] for row in range(count)])
    if rate <= 1:
        for a, b in couples:  # in the order of nearness to a, b comes after a itself and seven others at most
            assert (cosines[a] > cosines[a, b] + 1e-6).sum() <= pairing.NEAR
    again = plan(pairs, seed, pairing="proximity", rate=rate)
    assert couples == list(zip(again.first.tolist(), again.second.tolist(), strict=True))


def test_far_samples_are_never_mixed():
    generator = np.random.default_rng(0)
    cluster = generator.permutation(np.repeat(np.arange(20), 15))
    new = 9 * generator.normal(size=(20, 12))[cluster] + generator.normal(size=(300, 12))
    pairs = Pairs.from_arrays(new[:, :9].copy(), new)
    synthetic = plan(pairs, pairing="proximity", rate=0.5)
    assert len(synthetic) == 150
    assert synthetic.note == ""
    np.testing.assert_array_equal(cluster[synthetic.first], cluster[synthetic.second])
    assert len(set(synthetic.first.tolist())) > 130  # spread over the samples, not all of a few
    other = plan(pairs, seed=1, pairing="proximity", rate=0.5)
    assert set(other.first.tolist()) != set(synthetic.first.tolist())


def test_equal_vectors_are_not_taken_for_oneself():
    vectors = np.ones((40, 3))  # the search names the lower row first, so hardly anyone is its own nearest
    synthetic = plan(Pairs.from_arrays(vectors, vectors), pairing="proximity", rate=1)
    assert len(synthetic) == 40
    assert (synthetic.first != synthetic.second).all()
    same = Pairs.from_arrays(vectors, vectors, np.arange(40) // 2)
    found = groups(same, plan(same, pairing="proximity", rate=1, minimum=2))
    assert len(found) == 20


def test_large_sets_are_searched_part_by_part_and_never_held(monkeypatch):
    taken = []
    real = Pairs.take
    monkeypatch.setattr(Pairs, "take", lambda self, rows, way: taken.append(len(rows)) or real(self, rows, way))
    monkeypatch.setattr(pairing, "PART_ROWS", 100)
    monkeypatch.setattr(nearness, "BLOCK_ROWS", 8)
    pairs = unlabelled(1010, dim=3)
    options = {"pairing": "proximity", "approximate_from": 90}
    monkeypatch.setattr(nearness, "nearest_approximate", lambda vectors, k, *, seed: nearest(vectors, vectors, k))  # noqa: ARG005
    synthetic = plan(pairs, rate=0.25, **options)
    assert len(synthetic) == 252
    assert len(set(synthetic.first) | set(synthetic.second)) <= 300  # three parts are enough
    assert max(taken) <= 100
    assert len(plan(pairs, rate=2.5, **options)) == 2525
    taken.clear()
    monkeypatch.setattr(pairing, "PART_ROWS", 5000)
    assert len(plan(pairs, rate=0.1, pairing="proximity")) == 101
    assert max(taken) <= 16  # exact search holds a block of either side


# --- views of one original --------------------------------------------------------------------------------------------


def test_views_are_one_identity_whatever_their_labels_say():
    # Four originals of six views; the views have no labels, so a code each, but one original's are of label 0.
    generator = np.random.default_rng(0)
    originals = np.repeat([10, 20, 30, 40], 6)
    labels = np.where(originals == 30, 0, np.arange(1, 25))
    vectors = generator.normal(size=(24, 5))
    pairs = replace(Pairs.from_arrays(vectors, vectors, labels), originals=originals)
    synthetic = plan(pairs, pairing="proximity", rate=3, minimum=2, cap=6)
    assert len(synthetic) == 36  # six times the six couples of four originals
    assert (originals[synthetic.first] != originals[synthetic.second]).all()
    assert "finds no identities" in plan(pairs, pairing="linear").note
    # Now two originals are of one label, so there are identities; chains of shared originals make one identity.
    chained = replace(pairs, labels=np.where(originals <= 20, 0, labels))
    for name in ("linear", "sorted", "proximity"):
        synthetic = plan(chained, pairing=name, rate=3, minimum=2, cap=6)
        assert len(synthetic) >= 6
        identity = np.where(originals <= 20, 20, originals)
        assert (identity[synthetic.first] != identity[synthetic.second]).all()


@settings(max_examples=60)
@given(rows=st.lists(st.tuples(st.integers(0, 9), st.integers(0, 9)), min_size=2, max_size=40))
def test_identities_that_share_an_original_are_one(rows):
    labels, originals = (np.array(column) for column in zip(*rows, strict=True))
    identity = labels.tolist()  # by plain loops: rows of one label or original get the lowest number until none changes
    changed = True
    while changed:
        changed = False
        for i, j in combinations(range(len(rows)), 2):
            if (labels[i] == labels[j] or originals[i] == originals[j]) and identity[i] != identity[j]:
                identity[i] = identity[j] = min(identity[i], identity[j])
                changed = True
    vectors = np.random.default_rng(0).normal(size=(len(rows), 3))
    pairs = replace(Pairs.from_arrays(vectors, vectors, labels), originals=originals)
    synthetic = plan(pairs, pairing="proximity", rate=10, minimum=1, cap=30)
    assert all(identity[a] != identity[b] for a, b in zip(synthetic.first, synthetic.second, strict=True))
    assert len(synthetic) > 0 or len(set(identity)) == 1
    if len(set(identity)) == len(set(originals.tolist())):  # each identity is one item: samples are mixed
        assert len(set(synthetic.label)) == len(synthetic)
    elif len(set(identity)) > 1:
        mixed = zip(synthetic.first, synthetic.second, synthetic.label, strict=True)
        couples = {(frozenset((identity[a], identity[b])), label) for a, b, label in mixed}
        assert len(couples) == len({couple for couple, _ in couples}) == len({label for _, label in couples})


# --- pynndescent ------------------------------------------------------------------------------------------------------


def test_an_approximate_search_is_announced_and_may_leave_neighbours_out(monkeypatch):
    calls = []

    def approximate(vectors, k, *, seed):
        calls.append((vectors.shape, k, seed))
        cosines, rows = nearest(vectors, vectors, k)
        rows[:, -1] = -1
        return cosines, rows

    monkeypatch.setattr(nearness, "nearest_approximate", approximate)
    said = []
    options = {"pairing": "proximity", "rate": 0.5, "minimum": 1, "cap": 2}
    pairs = of_sizes([2] * 80, dim=6)
    found = groups(pairs, plan(pairs, 7, said.append, approximate_from=80, **options))
    assert calls == [((80, 11), pairing.FEW + 1, 7)]
    assert said == [
        "looking for neighbours among 80 with pynndescent, whose first use compiles for about a minute, several on a "
        "busy machine"
    ]
    exact = groups(pairs, plan(pairs, 7, said.append, approximate_from=81, **options))
    assert len(calls) == len(said) == 1
    assert found[:30] == exact[:30]  # the nearest couples are no-one's last neighbours
    bare = unlabelled(80)
    assert len(plan(bare, 7, said.append, pairing="proximity", approximate_from=80)) == 20
    assert len(calls) == len(said) == 2


def test_a_missing_pynndescent_is_named_with_a_way_around(monkeypatch):
    monkeypatch.setitem(sys.modules, "pynndescent", None)
    pairs = of_sizes([2] * 80, dim=6)
    with pytest.raises(
        ImportError, match=r"pynndescent: pip install .* or raise interpolation.approximate_from above 80"
    ):
        plan(pairs, pairing="proximity", minimum=1, approximate_from=50)


@pytest.mark.slow  # numba compiles for tens of seconds
@pytest.mark.filterwarnings("ignore")
def test_pynndescent_pairs_the_same_identities_and_near_samples():
    generator = np.random.default_rng(0)
    twins = np.repeat(generator.normal(size=(150, 24)), 2, axis=0)
    labels = np.repeat(np.arange(300), 4)
    new = (twins + 0.1 * generator.normal(size=twins.shape))[labels] + 0.02 * generator.normal(size=(1200, 24))
    pairs = Pairs.from_arrays(new[:, :20].copy(), new, labels)
    options = {"pairing": "proximity", "rate": 0.5, "minimum": 4}
    found, exact = (
        {frozenset(g[:2]) for g in groups(pairs, plan(pairs, approximate_from=at, **options))} for at in (100, 10**6)
    )
    assert exact == {frozenset((i, i + 1)) for i in range(0, 300, 2)}
    assert len(found & exact) >= 148
    synthetic = plan(replace(pairs, labels=None), approximate_from=100, **options)
    assert len(synthetic) == 600
    near = (labels[synthetic.first] // 2 == labels[synthetic.second] // 2).mean()  # 7 of the 8 nearest are of a twin
    assert near > 0.8


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"rate": 0}, "rate must be above 0"),
        ({"rate": 11}, "at most 10, found 11"),
        ({"minimum": 0}, "minimum must be between 1 and"),
        ({"minimum": 31}, "found 31 and 30"),
        ({"pairing": "near"}, "pairing must be one of none, linear, sorted, proximity, found 'near'"),
        ({"weight": "half"}, "weight must be one of mean, random, found 'half'"),
        ({"approximate_from": 1}, "approximate_from must be at least 2, found 1"),
    ],
)
def test_impossible_options_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        InterpolationOptions(**options)
