"""The benchmark of synthetic identities: what is drawn and measured, how differences are judged, what is said."""

import importlib
import json
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import polars as pl
import pytest
import torch

from backbones.checkpoint import save_model
from backbones.networks.iresnet import build_architecture

BENCHMARKS = Path(__file__).parent.parent / "benchmarks"
CHARACTERS, QUERIES = 40, 4
DIM = 24


@pytest.fixture(autouse=True)
def _path(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    monkeypatch.setattr(module("scores"), "RESAMPLES", 200)


def module(name: str) -> ModuleType:
    return importlib.import_module(f"synthetic_{name}")


def bench() -> ModuleType:
    return importlib.import_module("bench_synthetic")


def labels() -> np.ndarray:
    return np.repeat(np.arange(CHARACTERS), QUERIES)


def digits(share: float, seed: int, flipped: float = 0.0) -> str:
    """Queries that find their character: those of the first characters, but for a share that chance turns."""
    found = labels() < share * CHARACTERS
    turned = np.random.default_rng(seed).random(len(found)) < flipped
    return "".join("1" if hit else "0" for hit in found ^ turned)


class Planted:
    """Cell records in memory, as files would hold them: every map finds `share` of the characters."""

    def __init__(self, seeds: int = 3) -> None:
        plan = module("plan")
        self.settings = [plan.Setting(counts, size) for counts in ("balanced", "long-tailed") for size in plan.SIZES]
        self.seeds, self.records = seeds, {}
        for setting in self.settings:
            for each in plan.all_maps():
                self.plant(each, 0.5, setting)

    def plant(
        self, of: Any, share: float, *settings: Any, flipped: float = 0.0, corrected: float | None = None
    ) -> None:
        for setting in settings or self.settings:
            for seed in range(self.seeds):
                name = module("plan").Cell(setting, seed, of).name
                scores = {"plain": {g: digits(share, seed, flipped) for g in ("items", "means")}}
                record: dict[str, Any] = {"status": "ok", "pairs": 2000, "identities": 125, "epochs": 30, "notes": []}
                if of.corrected:
                    found = digits(share if corrected is None else corrected, seed, flipped)
                    scores["corrected"] = {"items": found, "means": found}
                    record |= {"family": of.family if of.family != "auto" else "whitened", "correction": 0.5}
                if of.family in module("plan").NETWORKS:
                    record |= {"best_epoch": 12, "epochs_run": 20}
                if of.pairing != "none":
                    record["synthetic"] = {"samples": 10, "rate": of.rate, "source_cosine": 0.25, "target_cosine": 0.5}
                self.records[name] = record | {"scores": scores}

    def void(self, of: Any, setting: Any, seeds: tuple[int, ...]) -> None:
        for seed in seeds:
            record = self.records[module("plan").Cell(setting, seed, of).name]
            record.pop("scores")
            record |= {"status": "void", "synthetic": {"samples": 0, "rate": 0.0}}

    def results(self) -> Any:
        return module("results").Results(self.records.get, self.settings, self.seeds, labels())

    def text(self) -> str:
        plan = module("plan")
        epochs = plan.Epochs({"mlp": 30, "msresnet": 15}, {"mlp": {10: 0.5, 30: 0.625}, "msresnet": {15: 0.25}})
        return module("tables").report(self.results(), dict.fromkeys(self.settings, epochs), plan.Sizes(), "About.")

    def answers(self) -> str:
        return module("answers").answers(self.results())


def synthetic_maps(pairing: str, family: str = "mlp") -> list[Any]:
    plan = module("plan")
    return [each for each in plan.all_maps() if each.pairing == pairing and each.family == family]


def test_the_table_asked_for_and_no_two_cells_of_one_name() -> None:
    plan = module("plan")
    cells = plan.all_cells(("balanced", "long-tailed"), plan.Sizes())
    names = [cell.name for cell in cells]
    assert len(set(names)) == len(names) == 2 * 2 * 3 * len(plan.all_maps())
    of_mlp = {(m.pairing, m.rate, m.schedule) for m in plan.all_maps() if m.family == "mlp"}
    rates = [("none", 0.0), ("linear", 0.12)] + [(p, r) for p in ("sorted", "proximity") for r in (0.12, 0.25, 0.5)]
    assert of_mlp == {(*each, schedule) for each in rates for schedule in ("full", "pretrain")}
    for cell in cells:
        options = plan.fit_options(cell, 30, plan.Sizes())
        assert (options.interpolation.minimum, options.interpolation.cap) == (
            (8, 30) if cell.setting.counts == "balanced" else (20, 30)
        )
        assert options.seed == cell.seed
        assert options.interpolation.pairing == cell.map.pairing
        assert cell.map.without.name in {other.map.name for other in cells}


def test_networks_are_cut_to_the_rows_they_may_see() -> None:
    plan = module("plan")
    assert plan.within_rows("mlp", 100, 12_500, plan.Sizes()) == 100
    assert plan.within_rows("residual_mlp", 100, 12_500, plan.Sizes(mlp_rows=50_000)) == 5
    assert plan.within_rows("msresnet", 100, 16_000, plan.Sizes(msresnet_rows=200_000)) == 15
    assert plan.within_rows("msresnet", 100, 2_000, plan.Sizes(msresnet_rows=200_000)) == 100
    assert plan.within_rows("msresnet", 100, 2_000_000, plan.Sizes(msresnet_rows=200_000)) == 1


def long_tailed(identities: int, seed: int = 0) -> Any:
    counts = np.maximum(1, np.round(60 * np.arange(1, identities + 1) ** -0.8)).astype(int)
    codes = np.repeat(np.arange(identities), counts)
    vectors = np.random.default_rng(seed).standard_normal((len(codes), 8)).astype(np.float32)
    vectors[:, 0] = codes  # so that a row says whose it is
    originals = np.arange(len(codes)) // 2
    return module("data").Labelled(vectors, vectors[:, ::-1].copy(), codes, originals)


def test_a_draw_keeps_whole_identities_pairs_and_the_shape_of_the_tail() -> None:
    data = long_tailed(400)
    sizes = np.bincount(data.identities)
    drawn = [module("data").draw(data, seed, 300) for seed in range(20)]
    for pairs in drawn:
        source, target = pairs.take(np.arange(len(pairs)), "new-to-old")
        assert np.array_equal(source[:, ::-1], target)
        whose = target[:, 0].astype(int)
        assert np.array_equal(np.bincount(whose, minlength=400)[np.unique(whose)], sizes[np.unique(whose)])
        assert len(np.unique(np.stack([whose, pairs.labels]), axis=1).T) == len(np.unique(whose))
        assert np.array_equal(np.unique(pairs.labels), np.arange(pairs.labels.max() + 1))
    assert abs(np.mean([len(pairs) for pairs in drawn]) - 300) < 30
    assert min(np.bincount(pairs.labels).max() for pairs in drawn) > 10  # never a tail without its head
    everything = module("data").draw(data, 0)
    assert len(everything) == len(data)
    again = module("data").draw(data, 0)
    assert np.array_equal(everything.labels, again.labels)
    assert not np.array_equal(everything.labels, module("data").draw(data, 1).labels)


def test_numbers_of_identities_say_nothing_of_their_order() -> None:
    """Characters of neighbouring code points look alike, so that `linear` on them would pair near ones."""
    data = long_tailed(400)
    gaps = []
    for seed in range(5):
        pairs = module("data").draw(data, seed)
        whose = pairs.take(np.arange(len(pairs)), "new-to-old")[1][:, 0]
        order = [whose[pairs.labels == number][0] for number in range(400)]
        gaps.append(np.abs(np.diff(order)).mean())
    assert 400 / 3 * 0.85 < np.mean(gaps) < 400 / 3 * 1.15  # of random orders; 1 of the order of code points


def hits(of: Callable[[str, int], np.ndarray]) -> dict[str, dict[int, np.ndarray]]:
    return {setting: {seed: of(setting, seed) for seed in range(3)} for setting in ("a", "b")}


def test_an_interval_covers_the_truth_where_characters_and_seeds_both_vary() -> None:
    scores, covered, runs = module("scores"), 0, 60
    generator = np.random.default_rng(0)
    for _ in range(runs):
        own = generator.normal(0, 0.1, CHARACTERS)[labels()]
        shift = {(setting, seed): generator.normal(0, 0.05) for setting in "ab" for seed in range(3)}

        def found(setting: str, seed: int, gain: float, own=own, shift=shift) -> np.ndarray:
            chance = 0.5 + (0.1 + own + shift[setting, seed]) * gain
            return (generator.random(len(labels())) < chance).astype(float)

        one, other = (hits(lambda k, s, gain=gain: found(k, s, gain)) for gain in (1.0, 0.0))
        estimate = scores.difference(one, other, labels())
        assert estimate.units == 6
        covered += estimate.low <= 0.1 <= estimate.high
    assert covered >= 54


def test_an_interval_for_the_best_of_many_is_wider() -> None:
    scores, generator = module("scores"), np.random.default_rng(0)
    one, other = (hits(lambda _, s: (generator.random(len(labels())) < 0.5) * float(s >= 0)) for _ in range(2))
    narrow, wide = (scores.difference(one, other, labels(), comparisons=n) for n in (1, 14))
    assert wide.value == narrow.value
    assert wide.low < narrow.low
    assert narrow.high < wide.high


def test_seeds_that_disagree_widen_an_interval_that_characters_alone_would_make_sure() -> None:
    scores = module("scores")
    base = np.zeros(len(labels()))
    gained = (np.arange(len(labels())) % QUERIES == 0).astype(float)  # one query of every character
    agreeing = hits(lambda _, s: gained * (s >= 0))
    differing = hits(lambda _, s: gained * (1.0, 0.0, 0.8)[s])
    other = hits(lambda _, s: base * s)
    sure, unsure = (scores.difference(one, other, labels()) for one in (agreeing, differing))
    assert sure.sign == 1
    assert unsure.high - unsure.low > 2 * (sure.high - sure.low)


def test_only_seeds_and_settings_of_both_are_compared() -> None:
    scores = module("scores")
    ones, zeros = np.ones(len(labels())), np.zeros(len(labels()))
    one = {"a": {0: ones, 1: ones}, "b": {0: ones}}
    other = {"a": {1: ones, 2: zeros}, "c": {0: zeros}}
    found = scores.difference(one, other, labels())
    assert (found.value, found.units) == (0.0, 1)
    assert found.low < 0 < found.high  # queries that never changed are no proof that none would
    assert scores.difference({"a": {0: ones}}, {"a": {1: zeros}}, labels()) is None


def answer(text: str, question: str) -> str:
    return next(part for part in text.split("\n\n") if part.startswith(f"**{question}"))


@pytest.mark.parametrize(
    ("near", "words"), [(0.9, "Yes: proximity finds more"), (0.2, "No: proximity finds less"), (0.5, "Undecided")]
)
def test_proximity_is_said_to_win_lose_or_neither_as_the_cells_have_it(near: float, words: str) -> None:
    planted = Planted()
    for each in synthetic_maps("proximity"):
        planted.plant(each, near)
    said = answer(planted.answers(), "Does pairing near")
    assert f"** {words}" in said
    assert f"{near - 0.5:+.3f} [" in said


@pytest.mark.parametrize(("later", "words"), [(0.9, "Yes: dropping"), (0.2, "No: dropping"), (0.5, "Undecided")])
def test_pretrain_is_judged_against_the_same_pairing_and_rate(later: float, words: str) -> None:
    planted, plan = Planted(), module("plan")
    for each in plan.all_maps():
        if each.family == "mlp" and each.schedule == "pretrain":
            planted.plant(each, later)
    said = answer(planted.answers(), "Does pre-training")
    assert f"** {words}" in said
    assert f"The schedule alone, without any synthetic sample: {later - 0.5:+.3f}" in said


def test_the_best_of_many_variants_is_named_and_counted() -> None:
    planted, plan = Planted(), module("plan")
    planted.plant(plan.Map("residual_mlp", "proximity", 0.25, "pretrain"), 0.9)
    planted.plant(plan.Map("residual_mlp", "linear", 0.12), 0.1)
    said = answer(planted.answers(), "Do they help a map")
    assert "On the whole undecided" in said
    assert "of 4 variants 1 is surely better and 1 is surely worse than none" in said
    assert "The best, residual_mlp + proximity 25%, pretrain: +0.400" in said
    assert "In 0 of 48 of these fits no epoch beat the affine start" in said


@pytest.mark.parametrize(
    ("plain", "permuted", "words"),
    [
        (0.2, 0.2, ("It loses to the mlp", "not told apart, as if neighbouring dimensions meant nothing")),
        (0.3, 0.1, ("It loses to the mlp", "finds less, so their order tells it something")),
        (0.9, 0.95, ("It does not lose", "")),
        (0.5, 0.9, ("It is not told apart from the mlp", "finds more: their order is worse than chance")),
    ],
)
def test_msresnet_is_judged_against_the_mlp_and_against_permuted_dimensions(
    plain: float, permuted: float, words: tuple[str, str]
) -> None:
    planted, plan = Planted(), module("plan")
    planted.plant(plan.MSRESNET, plain)
    planted.plant(plan.MSRESNET_PERMUTED, permuted)
    said = answer(planted.answers(), "Does msresnet lose")
    assert all(word in said for word in words)
    assert f"original less permuted {plain - permuted:+.3f}" in said


@pytest.mark.parametrize(
    ("auto", "words"),
    [(0.95, "Auto beats every mlp"), (0.1, "Nothing that was measured"), (0.7, "Undecided: auto is not told")],
)
def test_what_beats_the_table_and_what_of_it_did(auto: float, words: str) -> None:
    planted, plan = Planted(), module("plan")
    planted.plant(plan.Map("mlp", "sorted", 0.25), 0.7)
    planted.plant(plan.RIDGE, 0.6, corrected=0.6)
    planted.plant(plan.AUTO, 0.6, corrected=auto)
    text = planted.answers()
    said = answer(text, "What beats the table")
    assert f"** {words}" in said
    assert f"mlp + sorted 25%, auto less it {auto - 0.7:+.3f}" in said
    assert ("hubness correction, of auto" in said) == (auto == 0.95)
    assert f"- hubness correction, of auto: {auto - 0.6:+.3f}" in text
    assert "- closed form (ridge less mlp, which holds a fifth of the pairs out): +0.100" in text


def test_a_void_cell_is_said_to_be_void_and_is_no_result() -> None:
    planted = Planted()
    tail = planted.settings[2]
    for each in synthetic_maps("proximity"):
        planted.plant(each, 0.9)
        planted.void(each, tail, (0, 1, 2))
    one = module("plan").Map("mlp", "sorted", 0.5)
    planted.void(one, planted.settings[3], (1,))
    text = planted.text()
    section = text.split("## long-tailed, small")[1].split("## ")[0]
    assert section.count("| void |") == 6
    assert "| mlp + proximity 25% | void |" in section
    partly = text.split("## long-tailed, all")[1].split("## ")[0]
    assert "mlp + sorted 50% (1 of 3 seeds void) | 0.500 |" in partly
    said = answer(text, "Does pairing near")
    assert "Yes: proximity finds more than sorted, +0.400" in said  # over what is not void
    assert "long-tailed, small not measured" in said
    assert "Void for want of samples and left out: 6 of the maps, in long-tailed, small." in said


def test_a_row_pairs_itself_with_its_own_family_and_schedule() -> None:
    planted, plan = Planted(), module("plan")
    planted.plant(plan.MLP, 0.2, corrected=0.3)
    planted.plant(plan.Map("mlp", schedule="pretrain"), 0.4)
    planted.plant(plan.Map("mlp", "sorted", 0.25, "pretrain"), 0.8)
    text = planted.text()
    row = next(line for line in text.splitlines() if line.startswith("| mlp + sorted 25%, pretrain |"))
    cells = [cell.strip() for cell in row.strip("|").split("|")]
    assert cells[1:4] == ["0.250", "0.25 / 0.50", "12 of 30"]
    assert cells[4].startswith("0.800 [")
    assert cells[5].startswith("+0.400 [")
    assert cells[8] == "0.791"
    assert "| mlp, hubness correction 0.5 |" in text


def test_nothing_measured_is_said_and_not_made_up() -> None:
    planted = Planted()
    planted.records.clear()
    text = planted.text()
    assert text.count("Not measured.") == 4 + 6
    assert "nan" not in text


def test_epochs_tried_and_chosen_stand_in_the_report() -> None:
    text = Planted().text()
    assert "| balanced, small: mlp, residual_mlp | 0.5000 |  | 0.6250 | 30 |" in text
    assert "| long-tailed, all: msresnet |  | 0.2500 |  | 15 |" in text


def planted_arrays(folder: Path) -> Path:
    """A font_identities/ folder whose new space is the old one turned."""
    generator = np.random.default_rng(1)
    turn = np.linalg.qr(generator.standard_normal((DIM, DIM)))[0]
    for name, identities, each, splits in (("train", 24, 6, ["train"]), ("test", 12, 4, ["gallery", "query"])):
        centres = np.repeat(generator.standard_normal((identities, DIM)), each, axis=0)
        old = centres + 0.3 * generator.standard_normal(centres.shape)
        part = folder / "font_identities" / name
        part.mkdir(parents=True)
        np.save(part / "old_iresnet18.npy", old.astype(np.float16))
        np.save(part / "new_iresnet50.npy", (old @ turn).astype(np.float16))
        rows = range(len(old))
        table = {
            "item_id": [f"{name}{i}" for i in rows],
            "label": [f"{name}-{i // each}" for i in rows],
            "split": [splits[i % len(splits)] for i in rows],
        }
        pl.DataFrame(table).write_parquet(part / "items.parquet")
    return folder


def files(folder: Path) -> dict[str, tuple[int, bytes]]:
    return {path.name: (path.stat().st_mtime_ns, path.read_bytes()) for path in sorted(folder.glob("cells/*.json"))}


def test_two_cells_end_to_end_and_a_second_run_measures_nothing(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data, out = planted_arrays(tmp_path / "data"), tmp_path / "out"
    arguments = ["--data", str(data), "--out", str(out), "--smoke", "--epochs", "2"]
    only = ["--only", "*-small-0-mlp-proximity-50", "*-small-0-ridge", "!*nothing*"]
    assert bench().main([*arguments, *only]) == 0
    made = files(out / "smoke")
    assert sorted(made) == [
        "balanced-small-0-mlp-proximity-50.json", "balanced-small-0-ridge.json", "references.json",
    ]  # fmt: skip
    ridge = json.loads(made["balanced-small-0-ridge.json"][1])
    assert ridge["status"] == "ok"
    assert len(ridge["scores"]["plain"]["items"]) == 24
    assert set(ridge["scores"]["plain"]["items"]) == {"1"}  # a turn is found
    mixed = json.loads(made["balanced-small-0-mlp-proximity-50.json"][1])
    assert mixed["synthetic"]["samples"] > 0
    assert 0.4 < mixed["synthetic"]["rate"] < 0.8
    assert -1 <= mixed["synthetic"]["source_cosine"] <= 1
    assert mixed["epochs"] == 2
    capsys.readouterr()
    assert bench().main([*arguments, *only]) == 0
    assert files(out / "smoke") == made
    assert "0 of 2 cells to measure" in capsys.readouterr().err
    assert bench().main([*arguments, "--stage", "tables"]) == 0
    printed = capsys.readouterr().out
    assert "| mlp + proximity 50% |" in printed
    assert files(out / "smoke") == made
    assert bench().main([*arguments[:-1], "3", *only]) == 2
    assert "was made with other settings or data" in capsys.readouterr().err


def test_epochs_are_chosen_by_held_out_identities_and_a_msresnets_by_its_own(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data, out = planted_arrays(tmp_path / "data"), tmp_path / "out"
    arguments = ["--data", str(data), "--out", str(out), "--smoke", "--only", "*-small-0-mlp", "*-small-0-msresnet"]
    assert bench().main([*arguments, "--stage", "epochs"]) == 0
    made = {name: json.loads(content)["held_out"] for name, (_, content) in files(out / "smoke").items()}
    assert sorted(made) == [
        f"choice-balanced-small-{f}-{e}.json" for f in ("mlp", "msresnet", "residual_mlp") for e in (1, 2)
    ]
    means = {
        e: (made[f"choice-balanced-small-mlp-{e}.json"] + made[f"choice-balanced-small-residual_mlp-{e}.json"]) / 2
        for e in (1, 2)
    }
    alone = {e: made[f"choice-balanced-small-msresnet-{e}.json"] for e in (1, 2)}
    said = capsys.readouterr().err
    for name, ranks in (("mlp", means), ("msresnet", alone)):
        assert f"balanced, small, {name}: {2 if ranks[2] > ranks[1] else 1} epochs" in said
    assert bench().main([*arguments, "--stage", "cells"]) == 0
    cell = json.loads((out / "smoke" / "cells" / "balanced-small-0-mlp.json").read_text())
    assert cell["epochs"] == (2 if means[2] > means[1] else 1)


def test_a_cell_without_samples_is_void(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    data, out = planted_arrays(tmp_path / "data"), tmp_path / "out"
    plan = module("plan")
    monkeypatch.setattr(plan, "smoke_sizes", lambda: plan.Sizes(small_pairs=60, seeds=1))  # 8 of each, where 6 are
    arguments = ["--data", str(data), "--out", str(out), "--smoke", "--epochs", "1"]
    assert bench().main([*arguments, "--only", "*-small-0-mlp-sorted-25"]) == 0
    record = json.loads((out / "smoke" / "cells" / "balanced-small-0-mlp-sorted-25.json").read_text())
    assert record["status"] == "void"
    assert "scores" not in record
    assert any("lower interpolation.minimum" in note for note in record["notes"])


def test_permuting_dimensions_changes_their_order_alone() -> None:
    cells = module("cells")
    pairs = module("data").draw(long_tailed(30), 0)
    before, after = (each.take(np.arange(len(each)), "new-to-old") for each in (pairs, cells.permuted(pairs)))
    order = cells.permutation(8)
    assert sorted(order) == list(range(8))
    assert list(order) != list(range(8))
    assert np.array_equal(after[0], before[0][:, order])
    assert np.array_equal(after[1], before[1])


def test_nearness_is_the_cosine_of_the_parents_centroids() -> None:
    cells, plan = module("cells"), module("plan")
    data = long_tailed(30)
    data.old[:, 0] = data.new[:, 7] = 0
    pairs = module("data").draw(data, 0)
    cell = plan.Cell(plan.Setting("balanced", "all"), 0, plan.Map("mlp", "sorted", 0.25))
    options = plan.fit_options(cell, 1, plan.Sizes())
    found = cells.nearness(pairs, options)
    planned = importlib.import_module("compat.training.interpolation").plan_synthetic(
        pairs, options.interpolation, "new-to-old", seed=options.seed
    )
    for side, vectors in zip(("source", "target"), pairs.take(np.arange(len(pairs)), "new-to-old"), strict=True):
        unit = vectors / np.linalg.norm(vectors, axis=1, keepdims=True)
        cosines = []
        for a, b in zip(planned.first, planned.second, strict=True):
            means = [unit[pairs.labels == pairs.labels[row]].mean(axis=0) for row in (a, b)]
            cosines.append(means[0] @ means[1] / np.prod([np.linalg.norm(mean) for mean in means]))
        assert found[f"{side}_cosine"] == pytest.approx(np.mean(cosines), abs=1e-5)


def small_run(folder: Path) -> Path:
    """A run of font_identities with images of noise and two networks that learned nothing."""
    font_files, tail = (importlib.import_module(f"font_{name}") for name in ("files", "long_tail"))
    generator = np.random.default_rng(0)
    (folder / "set").mkdir(parents=True)
    tars: dict[str, Any] = {}
    for name, first, characters, designs in (("train", 0, 6, 3), ("train-2", 0, 2, 3), ("gallery", 9, 3, 1)):
        members = [f"U+{0x4E00 + first + c:04X}/design{d}.png" for c in range(characters) for d in range(designs)]
        images = [font_files.png_bytes(generator.integers(0, 256, (16, 16), np.uint8)) for _ in members]
        about = font_files.write_tar(folder / "set", name, zip(members, images, strict=True))
        tars[name] = about | {"identities": characters, "designs": designs}
    tars["queries"] = tars["gallery"]
    samples = tail.long_tail([f"U+{0x4E00 + c:04X}/design{d}.png" for c in range(6) for d in range(3)], most=7, seed=0)
    about = tail.write_long_tail(folder / "set" / "long_tail.csv", samples)
    manifest = {
        "options": {"subsets": [2]},
        "tars": tars,
        "long_tail": about | {"identities": 6, "most_samples": 7},
    }
    (folder / "set" / "manifest.json").write_text(json.dumps(manifest))
    preprocessing = {"size": 16, "colour_order": "RGB", "mean": [127.5] * 3, "std": [127.5] * 3, "flip_average": False}
    for seed, name in enumerate(("before", "after")):
        torch.manual_seed(seed)
        network = build_architecture("iresnet18", embedding_dim=8, input_size=16)
        card = {"format_version": 2, "arch": "iresnet18", "embedding_dim": 8, "input_size": 16}
        card["recipe"] = {"data": "elsewhere/train-2.tar"}
        save_model(folder / "networks" / name, network, card | {"preprocessing": preprocessing})
    return folder


def test_a_run_of_fonts_is_embedded_once_with_the_views_of_its_long_tail(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = module("data")
    folder, lines = small_run(tmp_path / "fonts"), []
    source = data.fonts_source(folder, "before", "after", tmp_path / "cache", lines.append)
    assert len(lines) == 2 * 4
    for each in source.fitted.values():  # characters 0 and 1 were trained on
        assert set(each.identities - 0x4E00) == {2, 3, 4, 5}
    assert len(source.fitted["balanced"]) == 4 * 3
    tail = source.fitted["long-tailed"]
    counts = np.unique(tail.identities, return_counts=True)[1]
    of_all = [max(1, round(7 * r ** -(np.log(7) / np.log(6)))) for r in range(1, 7)]
    assert sorted(counts, reverse=True) == of_all[:4]  # the known ones have one sample each
    commonest = tail.identities == np.unique(tail.identities)[counts.argmax()]
    assert len(np.unique(tail.originals[commonest])) == 3  # seven samples are views of three images
    assert len(np.unique(tail.old[commonest], axis=0)) == 7
    assert not np.allclose(tail.old, tail.new)
    monkeypatch.setattr(data, "load_image_backbone", None)  # nothing is embedded again
    again = data.fonts_source(folder, "before", "after", tmp_path / "cache", lines.append)
    assert len(lines) == 2 * 4
    assert np.array_equal(again.fitted["long-tailed"].new, tail.new)
    assert again.digest == source.digest
    assert data.fonts_source(folder, "before", "before", tmp_path / "cache", lines.append).digest != source.digest
    with pytest.raises(FileNotFoundError, match="--old-network"):
        data.fonts_source(folder, "missing", "after", tmp_path / "cache", lines.append)
    with pytest.raises(FileNotFoundError, match="no images in"):
        data.fonts_source(tmp_path, "before", "after", tmp_path / "cache", lines.append)


@pytest.mark.parametrize(("tar", "words"), [("train.tar", "saw every training character"), (None, "names no tar of")])
def test_maps_are_not_fitted_to_what_networks_were_trained_on(tmp_path: Path, tar: str | None, words: str) -> None:
    data = module("data")
    folder = small_run(tmp_path / "fonts")
    path = folder / "networks" / "before" / "card.json"
    card = json.loads(path.read_text())
    path.write_text(json.dumps(card | {"recipe": {"data": tar}}))
    with pytest.raises(ValueError, match=words):
        data.fonts_source(folder, "before", "after", tmp_path / "cache", print)


def test_without_a_run_there_is_nothing_to_measure_and_no_failure(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    assert bench().main([]) == 0
    assert "font_identities.py first" in capsys.readouterr().err
    assert bench().main(["--fonts", "elsewhere"]) == 2
    assert capsys.readouterr().err.startswith("error: no images in")


def test_a_difference_that_is_surely_small_is_not_called_open() -> None:
    answers, scores = module("answers"), module("scores")
    assert answers._open(scores.Estimate(0.001, -0.002, 0.004, 12)).startswith("neither")
    assert answers._open(scores.Estimate(0.001, -0.006, 0.004, 12)) == "undecided"
