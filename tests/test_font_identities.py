"""Characters in type designs as identities: what is drawn, how it is split, how it is judged, and that it goes on."""

import csv
import hashlib
import importlib
import json
import subprocess
import sys
import tarfile
from collections import Counter
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
from PIL import Image

from backbones.augmentation.views import augmented_view
from backbones.datasets.image_set import ImageSet
from backbones.options import AugmentOptions

BENCHMARKS = Path(__file__).parent.parent / "benchmarks"
FONT_FOLDERS = (Path("/usr/share/fonts"), Path("/usr/local/share/fonts"), Path.home() / ".fonts")
LETTERS = "ABDEGHKMNPQRSTWXZabdefghkmnpqrstwxyz"
UNRELATED = ("DejaVuSans.ttf", "DejaVuSerif.ttf", "DejaVuSansMono.ttf", "LiberationSerif-Regular.ttf")


@pytest.fixture(autouse=True)
def _path(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(BENCHMARKS))


def module(name: str) -> ModuleType:
    return importlib.import_module(f"font_{name}")


def latin_fonts() -> list[Path]:
    """A few fonts with Latin letters, whatever is there; well-known unrelated ones first."""
    paths = [path for folder in FONT_FOLDERS if folder.is_dir() for path in sorted(folder.rglob("*.tt[fc]"))]
    known = [path for name in UNRELATED for path in paths if path.name == name]
    if len(known) < 3:
        pytest.skip(f"needs three of {', '.join(UNRELATED)}; found {len(known)} under {FONT_FOLDERS[0]}")
    return known


def latin_designs() -> list[Any]:
    packages = module("packages")
    return [packages.Design(path.stem.lower(), "none", path.name) for path in latin_fonts()]


def small_options(fonts: Path, **changes: Any) -> Any:
    sizes = {"train_characters": 12, "subsets": (8, 4), "test_characters": 10, "train_designs": 1}
    return module("set").BuildOptions(
        fonts=fonts, **{**sizes, "gallery_designs": 1, "query_designs": 1, "most_samples": 6, **changes}
    )


def fonts_folder(tmp_path: Path, paths: list[Path]) -> Path:
    folder = tmp_path / "fonts"
    folder.mkdir()
    for path in paths:
        (folder / path.name).symlink_to(path)
    return folder


def test_only_real_glyphs_are_present() -> None:
    glyphs = module("glyphs")
    characters = [*LETTERS, " ", "\ue123", "\U000f4321", "\u00a0"]
    drawn = glyphs.draw(latin_fonts()[0], characters, 36)
    assert drawn.images.shape == (len(characters), 36, 36)
    assert drawn.images.dtype == np.uint8
    assert drawn.present.tolist() == [True] * len(LETTERS) + [False] * 4


def test_a_placeholder_is_not_present() -> None:
    glyphs = module("glyphs")
    drawn = glyphs.draw(latin_fonts()[0], [*"ABC", "X", "X", "X"], 32)  # one picture for three characters
    assert drawn.present.tolist() == [True, True, True, False, False, False]


def test_designs_are_drawn_to_one_scale() -> None:
    glyphs = module("glyphs")
    for path in latin_fonts():
        images = glyphs.draw(path, list("HEMNXDBZ"), 32).images
        dark = (images < 128).any(axis=0)
        rows, columns = np.flatnonzero(dark.any(axis=1)), np.flatnonzero(dark.any(axis=0))
        spans = rows[-1] - rows[0] + 1, columns[-1] - columns[0] + 1
        assert 0.8 * 32 <= max(spans) <= 32, path.name
        assert abs((rows[0] + rows[-1]) - 31) <= 3, path.name  # in the middle
        assert abs((columns[0] + columns[-1]) - 31) <= 5, path.name


def test_an_unreadable_font_is_named(tmp_path: Path) -> None:
    (tmp_path / "broken.ttf").write_bytes(b"no font")
    with pytest.raises(ValueError, match=r"broken\.ttf has no readable face"):
        module("glyphs").draw(tmp_path / "broken.ttf", ["A"], 32)


