from itertools import combinations

import numpy as np
import pytest

from backbones.validation import best_threshold, nearest_neighbor_recall, pair_accuracy, sample_pairs


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
