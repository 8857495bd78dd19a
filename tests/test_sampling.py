"""Picking items to embed again: the greedy design against trying every candidate, in blocks, and as a command."""

import re
import subprocess
import sys

import numpy as np
import polars as pl
import pytest
from planted import environment, plant, run, write_store

from compat.metrics.retrieval import ArrayRows
from compat.neighbors import unit_rows
from compat.training import sampling
from compat.training.sampling import STRENGTH, greedy_design, mean_uncertainty, pick_rows


def centred(vectors):
    rows = unit_rows(vectors).astype(np.float64)
    rows = rows[rows.any(axis=1)]
    return rows - rows.mean(axis=0)


def tried_out(x, wanted):
    """The design again, from its definition: each step inverts the matrix anew for every candidate."""
    covariance = x.T @ x / len(x)
    penalty = wanted * STRENGTH * np.trace(covariance) / x.shape[1]
    taken, uncertainty = [], []
    for _ in range(wanted):
        left = {}
        for row in set(range(len(x))) - set(taken):
            some = x[[*taken, row]]
            inverse = np.linalg.inv(some.T @ some + penalty * np.eye(x.shape[1]))
            left[row] = np.mean([v @ inverse @ v for v in x])
        taken.append(min(left, key=left.__getitem__))
        uncertainty.append(left[taken[-1]])
    return taken, uncertainty[-1]


def skewed(count, dim, seed=0):
    """Rows that vary a hundred times as much along the first dimension as along the last, off the origin."""
    generator = np.random.default_rng(seed)
    return (generator.normal(size=(count, dim)) * np.geomspace(1, 0.1, dim) + 0.3).astype(np.float32)


def test_design_is_what_trying_every_candidate_finds():
    for seed in range(3):
        vectors = skewed(40, 6, seed)
        taken, left = tried_out(centred(vectors), 12)
        found = pick_rows(ArrayRows(vectors), 12)
        assert found.rows.tolist() == sorted(taken)
        x = centred(vectors)
        covariance = x.T @ x / len(x)
        penalty = 12 * STRENGTH * np.trace(covariance) / 6
        assert greedy_design(x.astype(np.float32), covariance, penalty, 12).tolist() == taken
        assert mean_uncertainty(x[taken].astype(np.float32), covariance, penalty) == pytest.approx(left, rel=1e-5)


def test_a_map_fitted_to_the_picks_predicts_the_rest_better_than_one_fitted_to_random_picks():
    gains = []
    for seed in range(8):
        vectors = skewed(2000, 24, seed)
        x = centred(vectors)
        generator = np.random.default_rng(seed)
        truth = generator.normal(size=(24, 10))
        seen = x @ truth + 0.3 * generator.normal(size=(2000, 10))

        def error(rows, x=x, seen=seen, truth=truth):
            penalty = len(rows) * STRENGTH * x.var(axis=0).mean()
            weight = np.linalg.solve(x[rows].T @ x[rows] + penalty * np.eye(24), x[rows].T @ seen[rows])
            return np.mean((x @ (weight - truth)) ** 2)

        lots = [error(generator.permutation(2000)[:40]) for _ in range(5)]
        gains.append(1 - error(pick_rows(ArrayRows(vectors), 40).rows) / np.mean(lots))
    assert min(gains) > 0.0
    assert np.mean(gains) > 0.1


def test_uncertainty_is_that_of_the_whole_gallery_as_a_share_of_random_picks():
    vectors = skewed(300, 8)
    found = pick_rows(ArrayRows(vectors), 20, seed=3)
    x = centred(vectors)
    covariance = x.T @ x / len(x)
    penalty = 20 * STRENGTH * np.trace(covariance) / 8

    def left(rows):
        inverse = np.linalg.inv(x[rows].T @ x[rows] + penalty * np.eye(8))
        return np.mean(np.einsum("ij,jk,ik->i", x, inverse, x))

    draws = [left(np.random.default_rng(d).permutation(300)[:20]) for d in range(200)]
    ratios = left(found.rows) / np.array(draws)
    assert ratios.min() * 0.99 <= found.uncertainty <= ratios.max() * 1.01
    assert found.uncertainty < 0.95


class Watched(ArrayRows):
    """An array that keeps what it was asked for."""

    def rows(self, start, stop):
        asked.append((start, stop))
        return super().rows(start, stop)


asked: list[tuple[int, int]] = []


def test_gallery_is_read_once_in_blocks_and_blocks_change_nothing(monkeypatch):
    vectors = skewed(500, 6)
    whole = pick_rows(ArrayRows(vectors), 30)
    monkeypatch.setattr(sampling, "BLOCK_ROWS", 64)
    asked.clear()
    assert pick_rows(Watched(vectors), 30).rows.tolist() == whole.rows.tolist()
    assert asked == [(start, min(start + 64, 500)) for start in range(0, 500, 64)]


