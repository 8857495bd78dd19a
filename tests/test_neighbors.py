"""Exact search against a full sort, approximate search against exact search."""

import sys

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from planted import plant

from compat.neighbors import (
    ApproximateIndex,
    ArrayRows,
    ExactIndex,
    best_rows,
    exact,
    nearest,
    nearest_approximate,
    recall_against,
    search_rows,
    unit_rows,
)


def slow_search(queries, gallery, k):
    """The k best rows [q, k] by a sort of every score, the lower row first among equals; scores beside them."""
    scores = np.array([[(a * b).sum(dtype=np.float64) for b in gallery] for a in queries]).astype(np.float32) + 0.0
    rows = np.argsort(-scores, axis=1, kind="stable")[:, :k]
    return np.take_along_axis(scores, rows, axis=1), rows


@pytest.fixture(params=["float32", "bfloat16"])
def product(request, monkeypatch):
    """Rough scores in either precision, whatever this processor multiplies faster."""
    monkeypatch.setattr(best_rows, "_bfloat16_is_faster", lambda: request.param == "bfloat16")
    monkeypatch.setattr(best_rows, "_ENOUGH_QUERIES", 1)
    return request.param


@settings(max_examples=60, deadline=None)
@given(
    shape=st.tuples(st.integers(1, 9), st.integers(1, 30), st.integers(1, 6)),
    k=st.integers(1, 40),
    seed=st.integers(0, 2**32),
)
def test_the_nearest_are_those_of_a_full_sort(shape, k, seed):
    asked, rows, dim = shape
    generator = np.random.default_rng(seed)
    queries, gallery = generator.normal(size=(asked, dim)) * 9, generator.normal(size=(rows, dim)) * 0.1
    cosines = queries @ gallery.T / np.linalg.norm(queries, axis=1)[:, None] / np.linalg.norm(gallery, axis=1)
    scores, found = nearest(queries, gallery, k)
    assert found.shape == scores.shape == (asked, min(k, rows))
    np.testing.assert_allclose(scores, -np.sort(-cosines, axis=1)[:, :k], atol=1e-6)
    np.testing.assert_allclose(np.take_along_axis(cosines, found, axis=1), scores, atol=1e-6)
    assert all(len(set(row)) == len(row) for row in found.tolist())


def test_unit_rows_keep_directions_of_any_length():
    lengths = np.array([1e-38, 1e-25, 1e-3, 1, 1e4, 1e18])
    direction = np.array([3.0, 0, -4])
    found = unit_rows(lengths[:, None] * direction)
    assert found.dtype == np.float32
    np.testing.assert_allclose(found, np.tile([0.6, 0, -0.8], (6, 1)), rtol=1e-5)
    assert unit_rows(np.zeros((2, 3))).tolist() == [[0, 0, 0]] * 2
    assert unit_rows(np.empty((0, 3))).shape == (0, 3)


def test_unit_rows_leave_what_they_are_given_alone():
    vectors = np.full((2, 2), 3, np.float32)
    vectors.flags.writeable = False
    assert unit_rows(vectors) is not vectors
    assert vectors.tolist() == [[3, 3], [3, 3]]


@pytest.mark.parametrize(
    ("queries", "gallery", "k", "message"),
    [
        (np.ones((2, 3)), np.ones((2, 4)), 1, r"queries are \[2, 3\], expected \[q, 4\]"),
        (np.ones(3), np.ones((2, 3)), 1, r"queries are \[3\], expected \[q, 3\]"),
        (np.ones((2, 3)), np.ones((0, 3)), 1, "found 0 rows and k=1"),
        (np.ones((2, 3)), np.ones((2, 3)), 0, "found 2 rows and k=0"),
        (np.array([[1.0], [np.nan]]), np.ones((2, 1)), 1, "query row 1 holds NaN or infinity"),
    ],
)
def test_searches_that_make_no_sense_are_refused(queries, gallery, k, message):
    with pytest.raises(ValueError, match=message):
        nearest(queries, gallery, k)