def planted_glyphs(seed: int, count: int = 20) -> np.ndarray:
    generator = np.random.default_rng(seed)
    coarse = (generator.random((count, 8, 8)) < 0.4).astype(np.uint8) * 255
    return 255 - coarse.repeat(4, axis=1).repeat(4, axis=2)


def test_families_find_a_copy_at_another_size_and_kin_of_kin() -> None:
    glyphs = module("glyphs")
    a, b, c = planted_glyphs(1), planted_glyphs(2), planted_glyphs(3)
    smaller = np.full_like(a, 255)
    smaller[:, 4:28, 4:28] = [np.asarray(Image.fromarray(image).resize((24, 24))) for image in a]
    between = np.concatenate([a[:19], b[19:]])
    assert glyphs.families([a, b, smaller, c]) == [0, 1, 0, 3]
    assert glyphs.families([smaller, b, between, a]) == [0, 1, 0, 0]
    assert glyphs.likeness(a, smaller) > 0.9 > 0.5 > glyphs.likeness(a, b)


def test_kanji_are_those_of_the_standard() -> None:
    kanji = module("glyphs").kanji()
    assert len(kanji) == len(set(kanji)) == 6355
    assert kanji[0] == "一"
    assert {"亜", "漢", "熙"} <= set(kanji)


@pytest.fixture
def built(tmp_path: Path) -> tuple[Any, Path, dict[str, Any]]:
    options = small_options(fonts_folder(tmp_path, latin_fonts()), folders=True)
    manifest = module("set").build(options, tmp_path / "set", designs=latin_designs(), characters=LETTERS)
    return options, tmp_path / "set", manifest


def members(path: Path) -> dict[str, bytes]:
    with tarfile.open(path) as archive:
        return {entry.name: archive.extractfile(entry).read() for entry in archive}  # type: ignore[union-attr]


def test_training_and_test_share_neither_character_nor_design(built: tuple[Any, Path, dict[str, Any]]) -> None:
    _, folder, manifest = built
    names = {part: set(members(folder / f"{part}.tar")) for part in manifest["tars"]}
    assert set(names) == {"train", "train-8", "train-4", "gallery", "queries"}
    split = {part: [{name.split("/")[i] for name in items} for i in (0, 1)] for part, items in names.items()}
    for part in ("gallery", "queries"):
        assert len(split[part][0]) == 10
        assert not split[part][0] & split["train"][0]
        assert not split[part][1] & split["train"][1]
    assert split["gallery"][0] == split["queries"][0]
    assert not names["gallery"] & names["queries"]
    assert names["train-4"] < names["train-8"] < names["train"]
    assert [len(split[part][0]) for part in ("train", "train-8", "train-4")] == [12, 8, 4]
    designs = {design["name"]: design["split"] for design in manifest["designs"]}
    assert {f"{name}.png" for name, where in designs.items() if where == "train"} == split["train"][1]


def test_what_is_written_is_what_is_drawn(built: tuple[Any, Path, dict[str, Any]]) -> None:
    _, folder, manifest = built
    files = {path.stem.lower(): path for path in latin_fonts()}
    drawn = {name: module("glyphs").draw(path, list(LETTERS), 32) for name, path in files.items()}
    for part, about in manifest["tars"].items():
        tar = folder / about["file"]
        assert hashlib.sha256(tar.read_bytes()).hexdigest() == about["sha256"]
        images, item_ids = module("files").read_tar(tar)
        assert len(item_ids) == about["images"]
        for image, item_id in zip(images, item_ids, strict=True):
            code, name = item_id.removesuffix(".png").split("/")
            expected = drawn[name].images[LETTERS.index(chr(int(code[2:], 16)))]
            assert (image == expected[:, :, None]).all()
        assert {n: (folder / part / n).read_bytes() for n in item_ids} == members(tar)
        loaded = ImageSet(tar, 32, max_bad=0, memory=64, workers=1)
        assert loaded.pixels is not None
        assert [item.item_id for item in loaded.items] == item_ids
        assert (loaded.pixels.permute(0, 2, 3, 1).numpy() == images).all()
        assert len(loaded.identities) == about["identities"]


