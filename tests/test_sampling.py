"""Picking items to embed again: a planted gallery, a slow assignment of every row, blocks, and the command."""

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
from compat.training.sampling import pick_rows


def clumps(each=20):
    """Eight tight clumps of rows around orthogonal directions, mixed, and the clump of each row."""
    generator = np.random.default_rng(0)
    centres = np.linalg.qr(generator.normal(size=(8, 8)))[0]
    labels = generator.permutation(np.repeat(np.arange(8), each))
    return (centres[labels] + 0.01 * generator.normal(size=(8 * each, 8))).astype(np.float32), labels


def test_every_planted_clump_is_covered_and_one_clump_gives_its_most_central_row():
    vectors, labels = clumps()
    for seed in range(5):  # 24 random rows miss a clump in about every third draw
        assert set(labels[pick_rows(ArrayRows(vectors), 24, seed=seed).rows]) == set(range(8))
    unit = unit_rows(vectors[labels == 3])
    mean = unit.mean(axis=0)
    found = pick_rows(ArrayRows(vectors[labels == 3]), 1)
    assert found.clusters == 1
    assert found.rows.tolist() == [np.argmax([row @ mean for row in unit])]


def test_rows_are_what_assigning_them_one_by_one_finds():
    vectors = np.random.default_rng(0).normal(size=(400, 6)).astype(np.float32)
    unit = unit_rows(vectors)
    centroids = sampling._centroids(unit, 30, 5)
    best = {}
    for row, vector in enumerate(unit):
        cosines = [float(vector @ centroid) for centroid in centroids]
        own = int(np.argmax(cosines))
        if own not in best or cosines[own] > best[own][0]:
            best[own] = (cosines[own], row)
    found = pick_rows(ArrayRows(vectors), 30, seed=5)
    assert found.clusters == len(best) == 30
    assert found.rows.tolist() == sorted(row for _, row in best.values())


asked: list[int] = []


class Watched(ArrayRows):
    """An array that keeps how many rows it was asked for."""

    def rows(self, start, stop):
        asked.append(stop - start)
        return super().rows(start, stop)


def test_gallery_is_read_twice_in_blocks_and_blocks_change_nothing(monkeypatch):
    vectors = np.random.default_rng(0).normal(size=(500, 6)).astype(np.float32)
    whole = pick_rows(ArrayRows(vectors), 20)
    monkeypatch.setattr(sampling, "BLOCK_ROWS", 64)
    monkeypatch.setattr(sampling, "BLOCK_COSINES", 20 * 50)
    asked.clear()
    assert pick_rows(Watched(vectors), 20).rows.tolist() == whole.rows.tolist()
    assert asked == [64] * 7 + [52] + [50] * 10


def test_clusters_come_from_a_sample_but_rows_from_the_whole_gallery():
    vectors, labels = clumps(each=200)
    found = pick_rows(ArrayRows(vectors), 24, sample_rows=100, seed=1)
    assert set(labels[found.rows]) == set(range(8))
    drawn = np.random.default_rng(1).choice(1600, 100, replace=False)
    assert not set(found.rows) <= set(drawn)
    assert pick_rows(ArrayRows(vectors), 24, sample_rows=100, seed=1).rows.tolist() == found.rows.tolist()


def test_norms_do_not_matter_and_rows_of_zeros_are_left_out():
    vectors = np.random.default_rng(0).normal(size=(60, 5)).astype(np.float32)
    found = pick_rows(ArrayRows(vectors), 15).rows
    powers = 2.0 ** np.random.default_rng(0).integers(-4, 5, size=(60, 1))
    assert pick_rows(ArrayRows((vectors * powers).astype(np.float32)), 15).rows.tolist() == found.tolist()
    with_zeros = np.insert(vectors, [0, 30], 0.0, axis=0)
    assert np.array_equal(with_zeros[pick_rows(ArrayRows(with_zeros), 15).rows], vectors[found])
    assert pick_rows(ArrayRows(with_zeros), 60).rows.tolist() == [row for row in range(62) if row not in (0, 31)]


