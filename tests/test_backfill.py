"""Backfill curves against searching anew at every stage."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from compat.metrics import sides
from compat.metrics.backfill import (
    POINTS,
    BackfillCurve,
    backfill_curves,
    identity_order,
    random_order,
    uncertainty_order,
)
from compat.metrics.relevance import Relevance
from compat.metrics.retrieval import TIE, relevant_ranks
from compat.metrics.sides import Calibration, Side, calibrate, relevant_scores, score_blocks
from compat.neighbors import ArrayRows
from stores.space import Similarity


def searched_anew(queries, native, bridged, relevance, order):
    """Queries that are right at each stage, by as many searches; both galleries are in the new space."""
    hits = []
    for stage in range(len(order) + 1):
        mixed = bridged.copy()
        mixed[order[:stage]] = native[order[:stage]]
        ranks = relevant_ranks(queries, ArrayRows(mixed), relevance)
        firsts = [ranks[a:b].min() for a, b in zip(relevance.offsets, relevance.offsets[1:], strict=False) if b > a]
        hits.append(sum(rank == 1 for rank in firsts))
    return hits


def slow_hits(native, bridged, relevance, order):
    """The same from two tables of scores [q, g], by the definition."""
    hits = []
    for stage in range(len(order) + 1):
        mixed = bridged.copy()
        mixed[:, order[:stage]] = native[:, order[:stage]]
        right = 0
        for i, row in enumerate(mixed):
            relevant = set(relevance.rows[relevance.offsets[i] : relevance.offsets[i + 1]].tolist())
            others = [row[r] for r in range(len(row)) if r not in relevant and r != relevance.excluded[i]]
            right += bool(relevant) and max(others, default=-np.inf) < max(row[r] for r in relevant) - TIE
        hits.append(right)
    return hits


def side(queries, gallery, similarity: Similarity = "cosine"):
    return Side(queries, ArrayRows(gallery), similarity)


@st.composite
def problems(draw):
    """Few distinct vectors, so that ties are common; some queries are items of the gallery, some find nothing."""
    generator = np.random.default_rng(draw(st.integers(0, 2**32)))
    dim, rows, asked = draw(st.integers(1, 4)), draw(st.integers(1, 25)), draw(st.integers(1, 7))
    distinct = generator.normal(size=(draw(st.integers(1, 15)), dim)).astype(np.float32)
    native = distinct[generator.integers(len(distinct), size=rows)]
    bridged = np.where(
        generator.random((rows, 1)) < 0.5, native, distinct[generator.integers(len(distinct), size=rows)]
    )
    own = np.where(generator.random(asked) < 0.5, generator.integers(rows, size=asked), -1)
    queries = np.where(own[:, None] >= 0, native[own], generator.normal(size=(asked, dim))).astype(np.float32)
    labels = generator.integers(draw(st.integers(1, 6)), size=rows)
    query_labels = np.where(own >= 0, labels[own], generator.integers(7, size=asked))
    relevance = Relevance.by_label(query_labels, labels, own)
    return queries, native, bridged, relevance, generator.permutation(rows)


@settings(max_examples=150, deadline=None)
@given(problem=problems(), block=st.integers(1, 30), several=st.integers(1, 5))
def test_the_curve_is_what_searching_anew_at_every_stage_finds(problem, block, several):
    queries, native, bridged, relevance, order = problem
    if not relevance.counts.any():
        with pytest.raises(ValueError, match="no query has a relevant row"):
            backfill_curves(side(queries, native), side(queries, bridged), relevance, {"given": order})
        return
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sides, "GALLERY_ROWS", block)
        patch.setattr(sides, "QUERY_ROWS", several)
        patch.setattr(sides, "_PAIRS", several)
        orders = {"given": order, "back": order[::-1]}
        found = backfill_curves(side(queries, native), side(queries, bridged), relevance, orders)
    for name, one in orders.items():
        assert found[name].hits.tolist() == searched_anew(queries, native, bridged, relevance, one)
    assert found["given"].queries == (relevance.counts > 0).sum()


@pytest.mark.parametrize("seed", range(4))
def test_forms_of_different_spaces_and_dimensions_follow_the_definition(seed):
    generator = np.random.default_rng(seed)
    labels, query_labels = generator.integers(12, size=150), generator.integers(13, size=40)
    people = generator.normal(size=(13, 6))
    native, asked = people[labels] + 0.8 * generator.normal(size=(150, 6)), people[query_labels]
    asked = asked + 0.8 * generator.normal(size=asked.shape)
    old, old_asked = native[:, :5] * 3, asked[:, :5] + 0.1
    offsets = generator.random((150, 1)) - 1
    lifted = np.concatenate([old / np.linalg.norm(old, axis=1, keepdims=True), offsets], axis=1)
    lifted_asked = np.pad(
        old_asked / np.linalg.norm(old_asked, axis=1, keepdims=True), ((0, 0), (0, 1)), constant_values=1
    )
    relevance = Relevance.by_label(query_labels, labels, np.where(query_labels == 3, 5, -1))
    new, bridged = side(asked, native), side(lifted_asked, lifted, "inner_product")
    line = calibrate(bridged, new)
    order = random_order(150, seed=seed)
    found = backfill_curves(new, bridged, relevance, {"random": order}, calibration=line)["random"]
    cosines = (
        asked
        / np.linalg.norm(asked, axis=1, keepdims=True)
        @ (native / np.linalg.norm(native, axis=1, keepdims=True)).T
    )
    moved = lifted_asked @ lifted.T * line.scale + line.shift
    expected = slow_hits(cosines, moved, relevance, order)
    assert found.hits.tolist() == expected
    assert 0 < min(expected) < max(expected) < found.queries  # all stages alike would prove nothing


def test_calibration_helps_where_scores_are_on_other_scales():
    # Both models are equally good, but all vectors of the old one lie in a cone: its cosines are all near one.
    generator = np.random.default_rng(0)
    labels, query_labels = np.repeat(np.arange(60), 4), np.arange(60)
    people = generator.normal(size=(60, 16))

    def seen(of):
        return people[of] + 0.7 * generator.normal(size=(len(of), 16))

    cone = 12 * np.eye(16)[0]
    native, bridged = side(seen(query_labels), seen(labels)), side(seen(query_labels) + cone, seen(labels) + cone)
    relevance = Relevance.by_label(query_labels, labels, np.full(60, -1))
    orders = {"random": random_order(240)}
    raw = backfill_curves(native, bridged, relevance, orders)["random"]
    line = calibrate(bridged, native)
    curve = backfill_curves(native, bridged, relevance, orders, calibration=line)["random"]
    assert line.scale > 2
    assert line.shift < 0
    assert curve.hits[0] == raw.hits[0]  # among one model's scores a rising line changes nothing
    assert curve.hits[-1] == raw.hits[-1]
    assert curve.area > raw.area + 0.1
    assert min(curve.recall_at_1) > min(raw.recall_at_1) + 0.2


def test_calibration_matches_mean_and_spread_and_knows_no_labels():
    generator = np.random.default_rng(1)
    wanted = generator.normal(2, 3, size=500)
    line = Calibration.between(4 * wanted - 7, wanted)
    assert (line.scale, line.shift) == pytest.approx((0.25, 1.75))
    assert Calibration.between(np.full(5, 0.5), wanted[:5]).scale == 1
    queries, gallery = generator.normal(size=(50, 4)), generator.normal(size=(3000, 4))
    one, other = side(queries, gallery), side(2 * queries, gallery, "inner_product")
    assert calibrate(one, other, seed=2) == calibrate(one, other, seed=2) != calibrate(one, other, seed=3)
    everything = calibrate(one, other, queries=50, rows=3000)
    scores = [np.concatenate([block for _, _, (block,) in score_blocks([each])]) for each in (one, other)]
    assert scores[0].shape == (50, 3000)
    direct = Calibration.between(*scores)
    assert (everything.scale, everything.shift) == pytest.approx((direct.scale, direct.shift), rel=1e-4)


def test_orders():
    assert sorted(random_order(9, seed=1)) == list(range(9))
    assert random_order(9, seed=1).tolist() != random_order(9, seed=2).tolist()
    labels = np.array([7, 3, 7, 3, 9, 7])
    order = identity_order(labels, seed=4)
    assert sorted(order) == list(range(6))
    runs = labels[order][np.append(True, np.diff(labels[order]) != 0)]
    assert sorted(runs) == [3, 7, 9]  # each identity once, whole
    assert {tuple(labels[identity_order(labels, seed=s)]) for s in range(20)} > {tuple(labels[order])}
    assert uncertainty_order(np.array([0.1, 0.9, 0.1, 0.5])).tolist() == [1, 3, 0, 2]
    with pytest.raises(ValueError, match="uncertainty of row 1 is NaN"):
        uncertainty_order(np.array([0.1, np.nan]))


def test_a_curve_reaches_what_it_keeps():
    curve = BackfillCurve(np.array([2, 8, 5, 8, 9]), 10)
    assert curve.area == pytest.approx(0.64)
    assert curve.cost_to_reach(0.8) == 0.75  # it touched 0.8 at a quarter, and fell
    assert curve.cost_to_reach(0.2) == 0
    assert curve.cost_to_reach(0.9) == 1
    assert curve.cost_to_reach(0.91) is None
    thirds = BackfillCurve(np.array([0, 3]), 9)
    assert thirds.cost_to_reach(1 / 3) == 1
    assert curve.to_dict() == {
        "fraction": [0, 0.25, 0.5, 0.75, 1],
        "recall_at_1": [0.2, 0.8, 0.5, 0.8, 0.9],
        "area": curve.area,
    }


def test_a_long_curve_is_thinned_but_its_area_is_not():
    hits = np.arange(5001) // 7 % 40
    found = BackfillCurve(hits, 40).to_dict()
    assert len(found["fraction"]) == len(found["recall_at_1"]) == POINTS
    assert (found["fraction"][0], found["fraction"][-1]) == (0, 1)
    np.testing.assert_allclose(
        found["recall_at_1"], hits[(np.array(found["fraction"]) * 5000).round().astype(int)] / 40
    )
    assert found["area"] == pytest.approx(hits.mean() / 40)


def test_relevant_scores_are_those_of_the_whole_table():
    generator = np.random.default_rng(2)
    one = side(generator.normal(size=(6, 3)), generator.normal(size=(20, 3)))
    relevance = Relevance.by_judgement(6, generator.integers(6, size=30), generator.integers(20, size=30))
    table = np.concatenate([block for _, _, (block,) in score_blocks([one])])
    asking = np.repeat(np.arange(6), relevance.counts)
    np.testing.assert_allclose(relevant_scores(one, relevance), table[asking, relevance.rows], atol=1e-6)


def test_what_does_not_fit_is_refused():
    good = side(np.ones((2, 3)), np.ones((4, 3)))
    relevance, order = Relevance.by_item(np.array([0, 1])), {"mine": np.arange(4)}
    with pytest.raises(ValueError, match="order 'mine' has 4 entries; it must hold each of 4 gallery rows once"):
        backfill_curves(good, good, relevance, {"mine": np.array([0, 1, 2, 2])})
    with pytest.raises(ValueError, match="2 queries with 4 rows and 2 queries with 5 rows"):
        backfill_curves(good, side(np.ones((2, 3)), np.ones((5, 3))), relevance, order)
    with pytest.raises(ValueError, match="queries are 3-D, the gallery 2-D"):
        backfill_curves(side(np.ones((2, 3)), np.ones((4, 2))), good, relevance, order)
    with pytest.raises(ValueError, match="relevance is for 2 queries, found 3"):
        backfill_curves(side(np.ones((3, 3)), np.ones((4, 3))), good, relevance, order)
    broken = np.ones((4, 3))
    broken[3, 1] = np.nan
    with pytest.raises(ValueError, match="gallery row 3 holds NaN"):
        backfill_curves(good, side(np.ones((2, 3)), broken), relevance, order)
    with pytest.raises(ValueError, match="at least one query and one gallery row"):
        calibrate(side(np.ones((0, 3)), np.ones((4, 3))), side(np.ones((0, 3)), np.ones((4, 3))))


def test_one_item_is_a_curve_of_two_stages():
    found = backfill_curves(
        side(np.ones((1, 2)), np.ones((1, 2))),
        side(np.ones((1, 2)), np.zeros((1, 2))),
        Relevance.by_item(np.array([0])),
        {"only": np.array([0])},
    )["only"]
    assert found.hits.tolist() == [1, 1]


def test_a_map_to_one_point_finds_nothing_until_the_gallery_is_native():
    generator = np.random.default_rng(3)
    vectors = generator.normal(size=(30, 8))
    relevance = Relevance.by_item(np.arange(30))
    curve = backfill_curves(
        side(vectors, vectors), side(vectors, np.ones((30, 8))), relevance, {"random": random_order(30)}
    )["random"]
    assert curve.hits[0] == 0
    assert curve.hits[-1] == 30
