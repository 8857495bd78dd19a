"""Judging a map on pairs it was not fitted to."""

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from planted import plant

from compat.pairs import Pairs
from compat.training.fit import fit_transformer
from compat.training.selection import HeldOutRetrieval, HeldOutScore, average, identity_folds


@settings(max_examples=60, deadline=None)
@given(labels=st.lists(st.integers(0, 9), min_size=1, max_size=40), folds=st.integers(2, 6), seed=st.integers(0, 99))
def test_folds_keep_identities_together_and_are_even(labels, folds, seed):
    pairs = Pairs.from_arrays(np.zeros((len(labels), 2)), np.zeros((len(labels), 2)), np.array(labels))
    found = identity_folds(pairs, folds, seed=seed)
    identities = set(labels)
    where = {label: {int(f) for f, mine in zip(found, labels, strict=True) if mine == label} for label in identities}
    assert all(len(seen) == 1 for seen in where.values())
    assert set(found) == set(range(min(folds, len(identities))))
    sizes = np.bincount([seen.pop() for seen in where.values()])
    assert sizes.max() - sizes.min() <= 1
    np.testing.assert_array_equal(found, identity_folds(pairs, folds, seed=seed))


def test_without_labels_every_pair_is_alone():
    pairs = Pairs.from_arrays(np.zeros((100, 2)), np.zeros((100, 2)))
    found = identity_folds(pairs, 5, seed=0)
    assert np.bincount(found).tolist() == [20] * 5
    assert not np.array_equal(found, identity_folds(pairs, 5, seed=1))


def slow_score(queries, gallery, right, own):
    ranks = []
    for i, query in enumerate(queries):
        cosines = gallery @ query / np.linalg.norm(gallery, axis=1)
        order = [row for row in np.argsort(-cosines) if row != own[i]]
        hits = [place for place, row in enumerate(order, start=1) if row in right[i]]
        if hits:
            ranks.append(hits[0])
    return np.mean([rank == 1 for rank in ranks]), np.mean([1 / rank for rank in ranks]), len(ranks)


@pytest.mark.parametrize("direction", ["new-to-old", "old-to-new"])
@pytest.mark.parametrize("labelled", [True, False])
def test_scores_are_those_of_a_slow_search_over_held_out_queries_and_all_targets(direction, labelled):
    world = plant(identities=25, samples=4, old_dim=6, new_dim=6, noise=0.6)
    pairs = Pairs.from_arrays(world.old, world.new, world.labels if labelled else None)
    held_out = np.flatnonzero(world.labels % 5 == 0)
    matrix = np.random.default_rng(1).normal(size=(6, 6))
    found = HeldOutRetrieval(pairs, held_out, direction, seed=0).score(lambda v: (v @ matrix).astype(np.float32))
    queries, gallery = world.new[held_out].astype(float), world.old.astype(float)
    if direction == "new-to-old":
        queries = queries @ matrix
    else:
        gallery = gallery @ matrix
    if labelled:
        right = [set(np.flatnonzero(world.labels == world.labels[row])) - {row} for row in held_out]
        expected = slow_score(queries, gallery, right, held_out)
    else:
        expected = slow_score(queries, gallery, [{row} for row in held_out], [-1] * len(held_out))
    assert found.relevance == ("label" if labelled else "item")
    assert (found.recall_at_1, found.mean_reciprocal_rank, found.queries) == pytest.approx(expected)
    assert found.gallery == 100


def test_labels_that_hardly_repeat_give_way_to_items():
    world = plant(identities=10, samples=4)
    labels = np.where(np.arange(40) < 15, 0, np.arange(40))  # 15 of one person, 25 strangers
    pairs = Pairs.from_arrays(world.old, world.new, labels)
    for held_out in (np.arange(40), np.arange(20)):  # every fold is judged alike
        assert HeldOutRetrieval(pairs, held_out, "new-to-old", seed=0).kind == "item"
    repeating = Pairs.from_arrays(world.old, world.new, np.where(np.arange(40) < 20, 0, np.arange(40)))
    assert HeldOutRetrieval(repeating, np.arange(30, 40), "new-to-old", seed=0).kind == "label"


def test_another_view_of_the_same_original_is_no_find():
    world = plant(identities=10, samples=4)
    views = np.repeat(np.arange(40), 3)  # each photograph three times, exactly alike
    repeated = Pairs.from_arrays(world.old[views], world.new[views], world.labels[views])
    repeated = replace(repeated, originals=views)
    single = Pairs.from_arrays(world.old, world.new, world.labels)
    identity = HeldOutRetrieval(repeated, np.arange(120), "new-to-old", seed=0)
    transform = fit_transformer(single).transform
    assert identity.score(transform) == HeldOutRetrieval(single, np.arange(40), "new-to-old", seed=0).score(transform)
    unlabelled = replace(repeated, labels=None)
    folds = identity_folds(unlabelled, 5, seed=0)
    assert all(len(set(folds[views == view])) == 1 for view in range(40))


def test_large_sets_are_sampled_with_every_query_in_the_gallery(monkeypatch):
    monkeypatch.setattr("compat.training.selection.MOST_QUERIES", 10)
    monkeypatch.setattr("compat.training.selection.MOST_DISTRACTORS", 25)
    world = plant(identities=50, samples=2, noise=0)
    pairs = Pairs.from_arrays(world.old, world.old)
    found = HeldOutRetrieval(pairs, np.arange(40), "new-to-old", seed=0).score(lambda v: v)
    assert (found.queries, found.gallery) == (10, 25)
    assert found.mean_reciprocal_rank >= 0.5  # only the person's other, equal picture may tie


def test_the_average_weighs_folds_by_their_queries():
    a, b = HeldOutScore("item", 10, 50, 0.5, 0.6), HeldOutScore("item", 30, 50, 0.9, 1.0)
    assert average([a, b]) == HeldOutScore("item", 40, 50, 0.8, 0.9)
    assert a.to_dict() == {
        "relevance": "item",
        "queries": 10,
        "gallery": 50,
        "recall_at_1": 0.5,
        "mean_reciprocal_rank": 0.6,
    }
