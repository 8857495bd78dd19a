"""Judging a map on pairs it was not fitted to."""

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from planted import plant

from compat.options import FitOptions
from compat.pairs import Pairs
from compat.training.fit import fit_transformer
from compat.training.selection import Distractors, HeldOutRetrieval, HeldOutScore, bank_pairs, identity_folds


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
    transform = fit_transformer(single, FitOptions(transformer="ridge")).transform
    assert identity.score(transform) == HeldOutRetrieval(single, np.arange(40), "new-to-old", seed=0).score(transform)
    unlabelled = replace(repeated, labels=None)
    folds = identity_folds(unlabelled, 5, seed=0)
    assert all(len(set(folds[views == view])) == 1 for view in range(40))


def test_large_sets_are_sampled_with_every_query_in_the_gallery():
    world = plant(identities=50, samples=2, noise=0)
    pairs = Pairs.from_arrays(world.old, world.old)
    judge = HeldOutRetrieval(pairs, np.arange(40), "new-to-old", seed=0, most_queries=10, most_distractors=25)
    found = judge.score(lambda v: v)
    assert (found.queries, found.gallery) == (10, 25)
    assert found.mean_reciprocal_rank >= 0.5  # only the person's other, equal picture may tie


def test_a_summary_is_over_all_queries_of_all_folds():
    world = plant(identities=25, samples=4, noise=0.6)
    pairs = Pairs.from_arrays(world.old, world.new)
    judges = [
        HeldOutRetrieval(pairs, held_out, "new-to-old", seed=0) for held_out in (np.arange(10), np.arange(10, 40))
    ]
    ranked = [judge.rank(lambda v: v)[0] for judge in judges]
    ranks = np.concatenate([r.reciprocal_ranks for r in ranked])
    margins = np.concatenate([r.margins for r in ranked])
    expected = HeldOutScore("item", 40, 100, float((ranks == 1).mean()), float(ranks.mean()), float(margins.mean()))
    assert judges[0].summary(ranked) == expected
    assert expected.to_dict() == {
        "relevance": "item",
        "queries": 40,
        "gallery": 100,
        "recall_at_1": expected.recall_at_1,
        "mean_reciprocal_rank": expected.mean_reciprocal_rank,
        "mean_margin": expected.mean_margin,
    }


def test_margins_are_of_the_first_right_and_the_first_wrong_neighbour():
    world = plant(identities=8, samples=4, noise=0.6)
    pairs = Pairs.from_arrays(world.old, world.new, world.labels)
    judge = HeldOutRetrieval(pairs, np.arange(12), "new-to-old", seed=0)
    matrix = np.random.default_rng(0).standard_normal((world.new.shape[1], world.old.shape[1])).astype(np.float32)
    found = judge.rank(lambda v: v @ matrix)[0]
    unit = [rows / np.linalg.norm(rows, axis=1, keepdims=True) for rows in (world.new @ matrix, world.old)]
    margins = []
    for row in range(12):
        cosines, same = unit[1] @ unit[0][row], world.labels == world.labels[row]
        margins.append(cosines[same & (np.arange(len(same)) != row)].max() - cosines[~same].max())
    np.testing.assert_allclose(found.margins, margins, atol=1e-5)
    assert ((found.margins > 0) == (found.reciprocal_ranks == 1)).all()


def test_where_ranks_are_equal_the_wider_margin_is_better():
    def score(rank: float, margin: float) -> HeldOutScore:
        return HeldOutScore("label", 10, 100, rank, rank, margin)

    assert score(1.0, 0.3).beats(score(1.0, 0.2))
    assert not score(1.0, 0.2).beats(score(1.0, 0.3))
    assert not score(1.0, 0.2).beats(score(1.0, 0.2))
    assert score(0.9, 0.1).beats(score(0.8, 0.5))
    assert not score(0.8, 0.5).beats(score(0.9, 0.1))


@pytest.mark.parametrize("direction", ["new-to-old", "old-to-new"])
def test_corrected_scores_take_off_the_nearness_to_queries_but_not_to_ones_own(direction):
    world = plant(identities=60, samples=1, noise=0.8)
    pairs = Pairs.from_arrays(world.old, world.new)
    held_out = np.arange(20)
    judge = HeldOutRetrieval(pairs, held_out, direction, seed=0)
    found = judge.rank(lambda v: v + 0.5, (0.0, 0.7))[1].reciprocal_ranks
    move = {"new-to-old": (world.new + 0.5, world.old), "old-to-new": (world.new, world.old + 0.5)}[direction]
    queries, gallery = (side / np.linalg.norm(side, axis=1, keepdims=True) for side in move)
    expected = []
    hubness = []
    for row in range(60):  # the bank is the pairs that were not held out
        others = [queries[other] @ gallery[row] for other in range(20, 60) if other != row]
        hubness.append(np.mean(sorted(others)[-10:]))
    for row in held_out:
        scores = gallery @ queries[row] - 0.7 * np.array(hubness)
        expected.append(1 / (1 + (np.delete(scores, row) >= scores[row]).sum()))
    np.testing.assert_allclose(found, expected)