def test_clusters_left_empty_by_repeated_rows_are_made_up_for():
    vectors = np.repeat(np.eye(3, dtype=np.float32), 5, axis=0)
    found = pick_rows(ArrayRows(vectors), 7)
    assert found.clusters == 3
    assert len(set(found.rows)) == 7
    assert set(found.rows // 5) == {0, 1, 2}


def test_mistakes_are_told():
    vectors = ArrayRows(np.insert(np.eye(9, dtype=np.float32), 0, 0.0, axis=0))
    with pytest.raises(ValueError, match=r"9 rows can be picked .* expected 10"):
        pick_rows(vectors, 10)
    with pytest.raises(ValueError, match="0 rows can be picked"):
        pick_rows(ArrayRows(np.zeros((0, 3), np.float32)), 1)
    for name, value in (("wanted", 0), ("sample_rows", 0), ("seed", -1)):
        with pytest.raises(ValueError, match=f"{name} must be at least .*, found {value}"):
            pick_rows(vectors, **({"wanted": 5} | {name: value}))


@pytest.mark.parametrize("labelled", [True, False])
def test_command_writes_the_items_in_the_stores_order(tmp_path, labelled):
    world = plant(identities=40, samples=5, old_dim=8)
    ids = [f"i{row}" for row in np.random.default_rng(0).permutation(200)]
    labels = [f"person {label}" for label in world.labels] if labelled else None
    store = write_store(tmp_path / "old", world.old, ids=ids, labels=labels)
    rows = pick_rows(ArrayRows(world.old), 30, seed=2).rows
    expected = pl.DataFrame({"item_id": [ids[row] for row in rows]})
    if labels:
        expected = expected.with_columns(label=pl.Series([labels[row] for row in rows]))
    covered = len(np.unique(world.labels[rows]))
    for out, read in (("picked.csv", pl.read_csv), ("deeper/picked.parquet", pl.read_parquet)):
        ran = run("compat.sample", "--store", store, "--n", 30, "--seed", 2, "--out", tmp_path / out)
        assert ran.returncode == 0, ran.stderr
        assert read(tmp_path / out).equals(expected)
        told = f"30 of 200 items, the central ones of 30 clusters{f', {covered} of 40 labels' if labelled else ''}: "
        assert ran.stdout == f"{told}{tmp_path / out}\n"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["deeper", "old", "picked.csv"]


def test_command_tells_mistakes_in_one_line(tmp_path):
    store = write_store(tmp_path / "old", np.eye(20, dtype=np.float32))
    for argv, told in [
        ((store, 21, tmp_path / "a.csv"), "holds 20 items, expected --n 21 or more"),
        ((store, 0, tmp_path / "a.csv"), "n must be at least 1, found 0"),
        ((store, 5, tmp_path / "a.txt"), r"--out must end in .csv or .parquet, found a.txt"),
        ((tmp_path / "none", 5, tmp_path / "a.csv"), "no embedding store at"),
    ]:
        ran = run("compat.sample", "--store", argv[0], "--n", argv[1], "--out", argv[2])
        assert ran.returncode == 2
        assert re.search(re.escape(told), ran.stderr)
        assert ran.stderr.count("\n") == 1
    assert [path.name for path in tmp_path.iterdir()] == ["old"]


def test_help_needs_nothing_heavy():
    code = (
        "import sys; from compat.sample import main; main(['--help']); "
        "print(*({'torch', 'zarr', 'polars', 'faiss', 'numpy'} & set(sys.modules)), file=sys.stderr)"
    )
    ran = subprocess.run([sys.executable, "-c", code], env=environment(), capture_output=True, text=True, check=True)
    assert "--sample-rows" in ran.stdout
    assert ran.stderr.strip() == ""
