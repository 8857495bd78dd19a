"""The order in which shuffled rows come."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from stores.stream import shuffled_rows


def order(rows, size, **options):
    batches = list(shuffled_rows(rows, size, **options))
    return np.concatenate(batches) if batches else np.empty(0, np.int64), [len(batch) for batch in batches]


@settings(derandomize=True, deadline=None)
@given(
    rows=st.integers(0, 500),
    size=st.integers(1, 70),
    chunk_rows=st.integers(1, 60),
    buffer_rows=st.integers(1, 200),
    seed=st.integers(0, 5),
)
def test_every_row_comes_once_in_batches_of_the_size_asked_for(rows, size, chunk_rows, buffer_rows, seed):
    found, sizes = order(rows, size, chunk_rows=chunk_rows, seed=seed, buffer_rows=buffer_rows)
    assert sorted(found) == list(range(rows))
    assert sizes == [size] * (rows // size) + [rows % size] * (rows % size > 0)


def test_the_seed_decides_the_order():
    first, _ = order(1000, 32, chunk_rows=50, seed=1)
    again, _ = order(1000, 32, chunk_rows=50, seed=1)
    other, _ = order(1000, 32, chunk_rows=50, seed=2)
    np.testing.assert_array_equal(first, again)
    assert (first != other).mean() > 0.9


def test_rows_are_mixed_across_the_whole_buffer():
    found, _ = order(4000, 100, chunk_rows=10, seed=0)
    # In a uniform order the mean distance of a row from its own place is a third of the rows.
    assert abs(np.abs(found - np.arange(4000)).mean() / 4000 - 1 / 3) < 0.03


def test_a_chunk_is_read_within_one_buffer_and_a_batch():
    chunk_rows, buffer_rows, size = 20, 100, 64
    found, _ = order(2000, size, chunk_rows=chunk_rows, seed=3, buffer_rows=buffer_rows)
    for chunk in range(2000 // chunk_rows):
        places = np.flatnonzero(found // chunk_rows == chunk)
        assert places.max() - places.min() < buffer_rows + size


def test_refuses_empty_batches():
    with pytest.raises(ValueError, match="size=0"):
        next(shuffled_rows(10, 0, chunk_rows=5, seed=0))