@pytest.mark.slow  # numba compiles for tens of seconds
@pytest.mark.filterwarnings("ignore")
def test_approximate_neighbours_are_nearly_the_exact_ones():
    vectors = plant(identities=300, samples=4, old_dim=16, new_dim=16).old
    scores, rows = nearest_approximate(vectors, 8, seed=1)
    exact_scores, exact = nearest(vectors, vectors, 8)
    shared = np.mean([len(set(a) & set(b)) / 8 for a, b in zip(rows.tolist(), exact.tolist(), strict=True)])
    assert shared > 0.95
    assert rows[:, 0].tolist() == list(range(1200))
    np.testing.assert_allclose(scores[:, 1], exact_scores[:, 1], atol=0.05)
    np.testing.assert_array_equal(nearest_approximate(vectors, 8, seed=1)[1], rows)


def test_a_missing_pynndescent_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "pynndescent", None)
    with pytest.raises(ImportError, match=r"pip install 'embedding-compat\[neighbors\]'"):
        nearest_approximate(np.ones((3, 2)), 2)


@settings(max_examples=80, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    asked=st.integers(1, 70), rows=st.integers(1, 300), k=st.integers(1, 40), block=st.integers(1, 310),
    distinct=st.integers(1, 40), near=st.sampled_from([0.0, 1e-6, 1e-3, 1.0]), seed=st.integers(0, 2**32),
)  # fmt: skip
def test_ties_and_near_ties_come_out_as_a_full_sort_has_them(product, asked, rows, k, block, distinct, near, seed):
    generator = np.random.default_rng(seed)
    base = generator.normal(size=8)
    vectors = (base + near * generator.normal(size=(distinct, 8))).astype(np.float32)
    gallery = vectors[generator.integers(distinct, size=rows)]
    queries = generator.normal(size=(asked, 8)).astype(np.float32)
    expected_scores, expected = slow_search(queries, gallery, k)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(best_rows, "_PRODUCT", int(generator.integers(50, 5000)))
        patch.setattr(best_rows, "_AT_ONCE", int(generator.integers(1, 500)))
        scores, found = search_rows(queries, ArrayRows(gallery), k, similarity="inner_product", block=block)
    np.testing.assert_array_equal(found, expected)
    np.testing.assert_array_equal(scores, expected_scores)


def test_neither_blocks_nor_precision_nor_memory_change_the_answer(product, monkeypatch):
    generator = np.random.default_rng(0)
    gallery, queries = (generator.normal(size=(n, 48)).astype(np.float32) for n in (3000, 100))
    done = []
    scores, found = search_rows(queries, ArrayRows(gallery), 12, block=700, on_rows=lambda *rows: done.append(rows))
    assert done == [(700, 3000), (1400, 3000), (2100, 3000), (2800, 3000), (3000, 3000)]
    expected_scores, expected = slow_search(unit_rows(queries), unit_rows(gallery), 12)
    np.testing.assert_array_equal(found, expected)
    np.testing.assert_array_equal(scores, expected_scores)
    monkeypatch.setattr(exact, "BLOCK_ROWS", 256)
    index = ExactIndex(48)
    for part in np.split(gallery, [1, 255, 257, 1999]):
        index.add(part)
    assert len(index) == 3000
    for some in (slice(0, 100), slice(3, 4)):
        np.testing.assert_array_equal(index.search(queries[some], 12)[1], expected[some])


def test_neighbours_are_those_of_faiss():
    import faiss

    generator = np.random.default_rng(1)
    gallery, queries = (unit_rows(generator.normal(size=(n, 32))) for n in (5000, 200))
    flat = faiss.IndexFlatIP(32)
    flat.add(gallery)  # pyright: ignore[reportCallIssue]
    expected_scores, expected = flat.search(queries, 10)  # pyright: ignore[reportCallIssue]
    scores, found = nearest(queries, gallery, 10)
    np.testing.assert_array_equal(found, expected)
    np.testing.assert_allclose(scores, expected_scores, atol=1e-6)


