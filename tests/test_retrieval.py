"""Retrieval measures against a slow, literal implementation of their definitions."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import average_precision_score, ndcg_score

from compat.metrics import retrieval
from compat.metrics.relevance import Relevance
from compat.metrics.retrieval import TIE, ArrayRows, cmc, first_ranks, relevant_ranks, retrieval_scores, share_found
from compat.neighbors import nearest

FIELDS = (
    "recall_at_1",
    "recall_at_5",
    "recall_at_10",
    "average_precision",
    "reciprocal_rank",
    "precision_at_10",
    "ndcg_at_10",
)


def slow_scores(queries, gallery, relevant, excluded, grades=None):
    """The measures of each query, [q, 7], by walking down the ranking; ties put what is irrelevant first.

    Grades are given as {(query, row): grade}; of relevant rows that tie the lower grade comes first.
    """
    table = []
    for number, (query, right, own) in enumerate(zip(queries.astype(float), relevant, excluded, strict=True)):
        seen = [row for row in range(len(gallery)) if row != own]
        score = {}
        for row in seen:
            lengths = np.sqrt(query @ query) * np.sqrt(gallery[row].astype(float) @ gallery[row].astype(float))
            score[row] = float(query @ gallery[row].astype(float) / lengths) if lengths else 0.0
        # Above a relevant row stands every irrelevant one that is not clearly below it.
        worth = {row: grades[number, row] if grades else 1.0 for row in right}
        found = sorted((row for row in seen if row in right), key=lambda row: (-round(score[row], 6), worth[row]))
        ranks = [
            place + sum(score[row] >= score[mine] - float(TIE) for row in seen if row not in right)
            for place, mine in enumerate(found, start=1)
        ]
        if not ranks:
            table.append([np.nan] * len(FIELDS))
            continue
        precision = sum(place / rank for place, rank in enumerate(ranks, start=1)) / len(ranks)
        within = sum(rank <= 10 for rank in ranks) / min(10, len(seen))
        gain = sum(worth[row] / np.log2(rank + 1) for row, rank in zip(found, ranks, strict=True) if rank <= 10)
        best = sum(grade / np.log2(i + 2) for i, grade in enumerate(sorted(worth.values(), reverse=True)[:10]))
        table.append([*(float(ranks[0] <= k) for k in (1, 5, 10)), precision, 1 / ranks[0], within, gain / best])
    return np.array(table)


def scores(queries, gallery, relevance, **options):
    ranks = relevant_ranks(queries, ArrayRows(gallery), relevance, **options)
    found = retrieval_scores(ranks, relevance, gallery_rows=len(gallery))
    return np.stack([getattr(found, name) for name in FIELDS], axis=1)


def lists(relevance):
    return [set(relevance.rows[a:b].tolist()) for a, b in zip(relevance.offsets, relevance.offsets[1:], strict=False)]


@st.composite
def problems(draw):
    """Few distinct vectors, so that exact ties are common; a query may be an item of the gallery."""
    generator = np.random.default_rng(draw(st.integers(0, 2**32)))
    dim, rows, asked = draw(st.integers(1, 5)), draw(st.integers(1, 30)), draw(st.integers(1, 8))
    distinct = generator.normal(size=(draw(st.integers(1, 12)), dim))
    scale = 2.0 ** generator.integers(-3, 4, size=(rows, 1))  # lengths do not matter, and powers of two round nothing
    gallery = (distinct[generator.integers(len(distinct), size=rows)] * scale).astype(np.float32)
    own = np.where(generator.random(asked) < 0.5, generator.integers(rows, size=asked), -1)
    queries = np.where(own[:, None] >= 0, gallery[own], generator.normal(size=(asked, dim))).astype(np.float32)
    labels = generator.integers(draw(st.integers(1, 6)), size=rows)
    query_labels = np.where(own >= 0, labels[own], generator.integers(7, size=asked))
    return queries, gallery, query_labels, labels, own


@settings(max_examples=150, deadline=None)
@given(problem=problems(), block=st.integers(1, 40))
def test_by_label_follows_the_definition_in_blocks_of_any_size(problem, block):
    queries, gallery, query_labels, labels, own = problem
    relevance = Relevance.by_label(query_labels, labels, own)
    right = [
        {row for row in range(len(labels)) if labels[row] == label and row != mine}
        for label, mine in zip(query_labels, own, strict=True)
    ]
    assert lists(relevance) == right
    expected = slow_scores(queries, gallery, right, own)
    np.testing.assert_allclose(scores(queries, gallery, relevance), expected)
    np.testing.assert_allclose(scores(queries, gallery, relevance, gallery_rows=block), expected)


@settings(max_examples=50, deadline=None)
@given(problem=problems())
def test_by_item_follows_the_definition(problem):
    queries, gallery, _, _, own = problem
    right = [{int(row)} - {-1} for row in own]
    expected = slow_scores(queries, gallery, right, [-1] * len(own))
    np.testing.assert_allclose(scores(queries, gallery, Relevance.by_item(own)), expected)


@settings(max_examples=50, deadline=None)
@given(problem=problems(), data=st.data())
def test_by_judgement_follows_the_definition_and_counts_doubled_judgements_once(problem, data):
    queries, gallery, *_ = problem
    judged = st.tuples(st.integers(0, len(queries) - 1), st.integers(0, len(gallery) - 1))
    pairs = data.draw(st.lists(judged, max_size=40))
    pairs += pairs[::2]
    grades = np.array([data.draw(st.sampled_from([0.5, 1.0, 2.0, 3.0])) for _ in pairs])
    query, row = np.array(pairs, np.int64).reshape(-1, 2).T
    relevance = Relevance.by_judgement(len(queries), query, row)
    right = [{r for q, r in pairs if q == number} for number in range(len(queries))]
    assert lists(relevance) == right
    expected = slow_scores(queries, gallery, right, [-1] * len(queries))
    np.testing.assert_allclose(scores(queries, gallery, relevance), expected)
    highest = {}
    for pair, grade in zip(pairs, grades.tolist(), strict=True):
        highest[pair] = max(grade, highest.get(pair, 0.0))
    graded = Relevance.by_judgement(len(queries), query, row, grades)
    expected = slow_scores(queries, gallery, right, [-1] * len(queries), highest)
    np.testing.assert_allclose(scores(queries, gallery, graded), expected)


def test_many_queries_rows_and_relevant_rows_at_once():
    generator = np.random.default_rng(0)
    queries, gallery = generator.normal(size=(301, 16)), generator.normal(size=(400, 16))
    query_labels, labels = generator.integers(12, size=301), generator.integers(12, size=400)  # 33 rows a label
    own = np.full(301, -1)
    relevance = Relevance.by_label(query_labels, labels, own)
    done = []
    found = scores(queries, gallery, relevance, gallery_rows=150, on_rows=lambda *rows: done.append(rows))
    chosen = [0, 1, 150, 255, 256, 300]
    expected = slow_scores(queries[chosen], gallery, [lists(relevance)[i] for i in chosen], own[chosen])
    np.testing.assert_allclose(found[chosen], expected)
    np.testing.assert_array_equal(found, scores(queries, gallery, relevance, gallery_rows=77))
    assert done == [(150, 400), (300, 400), (400, 400)]


def test_average_precision_is_that_of_scikit_learn_where_nothing_ties():
    generator = np.random.default_rng(1)
    queries, gallery = generator.normal(size=(40, 24)), generator.normal(size=(150, 24))
    query_labels, labels = generator.integers(9, size=40), generator.integers(9, size=150)
    relevance = Relevance.by_label(query_labels, labels, np.full(40, -1))
    cosines = queries @ gallery.T / np.linalg.norm(gallery, axis=1)
    expected = [average_precision_score(labels == q, row) for q, row in zip(query_labels, cosines, strict=True)]
    np.testing.assert_allclose(scores(queries, gallery, relevance)[:, 3], expected)


@pytest.mark.parametrize("k", [1, 5, 10])
def test_recall_agrees_with_exact_search(k):
    generator = np.random.default_rng(2)
    query_labels, labels = generator.integers(40, size=60), generator.integers(35, size=200)
    people = generator.normal(size=(40, 12))
    queries, gallery = (people[who] + 1.5 * generator.normal(size=(len(who), 12)) for who in (query_labels, labels))
    relevance = Relevance.by_label(query_labels, labels, np.full(60, -1))
    _, rows = nearest(queries, gallery, k)
    hit = (labels[rows] == query_labels[:, None]).any(axis=1)
    found = scores(queries, gallery, relevance)[:, FIELDS.index(f"recall_at_{k}")]
    asked = relevance.counts > 0
    assert 0.1 < hit[asked].mean() < 0.9
    np.testing.assert_array_equal(found[asked], hit[asked])
    assert np.isnan(found[~asked]).all()


@pytest.mark.parametrize(("asked", "rows", "dim"), [(3, 9, 512), (257, 517, 512), (20, 300, 33), (64, 1001, 64)])
def test_a_map_to_one_point_finds_nothing(asked, rows, dim):
    # These shapes end in kernels that round the same product differently in different columns.
    generator = np.random.default_rng(3)
    queries = generator.normal(size=(asked, dim))
    gallery = np.tile(generator.normal(size=(1, dim)), (rows, 1))
    labels = np.arange(rows) % 3
    relevance = Relevance.by_label(labels[np.arange(asked) % rows], labels, np.full(asked, -1))
    found = scores(queries, gallery, relevance)
    irrelevant = rows - relevance.counts
    assert not found[:, :1].any()
    np.testing.assert_allclose(found[:, 4], 1 / (irrelevant + 1))
    everything = scores(np.zeros((asked, dim)), generator.normal(size=(rows, dim)), relevance)
    np.testing.assert_allclose(everything[:, 4], 1 / (irrelevant + 1))


def test_the_own_item_is_neither_found_nor_in_the_way():
    gallery = np.array([[1, 0], [0.9, 0.1], [0.5, 0.5], [0, 1]])
    own = np.array([0])
    relevance = Relevance.by_label(np.array([5]), np.array([5, 8, 5, 8]), own)
    assert scores(gallery[:1], gallery, relevance)[0].tolist() == [0, 1, 1, 0.5, 0.5, 1 / 3, 1 / np.log2(3)]
    alone = Relevance.by_label(np.array([5]), np.array([5, 8, 7, 8]), own)
    assert np.isnan(scores(gallery[:1], gallery, alone)).all()


def test_tiny_and_long_vectors_are_compared_by_direction_alone():
    gallery = np.array([[1e-25, 0], [0, 1e15], [0, 0]])
    found = scores(np.array([[0, 1e-22], [3e14, 0]]), gallery, Relevance.by_item(np.array([1, 0])))
    assert found[:, 0].tolist() == [1, 1]


def test_what_does_not_fit_is_refused():
    relevance = Relevance.by_item(np.array([0, 1]))
    with pytest.raises(ValueError, match="relevance is for 2 queries, found 3"):
        relevant_ranks(np.ones((3, 2)), ArrayRows(np.ones((2, 2))), relevance)
    with pytest.raises(ValueError, match="queries are 3-D, the gallery 2-D"):
        relevant_ranks(np.ones((2, 3)), ArrayRows(np.ones((2, 2))), relevance)


def test_the_worked_example():
    relevance = Relevance(np.array([4, 7]), np.array([0, 2]), np.array([-1]))
    assert retrieval_scores(np.array([1, 4]), relevance).average_precision.tolist() == [(1 / 1 + 2 / 4) / 2]


def test_discounted_gain_is_that_of_scikit_learn_where_nothing_ties():
    generator = np.random.default_rng(4)
    queries, gallery = generator.normal(size=(30, 24)), generator.normal(size=(60, 24))
    graded = generator.integers(4, size=(30, 60)) * (generator.random((30, 60)) < 0.4)
    query, row = np.nonzero(graded)
    relevance = Relevance.by_judgement(30, query, row, graded[query, row])
    cosines = queries @ gallery.T / np.linalg.norm(gallery, axis=1)
    expected = [ndcg_score(g[None], c[None], k=10) for g, c in zip(graded, cosines, strict=True)]
    np.testing.assert_allclose(scores(queries, gallery, relevance)[:, FIELDS.index("ndcg_at_10")], expected)


def test_few_and_many_relevant_rows_share_a_search_in_tiles_of_any_size(monkeypatch):
    generator = np.random.default_rng(5)
    queries, gallery = generator.normal(size=(30, 8)), generator.normal(size=(90, 8))
    labels = np.repeat([0, 1, 2, 3], [1, 9, 20, 60])
    query_labels, own = generator.integers(5, size=30), np.full(30, -1)
    relevance = Relevance.by_label(query_labels, labels, own)
    assert {0, 1, 9, 20, 60} == set(relevance.counts.tolist())
    expected = slow_scores(queries, gallery, lists(relevance), own)
    np.testing.assert_allclose(scores(queries, gallery, relevance), expected)
    monkeypatch.setattr(retrieval, "_TILE_QUERIES", 7)
    monkeypatch.setattr(retrieval, "_TILE_ROWS", 13)
    monkeypatch.setattr(retrieval, "_AT_ONCE", 40)
    np.testing.assert_allclose(scores(queries, gallery, relevance), expected)
    np.testing.assert_allclose(scores(queries, gallery, relevance, gallery_rows=31), expected)


def test_the_characteristic_counts_queries_with_a_hit_and_the_share_counts_rows():
    relevance = Relevance(np.array([4, 7, 1]), np.array([0, 2, 2, 3]), np.full(3, -1))
    ranks = np.array([5, 2, 3])
    assert first_ranks(ranks, relevance).tolist()[::2] == [2, 3]
    assert np.isnan(first_ranks(ranks, relevance)[1])
    assert cmc(first_ranks(ranks, relevance), 5).tolist() == [0, 0.5, 1, 1, 1]
    np.testing.assert_array_equal(share_found(ranks, relevance, 3), [0.5, np.nan, 1])
    nothing = Relevance.by_item(np.array([-1]))
    assert np.isnan(cmc(first_ranks(np.empty(0, np.int64), nothing), 2)).all()
    assert np.isnan(retrieval_scores(np.empty(0, np.int64), nothing).ndcg_at_10).all()


def test_one_item_is_found_in_a_gallery_of_one():
    found = scores(np.ones((1, 2)), np.ones((1, 2)), Relevance.by_item(np.array([0])))
    assert found.tolist() == [[1] * len(FIELDS)]


def test_nan_is_named():
    relevance = Relevance.by_item(np.array([0]))
    with pytest.raises(ValueError, match="query row 0 holds NaN or infinity"):
        relevant_ranks(np.array([[np.nan]]), ArrayRows(np.ones((2, 1))), relevance)
    with pytest.raises(ValueError, match="gallery row 1 holds NaN or infinity"):
        relevant_ranks(np.ones((1, 1)), ArrayRows(np.array([[1.0], [np.inf]])), relevance, gallery_rows=1)
