"""The rows of a training: every one once, mixed, with the vectors, weights and centres that are its own."""

import numpy as np
import polars as pl
import pytest
import torch
from planted import open_store, plant

from compat.pairs import Pairs, join_pairs
from compat.training import rows as training_rows
from compat.training.compactness import IdentityCentres
from compat.training.interpolation import NO_SAMPLES, SyntheticSamples
from compat.training.rows import TrainingRows

DIRECTIONS = ("new-to-old", "old-to-new")
REAL = 1000


@pytest.fixture(scope="module")
def world():
    return plant(identities=100, samples=10, old_dim=6, new_dim=9)


@pytest.fixture(scope="module", params=["alike", "apart"])
def pairs(request, world, tmp_path_factory):
    """Pairs of two stores of many small chunks, whose rows lie alike, or in an order of their own."""
    folder = tmp_path_factory.mktemp("stores")
    order = np.arange(REAL) if request.param == "alike" else np.random.default_rng(1).permutation(REAL)
    old = open_store(folder / "old", world.old, name="old", labels=world.labels, chunk_rows=32)
    new = open_store(folder / "new", world.new[order], name="new", ids=[f"i{row}" for row in order], chunk_rows=32)
    return join_pairs(old, new)


def samples(count, *, shared):
    generator = np.random.default_rng(2)
    first, second = generator.integers(0, REAL, (2, count))
    share = generator.random(count, dtype=np.float32) if shared else None
    return SyntheticSamples(first, second, np.arange(count), count / REAL, share=share)


def slow_row(row, real, synthetic):
    """A row of the values that real rows have."""
    if row < REAL:
        return real[row]
    share = 0.5 if synthetic.share is None else float(synthetic.share[row - REAL])
    return share * real[synthetic.first[row - REAL]] + (1 - share) * real[synthetic.second[row - REAL]]


@pytest.mark.parametrize("direction", DIRECTIONS)
@pytest.mark.parametrize(("count", "shared"), [(0, False), (1, False), (500, False), (1500, True)])
@pytest.mark.parametrize("size", [1, 7, 64, 5000])
def test_every_row_comes_once_with_what_is_its_own(world, pairs, direction, count, shared, size, monkeypatch):
    monkeypatch.setattr(training_rows, "READ_ROWS", 100)
    monkeypatch.setattr(training_rows, "MIXED_BYTES", 70 * 2 * 15 * 4)
    if size == 1 and count:
        pytest.skip("one row a batch and its share of synthetic ones is the case of 7 again, slowly")
    synthetic = samples(count, shared=shared) if count else NO_SAMPLES
    weights = np.random.default_rng(3).random(REAL)
    wide = np.random.default_rng(4).random((100, 4)).astype(np.float32)
    weighted = Pairs(pairs.old, pairs.new, pairs.old_rows, pairs.new_rows, pairs.labels, weights=weights)
    rows = TrainingRows(weighted, synthetic, direction, IdentityCentres(wide, world.labels))
    sides = (world.new, world.old) if direction == "new-to-old" else (world.old, world.new)
    seen = []
    for batch in rows.batches(size, seed=5):
        seen.append(batch.rows)
        assert batch.weights is not None
        assert batch.centres is not None
        columns = (batch.source, batch.target, batch.weights, batch.centres)
        assert {column.dtype for column in columns} == {torch.float32}
        real = [*sides, weights, wide[world.labels]]
        for found, values in zip(columns, real, strict=True):
            expected = np.array([slow_row(row, values, synthetic) for row in batch.rows])
            np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-6)
    assert len(seen) == rows.batch_count(size)
    assert sorted(np.concatenate(seen)) == list(range(REAL + count))
    if size < REAL + count:
        assert all(abs(len(batch) - size) <= 2 + count / REAL for batch in seen[:-1])
    synthetic_ones = [int((batch >= REAL).sum()) for batch in seen]
    assert max(synthetic_ones) - min(synthetic_ones) <= 1  # spread evenly
    for batch in seen:
        assert (np.diff(batch >= REAL) >= 0).all()  # real ones first


