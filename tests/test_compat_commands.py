"""The command lines of `compat`, run as people run them: what they do, and one line for each mistake."""

import importlib
import json
import os
import re
import signal
import subprocess
import sys
import time
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image
from planted import ROOT, environment, plant, run, write_store

from backbones.checkpoint import save_model
from backbones.encoders.preprocessing import Preprocessing
from backbones.networks.iresnet import ARCHITECTURES, IResNet
from compat.extract import ExtractOptions, extract
from compat.neighbors import nearest
from compat.options import FitOptions
from compat.pairs import join_pairs
from compat.training import applicable, ladder, nearness, pairing
from compat.training.fit import fit_transformer
from compat.transformers.artefact import load_transformer
from stores.space import EmbeddingSpace
from stores.store import EmbeddingStore

COMMANDS = ("train_transformer", "evaluate", "migrate", "transform", "extract", "sample")
HEAVY = {"torch", "zarr", "polars", "faiss", "numpy", "PIL", "sklearn", "pynndescent", "plotly"}
# The command as it is, but for one more architecture, small enough for a test, and a commit after every batch.
EXTRACT = """
import sys
from functools import partial
import compat.extract
from backbones.networks.iresnet import ARCHITECTURES, IResNet
ARCHITECTURES["tiny"] = partial(IResNet, (1, 1, 1, 1), channels=(8, 8, 8, 8))
compat.extract.SECONDS_PER_COMMIT = 0.0
sys.exit(compat.extract.main())
"""


@pytest.fixture(scope="module")
def stores(tmp_path_factory):
    """A folder with stores of two models, transformers both ways and an array, made once and only read."""
    folder = tmp_path_factory.mktemp("commands")
    world = plant(identities=40, samples=5, old_dim=8, new_dim=12, noise=0.3)
    asked = np.arange(200) % 5 == 0
    for name, model, rows in [
        ("gallery", "old", ~asked),
        ("queries", "new", asked),
        ("old_queries", "old", asked),
        ("new_gallery", "new", ~asked),
    ]:
        ids = [f"i{row}" for row in np.flatnonzero(rows)]
        write_store(folder / name, getattr(world, model)[rows], name=model, ids=ids, labels=world.labels[rows])
    write_store(folder / "third", world.old, name="third", labels=world.labels)
    write_store(folder / "strangers", world.new[:9], name="new", ids=[f"x{row}" for row in range(9)])
    write_store(folder / "unfinished", world.new[:9], name="new", provenance={"complete": False})
    EmbeddingStore.create(folder / "empty", EmbeddingSpace("new", None, 12, False)).close()
    pairs = join_pairs(EmbeddingStore.open(folder / "gallery"), EmbeddingStore.open(folder / "new_gallery"))
    for direction in ("new-to-old", "old-to-new"):
        fit_transformer(pairs, FitOptions(transformer="ridge", direction=direction)).save(folder / direction)
    np.save(folder / "vectors.npy", world.new)
    np.save(folder / "narrow.npy", world.old)
    (folder / "torn.npy").write_bytes(b"\x93NUMPY")
    return folder


def succeed(module, *argv):
    ran = run(f"compat.{module}", *argv)
    assert ran.returncode == 0, ran.stderr
    assert "Traceback" not in ran.stderr
    return ran


@pytest.fixture
def here(capsys):
    """Run a command in this process, which has imported everything already."""

    def call(module, *argv):
        code = importlib.import_module(f"compat.{module}").main([str(word) for word in argv])
        out, err = capsys.readouterr()
        return subprocess.CompletedProcess(argv, code, out, err)

    return call


