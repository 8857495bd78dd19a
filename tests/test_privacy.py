"""No command prints or logs a vector, an id or a password; the exceptions are listed here."""

import importlib
import logging
import re
from typing import NamedTuple

import numpy as np
import polars as pl
import pytest
from drawn_faces import TINY, draw_identities
from planted import ROOT, plant, write_store

from backbones.networks.iresnet import ARCHITECTURES
from compat.transformers.artefact import load_transformer

SECRET_ID, SECRET_PERSON, SECRET_WORD = "SECRET-ID-", "SECRET-PERSON-", "Tr0ub4dor"
WORLD = plant(identities=40, samples=5, old_dim=8, new_dim=12, noise=0.3)
MARKED = 7
"""Row whose numbers are looked for."""
WORLD.old[MARKED] = np.float32(0.8675309) * np.array([1, -0.31, 0.52, 0.77, -0.93, 0.41, 0.63, -0.17], np.float32)
WORLD.new[MARKED] = np.float32(0.7390851) * np.array([1, -0.3, 0.5, 0.7, -0.9, 0.4, 0.6, -0.1, 0.8, 0.2, -0.55, 0.15])
QUICK = ("--epochs", 1, "--input-size", 16, "--batch-size", 8)
TUNED = ("--trials", 1, "--epochs", 1, "--finalists", 1, "--judgings", 1, "--reports", 1, "--space.batch_size", "[64]")

COMMANDS = [
    ("backbones.train", "--arch tiny --head arcface --data faces --out network", *QUICK),
    ("backbones.export", "--backbone tiny --weights network/model.safetensors --data faces --out net.onnx"),
    ("compat.extract", "--backbone tiny --weights network/model.safetensors --data faces --out extracted"),
    ("stores.convert", "old.npy converted --ids ids.csv --space-name old"),
    ("stores.convert", "old old.faiss"),
    ("stores.convert", "converted gallery.parquet"),
    ("stores.inspect", "old"),
    ("stores.inspect", "extracted --json"),
    ("compat.sample", "--store old --n 5 --out sample.csv"),
    ("compat.train_transformer", "--old old --new new --out back --correction 0"),
    ("compat.train_transformer", "--old old --new new --out forth --direction old-to-new --gallery old"),
    ("compat.tune", "--old old --new new --out study --transformer residual_mlp --workers 1", *TUNED),
    ("compat.export", "--transformer back --format onnx --out map.onnx"),
    ("compat.export", "--transformer back --format numpy --out map.npz"),
    ("compat.export", "--transformer back --format faiss --index old.faiss --out served.faiss"),
    ("compat.transform", "--transformer back --vectors new.npy --out mapped.npy"),
    ("compat.evaluate", "--gallery old --queries new --old-queries old --transformer back --out report"),
    (
        "compat.evaluate",
        "--gallery old --queries new --new-gallery new --transformer forth --out again --group-by label",
    ),
    ("compat.migrate", "--transformer forth --source old --target migrated --step plan"),
    ("compat.migrate", "--transformer forth --source old --target migrated"),
    ("compat.migrate", "--transformer forth --source old --target migrated --step verify"),
    ("compat.migrate", "--source old --target migrated --step switch --serve-as served"),
    ("compat.migrate", "--source old --target migrated --step status"),
    ("compat.migrate", "--source old --target migrated --step switch-back"),
    ("compat.migrate", "--transformer forth --source old --target dropped"),
    ("compat.migrate", "--source old --target dropped --step discard"),
    ("compat.migrate", "--source old --target migrated --step switch --serve-as served"),
    ("compat.migrate", "--source old --target migrated --step finalise"),
    ("compat.backfill", "--gallery old --transformer back --out mixed --next 5 --write next.csv"),
    ("compat.backfill", "--gallery old --transformer back --out mixed --new new"),
    ("stores.forget", "old migrated --ids leavers.csv"),
    ("stores.forget", "gallery.parquet --label SECRET-PERSON-3"),
]
NAMES_PEOPLE = {"stores.inspect", "compat.evaluate --gallery old --queries new --new-gallery new"}
"""How the commands begin that tell labels, which they are asked for: their numbers of items, and groups by label."""
NOT_RUN = {"compat.demo", "backbones.list"}
"""The one runs the others on public photographs, the other is given no data."""


