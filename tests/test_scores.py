from itertools import combinations, pairwise

import numpy as np
import pytest

from backbones.training.scores import (
    best_threshold,
    fold_accuracy,
    list_folds,
    nearest_neighbor_recall,
    pair_accuracy,
    pair_cosines,
    sample_pairs,
    true_accept_rate,
)


def test_all_pairs_of_one_identity_are_found_and_as_many_of_two() -> None:
    labels = np.array(["b", "a", "b", "c", "a", "b", "a", "a"])
    pairs, same = sample_pairs(labels)
    expected = {frozenset(pair) for pair in combinations(range(8), 2) if labels[pair[0]] == labels[pair[1]]}
    assert {frozenset(pair) for pair in pairs[same].tolist()} == expected
    assert same.sum() == len(expected) == (~same).sum()
    assert (labels[pairs[~same, 0]] != labels[pairs[~same, 1]]).all()


def test_a_limit_samples_pairs_of_the_right_kind() -> None:
    labels = np.repeat(np.arange(30), 40)
    pairs, same = sample_pairs(labels, limit=500)
    assert same.sum() == (~same).sum() == 500
    np.testing.assert_array_equal(labels[pairs[:, 0]] == labels[pairs[:, 1]], same)
    assert (pairs[:, 0] != pairs[:, 1]).all()


def test_best_threshold_equals_trying_all() -> None:
    generator = np.random.default_rng(0)
    for _ in range(50):
        same = generator.random(30) < 0.5
        scores = np.round(generator.normal(size=30) + same, 1)  # with ties
        tried = max(((scores >= threshold) == same).sum() for threshold in [*scores, np.inf])
        assert ((scores >= best_threshold(scores, same)) == same).sum() == tried


def test_separate_identities_are_told_apart_and_random_ones_are_not() -> None:
    generator = np.random.default_rng(0)
    labels = np.repeat(np.arange(20), 10)
    centers = generator.normal(size=(20, 16))
    good = (centers[labels] + 0.1 * generator.normal(size=(200, 16))) * generator.uniform(0.1, 9, size=(200, 1))
    assert pair_accuracy(good, labels) > 0.99
    assert nearest_neighbor_recall(good, labels) == 1.0
    noise = generator.normal(size=(200, 16))
    assert 0.4 < pair_accuracy(noise, labels) < 0.6


def test_recall_equals_a_slow_count_and_leaves_single_images_out() -> None:
    generator = np.random.default_rng(1)
    embeddings, labels = generator.normal(size=(40, 3)), np.concatenate([generator.integers(8, size=37), [90, 91, 92]])
    right, asked = 0, 0
    for query, embedding in enumerate(embeddings):
        others = [row for row in range(40) if row != query]
        cosines = [embeddings[row] @ embedding / np.linalg.norm(embeddings[row]) for row in others]
        if (labels == labels[query]).sum() > 1:
            asked += 1
            right += labels[others[int(np.argmax(cosines))]] == labels[query]
    assert nearest_neighbor_recall(embeddings, labels) == pytest.approx(right / asked)


def test_labels_without_pairs_are_refused() -> None:
    with pytest.raises(ValueError, match="give more images"):
        pair_accuracy(np.eye(3), np.arange(3))
    with pytest.raises(ValueError, match="give more images"):
        pair_accuracy(np.eye(3), np.zeros(3))
    with pytest.raises(ValueError, match="no two items share an identity"):
        nearest_neighbor_recall(np.eye(3), np.arange(3))


def test_listed_folds_are_runs_of_equal_length() -> None:
    assert list_folds(20).tolist() == [fold for fold in range(10) for _ in range(2)]
    assert np.bincount(list_folds(6000)).tolist() == [600] * 10
    assert sorted(np.bincount(list_folds(23))) == [2] * 7 + [3] * 3
    assert list_folds(3).tolist() == [0, 1, 2]


def test_fold_accuracy_equals_a_slow_count() -> None:
    generator = np.random.default_rng(2)
    same = generator.random(60) < 0.5
    scores = generator.normal(size=60) + same
    fold = list_folds(60)
    right = 0
    for held_out in range(10):
        others = [pair for pair in range(60) if fold[pair] != held_out]
        tried = sorted(scores[others])
        middles = [tried[0] - 1, *[(a + b) / 2 for a, b in pairwise(tried)], tried[-1] + 1]
        counts = [sum((scores[pair] >= middle) == same[pair] for pair in others) for middle in middles]
        threshold = middles[int(np.argmax(counts))]
        right += sum((scores[pair] >= threshold) == same[pair] for pair in range(60) if fold[pair] == held_out)
    assert fold_accuracy(scores, same, fold) == right / 60


def test_true_accepts_equal_trying_every_threshold() -> None:
    generator = np.random.default_rng(3)
    for _ in range(30):
        same = generator.random(80) < 0.4
        scores = np.round(generator.normal(size=80) + same, 1)  # with ties
        for rate in (0.1, 0.25, 1.0):
            best = 0.0
            for threshold in [*scores, np.inf]:
                if (scores[~same] >= threshold).mean() <= rate:
                    best = max(best, (scores[same] >= threshold).mean())
            assert true_accept_rate(scores, same, rate) == pytest.approx(best)
    scores, same = np.arange(80.0), np.arange(80) < 40
    with pytest.raises(ValueError, match=r"a false accept rate of 0\.001 needs 1000 pairs of two identities, found"):
        true_accept_rate(scores, same, 0.001)
    with pytest.raises(ValueError, match="expected some of both"):
        true_accept_rate(scores, np.ones(80, dtype=bool), 0.1)


def test_pair_cosines_equal_a_slow_loop() -> None:
    generator = np.random.default_rng(4)
    embeddings = generator.normal(size=(9, 5)) * 7
    pairs = generator.integers(9, size=(2500, 2))
    expected = [
        embeddings[a] @ embeddings[b] / np.linalg.norm(embeddings[a]) / np.linalg.norm(embeddings[b]) for a, b in pairs
    ]
    np.testing.assert_allclose(pair_cosines(embeddings, pairs), expected, atol=1e-6)
