"""The benchmark of maps: what it measures, that it goes on where it stopped, and what its tables conclude."""

import importlib
import json
from pathlib import Path
from types import ModuleType

import numpy as np
import polars as pl
import pytest
from scipy.stats import ttest_1samp

from compat.metrics.relevance import Relevance

BENCHMARKS = Path(__file__).parent.parent / "benchmarks"


@pytest.fixture
def bench(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    return importlib.import_module("bench_maps")


@pytest.fixture
def peers(bench: ModuleType) -> ModuleType:
    return importlib.import_module("peers")


@pytest.fixture
def tables(bench: ModuleType) -> ModuleType:
    return importlib.import_module("maps_tables")


def unit(rows: np.ndarray) -> np.ndarray:
    return (rows / np.linalg.norm(rows, axis=1, keepdims=True)).astype(np.float32)


def planted_text(folder: Path, documents: int = 300, old_dim: int = 8, new_dim: int = 8) -> Path:
    """A text_wordnet folder whose new space is the old one turned, with a little noise."""
    generator = np.random.default_rng(1)
    turn = np.linalg.qr(generator.standard_normal((max(old_dim, new_dim),) * 2))[0][:old_dim, :new_dim]
    folder = folder / "text_wordnet"
    folder.mkdir(parents=True)

    def both(rows: int, name: str) -> None:
        old = unit(generator.standard_normal((rows, old_dim)))
        new = unit(old @ turn + 0.02 * generator.standard_normal((rows, new_dim)))
        np.save(folder / f"{name}_old_wordllama256.npy", old.astype(np.float16))
        np.save(folder / f"{name}_new_minilm384.npy", new.astype(np.float16))

    both(documents, "docs")
    ids = [f"d{i}" for i in range(documents)]
    pl.DataFrame({"item_id": ids}).write_parquet(folder / "docs.parquet")
    for name in ("lemma", "example"):
        both(40, f"q{name}")
        targets = {"item_id": [f"q{i}" for i in range(40)], "target_item_id": ids[:40]}
        pl.DataFrame(targets).write_parquet(folder / f"queries_{name}.parquet")
    return folder.parent


@pytest.fixture
def small(bench: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    data = importlib.import_module("maps_data")
    read = data.text_wordnet
    monkeypatch.setattr(data, "text_wordnet", lambda folder: read(folder, gallery_rows=100, same_document=50))


def lines(path: Path) -> list[dict]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def by_map(path: Path) -> dict[tuple, dict]:
    return {(r["direction"], r["map"]): r for r in lines(path)}


@pytest.mark.parametrize("similarity", ["cosine", "inner_product"])
def test_neighbours_and_overlap_against_a_plain_sort(bench, similarity):
    generator = np.random.default_rng(0)
    queries, gallery = (generator.standard_normal((n, 6), dtype=np.float32) for n in (30, 80))
    product = queries @ gallery.T
    if similarity == "cosine":
        product = unit(queries) @ unit(gallery).T
    expected = np.argsort(-product, axis=1)[:, :10]
    found = bench.neighbours(queries, gallery, 10, similarity)
    assert [set(row) for row in found] == [set(row) for row in expected]
    other = np.argsort(product, axis=1)[:, :10]
    shares = [len(set(a) & set(b)) / 10 for a, b in zip(other, expected, strict=True)]
    assert bench.overlap(other, expected) == pytest.approx(np.mean(shares))
    assert bench.overlap(found, expected) == 1.0


def test_inner_product_ranks_by_length_where_cosine_does_not(bench):
    asked = bench.QuerySet("one", np.ones((1, 2)), np.ones((1, 2)), Relevance.by_item(np.array([0])))
    queries, gallery = np.array([[1.0, 0.0]], np.float32), np.array([[1.0, 0.0], [9.0, 9.0]], np.float32)
    truth = np.array([[0]])
    assert bench.measure(asked, queries, gallery, truth)["recall_at_1"] == 1.0
    assert bench.measure(asked, queries, gallery, truth, "inner_product")["recall_at_1"] == 0.0


def test_a_map_to_nan_is_refused_and_not_first_everywhere(bench):
    asked = bench.QuerySet("one", np.ones((1, 2)), np.ones((1, 2)), Relevance.by_item(np.array([0])))
    with pytest.raises(bench.Refused, match="NaN"):
        bench.measure(asked, np.full((1, 2), np.nan), np.ones((3, 2)), np.array([[0]]))


@pytest.mark.parametrize(
    "name", ["centred_procrustes", "least_squares", "sklearn_ridge", "drift_adapter_low_rank", "drift_adapter_mlp"]
)
def test_written_peers_find_a_planted_affine_map(peers, name):
    generator = np.random.default_rng(2)
    x = generator.standard_normal((600, 8))
    turn = np.linalg.qr(generator.standard_normal((8, 8)))[0]
    y = x @ turn + 0.5
    mapped = getattr(peers, name)(x[:500], y[:500], 0)
    error = np.square(mapped(x[500:]) - y[500:]).mean()
    assert error < 0.02 * np.square(y[500:] - y.mean(axis=0)).mean()


def test_padded_procrustes_is_the_square_one_of_padded_rows(peers):
    generator = np.random.default_rng(3)
    x, y = generator.standard_normal((50, 4)), generator.standard_normal((50, 7))
    padded = np.hstack([x, np.zeros((50, 3))])
    left, _, right = np.linalg.svd((padded - padded.mean(axis=0)).T @ (y - y.mean(axis=0)))
    expected = (padded - padded.mean(axis=0)) @ left @ right + y.mean(axis=0)
    found = peers.centred_procrustes(x, y, 0)(x)
    # Rows 5.. of the padded cross-covariance are zero, so the rotation of the others is determined.
    np.testing.assert_allclose(found, expected, atol=1e-10)


def test_a_turn_is_found_and_a_rerun_measures_nothing(bench, small, tmp_path, capsys):
    data, out = planted_text(tmp_path), tmp_path / "maps.jsonl"
    arguments = ["--data", str(data), "--out", str(out), "--seeds", "1", "--sizes", "100"]
    bench.main([*arguments, "--maps", "centred Procrustes", "ridge"])
    found = by_map(out)
    assert found["-", "naive"]["scores"]["same document"]["recall_at_1"] < 0.3
    for direction in ("new-to-old", "old-to-new"):
        for name in ("centred Procrustes", "ridge"):
            record = found[direction, name]
            assert record["scores"]["same document"]["recall_at_1"] > 0.9
            assert record["scores"]["lemma"]["overlap_at_10"] > 0.7
            assert record["fit_seconds"] > 0
            assert record["fit_cpu_seconds"] > 0
            assert record["rows_per_second"] > 0
    before = out.read_text()
    bench.main([*arguments, "--maps", "centred Procrustes", "ridge"])
    assert out.read_text() == before
    assert "centred Procrustes" in capsys.readouterr().out


def test_a_line_cut_off_is_measured_again(bench, small, tmp_path):
    data, out = planted_text(tmp_path), tmp_path / "maps.jsonl"
    arguments = ["--data", str(data), "--out", str(out), "--seeds", "1", "--sizes", "100", "--maps", "least squares"]
    bench.main(arguments)
    whole = by_map(out)
    text = out.read_text()
    out.write_text(text[:-40])
    bench.main(arguments)
    records = [json.loads(line) for line in out.read_text().splitlines() if line.endswith("}")]
    again = {(r["direction"], r["map"]): r for r in records}
    assert again.keys() == whole.keys()
    assert again["old-to-new", "least squares"]["scores"] == whole["old-to-new", "least squares"]["scores"]


def test_unequal_dimensions_are_a_refused_cell(bench, small, tmp_path):
    pytest.importorskip("vectormigrate")
    data, out = planted_text(tmp_path, old_dim=8, new_dim=6), tmp_path / "maps.jsonl"
    arguments = ["--data", str(data), "--out", str(out), "--seeds", "1", "--sizes", "100"]
    bench.main([*arguments, "--maps", "vectormigrate affine", "centred Procrustes"])
    found = by_map(out)
    assert found["-", "naive"]["status"] == "refused"
    assert found["new-to-old", "vectormigrate affine"]["status"] == "refused"
    assert "same shape" in found["new-to-old", "vectormigrate affine"]["reason"]
    assert found["new-to-old", "centred Procrustes"]["status"] == "ok"


def test_groups_of_seeds_ask_every_query_once(bench):
    data = importlib.import_module("maps_data").small_wordnet()
    asked = [data.split(seed).query_sets[0].relevance.rows for seed in range(5)]
    np.testing.assert_array_equal(np.sort(np.concatenate(asked)), np.arange(400))
    queries = np.concatenate([data.split(seed).query_sets[1].new for seed in range(5)])
    assert len(np.unique(queries, axis=0)) == 150


def cell(name: str, seed: int, recall: float, pairs: int = 500) -> dict:
    scores = {"same document": {"recall_at_1": recall, "overlap_at_10": recall}}
    key = {"data": "d", "pairs": pairs, "direction": "new-to-old", "seed": seed, "map": name}
    return {**key, "status": "ok", "scores": scores, "fit_cpu_seconds": 1.0, "rows_per_second": 1.0}


def test_the_interval_of_a_difference_is_the_paired_t_test(tables):
    ours, theirs = {0: 0.6, 1: 0.72, 2: 0.8}, {0: 0.5, 1: 0.65, 2: 0.72, 3: 0.1}
    gap = tables.difference(ours, theirs)
    low, high = ttest_1samp([0.1, 0.07, 0.08], 0).confidence_interval()
    assert gap.mean - gap.half == pytest.approx(low)
    assert gap.mean + gap.half == pytest.approx(high)


@pytest.mark.parametrize(
    ("auto", "said"), [([0.5, 0.6, 0.7], "**below**"), ([0.7, 0.8, 0.9], "above"), ([0.6, 0.75, 0.75], "no |")]
)
def test_the_verdict_compares_auto_with_the_best_peer_of_all_seeds(tables, auto, said):
    records = [cell("auto", seed, value) for seed, value in enumerate(auto)]
    noise = (0.001, 0.0, -0.001)
    records += [cell("good", seed, value + noise[seed]) for seed, value in enumerate((0.6, 0.7, 0.8))]
    records += [cell("bad", seed, 0.1) for seed in range(3)]
    records.append(cell("lucky", 0, 0.99))  # one seed only: not comparable
    text = tables.report(records, ["good", "bad", "lucky"], ["auto"])
    row = next(line for line in text.splitlines() if line.startswith("| 500 | recall@1"))
    assert "| good | 0.700" in row
    assert said in row