class Said(NamedTuple):
    command: str
    code: int
    text: str


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("private")
    ids = [f"{SECRET_ID}{row}" for row in range(len(WORLD.old))]
    labels = [f"{SECRET_PERSON}{label}" for label in WORLD.labels]
    for name in ("old", "new"):
        write_store(folder / name, getattr(WORLD, name), name=name, ids=ids, labels=labels)
        np.save(folder / f"{name}.npy", getattr(WORLD, name))
    pl.DataFrame({"item_id": ids, "label": labels}).write_csv(folder / "ids.csv")
    pl.DataFrame({"item_id": ids[:2]}).write_csv(folder / "leavers.csv")
    (folder / "served").symlink_to("old")
    draw_identities(folder / "faces", identities=4, images=4, prefix=SECRET_PERSON)
    return folder


@pytest.fixture(scope="module")
def said(folder):
    """What each command said, on both streams and to the log, at its default level."""
    found: list[Said] = []
    with pytest.MonkeyPatch.context() as patched:
        patched.chdir(folder)
        patched.setitem(ARCHITECTURES, "tiny", TINY)
        patched.setattr(logging.getLogger("torch.__trace"), "propagate", False)  # pytest would keep all of its traces
        for module, words, *more in COMMANDS:
            found.append(call(module, [*words.split(), *map(str, more)]))
    return found


def call(module: str, words: list[str]) -> Said:
    """Run a command in this process, whatever it or a process of its own writes being kept."""
    capture = importlib.import_module("_pytest.capture")
    heard: list[str] = []
    handler = logging.Handler(logging.INFO)
    handler.emit = lambda record: heard.append(record.getMessage())
    logging.getLogger().addHandler(handler)
    streams = capture.MultiCapture(in_=None, out=capture.FDCapture(1), err=capture.FDCapture(2))
    streams.start_capturing()
    try:
        code = importlib.import_module(module).main(words)
    finally:
        out, err = streams.readouterr()
        streams.stop_capturing()
        logging.getLogger().removeHandler(handler)
    return Said(f"{module} {' '.join(words)}", code, "\n".join([out, err, *heard]))


def test_every_command_of_the_table_is_run():
    table = set(re.findall(r"^\| `python -m ([a-z_.]+)` \|", (ROOT / "README.md").read_text(), re.MULTILINE))
    assert len(table) > 10
    assert table == {module for module, *_ in COMMANDS} | NOT_RUN


def test_every_command_succeeds_and_says_something(said):
    for each in said:
        assert each.code == 0, each
        assert each.text.strip(), each.command


def test_no_command_tells_an_id(said):
    for each in said:
        assert SECRET_ID not in each.text, each
        if not each.command.startswith(tuple(NAMES_PEOPLE)):
            assert SECRET_PERSON not in each.text, each


def test_no_command_tells_a_number_of_a_vector(said, folder):
    marked = [WORLD.old[MARKED], WORLD.new[MARKED]]
    marked += [load_transformer(folder / "forth").transform(marked[0][None])[0]]
    marked += [load_transformer(folder / "back").transform(marked[1][None])[0]]
    marked += [each / np.linalg.norm(each) for each in marked]
    wanted = np.abs(np.concatenate(marked))
    for each in said:
        for number in re.findall(r"\d+\.\d{5,}(?:e-?\d+)?", each.text):
            close = np.abs(wanted - float(number)) < 1e-5 * wanted
            assert not close.any(), (number, each)


