"""The confidence section of a report: does abstaining on strange queries help, and is that more than chance."""

import json

import numpy as np
import pytest

from compat.evaluation.confidence import SHARES, confidence_section


def planted(count, seed=0, slope=3.0, identities=None):
    """Queries whose chance of being found falls with their strangeness, by as much as the slope."""
    generator = np.random.default_rng(seed)
    strangeness = generator.uniform(size=count)
    correct = generator.uniform(size=count) < 1 / (1 + np.exp(slope * (2 * strangeness - 1)))
    clusters = None if identities is None else generator.integers(0, identities, count)
    return strangeness, correct, clusters


def test_the_section_is_what_a_slow_count_says():
    strangeness, correct, clusters = planted(2000, identities=200)
    found = confidence_section(strangeness, correct, clusters, score="predicted failure").to_dict()
    assert json.loads(json.dumps(found)) == found
    assert found.keys() == {
        *("abstained", "recall_at_1", "area", "random_area", "score", "threshold", "helps", "reason")
    }
    assert found["abstained"] == pytest.approx([0.05 * step for step in range(11)])
    ranked = np.argsort(strangeness)
    for share, recall, threshold in zip(SHARES, found["recall_at_1"], found["threshold"], strict=True):
        kept = ranked[: round(2000 * (1 - share))]
        assert recall["value"] == pytest.approx(correct[kept].mean())
        assert recall["low"] < recall["value"] < recall["high"]
        assert threshold == strangeness[kept].max()
        assert set(np.flatnonzero(strangeness <= threshold)) == set(kept)
    risks = [1 - correct[ranked[:count]].mean() for count in range(1, 2001)]
    assert found["area"] == pytest.approx(np.mean(risks))
    assert found["random_area"] == pytest.approx(1 - correct.mean())
    assert found["helps"]
    assert found["reason"].startswith("abstaining on the strangest 20% raises recall@1 from 0.4")
    assert found["score"] == "predicted failure"


def test_a_score_that_says_nothing_or_the_reverse_does_not_help():
    helped = [confidence_section(*planted(300, seed, slope=0.0), seed=seed).helps for seed in range(40)]
    assert sum(helped) <= 4  # one in forty by chance
    reverse = confidence_section(*planted(1000, slope=-3.0))
    assert not reverse.helps
    assert "lowers recall@1" in reverse.reason
    assert reverse.reason.endswith("answer them all")
    chance = confidence_section(*planted(300, slope=0.0))
    assert "may be chance" in chance.reason
    assert "\n" not in chance.reason


@pytest.mark.parametrize("value", [0.0, 1.0])
def test_where_all_are_right_or_all_wrong_nothing_is_gained(value):
    found = confidence_section(np.linspace(0, 1, 60), np.full(60, value))
    assert not found.helps
    assert all(recall.value == value for recall in found.recall_at_1)
    assert all(recall.high > recall.low for recall in found.recall_at_1)  # no interval is a point
    assert (found.area, found.random_area) == (1 - value, 1 - value)


def test_ties_are_no_order():
    correct = np.arange(100) % 2
    found = confidence_section(np.full(100, 0.5), correct)
    assert [recall.value for recall in found.recall_at_1] == pytest.approx([0.5] * len(SHARES))
    assert not found.helps
    assert set(found.threshold) == {0.5}


def test_queries_of_one_identity_are_not_independent():
    strangeness, correct, _ = planted(200, slope=1.2)
    repeated = [np.repeat(column, 20) for column in (strangeness, correct)]
    alone = confidence_section(strangeness, correct)
    together = confidence_section(*repeated, clusters=np.repeat(np.arange(200), 20))
    apart = confidence_section(*repeated)
    widths = [section.recall_at_1[0].high - section.recall_at_1[0].low for section in (alone, together, apart)]
    assert widths[1] == pytest.approx(widths[0], rel=0.15)
    assert widths[2] < 0.4 * widths[0]


def test_one_query_and_none():
    assert not confidence_section(np.array([0.2]), np.array([True])).helps
    with pytest.raises(ValueError, match="one query at least"):
        confidence_section(np.empty(0), np.empty(0))