def test_distractors_join_the_gallery_and_are_wrong_answers():
    world = plant(identities=60, samples=1, noise=0.5)
    pairs = Pairs.from_arrays(world.old[:30], world.new[:30])
    alone = HeldOutRetrieval(pairs, np.arange(30), "new-to-old", seed=0).score(lambda v: v)
    twins = Distractors(world.old[:30])  # the right answers once more, under no one's name: ties go against the query
    crowd = HeldOutRetrieval(pairs, np.arange(30), "new-to-old", seed=0, distractors=twins).score(lambda v: v)
    assert (alone.gallery, crowd.gallery) == (30, 60)
    assert crowd.recall_at_1 == 0


def test_labelled_distractors_may_be_right_and_unlabelled_ones_stay_out_where_labels_count():
    world = plant(identities=10, samples=4, noise=0.3)
    pairs = Pairs.from_arrays(world.old[::2], world.new[::2], world.labels[::2])
    judge = {
        name: HeldOutRetrieval(pairs, np.arange(20), "new-to-old", seed=0, distractors=distractors)
        for name, distractors in {
            "none": None,
            "unlabelled": Distractors(world.old[1::2]),
            "labelled": Distractors(world.old[1::2], world.labels[1::2]),
            "strangers": Distractors(world.old[1::2], np.full(20, -1)),
        }.items()
    }
    scores = {name: j.score(lambda v: v) for name, j in judge.items()}
    assert scores["unlabelled"] == scores["none"]
    assert scores["labelled"].gallery == scores["strangers"].gallery == 40
    assert scores["labelled"].mean_reciprocal_rank > scores["strangers"].mean_reciprocal_rank


def test_where_some_pairs_look_like_queries_only_they_are_asked_and_many_are_the_bank():
    world = plant(identities=700, samples=1)
    for queries, bank in ((100, 700), (600, 600)):
        pairs = replace(Pairs.from_arrays(world.old, world.new), query_like=np.arange(700) < queries)
        judge = HeldOutRetrieval(pairs, np.arange(50, 700), "new-to-old", seed=0)
        assert judge.asked == queries - 50
        assert len(bank_pairs(pairs, most=10_000, seed=0)) == bank
        assert len(bank_pairs(pairs, most=90, seed=0)) == 90


def hubless(identities, samples, seed=0):
    """Labelled pairs of two models, one turned from the other, with no hubs beyond what chance makes."""
    world = plant(identities=identities, samples=samples, old_dim=16, new_dim=16, noise=0.9, seed=seed)
    return Pairs.from_arrays(world.old, world.new, world.labels)


def test_an_identitys_own_queries_in_the_bank_do_not_make_a_hub_of_it():
    # Mates of fitted identities are in the bank, those of held-out ones are not: were they counted, every wrong
    # answer would be set back and no right one.
    gains = []
    for seed in range(4):
        pairs = hubless(80, 6, seed)
        held_out = np.flatnonzero(identity_folds(pairs, 5, seed=0) == 0)
        judge = HeldOutRetrieval(pairs, held_out, "new-to-old", seed=0)
        fitted = pairs.select(np.setdiff1d(np.arange(480), held_out))
        transformer = fit_transformer(fitted, FitOptions(transformer="procrustes"))
        plain, corrected = judge.rank(transformer.transform, (0.0, 0.5))
        gains.append(corrected.reciprocal_ranks.mean() - plain.reciprocal_ranks.mean())
    assert abs(np.mean(gains)) < 0.03


def test_identities_asked_for_find_mates_in_a_sampled_gallery():
    pairs = hubless(3000, 2)
    held_out = np.flatnonzero(identity_folds(pairs, 5, seed=0) == 0)
    judge = HeldOutRetrieval(
        pairs, held_out, "new-to-old", seed=0, most_queries=200, most_distractors=600, most_bank=100
    )
    assert judge.asked == 200


def test_a_handful_of_query_like_pairs_are_no_judges():
    world = plant(identities=200, samples=1)
    pairs = replace(Pairs.from_arrays(world.old, world.new), query_like=np.arange(200) < 10)
    assert HeldOutRetrieval(pairs, np.arange(40), "new-to-old", seed=0).asked == 40