def test_the_same_fonts_and_options_give_the_same_bytes(
    built: tuple[Any, Path, dict[str, Any]], tmp_path: Path
) -> None:
    options, folder, manifest = built
    again = module("set").build(options, tmp_path / "again", designs=latin_designs(), characters=LETTERS)
    assert again == manifest
    for path in folder.iterdir():
        if path.is_file():
            assert (tmp_path / "again" / path.name).read_bytes() == path.read_bytes(), path.name
    other = small_options(options.fonts, seed=1)
    with pytest.raises(ValueError, match="drawn with other seed;"):
        module("set").build(other, folder, designs=latin_designs(), characters=LETTERS)
    moved = module("set").build(other, tmp_path / "other", designs=latin_designs(), characters=LETTERS)
    assert moved["tars"]["train"]["sha256"] != manifest["tars"]["train"]["sha256"]


def test_one_design_of_a_family_is_kept(tmp_path: Path) -> None:
    packages, fonts = module("packages"), fonts_folder(tmp_path, latin_fonts())
    (fonts / "Copy.ttf").write_bytes(latin_fonts()[0].read_bytes())
    designs = [*latin_designs(), packages.Design("copy", "none", "Copy.ttf"), packages.Design("gone", "lost", "No.ttf")]
    manifest = module("set").build(small_options(fonts), tmp_path / "set", designs=designs, characters=LETTERS)
    assert {each["name"]: each["reason"] for each in manifest["dropped"]}[
        "copy"
    ] == f"one family with {designs[0].name}"
    assert "copy" not in {design["name"] for design in manifest["designs"]}
    assert manifest["not_found"] == ["gone"]


def test_too_few_fonts_are_refused(tmp_path: Path) -> None:
    (tmp_path / "fonts").mkdir()
    with pytest.raises(ValueError, match=r"found 0 designs below .*; --packages says how to get them"):
        module("set").build(small_options(tmp_path / "fonts"), tmp_path / "set")
    with pytest.raises(FileNotFoundError, match="name another with --fonts"):
        module("set").build(small_options(tmp_path / "nowhere"), tmp_path / "set")


def test_missing_packages_are_named_in_one_line(tmp_path: Path) -> None:
    packages = module("packages")
    for design in packages.DESIGNS[2:]:
        (tmp_path / design.file).touch()
    line = packages.missing_packages(packages.font_files(tmp_path))
    assert line.startswith("1 font packages are missing: fonts-noto-cjk;")
    assert "\n" not in line
    (tmp_path / packages.DESIGNS[0].file).touch()
    (tmp_path / packages.DESIGNS[1].file).touch()
    assert packages.missing_packages(packages.font_files(tmp_path)) == ""
    names = [design.name for design in packages.DESIGNS]
    assert len(set(names)) == len(names)


@pytest.mark.parametrize(("identities", "most"), [(1, 5), (7, 6), (400, 200)])
def test_long_tail(identities: int, most: int) -> None:
    item_ids = [f"U+{i:04X}/{design}.png" for i in range(identities) for design in "abc"]
    samples = module("long_tail").long_tail(item_ids, most=most, seed=3)
    assert samples == module("long_tail").long_tail(item_ids[::-1], most=most, seed=3)
    assert len(set(samples)) == len(samples)
    counts = Counter(item_id.split("/")[0] for item_id, _ in samples)
    # slowly: the power through (1, most) and (n, 1), rank by rank
    slope = np.log(most) / np.log(identities) if identities > 1 else 0.0
    expected = [max(1, round(most / (r + 1) ** slope)) for r in range(identities)]
    assert sorted(counts.values(), reverse=True) == expected
    assert (max(counts.values()), len(counts)) == (most, identities)
    if identities > 1:
        assert min(counts.values()) == 1
        other = Counter(
            item_id.split("/")[0] for item_id, _ in module("long_tail").long_tail(item_ids, most=most, seed=4)
        )
        assert other != counts
    views: dict[str, list[int]] = {}
    for item_id, view in samples:
        views.setdefault(item_id, []).append(view)
    assert all(own == list(range(len(own))) for own in views.values())
    for name in counts:  # an identity's items are used evenly
        uses = [len(views.get(f"{name}/{design}.png", [])) for design in "abc"]
        assert max(uses) - min(uses) <= 1


