"""Compatibility over a chain of models, counted by hand."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from compat.metrics.chain import chain_compatibility, meets_criterion
from compat.metrics.intervals import Interval

NAN = np.nan


def test_four_models_by_hand():
    accuracy = np.array(
        [
            [0.50, NAN, NAN, NAN],
            [0.55, 0.60, NAN, NAN],  # better than 0.50
            [0.50, 0.65, 0.70, NAN],  # as good as 0.50, better than 0.60
            [0.40, 0.60, 0.75, 0.80],  # worse than 0.50, as good as 0.60, better than 0.70
        ]
    )
    strict = chain_compatibility(accuracy)
    assert strict.average_compatibility == pytest.approx(3 / 6)
    assert strict.average_accuracy == pytest.approx(6.05 / 10)
    assert chain_compatibility(accuracy, ties="compatible").average_compatibility == pytest.approx(5 / 6)
    assert strict.to_dict() == {
        "average_compatibility": 0.5,
        "average_accuracy": strict.average_accuracy,
        "ties": "not_compatible",
    }


def test_equal_models_are_all_or_nothing():
    alike = np.full((3, 3), 0.7)
    assert chain_compatibility(alike).average_compatibility == 0
    assert chain_compatibility(alike, ties="compatible").average_compatibility == 1


@given(n=st.integers(2, 6), seed=st.integers(0, 2**32))
def test_pairs_are_counted_one_by_one(n, seed):
    accuracy = np.random.default_rng(seed).integers(4, size=(n, n)) / 4
    for ties in ("not_compatible", "compatible"):
        met = [
            accuracy[i, j] > accuracy[j, j] or (ties == "compatible" and accuracy[i, j] == accuracy[j, j])
            for j in range(n)
            for i in range(j + 1, n)
        ]
        above = np.where(np.triu(np.ones((n, n)), 1) > 0, NAN, accuracy)
        for table in (accuracy, above):  # what earlier queries do in later galleries is nobody's business
            found = chain_compatibility(table, ties=ties)
            assert found.average_compatibility == pytest.approx(np.mean(met))
            assert found.average_accuracy == pytest.approx(np.mean(accuracy[np.tril_indices(n)]))


def test_what_is_no_chain_is_refused():
    for shape in ((2, 3), (1, 1), (4,)):
        with pytest.raises(ValueError, match="expected \\[n, n\\] of n >= 2 models"):
            chain_compatibility(np.zeros(shape))
    with pytest.raises(ValueError, match="queries of model 2 in the gallery of model 0 is nan"):
        chain_compatibility(np.array([[0.5, 0, 0], [0.5, 0.5, 0], [NAN, 0.5, 0.5]]))
    with pytest.raises(ValueError, match="ties must be one of not_compatible, compatible, found 'half'"):
        chain_compatibility(np.eye(2), ties="half")  # pyright: ignore[reportArgumentType]


def test_the_criterion_says_whether_it_is_sure():
    assert meets_criterion(0.71, 0.70).met
    assert meets_criterion(0.71, 0.70).sure is None
    assert not meets_criterion(0.70, 0.70).met
    assert meets_criterion(0.71, 0.70, Interval(0.01, 0.002, 0.018)).sure
    assert meets_criterion(0.71, 0.70, Interval(0.01, -0.002, 0.022)).sure is False
    assert meets_criterion(0.60, 0.70, Interval(-0.1, -0.12, -0.08)).sure
    assert meets_criterion(0.69, 0.70, Interval(-0.01, -0.03, 0.01)).sure is False
    assert meets_criterion(0.5, 0.4, Interval(0.1, 0.05, 0.15)).to_dict() == {
        "new_to_old": 0.5,
        "old_to_old": 0.4,
        "met": True,
        "difference": {"value": 0.1, "low": 0.05, "high": 0.15},
        "sure": True,
    }
    with pytest.raises(ValueError, match="compares two accuracies, found nan"):
        meets_criterion(NAN, 0.5)
