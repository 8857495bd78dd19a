"""Exact search against a full sort, approximate search against exact search."""

import sys

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from planted import plant

from compat.neighbors import nearest, nearest_approximate, unit_rows


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
