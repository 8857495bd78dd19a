"""Ten folds and templates against loops."""

from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from compat.metrics.protocols import fold_accuracy, pair_scores, templates


def slow_accuracies(scores, same, folds):
    """The best of all thresholds between two scores on the other folds, the highest where several are best."""
    accuracies = []
    for fold in sorted(set(folds)):
        train, test = folds != fold, folds == fold
        values = sorted(set(scores[train]))
        tried = [values[0], *((a + b) / 2 for a, b in pairwise(values)), values[-1] + 1e-9]
        best = max(tried, key=lambda t: (np.mean((scores[train] >= t) == same[train]), t))
        accuracies.append(np.mean((scores[test] >= best) == same[test]))
    return accuracies


@given(seed=st.integers(0, 2**32), folds=st.integers(2, 6), coarse=st.booleans())
def test_each_fold_is_judged_by_the_best_threshold_of_the_others(seed, folds, coarse):
    generator = np.random.default_rng(seed)
    same = generator.random(60) < 0.5
    scores = generator.normal(size=60) + same
    scores = np.round(scores) if coarse else scores
    fold = generator.integers(folds, size=60)
    fold[:folds] = np.arange(folds)
    found = fold_accuracy(scores, same, fold)
    assert list(found.accuracies) == pytest.approx(slow_accuracies(scores, same, fold))
    assert len(found.thresholds) == folds


def test_a_list_without_folds_is_cut_in_its_order():
    generator = np.random.default_rng(2)
    same = np.tile(np.repeat([True, False], 30), 10)  # as lists are published: genuine, then impostor, ten times
    scores = generator.normal(size=600) + 2 * same
    found = fold_accuracy(scores, same)
    assert found == fold_accuracy(scores, same, np.repeat(np.arange(10), 60))
    assert found.mean == pytest.approx(0.84, abs=0.04)  # two normal distributions two apart: 0.841
    spread = np.std(found.accuracies, ddof=1)
    assert found.to_dict()["standard_error"] == found.standard_error == pytest.approx(spread / np.sqrt(10))


def test_separable_pairs_are_all_told_right_and_equal_ones_like_the_commoner_kind():
    same = np.arange(40) % 2 == 0
    assert fold_accuracy(np.where(same, 0.5, 0.4), same).mean == 1
    assert fold_accuracy(np.where(same, 0.5, 0.4), same).thresholds[0] == pytest.approx(0.45)
    mostly = np.arange(40) % 4 == 0
    assert fold_accuracy(np.full(40, 0.7), mostly).mean == 0.75
    assert fold_accuracy(np.full(40, 0.7), ~mostly).mean == 0.75


def test_pair_lists_that_cannot_be_judged():
    with pytest.raises(ValueError, match="found 1 folds of 1 pairs, expected at least two"):
        fold_accuracy(np.ones(1), np.ones(1, bool))
    with pytest.raises(ValueError, match="found 0 folds"):
        fold_accuracy(np.ones(0), np.ones(0, bool))
    with pytest.raises(ValueError, match="1 of 2 scores are not numbers"):
        fold_accuracy(np.array([np.nan, 1]), np.ones(2, bool))
    with pytest.raises(ValueError, match="found 2 scores, 3 flags and 2 folds"):
        fold_accuracy(np.ones(2), np.ones(3, bool))


@pytest.mark.parametrize("similarity", ["cosine", "inner_product"])
def test_scores_of_listed_pairs(similarity):
    generator = np.random.default_rng(3)
    left, right = generator.normal(size=(50, 8)), generator.normal(size=(60, 8))
    rows, others = generator.integers(50, size=9000), generator.integers(60, size=9000)
    found = pair_scores(left, right, rows, others, similarity=similarity)
    for i in (0, 1, 8191, 8192, 8999):
        a, b = left[rows[i]], right[others[i]]
        expected = a @ b if similarity == "inner_product" else a @ b / np.linalg.norm(a) / np.linalg.norm(b)
        assert found[i] == pytest.approx(expected, abs=1e-6)


def slow_templates(vectors, template_ids, media_ids):
    means = {}
    for template in dict.fromkeys(template_ids):
        media = dict.fromkeys(m for t, m in zip(template_ids, media_ids, strict=True) if t == template)
        each = [
            np.mean(
                [vectors[i] for i in range(len(vectors)) if (template_ids[i], media_ids[i]) == (template, m)], axis=0
            )
            for m in media
        ]
        means[template] = np.mean(each, axis=0) / np.linalg.norm(np.mean(each, axis=0))
    return means


@given(seed=st.integers(0, 2**32))
def test_templates_are_means_of_media_means_in_order_of_appearance(seed):
    generator = np.random.default_rng(seed)
    vectors = generator.normal(size=(30, 5))
    template_ids = np.array([f"t{code}" for code in generator.integers(6, size=30)])
    media_ids = generator.integers(4, size=30)
    found = templates(vectors, template_ids, media_ids)
    expected = slow_templates(vectors, template_ids, media_ids)
    assert found.ids.tolist() == list(expected)
    np.testing.assert_allclose(found.vectors, np.array(list(expected.values())), atol=1e-6)
    each = templates(vectors, template_ids)
    plain = slow_templates(vectors, template_ids, np.arange(30))
    np.testing.assert_allclose(each.vectors, np.array(list(plain.values())), atol=1e-6)


def test_a_long_video_weighs_no_more_than_a_photograph():
    vectors = np.array([[1.0, 0], [0, 1], [0, 1], [0, 1]])
    found = templates(vectors, np.array([7, 7, 7, 7]), np.array([0, 1, 1, 1]))
    np.testing.assert_allclose(found.vectors, [[0.5**0.5, 0.5**0.5]], rtol=1e-6)
    with pytest.raises(ValueError, match="found 4 vectors, 3 template ids and 4 media ids"):
        templates(vectors, np.zeros(3))