def test_no_log_or_state_holds_an_id(said, folder):
    assert said
    kept = [
        path
        for path in folder.rglob("*")
        if path.suffix in {".jsonl", ".log"} or path.name in {"state.json", "card.json"}
    ]
    assert {path.suffix for path in kept} >= {".json", ".jsonl"}
    for path in kept:
        assert SECRET_ID not in path.read_text(), path


NAMED = {
    "an id that occurs twice": ("stores.convert", "twice.npy twice --ids twice.csv --space-name old"),
    "a vector that is none": ("stores.convert", "broken.npy broken --ids three.csv --space-name old"),
}
"""Mistakes of the data that are told by the id of one item, without which nobody could mend them."""


@pytest.mark.parametrize("mistake", NAMED)
def test_a_mistake_names_one_item_and_no_number(mistake, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    vectors = WORLD.old[MARKED - 1 : MARKED + 2].copy()
    np.save("twice.npy", vectors)
    vectors[1, 3] = np.nan
    np.save("broken.npy", vectors)
    ids = [f"{SECRET_ID}{row}" for row in (6, 7, 8)]
    pl.DataFrame({"item_id": ids}).write_csv("three.csv")
    pl.DataFrame({"item_id": [ids[1], ids[1], ids[2]]}).write_csv("twice.csv")
    module, words = NAMED[mistake]
    said = call(module, words.split())
    assert said.code == 2
    assert set(re.findall(rf"{SECRET_ID}\d+", said.text)) == {ids[1]}
    assert said.text.count("error: ") == 1
    assert not re.search(r"\d\.\d{4}", said.text)


ABSENT = {
    "postgresql, in the address": f"postgresql://me:{SECRET_WORD}@127.0.0.1:1/db/people?connect_timeout=1",
    "postgresql, as an option": f"postgresql://me@127.0.0.1:1/db/people?connect_timeout=1&password={SECRET_WORD}",
    "qdrant": f"qdrant:https://127.0.0.1:1/people?api_key={SECRET_WORD}",
}
FAILING = {
    "read by convert": ("stores.convert", "{uri} copied"),
    "written by convert": ("stores.convert", "old {uri}"),
    "inspected": ("stores.inspect", "{uri}"),
    "forgotten in": ("stores.forget", "{uri} --id 7"),
    "planned": ("compat.migrate", "--transformer forth --source {uri} --target new --step plan"),
    "migrated from": ("compat.migrate", "--transformer forth --source {uri} --target new --source-space old"),
    "migrated to": ("compat.migrate", "--transformer forth --source old --target {uri}"),
    "looked at": ("compat.migrate", "--source old --target {uri} --step status"),
    "switched": ("compat.migrate", "--source old --target {uri} --step switch --serve-as people_now"),
    "discarded": ("compat.migrate", "--source old --target {uri} --step discard"),
    "backfilled": ("compat.backfill", "--gallery {uri} --transformer back --out mixed --next 5 --write next.csv"),
}


@pytest.mark.parametrize("place", ABSENT)
def test_no_password_is_told_or_kept(place, said, folder, tmp_path, monkeypatch):
    pytest.importorskip("psycopg" if place.startswith("postgresql") else "qdrant_client")
    assert said
    monkeypatch.chdir(tmp_path)
    for name in ("old", "forth", "back"):
        (tmp_path / name).symlink_to(folder / name)
    for what, (module, words) in FAILING.items():
        found = call(module, words.format(uri=ABSENT[place]).split())
        assert found.code == (0 if what == "looked at" else 2), (what, found)
        assert SECRET_WORD not in found.text, (what, found)
        assert found.text.count("error: ") == found.code // 2, (what, found)
        assert "Traceback" not in found.text, (what, found)
    kept = [path for path in tmp_path.rglob("*") if path.is_file() and not path.is_symlink()]
    assert not [path for path in kept if SECRET_WORD.encode() in path.read_bytes()]