@pytest.mark.parametrize("module", COMMANDS)
def test_help_answers_at_once_and_imports_nothing_heavy(module):
    started = time.perf_counter()
    ran = succeed(module, "--help")
    took = time.perf_counter() - started
    assert ran.stdout.startswith(f"usage: python -m compat.{module}")
    assert ran.stderr == ""
    assert took < 1.5  # alone on the machine it takes 0.2
    script = (
        f"import sys; from compat.{module} import main; assert main(['--help']) == 0; "
        f"sys.exit(','.join(sys.modules.keys() & {HEAVY!r}) or 0)"
    )
    imported = subprocess.run([sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True, check=False)
    assert (imported.returncode, imported.stderr) == (0, "")


def test_from_two_stores_to_a_verdict(stores, tmp_path, here):
    out = tmp_path / "t"
    pair = ("--old", stores / "gallery", "--new", stores / "new_gallery", "--out", out)
    trained = here("train_transformer", *pair, "--transformer", "mlp", "--epochs", 3, "--loss.cosine-weight", 5)
    assert [line.split()[1] for line in trained.stderr.splitlines() if line.startswith("epoch")] == ["1", "2", "3"]
    assert "warning: a plain linear map is at least as good" in trained.stderr
    assert re.fullmatch(
        r"mlp from new \(12-D\) to old \(8-D\) \(new-to-old\), fitted to 160 pairs; on held-out pairs recall@1 "
        r"0\.\d{3} by label, reciprocal rank 0\.\d{3}: .*t\n",
        trained.stdout,
    )
    assert sorted(path.name for path in out.iterdir()) == ["card.json", "familiarity.safetensors", "model.safetensors"]
    transformer = load_transformer(out)
    assert transformer.training["options"]["loss"]["cosine_weight"] == 5.0

    given = ("--gallery", stores / "gallery", "--queries", stores / "queries", "--transformer", out)
    rest = ("--old-queries", stores / "old_queries", "--new-gallery", stores / "new_gallery", "--out", tmp_path / "r")
    evaluated = succeed("evaluate", *given, *rest)
    assert [line for line in evaluated.stderr.splitlines() if "measuring" not in line] == []
    report = json.loads((tmp_path / "r" / "report.json").read_text())
    assert report["format_version"] == 1
    assert all(report["settings"][name] for name in ("old_to_old", "new_to_new", "transformed"))
    assert report["settings"]["naive"] is None
    assert (tmp_path / "r" / "report.html").read_text().lstrip().startswith("<!DOCTYPE html>")
    assert report["verdict"]["reason"][:30] in " ".join(evaluated.stdout.split())


def test_by_default_the_best_map_is_chosen_and_the_ladder_shown(stores, tmp_path, here):
    pair = ("--old", stores / "gallery", "--new", stores / "new_gallery", "--out", tmp_path / "t")
    trained = here("train_transformer", *pair, "--correction", 0.5, "--gallery", stores / "gallery")
    assert trained.returncode == 0, trained.stderr
    lines = trained.stdout.splitlines()
    assert lines[0] == "held-out retrieval by label, 160 queries:"
    chosen = [line for line in lines if line.startswith("* ")]
    transformer = load_transformer(tmp_path / "t")
    assert len(chosen) == 1
    assert chosen[0].startswith(f"* {transformer.training['chosen']} ")
    assert len(transformer.training["ladder"]) == len(lines) - 4
    assert lines[-2].startswith(f"chosen: {transformer.training['chosen']}, because ")
    assert f"{transformer.family} with hubness correction 0.5 from new" in lines[-1]
    assert transformer.correction is not None
    with EmbeddingStore.open(stores / "gallery") as gallery:
        known = transformer.known_offsets(gallery.digest(), len(gallery))
        found = transformer.correction.offsets(gallery.rows(0, len(gallery)), gallery.items["item_id"])
    assert known is not None
    np.testing.assert_allclose(known, found, atol=1e-6)


def test_further_pairs_count_by_their_weight_and_judge_the_map(stores, tmp_path, here):
    pair = ("--old", stores / "gallery", "--new", stores / "new_gallery", "--transformer", "ridge")
    more = {"old": str(stores / "old_queries"), "new": str(stores / "queries"), "weight": 3}
    both = here("train_transformer", *pair, "--out", tmp_path / "both", "--more", json.dumps([more]))
    assert both.returncode == 0, both.stderr
    training = load_transformer(tmp_path / "both").training
    assert training["pairs"] == 200
    assert training["held_out"]["queries"] == 200  # 40 that look like queries are too few to judge by
    wrong = here("train_transformer", *pair, "--out", tmp_path / "wrong", "--more", json.dumps([more | {"weight": -1}]))
    assert wrong.returncode == 2
    assert "the weight of further pairs must be positive, found -1" in wrong.stderr
    swapped = json.dumps([{"old": more["new"], "new": more["old"]}])
    mixed = here("train_transformer", *pair, "--out", tmp_path / "mixed", "--more", swapped)
    assert mixed.returncode == 2
    assert "expected one space" in mixed.stderr


def test_another_gallery_makes_another_transformer(stores, tmp_path, here):
    pair = ("--old", stores / "gallery", "--new", stores / "new_gallery", "--out", tmp_path / "t")
    rest = ("--transformer", "ridge", "--correction", 0.5)
    assert here("train_transformer", *pair, *rest).returncode == 0
    again = here("train_transformer", *pair, *rest, "--gallery", stores / "gallery")
    assert again.returncode == 2
    assert "holds a transformer of other gallery; name another --out or remove it" in again.stderr


def test_a_gallery_of_another_model_is_refused(stores, tmp_path, here):
    pair = ("--old", stores / "gallery", "--new", stores / "new_gallery", "--out", tmp_path / "t")
    wrong = here("train_transformer", *pair, "--gallery", stores / "third")
    assert wrong.returncode == 2
    assert "third is in third (8-D), expected the old model's space, old (8-D)" in wrong.stderr


def test_training_again_loads_what_is_there_and_refuses_what_is_not_the_same(stores, tmp_path, here):
    pair = ("--old", stores / "gallery", "--new", stores / "new_gallery", "--out", tmp_path / "t")
    first = here("train_transformer", *pair)
    times = {path: path.stat().st_mtime_ns for path in (tmp_path / "t").iterdir()}
    assert here("train_transformer", *pair).stdout == first.stdout
    assert {path: path.stat().st_mtime_ns for path in (tmp_path / "t").iterdir()} == times
    one_line(here("train_transformer", *pair, "--seed", 1), "holds a transformer of other options; name another")


@pytest.mark.parametrize("family", ["mlp", "auto"])
def test_what_takes_long_is_announced_before_it_begins(stores, tmp_path, here, monkeypatch, family):
    """The compilation of pynndescent, which is not waited for here: exact neighbours take its place."""
    monkeypatch.setattr(nearness, "nearest_approximate", lambda rows, k, *, seed: nearest(rows, rows, k))  # noqa: ARG005
    monkeypatch.setattr(pairing, "FEW", 3)  # of 32 identities, which graphs would not be worth while for
    monkeypatch.setattr(ladder, "NETWORK_PAIRS", (100, 1000))
    monkeypatch.setattr(applicable, "NETWORK_PAIRS", (100, 1000))
    monkeypatch.setattr(ladder, "_LEAST_JUDGES", 10)
    near = ("--interpolation.pairing", "proximity", "--interpolation.minimum", 2, "--interpolation.approximate-from", 2)
    pair = ("--old", stores / "gallery", "--new", stores / "new_gallery", "--out", tmp_path / "t")
    ran = here("train_transformer", *pair, "--transformer", family, "--epochs", 1, *near)
    assert ran.returncode == 0, ran.stderr
    lines = ran.stderr.splitlines()
    announced = [n for n, line in enumerate(lines) if "compiles for about a minute, several on a busy" in line]
    assert len(announced) == 1
    assert announced[0] < next(n for n, line in enumerate(lines) if line.startswith("epoch 1 "))


def test_a_killed_training_goes_on_and_ends_as_if_never_interrupted(stores, tmp_path):
    words = ["--old", stores / "gallery", "--new", stores / "new_gallery", "--transformer", "msresnet", "--epochs", 4]
    argv = [sys.executable, "-m", "compat.train_transformer", *map(str, words), "--batch-size", "32"]
    killed = [*argv, "--out", str(tmp_path / "killed")]
    with subprocess.Popen(killed, env=environment(), stderr=subprocess.PIPE, text=True) as process:
        assert process.stderr is not None
        for line in process.stderr:
            if line.startswith("epoch 2 "):
                process.send_signal(signal.SIGKILL)
                break
        assert process.wait() == -signal.SIGKILL
    assert not (tmp_path / "killed" / "card.json").exists()
    resumed = subprocess.run(killed, env=environment(), capture_output=True, text=True, check=True)
    epochs = [line.split()[1] for line in resumed.stderr.splitlines() if line.startswith("epoch")]
    assert epochs in (["2", "3", "4"], ["3", "4"])  # the second was told of before it was saved
    with EmbeddingStore.open(stores / "gallery") as old, EmbeddingStore.open(stores / "new_gallery") as new:
        whole = fit_transformer(join_pairs(old, new), FitOptions(transformer="msresnet", epochs=4, batch_size=32))
    assert load_transformer(tmp_path / "killed").digest() == whole.digest()
    assert sorted(path.name for path in (tmp_path / "killed").iterdir()) == [
        "card.json",
        "familiarity.safetensors",
        "model.safetensors",
    ]


def test_migrate_and_then_evaluate_the_migrated_gallery(stores, tmp_path, here):
    migrated = here(
        *("migrate", "--transformer", stores / "old-to-new", "--source", stores / "gallery"),
        *("--target", tmp_path / "migrated"),
    )
    assert migrated.stdout.startswith(f"160 vectors migrated to {tmp_path / 'migrated'}; checked: 160 ids in order")
    evaluated = here(
        "evaluate", "--gallery", tmp_path / "migrated", "--queries", stores / "queries", "--out", tmp_path / "r"
    )
    report = json.loads((tmp_path / "r" / "report.json").read_text())
    assert report["settings"]["transformed"]["recall_at_1"]["value"] > 0.8
    assert report["settings"]["new_to_new"] is None
    assert str(tmp_path / "r" / "report.html") in evaluated.stdout


def test_transform_maps_a_file_in_place_of_code(stores, tmp_path):
    out = tmp_path / "deep" / "mapped.npy"
    given = ("--transformer", stores / "new-to-old", "--vectors", stores / "vectors.npy", "--out", out)
    ran = succeed("transform", *given, "--direction", "new-to-old")
    assert ran.stdout == f"200 vectors of new (12-D) mapped to old (8-D): {out}\n"
    expected = load_transformer(stores / "new-to-old").transform(np.load(stores / "vectors.npy"))
    np.testing.assert_allclose(np.load(out), expected, atol=1e-6)
    assert [path.name for path in out.parent.iterdir()] == ["mapped.npy"]


def one_line(ran, message):
    assert ran.returncode == 2, ran.stderr
    errors = [line for line in ran.stderr.splitlines() if not line.startswith("measuring ")]
    assert len(errors) == 1, ran.stderr
    assert errors[0].startswith("error: ")
    assert "Traceback" not in ran.stderr
    assert re.search(message, errors[0]), errors[0]


MISTAKES = [
    ("train_transformer --old S/nowhere --new S/new_gallery --out O", "no embedding store at .*nowhere"),
    (
        "train_transformer --old S/gallery --new S/new_gallery --out O --transformer mpl",
        "unknown transformer 'mpl'; choose one of auto, identity, procrustes, ridge, shrunk, whitened",
    ),
    ("train_transformer --old S/gallery --new S/gallery --out O", r"both stores are in the space old \(8-D\)"),
    ("train_transformer --old S/gallery --new S/empty --out O", "empty is empty; extract or convert embeddings"),
    ("train_transformer --old S/gallery --new S/strangers --out O", "no item_id in common"),
    ("train_transformer --old S/gallery --new S/unfinished --out O", "is unfinished, it has 9 rows so far"),
    ("train_transformer --old S/gallery --new S/new_gallery", "out"),
    ("train_transformer --old S/gallery --new S/new_gallery --out O --colour red", "unrecognized arguments"),
    ("train_transformer --old S/gallery --new S/new_gallery --out O --epochs many", "many"),
    ("train_transformer --old S/gallery --new S/new_gallery --out O --direction sideways", "sideways"),
    ("train_transformer --old S/gallery --new S/new_gallery --out O --interpolation.rate 0", "must be above 0"),
    (
        "train_transformer --old S/gallery --new S/new_gallery --out O --transformer mlp --interpolation.rate 1",
        "does nothing while --interpolation.pairing is none; give a pairing",
    ),
    (
        "train_transformer --old S/gallery --new S/new_gallery --out O --transformer ridge --width 64",
        "ridge has no width; leave that out",
    ),
    (
        "train_transformer --old S/gallery --new S/new_gallery --out O --transformer unified --direction old-to-new",
        "unified has no direction; leave that out",
    ),
    (
        "train_transformer --old S/gallery --new S/new_gallery --out S/vectors.npy",
        "--out is the folder of a transformer, but .*vectors.npy is a file; name another",
    ),
    (
        "train_transformer --old S/gallery --new S/new_gallery --out S/vectors.npy/map --transformer unified",
        "--out is the folder of a transformer, but .*vectors.npy is a file; name another",
    ),
    (
        "train_transformer --old S/gallery --new S/new_gallery --out O --storge postgresql://u:s3cret@h/db",
        r"unrecognized arguments: --storge postgresql://u:\*\*\*@h/db",
    ),
    ("evaluate --gallery S/gallery --queries S/queries --transformer S/nowhere --out O", "no transformer at"),
    ("evaluate --gallery S/gallery --queries S/nowhere --out O", "no embedding store at"),
    ("evaluate --gallery S/third --queries S/queries --transformer S/new-to-old --out O", "target is old .* in third"),
    ("evaluate --gallery S/gallery --queries S/old_queries --transformer S/new-to-old --out O", "nothing to bridge"),
    ("evaluate --gallery S/gallery --queries S/empty --out O", "query store .*empty is empty"),
    ("evaluate --gallery S/unfinished --queries S/queries --out O", "is unfinished"),
    ("evaluate --gallery S/gallery --queries S/queries --old-queries S/queries --out O", "expected the space of"),
    ("evaluate --gallery S/gallery --queries S/strangers --out O", "label"),
    ("evaluate --gallery S/new_gallery --queries S/queries --relevance S/none.csv --out O", "or an existing table"),
    ("migrate --transformer S/new-to-old --source S/gallery --target O", "the gallery needs no migration"),
    ("migrate --transformer S/old-to-new --source S/third --target O", "source is old .* given are in third"),
    (
        "migrate --transformer S/old-to-new --source S/vectors.npy --target O",
        "does not tell which model made its vectors",
    ),
    ("migrate --transformer S/old-to-new --source S/empty --target O", "is empty; there is nothing to migrate"),
    ("migrate --transformer S/old-to-new --source S/gallery --target S/gallery", "never overwritten"),
    ("migrate --transformer S/old-to-new --source S/gallery --target S/queries", "holds another gallery"),
    ("migrate --transformer S/old-to-new --source mystery:x --target O", "unknown kind of gallery 'mystery'"),
    ("migrate --transformer S/old-to-new --source S/gallery --target O --batch-rows 0", "at least 1"),
    ("transform --transformer S/new-to-old --vectors S/narrow.npy --out O", "holds 8-D vectors, the transformer maps"),
    ("transform --transformer S/new-to-old --vectors S/none.npy --out O", "no gallery at .*none.npy"),
    ("transform --transformer S/new-to-old --vectors S/torn.npy --out O", "torn.npy"),
    ("transform --transformer S/new-to-old --vectors S/vectors.npy --out O --direction old-to-new", "direction is new"),
    ("extract --backbone resnet --data S --out O", "unknown backbone 'resnet', expected one of iresnet18"),
    ("extract --backbone iresnet18 --data S --out O", "needs weights"),
    ("extract --backbone iresnet18 --weights S/none --data S --out O", "weights .*none not found"),
    ("extract --backbone nothing:here --data S --out O", "backbone module 'nothing' not found"),
    ("extract --backbone iresnet18 --data S --out O --views 0", "views must be at least 1"),
]


# One process runs them all, as each would take seconds to import the same; the parser's own are run on their own.
RUN_ALL = """
import importlib, io, json, sys
from contextlib import redirect_stderr, redirect_stdout
found = []
for argv in json.load(sys.stdin):
    out, err = io.StringIO(), io.StringIO()
    with redirect_stdout(out), redirect_stderr(err):
        try:
            code = importlib.import_module("compat." + argv[0]).main(argv[1:])
        except BaseException as fault:
            code, err = repr(fault), err
    found.append([code, out.getvalue(), err.getvalue()])
json.dump(found, sys.stdout)
"""


@pytest.fixture(scope="module")
def mistaken(stores, tmp_path_factory):
    """What each line of MISTAKES gives: exit code, standard output and standard error."""
    out = str(tmp_path_factory.mktemp("out") / "out")
    asked = [[re.sub("^S", str(stores), re.sub("^O$", out, w)) for w in line.split()] for line, _ in MISTAKES]
    ran = subprocess.run(
        [sys.executable, "-c", RUN_ALL],
        input=json.dumps(asked),
        env=environment(),
        capture_output=True,
        text=True,
        check=True,
    )
    return dict(zip([line for line, _ in MISTAKES], json.loads(ran.stdout), strict=True)), Path(out)


@pytest.mark.parametrize(("line", "message"), MISTAKES)
def test_a_mistake_is_one_line_and_leaves_nothing(mistaken, line, message):
    results, out = mistaken
    code, _, err = results[line]
    one_line(subprocess.CompletedProcess([], code, "", err), message)
    assert not out.exists()


@pytest.mark.parametrize("number", [1])
def test_a_mistake_in_a_process_of_its_own_is_the_same(stores, tmp_path, mistaken, number):
    line, message = MISTAKES[number]
    argv = [re.sub("^S", str(stores), re.sub("^O$", str(tmp_path / "out"), word)) for word in line.split()]
    ran = run(f"compat.{argv[0]}", *argv[1:])
    one_line(ran, message)
    assert ran.returncode == mistaken[0][line][0]
    assert ran.stdout == ""


# ---------------------------------------------------------------------------------------------------- extraction


@pytest.fixture(scope="module")
def faces(tmp_path_factory):
    root = tmp_path_factory.mktemp("faces")
    generator = np.random.default_rng(0)
    for person in range(6):
        (root / f"p{person}").mkdir()
        pattern = Image.fromarray(generator.integers(256, size=(5, 5, 3), dtype=np.uint8)).resize((24, 24))
        for picture in range(8):
            noisy = np.asarray(pattern) + generator.normal(0, 12, size=(24, 24, 3))
            Image.fromarray(noisy.clip(0, 255).astype(np.uint8)).save(root / f"p{person}" / f"{picture}.png")
    return root


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    build = partial(IResNet, (1, 1, 1, 1), channels=(8, 8, 8, 8))
    torch.manual_seed(0)
    network = build(embedding_dim=6, input_size=16)
    network(torch.randn(32, 3, 16, 16))  # gives the norms their statistics
    card = {"arch": "tiny", "embedding_dim": 6, "preprocessing": Preprocessing(size=16).to_dict()}
    ARCHITECTURES["tiny"] = build
    yield save_model(tmp_path_factory.mktemp("model"), network, card)
    del ARCHITECTURES["tiny"]


def test_images_become_a_store_that_names_its_space(faces, model, tmp_path, here):
    words = ("--backbone", "tiny", "--weights", model, "--data", faces, "--batch-size", 7)
    ran = here("extract", *words, "--out", tmp_path / "store")
    assert (ran.returncode, ran.stderr) == (0, "")
    assert re.fullmatch(r"48 embeddings of tiny [0-9a-f]{8} \(6-D\) in .*store\n", ran.stdout)
    store = EmbeddingStore.open(tmp_path / "store")
    names = [f"p{person}/{picture}.png" for person in range(6) for picture in range(8)]
    assert store.items["item_id"].to_list() == names
    assert store.items["label"].to_list() == [name.split("/")[0] for name in names]
    assert store.space.fingerprint == store.provenance["extraction"]["fingerprint"]
    assert store.provenance["complete"] is True
    assert store.provenance["inference"]["minimum_cosine"] >= 0.999
    from backbones.encoders.images import load_image_backbone

    backbone = load_image_backbone("tiny", model)
    expected = backbone.embed([backbone.read(faces / name) for name in names])
    cosines = (expected * store.rows(0, 48)).sum(1) / np.linalg.norm(expected, axis=1)
    assert (cosines / np.linalg.norm(store.rows(0, 48), axis=1)).min() > 0.998
    again = extract(ExtractOptions(backbone="tiny", weights=model, data=faces, out=tmp_path / "store", batch_size=7))
    assert (again.rows, again.rows_before) == (48, 48)
    with pytest.raises(FileExistsError, match=r"holds another extraction \(it differs in views, precision\)"):
        extract(
            ExtractOptions(
                backbone="tiny", weights=model, data=faces, out=tmp_path / "store", views=2, precision="fp32"
            )
        )


def files(folder):
    return {str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


def test_a_killed_extraction_goes_on_and_ends_as_if_never_interrupted(faces, model, tmp_path, here):
    words = ("--backbone", "tiny", "--weights", model, "--data", faces, "--batch-size", 2, "--views", 2)
    path = tmp_path / "killed"
    asked = [sys.executable, "-c", EXTRACT, *map(str, words), "--out", str(path)]
    killed = subprocess.Popen(asked, env=environment(), stdout=subprocess.DEVNULL)
    while not (path / "store.json").is_file() or not len(EmbeddingStore.open(path)):
        assert killed.poll() is None
        time.sleep(0.001)
    os.kill(killed.pid, signal.SIGKILL)
    assert killed.wait() == -signal.SIGKILL
    left = len(EmbeddingStore.open(path))
    assert 0 < left < 96
    assert EmbeddingStore.open(path).provenance["complete"] is False
    resumed = subprocess.run(asked, env=environment(), capture_output=True, text=True, check=True)
    assert "96 embeddings of tiny" in resumed.stdout
    assert f"({left} of them from an earlier run)" in resumed.stdout
    here("extract", *words, "--out", tmp_path / "whole")
    assert files(path) == files(tmp_path / "whole")


def test_unreadable_items_are_skipped_and_listed_up_to_the_limit(faces, model, tmp_path, here):
    data = tmp_path / "data"
    for person in ("p0", "p1"):
        (data / person).mkdir(parents=True)
        for picture in range(4):
            (data / person / f"{picture}.png").write_bytes((faces / person / f"{picture}.png").read_bytes())
    (data / "p0" / "0.png").write_bytes(b"no image")
    (data / "p1" / "2.png").write_bytes((faces / "p1" / "2.png").read_bytes()[:60])
    words = ("--backbone", "tiny", "--weights", model, "--data", data, "--batch-size", 3, "--out", tmp_path / "s")
    refused = here("extract", *words, "--max-bad", 1)
    one_line(refused, "2 items are unreadable, --max-bad allows 1; the first is p0/0.png: cannot read image")
    ran = here("extract", *words, "--max-bad", 2)
    assert (ran.returncode, ran.stderr) == (0, "")
    assert ran.stdout.endswith("2 unreadable items skipped\n")
    store = EmbeddingStore.open(tmp_path / "s")
    names = [f"{person}/{picture}.png" for person in ("p0", "p1") for picture in range(4)]
    assert store.items["item_id"].to_list() == [name for name in names if name not in ("p0/0.png", "p1/2.png")]
    skipped = store.provenance["skipped"]
    assert [entry["item_id"] for entry in skipped] == ["p0/0.png", "p1/2.png"]
    assert all("cannot read image" in entry["reason"] for entry in skipped)


def test_neither_batches_nor_readers_change_a_byte(faces, model, tmp_path, here):
    words = ("--backbone", "tiny", "--weights", model, "--data", faces, "--views", 2)
    for name, batch_size, readers in (("a", 64, 2), ("b", 7, 1), ("c", 3, 3)):
        ran = here("extract", *words, "--out", tmp_path / name, "--batch-size", batch_size, "--readers", readers)
        assert ran.returncode == 0, ran.stderr
    assert files(tmp_path / "a") == files(tmp_path / "b") == files(tmp_path / "c")


def test_adapted_norms_make_a_space_of_their_own(faces, model, tmp_path, here):
    target = tmp_path / "target" / "x"
    target.mkdir(parents=True)
    for number in range(5):
        dark = np.asarray(Image.open(faces / "p0" / f"{number}.png")) // 3
        Image.fromarray(dark).save(target / f"{number}.png")
    (target / "torn.png").write_bytes(b"no image")
    words = ("--backbone", "tiny", "--weights", model, "--data", faces)
    here("extract", *words, "--out", tmp_path / "plain")
    for name in ("one", "two"):
        ran = here("extract", *words, "--out", tmp_path / name, "--adabn", target.parent)
        assert ran.returncode == 0, ran.stderr
    plain, one = EmbeddingStore.open(tmp_path / "plain"), EmbeddingStore.open(tmp_path / "one")
    assert files(tmp_path / "one") == files(tmp_path / "two")
    assert plain.space != one.space
    assert not np.allclose(plain.rows(0, 48), one.rows(0, 48), atol=0.1)
    facts = one.provenance["extraction"]["adabn"]
    assert (facts["images"], facts["items"], facts["skipped"]) == (10, 6, 1)  # mirror images too
    refused = here("extract", *words, "--out", tmp_path / "plain", "--adabn", target.parent)
    one_line(refused, r"holds another extraction \(it differs in fingerprint, adabn\)")


def test_the_images_to_adapt_to_are_capped_and_their_disk_is_checked(faces, model, tmp_path, here, monkeypatch):
    from compat.extraction import adaptation

    words = ("--backbone", "tiny", "--weights", model, "--data", faces, "--adabn", faces)
    assert here("extract", *words, "--out", tmp_path / "few", "--adabn-images", 5).returncode == 0
    facts = EmbeddingStore.open(tmp_path / "few").provenance["extraction"]["adabn"]
    assert (facts["images"], facts["items"]) == (10, 5)
    monkeypatch.setattr(adaptation, "MOST_UNSAID", 0)
    told = here("extract", *words, "--out", tmp_path / "told", "--adabn-images", 5)
    assert re.match(r"note: adapting to 5 of 48 images takes up to \d.\d GB of temporary files\n", told.stderr)
    monkeypatch.setattr(adaptation, "MOST_UNSAID", 10**9)
    monkeypatch.setattr("shutil.disk_usage", lambda _: SimpleNamespace(free=1))
    refused = here("extract", *words, "--out", tmp_path / "full")
    one_line(refused, r"adapting the norms takes .* GB in .*; take fewer images \(--adabn-images\)")
    assert not (tmp_path / "full").exists()


def test_provenance_tells_of_the_training(faces, tmp_path, model, here):
    network = ARCHITECTURES["tiny"](embedding_dim=6, input_size=16)
    card = json.loads((model.parent / "card.json").read_text())
    del card["sha256"]
    card |= {"metrics": {"loss": {"value": 0.5, "unit": "nats per image"}}, "identities": [f"p{n}" for n in range(40)]}
    weights = save_model(tmp_path / "model", network, card)
    words = ("--backbone", "tiny", "--weights", weights, "--data", faces, "--precision", "fp32")
    assert here("extract", *words, "--out", tmp_path / "store").returncode == 0
    found = EmbeddingStore.open(tmp_path / "store").provenance["extraction"]["model_card"]
    assert found["metrics"] == card["metrics"]
    assert found["arch"] == "tiny"
    assert found["identities"] == {"count": 40}


def test_images_in_a_tar_are_the_same_items(faces, model, tmp_path, here):
    import tarfile

    with tarfile.open(tmp_path / "faces.tar", "w") as tar:
        for path in sorted(faces.rglob("*.png")):
            tar.add(path, path.relative_to(faces))
    for name, data in (("folder", faces), ("tar", tmp_path / "faces.tar")):
        ran = here("extract", "--backbone", "tiny", "--weights", model, "--data", data, "--out", tmp_path / name)
        assert ran.returncode == 0, ran.stderr
    folder, tar = EmbeddingStore.open(tmp_path / "folder"), EmbeddingStore.open(tmp_path / "tar")
    assert folder.items.equals(tar.items)
    np.testing.assert_array_equal(folder.rows(0, 48), tar.rows(0, 48))


ENCODERS = '''
import hashlib
import numpy as np
from backbones.encoders.encoder import Backbone
from backbones.datasets.decoding import IMAGE_SUFFIXES, read_image


class Words(Backbone):
    name, fingerprint, dim, normalized, suffixes = "words", "ab" * 32, 16, False, frozenset({".txt"})

    def read(self, path):
        return path.read_text().split()

    def embed(self, items):
        rows = [[int(hashlib.md5(w.encode()).hexdigest(), 16) % 16 for w in words] for words in items]
        return np.array([np.bincount(row, minlength=16) for row in rows], dtype=np.float32)


class Lines(Words):
    def decode(self, content):
        return content.decode().split()


class Mosaic(Backbone):
    """The mean colours of 4 x 4 tiles, whatever the size at which the image is read."""

    normalized, suffixes, dim = False, IMAGE_SUFFIXES, 48

    def __init__(self, size):
        self.size, self.name, self.fingerprint = size, f"mosaic{size}", f"{size:064}"

    def read(self, path):
        return read_image(path, self.size)

    def embed(self, items):
        tiles = np.stack(items).astype(np.float32).reshape(len(items), 4, self.size // 4, 4, self.size // 4, 3)
        return tiles.mean(axis=(2, 4)).reshape(len(items), -1)


def words():
    return Words()


def lines():
    return Lines()


def small():
    return Mosaic(32)


def large():
    return Mosaic(64)
'''


@pytest.fixture
def encoders(tmp_path, monkeypatch):
    (tmp_path / "encoders.py").write_text(ENCODERS)
    monkeypatch.chdir(tmp_path)
    monkeypatch.delitem(sys.modules, "encoders", raising=False)
    monkeypatch.setattr(sys, "path", [*sys.path, str(tmp_path)])
    return tmp_path


def test_text_through_an_encoder_of_ones_own(encoders):
    for topic, texts in {"a": ["red green", "blue blue"], "b": ["one"]}.items():
        (encoders / "texts" / topic).mkdir(parents=True)
        for number, text in enumerate(texts):
            (encoders / "texts" / topic / f"{number}.txt").write_text(text)
    ran = succeed("extract", "--backbone", "encoders:words", "--data", "texts", "--out", "store")
    assert ran.stdout == "3 embeddings of words abababab (16-D) in store\n"
    store = EmbeddingStore.open("store")
    assert store.items["item_id"].to_list() == ["a/0.txt", "a/1.txt", "b/0.txt"]
    assert store.rows(0, 3).sum(axis=1).tolist() == [2, 2, 1]
    assert store.rows(0, 3).max(axis=1)[1] == 2
    with pytest.raises(ValueError, match="--views 2 needs a backbone that reads images"):
        extract(ExtractOptions(backbone="encoders:words", data=Path("texts"), out=Path("views"), views=2))


def test_texts_of_a_table_through_an_encoder_of_ones_own(encoders, here):
    Path("texts.csv").write_text("item_id,label,text\n5,x,red red\n2,,\n9,,blue\n")
    ran = here("extract", "--backbone", "encoders:lines", "--data", "texts.csv", "--out", "store", "--batch-size", 1)
    assert ran.stdout == "2 embeddings of words abababab (16-D) in store, 1 unreadable items skipped\n"
    store = EmbeddingStore.open("store")
    assert store.items.select("item_id", "label").rows() == [(5, "x"), (9, None)]
    assert store.rows(0, 2).sum(axis=1).tolist() == [2, 1]
    assert store.provenance["skipped"] == [{"item_id": 2, "reason": "item 2 has no text"}]
    refused = here("extract", "--backbone", "encoders:words", "--data", "texts.csv", "--out", "other")
    one_line(refused, "words reads files only, and these items are parts of a file; give Words a method decode")


def test_two_networks_of_different_input_size_see_the_same_views(encoders, faces):
    def views(backbone, out, **changes):
        options = {"data": faces, "views": 3, "batch_size": 12} | changes
        extract(ExtractOptions(backbone=f"encoders:{backbone}", out=Path(out), **options))
        return EmbeddingStore.open(out)

    small, large = views("small", "s"), views("large", "l")
    views("small", "again")
    assert small.items["item_id"].to_list()[:4] == ["p0/0.png", "p0/0.png#view1", "p0/0.png#view2", "p0/1.png"]
    assert small.items["view"].to_list() == [0, 1, 2] * 48
    assert small.items.equals(large.items)
    assert files(encoders / "s") == files(encoders / "again")
    a, b = small.rows(0, 144), large.rows(0, 144)
    same = np.abs(a - b).mean(axis=1)
    other_view = np.abs(a.reshape(48, 3, 48)[:, 1] - a.reshape(48, 3, 48)[:, 2]).mean(axis=1)
    assert np.median(same) < 0.15 * np.median(other_view)
    other_seed = views("small", "seed", view_seed=1).rows(0, 144)
    moved = np.abs(a - other_seed).mean(axis=1).reshape(48, 3)
    assert not moved[:, 0].any()  # the image itself
    assert np.median(moved[:, 1:]) > 5 * np.median(same)
    one_at_a_time = views("small", "single", batch_size=3).rows(0, 144)
    np.testing.assert_array_equal(one_at_a_time, a)
