"""Measures by group, and flips, against loops over queries and planted chances."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from compat.metrics.flips import flips
from compat.metrics.groups import NONE, Groups, group_means, highest_means, worst_first


def test_groups_are_equal_text_and_what_has_no_value_is_a_group():
    groups = Groups.of(["b", None, "a", "b", float("nan"), 3, "3"])
    assert groups.names == ("b", NONE, "a", "3")
    assert groups.codes.tolist() == [0, 1, 2, 0, 1, 3, 3]
    assert Groups.of([]).names == ()


@given(
    queries=st.lists(
        st.tuples(st.sampled_from(["x", "y", None, "z"]), st.sampled_from([0.0, 1.0, math.nan])), min_size=1
    )
)
def test_means_are_those_of_a_loop(queries):
    groups = Groups.of(name for name, _ in queries)
    counts, means = group_means(np.array([value for _, value in queries]), groups)
    for name, count, mean in zip(groups.names, counts, means, strict=True):
        mine = [v for g, v in queries if (NONE if g is None else g) == name and not math.isnan(v)]
        assert count == len(mine)
        assert math.isnan(mean) if not mine else mean == pytest.approx(sum(mine) / len(mine))


def test_no_group_is_above_its_highest_mean_more_often_than_promised():
    # 60 groups of 1 to 30 queries, all with one chance; clusters answer as one.
    generator = np.random.default_rng(0)
    chance, wrong, alone = 0.6, 0, 0
    sizes = generator.integers(1, 31, size=60)
    names = np.repeat(np.arange(60), sizes)
    clusters = np.arange(len(names)) // 3
    for _ in range(300):
        values = (generator.random(clusters.max() + 1) < chance)[clusters].astype(float)
        groups = Groups.of(names.tolist())
        wrong += bool((highest_means(values, groups, clusters) < chance).any())
        alone += bool((group_means(values, groups)[1] < chance - 0.3).any())
    assert wrong / 300 <= 0.025
    assert alone / 300 > 0.9  # by point value some tiny group is nearly always bad


def test_the_highest_mean_is_the_formula_of_hoeffding():
    groups = Groups.of(["a"] * 8 + ["b"] * 2)
    values = np.array([0, 1, 0, 1, 0, 0, 0, 0, 1, np.nan])
    reach = math.sqrt(math.log(2 / 0.025) / (2 * 8))
    found = highest_means(values, groups)
    assert found.tolist() == pytest.approx([0.25 + reach, 1 + reach * math.sqrt(8)])
    paired = highest_means(values, groups, np.array([0, 0, 1, 1, 2, 2, 3, 3, 4, 4]))
    assert paired[0] == pytest.approx(0.25 + reach * math.sqrt(2))  # four clusters know less than eight queries
    assert highest_means(values, groups, span=2.0)[0] == pytest.approx(0.25 + 2 * reach)
    assert np.isnan(highest_means(np.array([1, np.nan]), Groups.of("ab"))[1])


def test_the_worst_is_who_may_be_named():
    upper = np.array([0.3, -0.2, np.nan, 0.1, -0.5])
    named = np.array([True, True, True, True, False])
    assert worst_first(upper, named).tolist() == [1, 3, 0, 2, 4]
    assert worst_first(upper, ~named).tolist() == [4, 1, 3, 0, 2]


def test_flips_by_hand():
    nan = np.nan
    before = np.array([1, 1, 0, 0, 1, nan, 1])
    after = np.array([1, 0, 1, 0, 0, nan, 1])
    found = flips(before, after)
    assert np.flatnonzero(found.negative).tolist() == [1, 4]
    assert np.flatnonzero(found.positive).tolist() == [2]
    assert found.negative_rate == pytest.approx(2 / 6)
    assert found.negative_rate_of_right == pytest.approx(2 / 4)
    assert found.positive_rate == pytest.approx(1 / 6)
    assert found.positive_rate_of_wrong == pytest.approx(1 / 2)
    change = np.nanmean(after) - np.nanmean(before)
    assert found.positive_rate - found.negative_rate == pytest.approx(change)


def test_flips_of_nothing():
    found = flips(np.array([np.nan]), np.array([np.nan]))
    assert math.isnan(found.negative_rate)
    assert math.isnan(flips(np.zeros(3), np.ones(3)).negative_rate_of_right)
    with pytest.raises(ValueError, match="one set of queries, found 2 and 1 answered"):
        flips(np.ones(2), np.array([1, np.nan]))