def test_the_long_tail_can_be_made(built: tuple[Any, Path, dict[str, Any]]) -> None:
    _, folder, manifest = built
    tail = module("long_tail")
    rows = tail.read_long_tail(folder / "long_tail.csv")
    with (folder / "long_tail.csv").open() as file:
        assert [(row["item_id"], int(row["view"])) for row in csv.DictReader(file)] == rows
    assert len(rows) == manifest["long_tail"]["samples"]
    assert max(view for _, view in rows) + 1 == manifest["long_tail"]["views"] > 2
    images = dict(zip(*reversed(module("files").read_tar(folder / "train.tar")), strict=True))
    options = AugmentOptions(flip=0.0)
    made = list(tail.sample_images(images, rows, options, seed=5))
    assert len({image.tobytes() for _, _, image in made}) == len(rows)
    for (name, label, image), (item_id, view) in zip(made, rows, strict=True):
        assert (name, label) == (f"{item_id}#view{view}" if view else item_id, item_id[: item_id.index("/")])
        assert (image == augmented_view(images[item_id], item_id=item_id, view=view, seed=5, options=options)).all()


def test_scores_against_slow_ones() -> None:
    scores = module("scores")
    generator = np.random.default_rng(0)
    gallery_labels, query_labels = np.repeat(np.arange(60), 2), np.repeat(np.arange(60), 3)
    centres = generator.normal(size=(60, 16))
    gallery = (centres[gallery_labels] + generator.normal(size=(120, 16))).astype(np.float32)
    queries = (centres[query_labels] + generator.normal(size=(180, 16))).astype(np.float32)
    found = scores.score(queries, gallery, query_labels, gallery_labels)
    unit = [rows / np.linalg.norm(rows, axis=1, keepdims=True) for rows in (queries, gallery)]
    cosines = unit[0] @ unit[1].T
    hits = gallery_labels[cosines.argmax(axis=1)] == query_labels
    assert 0.3 < hits.mean() < 0.98
    assert found.found == "".join(str(int(hit)) for hit in hits)
    assert found.recall_at_1.value == pytest.approx(hits.mean())
    assert found.recall_at_1.low < hits.mean() < found.recall_at_1.high
    same = query_labels[:, None] == gallery_labels[None]
    impostors = np.sort(cosines[~same])[::-1]
    shares = []
    for far, share in found.tar_at_far.items():
        threshold = impostors[int(far * len(impostors))]  # the first that must be rejected
        shares.append(float((cosines[same] > threshold).mean()))
        assert share.value == pytest.approx(shares[-1], abs=2 / same.sum())
    assert shares[0] > shares[1] + 0.02
    assert scores.Scores.from_dict(json.loads(json.dumps(found.to_dict()))) == found
    worse = scores.score(queries[::-1].copy(), gallery, query_labels, gallery_labels)
    change = scores.difference(worse.found, found.found, query_labels)
    assert change.value == pytest.approx(worse.recall_at_1.value - found.recall_at_1.value)
    assert change.high < 0


def test_a_far_that_pairs_cannot_show_is_left_open() -> None:
    labels = np.repeat(np.arange(5), 2)
    vectors = np.random.default_rng(0).normal(size=(10, 4)).astype(np.float32)
    assert module("scores").score(vectors, vectors, labels, labels).tar_at_far == {1e-3: None, 1e-4: None}


