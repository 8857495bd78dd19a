"""`python -m stores.inspect`, on whole, empty, unfinished and really damaged stores."""

import json
import math
import os
import random
import re
import shutil
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

import numpy as np
import polars as pl
import pytest

from stores import summaries
from stores.durable import StoreLocked
from stores.inspect import DAMAGED, main
from stores.inspection import inspect_store
from stores.item_parts import PART_ROWS
from stores.sealed import seal, unseal
from stores.space import EmbeddingSpace
from stores.store import EmbeddingStore
from stores.summaries import LABELS_AT_ONCE, QUANTILES, LabelHistogram, Norms, label_histogram

ROOT = Path(__file__).parent.parent
ROWS, DIM, CHUNK = 100, 6, 16
LABELS = [f"person {i * i % 17}" if i % 9 else None for i in range(ROWS)]
PROVENANCE = {
    "migrated_from": "old",
    "transformer": {"family": "ridge", "digest": "5e1f"},
    "source_provenance": {
        "converted_from": "old.npy",
        "source_provenance": {"extraction": {"backbone": "r18", "items": 3}},
        "skipped": [{"item_id": "secret-1", "reason": "secret-1 is no picture"}],
        "ids": [f"secret-{i}" for i in range(9)],
        "item_id": "secret-0",
    },
    "means": [0.5, 0.25, 0.125],
    "loss": math.nan,
}


def planted():
    vectors = np.random.default_rng(0).normal(size=(ROWS, DIM)).astype(np.float32)
    vectors[:10] /= np.linalg.norm(vectors[:10], axis=1, keepdims=True)
    vectors[[20, 77]] = 0
    return vectors


def write(path, *, vectors=None, provenance=PROVENANCE, normalized=False, chunk=CHUNK, **columns):
    vectors = planted() if vectors is None else vectors
    items = pl.DataFrame({"item_id": [f"secret-{i}" for i in range(len(vectors))], **columns})
    space = EmbeddingSpace("resnet", "ab" * 32, vectors.shape[1], normalized)
    with EmbeddingStore.create(path, space, chunk_rows=chunk, provenance=provenance) as store:
        store.append(items, vectors)
        store.commit()
    return path