def test_candidates_bound_what_may_be_picked_but_not_what_is_learned_about():
    vectors = skewed(500, 6)
    drawn = np.sort(np.random.default_rng(1).choice(500, 50, replace=False))
    found = pick_rows(ArrayRows(vectors), 20, candidates=50, seed=1)
    assert set(found.rows) <= set(drawn)
    x = centred(vectors)
    covariance = x.T @ x / len(x)
    penalty = 20 * STRENGTH * np.trace(covariance) / 6
    taken = greedy_design(x[drawn].astype(np.float32), covariance, penalty, 20)
    assert found.rows.tolist() == sorted(drawn[taken])
    assert pick_rows(ArrayRows(vectors), 20, candidates=50, seed=2).rows.tolist() != found.rows.tolist()


def test_norms_do_not_matter_zero_rows_are_left_out_and_all_rows_can_be_asked_for():
    vectors = skewed(60, 5)
    found = pick_rows(ArrayRows(vectors), 15).rows
    longer = vectors * np.random.default_rng(0).uniform(0.1, 50, size=(60, 1)).astype(np.float32)
    assert pick_rows(ArrayRows(longer), 15).rows.tolist() == found.tolist()
    with_zeros = np.insert(vectors, [0, 30], 0.0, axis=0)
    rows = pick_rows(ArrayRows(with_zeros), 15).rows
    assert np.array_equal(with_zeros[rows], vectors[found])
    assert pick_rows(ArrayRows(with_zeros), 60).rows.tolist() == [r for r in range(62) if r not in (0, 31)]
    same = pick_rows(ArrayRows(np.ones((9, 3), np.float32)), 4)
    assert len(set(same.rows)) == 4


def test_mistakes_are_told():
    vectors = ArrayRows(np.insert(skewed(9, 3), 0, 0.0, axis=0))
    with pytest.raises(ValueError, match=r"9 rows can be picked .* expected 10"):
        pick_rows(vectors, 10)
    with pytest.raises(ValueError, match="5 candidates are too few to pick 6"):
        pick_rows(vectors, 6, candidates=5)
    with pytest.raises(ValueError, match="found 0 and seed 0"):
        pick_rows(vectors, 0)
    with pytest.raises(ValueError, match="0 rows can be picked"):
        pick_rows(ArrayRows(np.zeros((0, 3), np.float32)), 1)


@pytest.mark.parametrize("labelled", [True, False])
def test_command_writes_the_items_in_the_stores_order(tmp_path, labelled):
    world = plant(identities=40, samples=5, old_dim=8)
    ids = [f"i{row}" for row in np.random.default_rng(0).permutation(200)]
    labels = [f"person {label}" for label in world.labels] if labelled else None
    store = write_store(tmp_path / "old", world.old, ids=ids, labels=labels)
    rows = pick_rows(ArrayRows(world.old), 30).rows
    expected = pl.DataFrame({"item_id": [ids[row] for row in rows]})
    if labels:
        expected = expected.with_columns(label=pl.Series([labels[row] for row in rows]))
    for out, read in (("picked.csv", pl.read_csv), ("deeper/picked.parquet", pl.read_parquet)):
        ran = run("compat.sample", "--store", store, "--n", 30, "--out", tmp_path / out)
        assert ran.returncode == 0, ran.stderr
        assert read(tmp_path / out).equals(expected)
        covered = len(np.unique(world.labels[rows]))
        told = rf"30 of 200 items{f', {covered} of 40 labels' if labelled else ''}: .* \d\d% of the uncertainty .*\n"
        assert re.fullmatch(told, ran.stdout)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["deeper", "old", "picked.csv"]


def test_command_tells_mistakes_in_one_line(tmp_path):
    store = write_store(tmp_path / "old", skewed(20, 4))
    for argv, told in [
        ((store, 21, tmp_path / "a.csv"), "holds 20 items, expected --n 21 or more"),
        ((store, 0, tmp_path / "a.csv"), "--n must be at least 1, found 0"),
        ((store, 5, tmp_path / "a.txt"), "--out must end in .csv or .parquet, found a.txt"),
        ((tmp_path / "none", 5, tmp_path / "a.csv"), "no embedding store at"),
    ]:
        ran = run("compat.sample", "--store", argv[0], "--n", argv[1], "--out", argv[2])
        assert ran.returncode == 2
        assert told in ran.stderr
        assert ran.stderr.count("\n") == 1
    assert [path.name for path in tmp_path.iterdir()] == ["old"]


def test_help_needs_nothing_heavy():
    code = (
        "import sys; from compat.sample import main; main(['--help']); "
        "print(*({'torch', 'zarr', 'polars', 'faiss', 'numpy'} & set(sys.modules)), file=sys.stderr)"
    )
    ran = subprocess.run([sys.executable, "-c", code], env=environment(), capture_output=True, text=True, check=True)
    assert "--candidates" in ran.stdout
    assert ran.stderr.strip() == ""