def test_a_result_is_made_once(tmp_path: Path) -> None:
    plan = module("plan")
    sizes = plan.Sizes(build=module("set").BuildOptions())
    runs = module("runs").Runs(tmp_path, sizes, {}, print)
    made: list[int] = []

    def make() -> dict[str, Any]:
        made.append(1)
        return {"value": 3}

    assert runs.result("cell", {"epochs": 2, "path": Path("a")}, make)["value"] == 3
    assert runs.result("cell", {"epochs": 2, "path": Path("a")}, make)["value"] == 3
    assert len(made) == 1
    with pytest.raises(ValueError, match="was made with other settings; remove it"):
        runs.result("cell", {"epochs": 3, "path": Path("a")}, make)
    assert runs.load("another") is None


def test_the_plan_fits_into_an_hour_and_its_options_hold(tmp_path: Path) -> None:
    plan = module("plan")
    for sizes in (plan.Sizes(build=module("set").BuildOptions()), plan.smoke_sizes(module("set").BuildOptions())):
        cells = plan.all_cells(sizes)
        assert len({cell.name for cell in cells}) == len(cells)
        minutes = plan.estimated_minutes(cells, sizes)
        assert 0 < sum(minutes.values()) < 65
        for cell in cells:
            options = cell.training(tmp_path, 32, 0)
            assert options.augmentation.flip == 0
            assert (options.teacher is not None, options.compatible_with is not None) == (
                bool(cell.teacher),
                bool(cell.compatible_with),
            )
            earlier = [other.name for other in cells[: cells.index(cell)]]
            assert {cell.teacher, cell.compatible_with} - {""} <= set(earlier)


def planted_result(found: str) -> dict[str, Any]:
    share = {"value": found.count("1") / len(found), "low": 0.0, "high": 1.0}
    scores = {"recall_at_1": share, "tar_at_far": {"0.001": share, "0.0001": None}, "found": found}
    costs = {"parameters": 12_000_000, "multiply_adds": 213_000_000, "accuracy": 0.5}
    return {"scores": scores, **costs}


def test_tables_show_what_is_there_and_name_what_is_not(built: tuple[Any, Path, dict[str, Any]]) -> None:
    plan, (options, _, manifest) = module("plan"), built
    sizes = plan.Sizes(build=options)
    labels = np.repeat(np.arange(5), 2)
    results = {
        "arcface": planted_result("1010101010"),
        "cosface": planted_result("1110101011"),
        plan.OLD: planted_result("1111100000"),
        "speed": {"images_per_second": {"arcface": 10.0, "cosface": 5.0, plan.OLD: 10.0}, "threads": 2},
    }
    text = module("tables").report(results.get, sizes, manifest, labels)
    lines = {line.split(" | ")[0].removeprefix("| "): line for line in text.splitlines() if line.startswith("| ")}
    assert "0.500 [0.000, 1.000] | 0.500 [0.000, 1.000] | too few pairs |  | 12.00 M | 213 M | 3 |" in lines["arcface"]
    images = 3 * manifest["tars"][plan.head_cells(sizes)[0].data]["images"]
    assert lines["arcface"].endswith(f"| 0.500 | 10 | {images / 10 / 60:.1f} |")
    assert lines["cosface"].endswith(f"| 0.500 | 5 | {images / 5 / 60:.1f} |")
    assert "all networks taking turns on 2 threads" in text
    assert "| +0.200 [" in lines["cosface"]
    assert "| not measured |" in lines["softmax"]
    assert "10 characters, none trained on: 10 queries in a gallery of 10" in text


def test_command_line(tmp_path: Path) -> None:
    script = [sys.executable, str(BENCHMARKS / "font_identities.py")]
    done = subprocess.run([*script, "--packages"], capture_output=True, text=True, check=True)
    assert done.stdout.startswith("apt-get install --yes --no-install-recommends fonts-")
    (tmp_path / "fonts").mkdir()
    folders = ["--fonts", str(tmp_path / "fonts"), "--out", str(tmp_path / "out")]
    done = subprocess.run([*script, "--stage", "tables", *folders], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr.count("\n")) == (2, 1)
    assert "run --stage build first" in done.stderr