def test_a_collapsed_gallery_gives_its_first_rows(product):
    queries = np.random.default_rng(2).normal(size=(80, 16))
    scores, found = nearest(queries, np.tile(queries[:1], (2000, 1)), 5)
    assert found.tolist() == [[0, 1, 2, 3, 4]] * 80
    assert scores[0].tolist() == [scores[0, 0]] * 5


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_a_gallery_row_that_is_no_vector_is_named(bad):
    gallery = np.ones((9, 2))
    gallery[7, 1] = bad
    with pytest.raises(ValueError, match="gallery row 7 holds NaN or infinity; leave it out"):
        search_rows(np.ones((1, 2)), ArrayRows(gallery), 1, block=4)
    index = ExactIndex(2)
    index.add(gallery[:5])
    with pytest.raises(ValueError, match="gallery row 7 holds NaN or infinity; leave it out"):
        index.add(gallery[5:])
    with pytest.raises(ValueError, match=r"vectors are \[2, 3\], expected \[n, 2\]"):
        index.add(np.ones((2, 3)))
    with pytest.raises(ValueError, match="found 0; take 1 or more"):
        search_rows(np.ones((1, 2)), ArrayRows(gallery), 1, block=0)


@pytest.mark.parametrize(
    ("factory", "options"),
    [("HNSW16", "efSearch=64"), ("IVF16,Flat", "nprobe=8"), ("IVF16,PQ8x4fs,RFlat", "nprobe=16,k_factor_rf=32")],
)
def test_approximate_indexes_find_most_of_what_exact_search_finds(factory, options):
    vectors = plant(identities=200, samples=6, old_dim=16, new_dim=16).old
    index = ApproximateIndex(16, factory, settings=options)
    index.train(vectors)
    index.add(vectors[:700])
    index.add(vectors[700:])
    assert len(index) == 1200
    _, found = index.search(vectors[:50], 5)
    share = recall_against(nearest(vectors[:50], vectors, 5)[1], found)
    assert share.shape == (50,)
    assert 0.9 < share.mean() <= 1
    assert found[:, 0].tolist() == list(range(50))


def test_recall_against_counts_neighbours_of_each_query_wherever_they_stand():
    exact_rows, found = np.array([[1, 2], [3, 0], [5, 4]]), np.array([[2, 1, 9], [0, -1, -1], [1, 2, 3]])
    assert recall_against(exact_rows, found).tolist() == [1.0, 0.5, 0.0]
    with pytest.raises(ValueError, match="found neighbours of 1 queries, expected those of 3"):
        recall_against(exact_rows, found[:1])


def test_what_faiss_cannot_make_or_train_is_one_line():
    with pytest.raises(
        ValueError, match="FAISS makes no index of 8 dimensions from 'IVFX'; examples: HNSW32, IVF256,F"
    ):
        ApproximateIndex(8, "IVFX")
    with pytest.raises(ValueError, match="has no settings 'efSearch=3'; examples: nprobe=16"):
        ApproximateIndex(8, "IVF4,Flat", settings="efSearch=3")
    index = ApproximateIndex(8, "IVF64,Flat")
    with pytest.raises(ValueError, match="is trained before vectors are added; call train"):
        index.add(np.ones((2, 8)))
    with pytest.raises(ValueError, match="3 vectors of 8 dimensions cannot train 'IVF64,Flat'"):
        index.train(np.ones((3, 8)))
    with pytest.raises(ValueError, match="query row 0 holds NaN"):
        ApproximateIndex(1, "HNSW4").search(np.array([[np.nan]]), 1)
    with pytest.raises(ValueError, match="found 0 rows and k=1"):
        ApproximateIndex(1, "HNSW4").search(np.ones((1, 1)), 1)
    with pytest.raises(ValueError, match=r"gallery vectors are \[2, 3\], expected \[n, 1\]"):
        ApproximateIndex(1, "HNSW4").add(np.ones((2, 3)))