@pytest.fixture
def store(tmp_path, monkeypatch):
    """A store in the working folder, named as people name it."""
    monkeypatch.chdir(tmp_path)
    return write(Path("gallery"), label=LABELS, split=["train", "train", "test", "train"] * (ROWS // 4))


def run(*argv):
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-m", "stores.inspect", *argv]
    return subprocess.run(command, env=environment, capture_output=True, text=True, check=False)


def told(capsys, *argv):
    """Exit code, the JSON object, and standard error."""
    code = main([*argv, "--json"])
    out, err = capsys.readouterr()
    return code, json.loads(out, parse_constant=pytest.fail), err


def files(path):
    return sorted(entry for entry in path.rglob("*") if entry.is_file() and entry.name != ".lock")


def flip(file, place=-1):
    content = bytearray(file.read_bytes())
    content[place] ^= 4
    file.write_bytes(content)


def test_what_it_says_is_what_was_planted(store, capsys):
    code, found, err = told(capsys, "gallery")
    assert (code, err) == (0, "")
    assert (found["path"], found["sound"], found["problems"]) == ("gallery", True, [])
    assert (found["rows"], found["complete"], found["format_version"]) == (ROWS, None, 1)
    assert found["space"] == {
        "name": "resnet",
        "fingerprint": "ab" * 32,
        "dim": DIM,
        "normalized": False,
        "similarity": "cosine",
    }
    sizes = {file: file.stat().st_size for file in files(store)}
    assert found["layout"] == {
        "chunk_rows": CHUNK,
        "chunks": 7,
        "shard_chunks": 1,
        "dtype": "float32",
        "compression": "none",
        "item_parts": 1,
        "rows_forgotten": 0,
        "bytes_vectors": sum(size for file, size in sizes.items() if "vectors" in file.parts),
        "bytes_items": sum(size for file, size in sizes.items() if "items" in file.parts),
        "bytes_total": sum(sizes.values()),
    }
    lengths = [math.sqrt(sum(float(x) ** 2 for x in vector)) for vector in planted()]
    norms = found["norms"]
    assert norms["rows"] == ROWS
    assert (norms["minimum"], norms["zero"], norms["not_finite"]) == (0, 2, 0)
    assert norms["maximum"] == pytest.approx(max(lengths), rel=1e-6)
    assert norms["unit_length"] == sum(abs(length - 1) <= 1e-3 for length in lengths) >= 10
    assert norms["unit_length_share"] == norms["unit_length"] / ROWS
    for share in QUANTILES:
        assert norms["quantiles"][str(share)] == pytest.approx(np.quantile(lengths, share), rel=5e-4)
    assert found["columns"] == [
        {"name": "item_id", "type": "String", "nulls": 0},
        {"name": "label", "type": "String", "nulls": LABELS.count(None)},
        {"name": "split", "type": "String", "nulls": 0},
    ]
    counts = Counter(label for label in LABELS if label)
    assert found["labels"] == {
        "labels": len(counts),
        "unlabelled": LABELS.count(None),
        "minimum": min(counts.values()),
        "median": float(np.median(list(counts.values()))),
        "maximum": max(counts.values()),
        "largest": [list(pair) for pair in sorted(counts.items(), key=lambda pair: (-pair[1], pair[0]))[:5]],
    }
    assert found["splits"] == {"train": 75, "test": 25}
    assert any("2 of 100 vectors are all zeros" in note for note in found["notes"])


def test_no_vector_and_no_item_id_is_told(store):
    for argv in (["gallery"], ["gallery", "--json"], ["gallery", "--check", "no"]):
        ran = run(*argv)
        assert (ran.returncode, ran.stderr) == (0, "")
        assert "secret" not in ran.stdout
        for value in planted().ravel()[:60]:
            assert f"{value:.5f}"[:-1] not in ran.stdout
    flip(store / "vectors" / "c" / "1" / "0", 5)
    assert "secret" not in run("gallery").stdout + run("gallery").stderr


def test_a_password_in_a_provenance_is_not_shown(tmp_path, capsys):
    told = {
        "converted_from": "postgresql://u:hidden@h/d/t?password=hidden",
        "of": {"source": "qdrant:https://h/c?api_key=hidden"},
    }
    EmbeddingStore.create(tmp_path / "s", EmbeddingSpace("x", None, 2, False), provenance=told).close()
    for more in ([], ["--json"]):
        assert main([str(tmp_path / "s"), *more]) == 0
        out, _ = capsys.readouterr()
        assert "hidden" not in out
        assert "postgresql://u@h/d/t" in out


def test_labels_that_name_items_are_counted_and_not_shown(tmp_path):
    found = inspect_store(write(tmp_path / "own", label=[f"secret-{i}" for i in range(ROWS)]))
    assert found.labels == LabelHistogram(ROWS, 0, 1, 1.0, 1, ())


def test_the_page_is_plain_aligned_text_with_nested_sources_indented(store):
    ran = run("gallery")
    assert ran.stderr == ""
    lines = ran.stdout.splitlines()
    assert lines[:2] == ["store  gallery", "state  sound, every file was read"]
    assert lines[lines.index("provenance") :] == [
        "provenance",
        "  migrated_from  old",
        "  transformer",
        "    family  ridge",
        "    digest  5e1f",
        "  source_provenance",
        "    converted_from  old.npy",
        "    source_provenance",
        "      extraction",
        "        backbone  r18",
        "        items     3",
        "    skipped         1 items, not shown",
        "    ids             9 values, not shown",
        "    item_id         not shown",
        "  means          0.5, 0.25, 0.125",
        "  loss           nan",
    ]
    assert "  chunks          7 of 16 rows" in lines
    assert "  label    String, 12 absent" in lines
    assert "  rows without    12" in lines
    assert "  train  75" in lines
    assert "\x1b" not in ran.stdout
    assert not any(line.endswith(" ") for line in lines)


def test_names_cannot_steer_the_terminal(tmp_path, capsys):
    path = write(tmp_path / "evil", provenance={"a\x1b[2J": "b\x1b]0;title\x07\nc\ud800"}, label=["\x1b[31mred"] * ROWS)
    assert main([str(path)]) == 0
    out = capsys.readouterr().out
    assert "\x1b" not in out
    assert "\x07" not in out
    assert f"    ?[31mred  {ROWS}\n" in out
    assert "  a?[2J  b?]0;title??c?\n" in out


def test_an_empty_store(tmp_path, capsys):
    EmbeddingStore.create(tmp_path / "none", EmbeddingSpace("resnet", None, 4, True)).close()
    for check, sound in (("yes", True), ("no", None)):
        code, found, err = told(capsys, str(tmp_path / "none"), "--check", check)
        assert (code, err, found["sound"], found["rows"]) == (0, "", sound, 0)
        assert (found["norms"], found["columns"], found["labels"], found["splits"]) == (None, [], None, None)
        assert found["layout"]["chunks"] == found["layout"]["item_parts"] == 0
        assert main([str(tmp_path / "none"), "--check", check]) == 0
        out = capsys.readouterr().out
        assert re.search(r"^rows +0, the store is empty$", out, flags=re.MULTILINE)
        assert "none, the space goes by its name" in out
        assert "provenance  none was given" in out


@pytest.mark.parametrize(
    ("complete", "says"), [(False, "UNFINISHED, 100 rows so far"), (True, "written to its end"), (None, "")]
)
def test_whether_it_was_written_to_its_end(tmp_path, capsys, complete, says):
    provenance = {"extraction": {}} | ({} if complete is None else {"complete": complete})
    path = write(tmp_path / "s", provenance=provenance)
    code, found, _ = told(capsys, str(path))
    assert (code, found["sound"], found["complete"]) == (0, True, complete)
    assert found["provenance"] == {"extraction": {}}
    assert main([str(path)]) == 0
    assert says in capsys.readouterr().out.splitlines()[1]


def test_every_flipped_byte_is_found_and_its_file_named(store, capsys):
    chance = random.Random(0)
    for file in files(store):
        content = file.read_bytes()
        for place in chance.sample(range(len(content)), 6):
            flip(file, place)
            code, found, err = told(capsys, "gallery")
            if file.suffix == ".json" and code == 0:  # between two words of the metadata
                assert content[place : place + 1].isspace()
                file.write_bytes(content)
                continue
            assert (code, found["sound"], len(found["problems"])) == (DAMAGED, False, 1), (file, place)
            assert str(file) in found["problems"][0]
            assert err == f"error: gallery is damaged: {found['problems'][0]}\n"
            file.write_bytes(content)
    assert told(capsys, "gallery")[0] == 0


@pytest.mark.parametrize("check", ["yes", "no"])
@pytest.mark.parametrize("harm", [Path.unlink, lambda file: file.write_bytes(file.read_bytes()[:-3])])
def test_every_lost_or_cut_file_is_named(store, capsys, check, harm):
    for file in files(store):
        content = file.read_bytes()
        harm(file)
        code, found, err = told(capsys, "gallery", "--check", check)
        assert (code, found["sound"], len(found["problems"])) == (DAMAGED, False, 1), file
        assert str(file) in found["problems"][0]
        assert err.count("\n") == 1
        file.write_bytes(content)


def test_all_damage_is_named_and_the_rest_is_still_told(store, capsys):
    flip(store / "vectors" / "c" / "1" / "0", 5)
    (store / "vectors" / "c" / "6" / "0").unlink()
    code, found, err = told(capsys, "gallery")
    assert code == DAMAGED
    assert [problem.split()[2] for problem in found["problems"]] == ["gallery/vectors/c/1/0", "gallery/vectors/c/6/0"]
    assert "(and 1 more)" in err
    assert found["norms"]["rows"] == ROWS - CHUNK - ROWS % CHUNK
    assert found["labels"]["labels"] == len(set(LABELS) - {None})
    next((store / "items").iterdir()).unlink()
    code, found, _ = told(capsys, "gallery")
    assert len(found["problems"]) == 3
    assert (found["columns"], found["labels"], found["rows"]) == ([], None, ROWS)
    ran = run("gallery")
    assert (ran.returncode, ran.stderr.count("\n")) == (DAMAGED, 1)
    assert ran.stdout.splitlines()[1] == "state  DAMAGED"
    assert ran.stdout.count("restore it from a copy") == 3


def test_many_damaged_files_do_not_flood_the_terminal(store, capsys):
    vectors = np.ones((15 * CHUNK, 2))
    write(Path("long"), vectors=vectors)
    shutil.rmtree("long/vectors/c")
    assert main(["long"]) == DAMAGED
    assert capsys.readouterr().out.count(" is missing") == 10
    assert len(told(capsys, "long")[1]["problems"]) == 15


def test_a_lost_commit_record_is_damage_and_json_keeps_its_fields(store, capsys):
    whole = told(capsys, "gallery")[1]
    flip(store / "store.json", 40)
    code, found, _ = told(capsys, "gallery")
    assert code == DAMAGED
    assert found.keys() == whole.keys()
    assert {key for key, value in found.items() if value is not None} == {"path", "sound", "problems"}
    assert main(["gallery"]) == DAMAGED
    out, err = capsys.readouterr()
    assert out == ""
    assert "gallery/store.json does not match its own digest" in err


def mistakes(store):
    np.save("array.npy", planted())
    Path("vacant").mkdir()
    shutil.copytree(store, "later")
    body = unseal(store / "store.json", version=1)
    Path("later/store.json").write_bytes(seal(body | {"format_version": 99}))


MISTAKES = {
    "nothing named": ([], "required: store"),
    "nothing there": (["gone"], "no embedding store at gone: the path does not exist"),
    "vacant folder": (["vacant"], "no embedding store at vacant: it has no file store.json"),
    "a file of it": (["gallery/store.json"], "name that folder"),
    "an array": (["array.npy"], "python -m stores.convert array.npy STORE"),
    "an index": (["faiss:gone"], "python -m stores.convert faiss:gone STORE"),
    "unknown kind": (["lmdb:x"], "unknown kind of gallery 'lmdb'"),
    "later version": (["later"], "format version 99"),
    "unknown option": (["gallery", "--colour", "red"], "--help"),
    "no such check": (["gallery", "--check", "maybe"], "yes"),
}


def test_every_mistake_is_one_line(store, capsys):
    mistakes(store)
    for case, (argv, expected) in MISTAKES.items():
        for more in ([], ["--json"]):
            assert main([*argv, *more]) == 2, case
            out, err = capsys.readouterr()
            assert (out, err.count("\n")) == ("", 1), (case, err)
            assert expected in err, (case, err)
    ran = run("array.npy")
    assert (ran.returncode, ran.stdout, ran.stderr.count("\n")) == (2, "", 1)


def test_without_the_check_a_sample_is_read_and_said_to_be_one(store, capsys, monkeypatch):
    code, found, _ = told(capsys, "gallery", "--check", "no")
    assert (code, found["sound"], found["norms"]["rows"]) == (0, None, ROWS)
    monkeypatch.setattr("stores.inspection.SAMPLE_ROWS", 3 * CHUNK)
    code, found, _ = told(capsys, "gallery", "--check=no")
    assert found["norms"]["rows"] == 2 * CHUNK + ROWS % CHUNK  # first, middle and last chunk
    assert any("a sample of 36 vectors" in note for note in found["notes"])
    flip(store / "vectors" / "c" / "1" / "0", 5)  # not in the sample
    assert told(capsys, "gallery", "--check", "no")[0] == 0
    flip(store / "vectors" / "c" / "3" / "0", 5)  # in it
    code, found, _ = told(capsys, "gallery", "--check", "no")
    assert (code, len(found["problems"])) == (DAMAGED, 1)


def test_json_is_a_flag_and_an_option(store, capsys):
    for argv in (["--json", "gallery"], ["gallery", "--json", "yes"], ["--json=yes", "gallery"]):
        assert main(argv) == 0
        json.loads(capsys.readouterr().out)
    assert main(["gallery", "--json", "no"]) == 0
    assert capsys.readouterr().out.startswith("store  gallery")


def test_progress_is_told_and_standard_output_stays_json(store, capsys, monkeypatch):
    ticks = iter(range(0, 100_000, 10))
    monkeypatch.setattr("stores.command_line.time.monotonic", lambda: next(ticks))
    code, _, err = told(capsys, "gallery")
    assert code == 0
    assert "reading item tables: 1/1\n" in err
    assert "checking chunks: 7/7\n" in err
    steps = []
    inspect_store(store, on_step=lambda *step: steps.append(step))
    assert steps == [("reading item tables", 1, 1)] + [("checking chunks", done, 7) for done in range(1, 8)]


def test_norms_at_the_limits_of_float32():
    norms = Norms()
    norms.add(np.array([[1e-30, 0], [3e38, 3e38], [0, 0], [np.nan, 1], [np.inf, 1], [1.0005, 0]], np.float32))
    found = norms.summary()
    assert found is not None
    assert (found.rows, found.zero, found.not_finite, found.unit_length) == (6, 1, 2, 1)
    assert found.minimum == 0
    assert found.maximum == pytest.approx(3e38 * math.sqrt(2), rel=1e-6)
    assert found.quantiles["0.25"] == pytest.approx(0.75e-30, rel=1e-3)
    only_bad = Norms()
    only_bad.add(np.full((2, 3), np.nan, np.float32))
    found = only_bad.summary()
    assert found is not None
    assert (found.minimum, found.maximum, found.quantiles, found.not_finite) == (None, None, {}, 2)
    assert Norms().summary() is None


@pytest.mark.parametrize("scale", [1e-12, 1, 1e12])
def test_quantiles_are_those_of_numpy(scale):
    generator = np.random.default_rng(1)
    vectors = (generator.normal(size=(5000, 3)) * generator.lognormal(2, 3, size=(5000, 1)) * scale).astype(np.float32)
    norms = Norms()
    for start in range(0, 5000, 700):
        norms.add(vectors[start : start + 700])
    found = norms.summary()
    assert found is not None
    lengths = np.linalg.norm(vectors.astype(np.float64), axis=1)
    np.testing.assert_allclose(list(found.quantiles.values()), np.quantile(lengths, QUANTILES), rtol=5e-4)


def test_a_space_that_claims_unit_length_is_contradicted(tmp_path):
    found = inspect_store(write(tmp_path / "claims", normalized=True))
    assert any("says normalized, but" in note for note in found.notes)
    unit = planted()[:10]
    assert inspect_store(write(tmp_path / "unit", vectors=unit, normalized=True)).notes == ()


@pytest.mark.parametrize("at_once", [LABELS_AT_ONCE, 40, 1_000])
@pytest.mark.parametrize("kind", ["strings", "integers", "floats", "categories", "absent"])
def test_labels_are_counted_exactly_however_many_fit_in_memory(tmp_path, monkeypatch, at_once, kind):
    generator = np.random.default_rng(2)
    numbers = generator.zipf(1.3, size=6000) % 1500
    absent = generator.random(6000) < (1 if kind == "absent" else 0.1)
    types = {"strings": pl.String, "integers": pl.Int64, "floats": pl.Float64, "categories": pl.Categorical}
    labels = pl.Series("label", numbers).cast(pl.String if kind == "categories" else types.get(kind, pl.String))
    labels = pl.select(pl.when(pl.Series(~absent)).then(labels).alias("label"))["label"].cast(
        types.get(kind, pl.String)
    )
    paths = []
    for start in range(0, 6000, 500):
        paths.append(tmp_path / f"{start}.parquet")
        labels[start : start + 500].to_frame().write_parquet(paths[-1])
    held = []
    merge = summaries._merged
    monkeypatch.setattr(summaries, "LABELS_AT_ONCE", at_once)
    monkeypatch.setattr(summaries, "_merged", lambda counts: held.append(len(merge(counts))) or merge(counts))
    found = label_histogram(paths, "label", largest=4)
    text = labels.cast(pl.String) if kind != "integers" else labels
    counts = Counter(text.drop_nulls().to_list())
    assert found is not None
    assert max(held) <= at_once + 500
    assert (found.labels, found.unlabelled) == (len(counts), int(absent.sum()))
    if not counts:
        assert found == LabelHistogram(0, 6000, None, None, None, ())
        return
    sizes = list(counts.values())
    assert (found.minimum, found.median, found.maximum) == (min(sizes), float(np.median(sizes)), max(sizes))
    assert list(found.largest) == sorted(counts.items(), key=lambda pair: (-pair[1], str(pair[0])))[:4]


def test_columns_and_labels_over_several_files_of_the_table(tmp_path):
    rows = PART_ROWS + 1000
    labels = [i % 701 if i % 3 else None for i in range(rows)]
    found = inspect_store(write(tmp_path / "two", vectors=np.ones((rows, 1)), chunk=10_000, label=labels))
    assert found.layout.item_parts == 2
    assert found.columns[1].nulls == labels.count(None)
    counts = Counter(label for label in labels if label is not None)
    assert found.labels is not None
    assert (found.labels.labels, found.labels.unlabelled) == (701, labels.count(None))
    assert (found.labels.minimum, found.labels.maximum) == (min(counts.values()), max(counts.values()))


def test_labels_without_an_order_and_splits_without_end(tmp_path):
    found = inspect_store(write(tmp_path / "odd", label=[[1, 2]] * ROWS, split=list(range(ROWS))))
    assert found.labels is None
    assert "labels of type List(Int64) are not counted" in found.notes
    assert found.splits is not None
    assert len(found.splits) == 20
    assert any("20 largest of 100 splits" in note for note in found.notes)


def test_a_store_that_is_being_written_is_not_called_damaged(tmp_path):
    write(tmp_path / "busy")
    code = """if True:
        import sys
        import numpy as np
        import polars as pl
        from stores.store import EmbeddingStore
        with EmbeddingStore.open(sys.argv[1]) as store:
            for number in range(100_000):  # the last item table is replaced each time
                store.append(pl.DataFrame({"item_id": [f"new {number}"]}), np.ones((1, 6)))
                store.commit()
        """
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    writer = subprocess.Popen([sys.executable, "-c", code, str(tmp_path / "busy")], env=environment)
    try:
        deadline = time.monotonic() + 60
        while len(EmbeddingStore.open(tmp_path / "busy")) == ROWS:
            assert time.monotonic() < deadline
        rows = []
        while len(set(rows)) < 10:
            assert time.monotonic() < deadline
            try:
                found = inspect_store(tmp_path / "busy")
            except StoreLocked:  # as good an answer as any, when the writer does nothing else
                continue
            assert found.problems == ()
            rows.append(found.rows)
    finally:
        writer.kill()
        writer.wait()
    assert inspect_store(tmp_path / "busy").sound


def test_help_answers_at_once_and_loads_nothing_heavy():
    code = """if True:
        import sys
        from stores.inspect import main
        assert main(["--help"]) == 0
        assert not {"zarr", "polars", "numpy", "torch", "faiss", "rich"} & sys.modules.keys()
        """
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    ran = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=False)
    assert ran.returncode == 0, ran.stderr
    assert "--check" in ran.stdout
