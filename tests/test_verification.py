"""The error curve against scikit-learn and against loops over thresholds."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from sklearn.metrics import precision_recall_curve, roc_curve

from compat.metrics.verification import ErrorCurve, OperatingPoint, keep_threshold, unsupported


@st.composite
def scored_pairs(draw):
    """A few pairs of both kinds, many with equal scores."""
    generator = np.random.default_rng(draw(st.integers(0, 2**32)))
    pairs = draw(st.integers(2, 60))
    same = generator.random(pairs) < draw(st.sampled_from([0.1, 0.5, 0.9]))
    same[:2] = [True, False]
    scores = generator.normal(size=pairs) + same
    return (np.round(scores * 2) / 2 if draw(st.booleans()) else scores), same


def slow_rates(scores, same, threshold):
    false = sum(1 for s, flag in zip(scores, same, strict=True) if not flag and s >= threshold)
    true = sum(1 for s, flag in zip(scores, same, strict=True) if flag and s >= threshold)
    return false / sum(~same), true / sum(same)


@given(pairs=scored_pairs())
def test_the_curves_are_those_of_scikit_learn(pairs):
    scores, same = pairs
    curve = ErrorCurve.of_scores(scores, same)
    far, tar, thresholds = roc_curve(same, scores, drop_intermediate=False)
    np.testing.assert_array_equal(curve.thresholds, thresholds)
    np.testing.assert_allclose(curve.far, far, rtol=1e-15)
    np.testing.assert_allclose(curve.tar, tar, rtol=1e-15)
    np.testing.assert_allclose(curve.frr, 1 - tar, atol=1e-15)
    precision, recall, at = precision_recall_curve(same, scores)
    np.testing.assert_allclose(curve.precision, precision[::-1], rtol=1e-15)
    np.testing.assert_allclose(curve.tar, recall[::-1], rtol=1e-15)
    np.testing.assert_array_equal(curve.thresholds[1:], at[::-1])


@given(pairs=scored_pairs(), far=st.floats(0.02, 1))
def test_a_threshold_at_a_rate_is_the_lowest_score_that_holds_it(pairs, far):
    scores, same = pairs
    curve = ErrorCurve.of_scores(scores, same)
    if far * sum(~same) < 1:
        with pytest.raises(ValueError, match=r"needs at least \d+ impostor pairs, found"):
            curve.at_far(far)
        return
    holding = [t for t in [*scores, np.inf] if slow_rates(scores, same, t)[0] <= far]
    point = curve.at_far(far)
    assert point.threshold == min(holding)
    assert (point.far, point.tar) == pytest.approx(slow_rates(scores, same, point.threshold))


@given(pairs=scored_pairs(), threshold=st.floats(-4, 4))
def test_a_given_threshold_accepts_scores_at_least_as_high(pairs, threshold):
    scores, same = pairs
    for at in (threshold, scores[0], np.inf, -np.inf):
        point = ErrorCurve.of_scores(scores, same).at_threshold(at)
        assert point.threshold == at
        assert (point.far, point.tar) == pytest.approx(slow_rates(scores, same, at))


def slow_equal_error_rate(scores, same):
    """Walk the polygon of (FAR, FRR) points to where it meets the diagonal."""
    before = (0.0, 1.0)
    for threshold in sorted(set(scores), reverse=True):
        far, tar = slow_rates(scores, same, threshold)
        if far >= 1 - tar:
            steps = np.linspace(0, 1, 200_001)
            gaps = (before[0] + steps * (far - before[0])) - (before[1] + steps * (1 - tar - before[1]))
            return before[0] + steps[np.argmin(np.abs(gaps))] * (far - before[0])
        before = (far, 1 - tar)
    raise AssertionError


@given(pairs=scored_pairs())
def test_the_equal_error_rate_is_where_the_curve_meets_the_diagonal(pairs):
    assert ErrorCurve.of_scores(*pairs).equal_error_rate() == pytest.approx(slow_equal_error_rate(*pairs), abs=1e-5)


def test_known_equal_error_rates():
    same = np.array([1, 1, 0, 0], bool)
    assert ErrorCurve.of_scores(np.array([4, 3, 2, 1]), same).equal_error_rate() == 0
    assert ErrorCurve.of_scores(np.array([1, 2, 3, 4]), same).equal_error_rate() == 1
    assert ErrorCurve.of_scores(np.array([4, 2, 3, 1]), same).equal_error_rate() == 0.5
    assert ErrorCurve.of_scores(np.ones(4), same).equal_error_rate() == 0.5  # a map to one point


def test_a_map_to_one_point_accepts_nobody_at_a_low_rate():
    point = ErrorCurve.of_scores(np.ones(300), np.arange(300) < 100).at_far(0.01)
    assert (point.threshold, point.far, point.tar) == (np.inf, 0, 0)
    assert point.to_dict() == {"threshold": None, "far": 0, "frr": 1}


def test_a_rate_below_one_in_the_impostors_is_refused():
    assert unsupported(1e-3, 1000) == unsupported(1e-8, 10**8) == ""
    assert unsupported(1e-3, 999) == "a rate of 0.001 needs at least 1,000 impostor pairs, found 999"
    curve = ErrorCurve.of_scores(np.arange(1001.0), np.arange(1001) == 1000)
    assert curve.at_far(1e-3) == OperatingPoint(999.0, 0.001, 0.0)
    with pytest.raises(ValueError, match="a rate of 1e-08 needs at least 100,000,000 impostor pairs, found 1,000"):
        curve.at_far(1e-8)
    for rate in (0, -1, 1.5, np.nan):
        with pytest.raises(ValueError, match="above 0 and at most 1"):
            curve.at_far(rate)


def test_the_old_threshold_is_kept_and_set_anew():
    generator = np.random.default_rng(0)
    same = np.arange(20_000) < 4000
    old, bridged = (shift + generator.normal(size=20_000) + 3 * same for shift in (0.0, 1.0))
    point = ErrorCurve.of_scores(old, same).at_far(0.01)
    found = keep_threshold(point, ErrorCurve.of_scores(bridged, same), 0.01)
    assert (found.kept.far, found.kept.tar) == pytest.approx(slow_rates(bridged, same, point.threshold))
    assert found.kept.threshold == point.threshold
    assert found.kept.far == pytest.approx(0.092, abs=0.01)  # all scores are one higher: P(z > 2.33 - 1)
    assert found.recalibrated.far == 0.01
    assert found.recalibrated.threshold == pytest.approx(point.threshold + 1, abs=0.1)
    assert found.to_dict()["recalibrated"] == found.recalibrated.to_dict()


def test_a_thinned_curve_keeps_points_of_the_curve_at_all_rates():
    generator = np.random.default_rng(1)
    same = np.arange(50_000) < 10_000
    curve = ErrorCurve.of_scores(generator.normal(size=50_000) + 2 * same, same)
    thin = curve.thinned(200)
    assert 150 < len(thin.thresholds) <= 200
    assert curve.thinned(50_000).thresholds is not None
    where = np.searchsorted(-curve.thresholds, -thin.thresholds)
    np.testing.assert_array_equal(curve.far[where], thin.far)
    np.testing.assert_array_equal(curve.tar[where], thin.tar)
    assert (thin.far[[0, -1]].tolist(), thin.tar[[0, -1]].tolist()) == ([0, 1], [0, 1])
    for rate in (1e-4, 1e-3, 1e-2, 1e-1):
        assert thin.at_far(rate).far == pytest.approx(rate, rel=0.15)
        assert np.abs(np.log(thin.frr[1:-1].clip(1e-9) / rate)).min() < 0.15
    assert ErrorCurve.of_scores(np.arange(9.0), np.arange(9) > 4).thinned(200).thresholds.shape == (10,)


@pytest.mark.parametrize(
    ("scores", "same", "message"),
    [
        ([], [], "found 0 genuine and 0 impostor pairs, expected both"),
        ([1.0], [True], "found 1 genuine and 0 impostor pairs"),
        ([1.0, 2.0], [False, False], "found 0 genuine and 2 impostor pairs"),
        ([1.0, np.nan], [True, False], "1 of 2 scores are not numbers"),
        ([1.0, 2.0], [True], r"scores have shape \[2\], flags \[1\]"),
    ],
)
def test_what_cannot_be_measured_is_one_clear_line(scores, same, message):
    with pytest.raises(ValueError, match=message):
        ErrorCurve.of_scores(np.array(scores), np.array(same, bool))
