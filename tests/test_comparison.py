"""Comparisons of settings against plain arithmetic."""

import numpy as np
import pytest

from compat.evaluation.comparison import Comparison, constant_answer
from compat.evaluation.record import MEASURES
from compat.metrics.relevance import Relevance

SETTINGS = ("old_to_old", "new_to_new", "transformed")


def measured(queries=300, names=SETTINGS, seed=0):
    generator = np.random.default_rng(seed)
    values = {name: generator.random((queries, len(MEASURES))) for name in names}
    for i, name in enumerate(names):
        values[name][:, 0] = generator.random(queries) < (0.6, 0.9, 0.7)[i]
    return values


def test_values_are_means_differences_and_ratios():
    found = measured()
    seen = Comparison(found)
    means = {name: values.mean(axis=0) for name, values in found.items()}
    old, new, bridge = (means[name][0] for name in SETTINGS)
    for name in SETTINGS:
        measures = seen.setting(name).measures
        assert measures is not None
        assert list(measures) == list(MEASURES)
        assert [interval.value for interval in measures.values()] == pytest.approx(means[name])
    gain, retention, update_gain = (
        seen.gain("transformed", over="old_to_old"),
        seen.retention("transformed"),
        seen.update_gain("transformed"),
    )
    assert gain
    assert gain.value == pytest.approx(bridge - old)
    assert retention
    assert retention.value == pytest.approx(bridge / old)
    assert update_gain
    assert update_gain.value == pytest.approx((bridge - old) / (new - old))
    other = seen.difference("transformed", "old_to_old", MEASURES[-1])
    share = seen.ratio("new_to_new", "transformed", MEASURES[-1])
    assert other
    assert other.value == pytest.approx(means["transformed"][-1] - means["old_to_old"][-1])
    assert share
    assert share.value == pytest.approx(means["new_to_new"][-1] / means["transformed"][-1])


def test_what_was_not_measured_is_none_with_its_reason():
    seen = Comparison(measured(names=("old_to_old",)))
    assert seen.setting("naive", "no such thing").reason == "no such thing"
    assert seen.setting("naive").measures is None
    assert seen.gain("transformed", over="old_to_old") is None
    assert seen.retention("transformed") is None
    assert seen.update_gain("transformed") is None
    nothing = Comparison({"old_to_old": np.zeros((20, 1)), "transformed": np.ones((20, 1))}, measures=MEASURES[:1])
    assert nothing.retention("transformed") is None


def test_an_update_gain_needs_a_sure_gain():
    values = measured()
    values["new_to_new"][:, 0] = values["old_to_old"][:, 0]
    values["new_to_new"][:1, 0] = 1
    assert Comparison(values).update_gain("transformed") is None


def test_identities_are_drawn_whole_and_counted():
    values = {name: np.repeat(found, 4, axis=0) for name, found in measured(60).items()}
    by_identity, by_query = Comparison(values, np.repeat(np.arange(60), 4)), Comparison(values)
    assert (by_identity.queries, by_identity.groups, by_identity.unit) == (240, 60, "identities")
    assert (by_query.queries, by_query.groups, by_query.unit) == (240, 240, "queries")
    wide, narrow = (seen.retention("transformed") for seen in (by_identity, by_query))
    assert wide
    assert narrow
    assert wide.high - wide.low > 1.6 * (narrow.high - narrow.low)


def test_a_subset_is_the_comparison_of_those_queries():
    values, clusters = measured(), np.arange(300) // 3
    mask = np.random.default_rng(1).random(300) < 0.5
    part = Comparison(values, clusters, seed=4).subset(mask)
    direct = Comparison({name: found[mask] for name, found in values.items()}, clusters[mask], seed=4)
    assert part.queries == mask.sum()
    assert part.groups == len(np.unique(clusters[mask]))
    assert part.setting("transformed") == direct.setting("transformed")
    assert part.retention("transformed") == direct.retention("transformed")
    values["transformed"][~mask] = np.nan  # queries without an answer may be anything, if left out
    assert Comparison(values, clusters, seed=4).subset(mask).setting("transformed") == direct.setting("transformed")


def test_another_seed_draws_others():
    values = measured()
    assert Comparison(values, seed=1).retention("transformed") == Comparison(values, seed=1).retention("transformed")
    assert Comparison(values, seed=1).retention("transformed") != Comparison(values, seed=2).retention("transformed")


def test_the_constant_answer_is_the_best_of_all_rows():
    generator = np.random.default_rng(0)
    queries, gallery = generator.integers(0, 6, 50), generator.integers(0, 6, 30)
    queries[0] = 99  # nothing is right for it
    relevance = Relevance.by_label(queries, gallery, np.full(50, -1))
    slow = max(np.mean(queries[1:] == label) for label in gallery)
    assert constant_answer(relevance) == pytest.approx(slow)
    assert constant_answer(Relevance.by_item(np.array([-1, -1]))) == 0
    assert constant_answer(Relevance.by_item(np.arange(4))) == 0.25