def test_rows_without_weights_or_centres_have_none(pairs):
    for batch in TrainingRows(pairs, samples(700, shared=True), "new-to-old").batches(50, seed=0):
        assert batch.weights is None
        assert batch.centres is None


def test_the_seed_decides_the_order_and_nothing_else_does(pairs):
    rows = TrainingRows(pairs, samples(700, shared=False), "new-to-old")

    def order(seed):
        return [batch.rows.tolist() for batch in rows.batches(32, seed=seed)]

    first = order(1)
    np.random.default_rng(9).random()
    assert order(1) == first
    assert order(2) != first


def test_batches_are_mixed_and_not_in_the_stores_order(world, pairs):
    """Ten rows of each of 100 identities lie together; a batch of 50 sees about 40 of them, as any 50 rows would."""
    rows = TrainingRows(pairs, samples(500, shared=False), "new-to-old")
    met, places = [], []
    for batch in rows.batches(75, seed=0):
        real = batch.rows[batch.rows < REAL]
        met.append(len(set(world.labels[real].tolist())))
        places.append(real.mean())
    assert np.mean(met[:-1]) > 36
    assert abs(np.corrcoef(places, np.arange(len(places)))[0, 1]) < 0.6


def test_first_parents_come_from_the_chunks_that_are_being_read(tmp_path, monkeypatch):
    """With buffers smaller than the store, synthetic rows keep to the buffer of their first parents."""
    monkeypatch.setattr(training_rows, "BUFFER_ROWS", 128)
    vectors = np.random.default_rng(0).normal(size=(REAL, 4)).astype(np.float32)
    old = open_store(tmp_path / "old", vectors, name="old", chunk_rows=32)
    new = open_store(tmp_path / "new", vectors, name="new", chunk_rows=32)
    synthetic = samples(REAL, shared=False)
    rows = TrainingRows(join_pairs(old, new), synthetic, "new-to-old")
    order = np.concatenate([batch.rows for batch in rows.batches(20, seed=0)])
    chunks = synthetic.first[order[order >= REAL] - REAL] // 32
    anywhere = synthetic.first // 32
    # any 100 rows would touch nearly all 32 chunks; these come from a buffer of 4, or two of them where one ends
    touched = [len(np.unique(chunks[start : start + 100])) for start in range(0, REAL - 100, 100)]
    assert max(touched) <= 8
    assert len(np.unique(anywhere[:100])) > 25


def test_no_more_vectors_are_read_at_once_than_the_limits_say(pairs, monkeypatch):
    monkeypatch.setattr(training_rows, "READ_ROWS", 100)
    monkeypatch.setattr(training_rows, "MIXED_BYTES", 50 * 2 * 15 * 4)
    taken, take = [], Pairs.take

    def taking(self, numbers, direction):
        taken.append(len(numbers))
        return take(self, numbers, direction)

    monkeypatch.setattr(Pairs, "take", taking)
    rows = TrainingRows(pairs, samples(2000, shared=False), "new-to-old")
    for _ in rows.batches(30, seed=0):
        pass
    assert max(taken) <= 100
    assert sum(taken) == REAL + 2 * 2000
    assert len(taken) <= REAL // 90 + 2 * (2000 // 40) + 4
    assert isinstance(pairs.item_ids, pl.Series)


def test_large_batches_are_read_alone_as_they_lie_on_disk_and_small_ones_together(pairs, monkeypatch):
    """The stores have 32 chunks of 32 rows: a batch of 8 rows of each is large."""
    taken, take = [], Pairs.take

    def taking(self, numbers, direction):
        taken.append(numbers)
        return take(self, numbers, direction)

    monkeypatch.setattr(Pairs, "take", taking)
    large = [batch.rows for batch in TrainingRows(pairs, NO_SAMPLES, "new-to-old").batches(8 * 32, seed=0)]
    assert [numbers.tolist() for numbers in taken] == [rows.tolist() for rows in large]
    assert all((np.diff(rows) > 0).all() for rows in large)
    taken.clear()
    small = [batch.rows for batch in TrainingRows(pairs, NO_SAMPLES, "new-to-old").batches(8 * 32 - 1, seed=0)]
    assert len(small) == 4
    assert len(taken) == 1
    assert any((np.diff(rows) < 0).any() for rows in small)
