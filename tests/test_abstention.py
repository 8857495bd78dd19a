"""Risk and coverage: against a slow mean over all orders of the ties, and planted scores."""

from itertools import permutations

import numpy as np
import pytest

from compat.metrics.abstention import RiskCoverage

SHARES = (0.0, 0.1, 0.25, 0.5, 0.9)


def slow(scores, correct):
    """Accuracies of the first 1, 2, ... queries, averaged over every order that the scores allow."""
    orders = [order for order in permutations(range(len(scores))) if (np.diff(scores[list(order)]) >= 0).all()]
    curves = [np.cumsum(correct[list(order)]) / np.arange(1, len(scores) + 1) for order in orders]
    return np.mean(curves, axis=0)


@pytest.mark.parametrize("seed", range(12))
def test_accuracy_and_area_are_means_over_all_orders_of_ties(seed):
    generator = np.random.default_rng(seed)
    scores, correct = generator.integers(0, 4, 7).astype(float), generator.integers(0, 2, 7).astype(float)
    if seed % 3 == 0:
        scores = generator.permutation(7) / 7
    curve, expected = RiskCoverage.of(scores, correct), slow(scores, correct)
    assert curve.area == pytest.approx(np.mean(1 - expected))
    assert curve.random_area == pytest.approx(1 - correct.mean())
    for share in SHARES:
        kept = max(1, round(7 * (1 - share)))
        assert curve.answered(share) == kept
        assert curve.accuracy(share) == pytest.approx(expected[kept - 1])
        assert curve.threshold(share) == np.sort(scores)[kept - 1]


def test_a_perfect_score_a_useless_one_and_a_reversed_one():
    correct = np.random.default_rng(0).uniform(size=1000) < 0.6
    perfect, reversed_, constant = (RiskCoverage.of(score, correct) for score in (1.0 - correct, correct, correct * 0))
    wrong = 1 - correct.mean()
    assert perfect.accuracy(0.5) == 1
    assert reversed_.accuracy(0.5) < correct.mean() < perfect.accuracy(0.1)
    assert constant.accuracy(0.3) == pytest.approx(correct.mean())
    assert constant.area == pytest.approx(wrong)
    # The best area there is, in Geifman's closed form: r + (1 - r) ln(1 - r).
    assert perfect.area == pytest.approx(wrong + (1 - wrong) * np.log(1 - wrong), abs=2e-3)
    assert perfect.area < constant.area < reversed_.area


def test_order_types_and_parts_of_a_right_answer():
    scores = np.array([0.3, 0.1, 0.2], np.float32)
    curve = RiskCoverage.of(scores, np.array([0.0, 1.0, 0.5]))
    np.testing.assert_array_equal(curve.order, [1, 2, 0])
    np.testing.assert_array_equal(curve.correct, [1.0, 0.5, 0.0])
    assert RiskCoverage.of(np.array([1]), np.array([True])).accuracy(0.99) == 1.0


@pytest.mark.parametrize(
    ("scores", "correct", "message"),
    [
        ([], [], "one query at least"),
        ([1.0, 2.0], [1.0], r"found \[2\] scores and \[1\] outcomes"),
        ([1.0, np.nan], [1.0, 0.0], "a score or an outcome is NaN"),
        ([1.0, 2.0], [1.0, np.nan], "a score or an outcome is NaN"),
    ],
)
def test_what_cannot_be_ordered_is_refused(scores, correct, message):
    with pytest.raises(ValueError, match=message) as raised:
        RiskCoverage.of(np.array(scores), np.array(correct))
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize("share", [-0.1, 1.0, float("nan")])
def test_a_share_must_leave_something(share):
    with pytest.raises(ValueError, match="at least 0 and below 1"):
        RiskCoverage.of(np.arange(3.0), np.ones(3)).accuracy(share)
