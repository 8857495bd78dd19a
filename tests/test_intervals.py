"""The bootstrap against a loop that draws one group after the other, and against the truth it should cover."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import binomtest

from compat.metrics.intervals import Interval, bootstrap_means, interval, paired_slack, proportion_interval


def slow_means(values, clusters, resamples, seed):
    """Draw whole groups with replacement and average over all queries that are then there."""
    generator = np.random.default_rng(seed)
    groups = [np.flatnonzero(clusters == code) for code in np.unique(clusters)]
    means = []
    for _ in range(resamples):
        drawn = [groups[i] for i in generator.integers(len(groups), size=len(groups))]
        means.append(values[np.concatenate(drawn)].mean(axis=0))
    return np.array(means)


def uneven(seed=0, groups=12):
    """Groups of 1 to 9 queries whose values go together, in mixed order."""
    generator = np.random.default_rng(seed)
    clusters = np.repeat(np.arange(groups), generator.integers(1, 10, size=groups)) * 7 - 20
    values = np.stack([clusters % 5 + generator.normal(size=len(clusters)), generator.random(len(clusters))], axis=1)
    mixed = generator.permutation(len(clusters))
    return values[mixed], clusters[mixed]


def test_resampled_means_are_distributed_as_those_of_a_slow_loop():
    values, clusters = uneven()
    fast, slow = bootstrap_means(values, clusters, resamples=4000), slow_means(values, clusters, 4000, seed=5)
    assert fast.shape == (4000, 2)
    spread = slow.std(axis=0)
    np.testing.assert_allclose(fast.mean(axis=0), slow.mean(axis=0), atol=0.08 * spread.min())
    np.testing.assert_allclose(fast.std(axis=0), spread, rtol=0.06)
    for q in (2.5, 25, 75, 97.5):
        np.testing.assert_allclose(np.percentile(fast, q, axis=0), np.percentile(slow, q, axis=0), atol=0.2 * spread[0])
    assert np.corrcoef(fast.T)[0, 1] == pytest.approx(np.corrcoef(slow.T)[0, 1], abs=0.1)
    alone = bootstrap_means(values, resamples=4000)
    assert alone.std(axis=0)[0] < 0.7 * spread[0]  # taking queries of one group for independent promises too much


def test_without_groups_every_query_is_one():
    values = uneven()[0]
    ids = np.arange(len(values))
    np.testing.assert_array_equal(bootstrap_means(values, seed=3), bootstrap_means(values, ids, seed=3))


@settings(max_examples=30, deadline=None)
@given(seed=st.integers(0, 2**32), groups=st.integers(1, 6))
def test_draws_are_repeatable_shared_by_columns_and_within_the_values(seed, groups):
    values, clusters = uneven(seed % 1000, groups)
    means = bootstrap_means(np.concatenate([values, 2 * values + 1], axis=1), clusters, resamples=50, seed=seed)
    np.testing.assert_allclose(means[:, 2:], 2 * means[:, :2] + 1)
    np.testing.assert_array_equal(bootstrap_means(values, clusters, resamples=50, seed=seed), means[:, :2])
    assert (means[:, :2] >= values.min(axis=0) - 1e-9).all()
    assert (means[:, :2] <= values.max(axis=0) + 1e-9).all()


def test_an_interval_of_95_percent_covers_the_truth_about_that_often():
    # 100 identities of 5 queries; each identity has a chance of its own, so its queries go together.
    generator = np.random.default_rng(0)
    truth, covered, naive = 0.7, 0, 0
    clusters = np.repeat(np.arange(100), 5)
    for simulation in range(200):
        chance = generator.beta(truth * 2, (1 - truth) * 2, size=100)
        hits = (generator.random(500) < chance[clusters]).astype(float)[:, None]
        means = bootstrap_means(hits, clusters, resamples=400, seed=simulation)
        found = proportion_interval(hits.mean(), means[:, 0], 100, 500)
        covered += found.low <= truth <= found.high
        if simulation % 4 == 0:
            alone = interval(hits.mean(), bootstrap_means(hits, resamples=400, seed=simulation)[:, 0])
            naive += alone.low <= truth <= alone.high
    assert 0.90 <= covered / 200 <= 0.99
    assert naive / 50 < 0.90  # the same without groups does not


@pytest.mark.parametrize("groups", [1, 10, 50, 1000])
def test_where_all_agree_the_interval_is_the_exact_binomial_one(groups):
    for value in (0.0, 1.0):
        found = proportion_interval(value, np.full(100, value), groups, groups)
        exact = binomtest(int(value * groups), groups).proportion_ci(0.95, "exact")
        assert (found.value, found.low, found.high) == pytest.approx((value, exact.low, exact.high))
        assert found.low < found.high
        shared = proportion_interval(value, np.full(100, value), groups, 5 * groups)  # a group fails by one of five
        assert shared.high - shared.low == pytest.approx((found.high - found.low) / 5)


def test_a_loss_that_nobody_showed_is_not_ruled_out():
    groups = np.repeat(np.arange(16), 5)
    slack = (1 - 0.025 ** (1 / 16)) / 5
    assert paired_slack(np.zeros(80), groups) == pytest.approx((slack, slack))
    one_gains = np.zeros(80)
    one_gains[3] = 1
    assert paired_slack(one_gains, groups) == pytest.approx((slack, 0))
    assert paired_slack(-one_gains, groups) == pytest.approx((0, slack))


def test_between_the_ends_the_percentiles_stand():
    means = np.linspace(0.2, 0.6, 401)
    assert proportion_interval(0.4, means, 3, 9) == interval(0.4, means)
    assert interval(0.4, means).to_dict() == pytest.approx({"value": 0.4, "low": 0.21, "high": 0.59})
    assert interval(0.4, np.concatenate([means, [np.nan] * 50])) == interval(0.4, means)
    assert str(Interval(0.5, 0.25, 0.75)) == "0.500 [0.250, 0.750]"
