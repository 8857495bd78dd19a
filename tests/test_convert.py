"""`python -m stores.convert`, run as people run it."""

import os
import random
import shutil
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import polars as pl
import pytest
from real_postgres import postgres, schema

from stores.convert import ConvertOptions, ConvertResult, convert, main
from stores.galleries import open_source
from stores.galleries.zarr_store import StoreTarget
from stores.inspect import main as inspect
from stores.space import EmbeddingSpace
from stores.store import EmbeddingStore

__all__ = ["postgres", "schema"]
ROOT = Path(__file__).parent.parent
ROWS, DIM = 60, 6


@pytest.fixture(autouse=True)
def work(tmp_path, monkeypatch):
    """A folder with an array of 60 vectors and tables that describe them, which is where commands run."""
    monkeypatch.chdir(tmp_path)
    vectors = np.random.default_rng(0).normal(size=(ROWS, DIM)) * 20
    np.save("old.npy", vectors.astype(np.float32))
    names = pl.DataFrame({"item_id": [f"{i:03}" for i in range(ROWS)], "camera": ["left", "right"] * 30})
    names.write_csv("names.csv")
    names.write_parquet("names.parquet")
    names.write_ndjson("names.ndjson")
    names.write_json("names.json")
    names.write_ipc("names.arrow")
    pl.DataFrame({"label": range(ROWS)}).write_csv("labels.csv")
    return tmp_path


def command(*argv):
    return [sys.executable, "-m", "stores.convert", *argv]


def environment():
    return {**os.environ, "PYTHONPATH": str(ROOT)}


def run(*argv):
    return subprocess.run(command(*argv), env=environment(), capture_output=True, text=True, check=False)


def succeed(*argv):
    ran = run(*argv)
    assert (ran.returncode, ran.stderr) == (0, "")
    assert ran.stdout.count("\n") == 1
    return ran.stdout.strip()


def items_and_vectors(uri):
    batches = list(open_source(uri).scan(7))
    return pl.concat([batch.items for batch in batches]), np.concatenate([batch.vectors for batch in batches])


def test_an_array_with_names_and_labels_becomes_a_store():
    line = succeed(
        "old.npy", "store", "--ids", "names.csv", "--labels", "labels.csv", "--space-name", "r50", "--batch-rows", "8"
    )
    assert line == "done: 60 vectors of r50 (6-D) in store"
    store = EmbeddingStore.open("store")
    assert store.space == EmbeddingSpace("r50", None, DIM, False)
    assert store.items.columns == ["item_id", "camera", "label"]
    assert store.items["item_id"][7] == "007"
    assert list(store.items["label"]) == list(range(ROWS))
    np.testing.assert_array_equal(store.rows(0, ROWS), np.load("old.npy"))
    assert store.provenance["converted_from"] == "old.npy"
    assert (
        succeed("old.npy", "store", "--ids", "names.csv", "--labels", "labels.csv", "--space-name", "r50")
        == "already complete: 60 vectors of r50 (6-D) in store"
    )


@pytest.mark.parametrize("ids", ["names.parquet", None])
def test_round_trip_through_every_format(ids):
    options = {"ids": ids, "space_name": "r50"}
    convert(ConvertOptions("old.npy", "a", **options))
    expected, vectors = items_and_vectors("a")
    assert expected["item_id"].dtype == (pl.String if ids else pl.Int64)
    for source, target in [("a", "b.parquet"), ("b.parquet", "c.faiss"), ("c.faiss", "d.npy"), ("d.npy", "e")]:
        result = convert(ConvertOptions(source, target, batch_rows=11))
        assert result == ConvertResult(target, ROWS, EmbeddingSpace("r50", None, DIM, False), 0, False)
        found, values = items_and_vectors(target)
        assert found.equals(expected)
        np.testing.assert_allclose(values, vectors, rtol=1e-6)
    assert EmbeddingStore.open("e").provenance["source_provenance"]["converted_from"] == "c.faiss"


@pytest.mark.parametrize("table", ["names.csv", "names.parquet", "names.ndjson", "names.json", "names.arrow"])
def test_every_kind_of_table(table):
    convert(ConvertOptions("old.npy", "out", ids=table, space_name="r50"))
    assert EmbeddingStore.open("out").items.equals(pl.read_parquet("names.parquet"))


@pytest.mark.parametrize(("text", "kind"), [(["1", "20", "-3"], pl.Int64), (["1", "02", "3"], pl.String)])
def test_ids_of_a_csv_are_numbers_only_when_written_so(text, kind):
    np.save("three.npy", np.ones((3, 2)))
    Path("ids.csv").write_text("item_id\n" + "\n".join(text))
    convert(ConvertOptions("three.npy", "out", ids="ids.csv", space_name="r50"))
    ids = EmbeddingStore.open("out").items["item_id"]
    assert ids.dtype == kind
    assert list(ids.cast(pl.String)) == text


def test_one_table_can_give_ids_and_labels():
    pl.DataFrame({"item_id": range(ROWS), "label": ["a"] * ROWS}).write_csv("both.csv")
    convert(ConvertOptions("old.npy", "out", ids="both.csv", labels="both.csv", space_name="r50"))
    assert EmbeddingStore.open("out").items.equals(pl.read_csv("both.csv"))


@pytest.mark.parametrize(
    ("scale", "normalized", "expected"),
    [(1.0, "auto", True), (1.0005, "auto", True), (1.01, "auto", False), (1.0, "no", False), (2.0, "yes", True)],
)
def test_normalized_is_found_out_or_told(scale, normalized, expected):
    vectors = np.load("old.npy").astype(np.float64)
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    vectors[-1] *= scale  # the last row alone decides
    np.save("unit.npy", vectors)
    result = convert(ConvertOptions("unit.npy", "out", space_name="r50", normalized=normalized, batch_rows=7))
    assert result.space.normalized == expected


def test_a_store_can_be_laid_out():
    layout = ["--dtype", "float16", "--chunk-rows", "8", "--shard-chunks", "3"]
    succeed("old.npy", "out", "--space-name", "r50", *layout)
    store = EmbeddingStore.open("out")
    assert (store.layout.dtype, store.layout.chunk_rows, store.layout.shard_chunks) == ("float16", 8, 3)
    np.testing.assert_array_equal(store.rows(0, ROWS), np.load("old.npy").astype(np.float16).astype(np.float32))
    assert "already complete" in succeed("old.npy", "out", "--space-name", "r50", *layout)
    for further in ([], ["--dtype", "float32"], ["--dtype", "float16", "--chunk-rows", "16"]):
        ran = run("old.npy", "out", "--space-name", "r50", *further)
        assert (ran.returncode, ran.stderr.count("\n")) == (2, 1)
        assert "out already exists with --" in ran.stderr
    ran = run("old.npy", "huge", "--space-name", "r50", "--chunk-rows", "1000000000000")
    assert (ran.returncode, ran.stderr.count("\n")) == (2, 1)
    assert "choose fewer chunk_rows" in ran.stderr
    assert not Path("huge").exists()
    ran = run("old.npy", "out.parquet", "--space-name", "r50", "--dtype", "float16")
    assert (ran.returncode, ran.stderr.count("\n")) == (2, 1)
    assert "lay out a store, but out.parquet is a gallery of the kind parquet" in ran.stderr


def test_vectors_decoded_from_codes_are_said_to_be_approximations():
    faiss = pytest.importorskip("faiss")
    index = faiss.IndexScalarQuantizer(DIM, faiss.ScalarQuantizer.QT_8bit)
    index.train(np.load("old.npy"))
    index.add(np.load("old.npy"))
    faiss.write_index(index, "codes.faiss")
    for further in ([], ["--ids", "names.csv"]):
        ran = run("codes.faiss", f"out{len(further)}", "--space-name", "r50", *further)
        assert ran.returncode == 0
        assert ran.stderr.startswith("note: codes.faiss ")
        assert ran.stderr.count("\n") == 1
        store = EmbeddingStore.open(f"out{len(further)}")
        assert store.provenance["source_provenance"]["exact"] is False
        np.testing.assert_allclose(store.rows(0, ROWS), np.load("old.npy"), atol=0.5)


def test_an_empty_array():
    np.save("none.npy", np.empty((0, 4), np.float32))
    assert convert(ConvertOptions("none.npy", "out.parquet", space_name="r50")).rows == 0
    assert len(open_source("out.parquet")) == 0


def test_a_changed_source_is_not_mixed_with_what_was_copied():
    convert(ConvertOptions("old.npy", "out", space_name="r50"))
    np.save("old.npy", np.ones((ROWS + 1, DIM)))
    with pytest.raises(FileExistsError, match="rows, source_digest differ"):
        convert(ConvertOptions("old.npy", "out", space_name="r50", normalized="no"))
    np.save("old.npy", np.ones((ROWS, DIM)))
    with pytest.raises(FileExistsError, match=r"\(source_digest differ\)"):
        convert(ConvertOptions("old.npy", "out", space_name="r50", normalized="no"))


def test_labels_of_a_csv_keep_their_zeros():
    np.save("three.npy", np.ones((3, 2)))
    Path("ids.csv").write_text("item_id,label\na,01\nb,1\nc,001\n")
    convert(ConvertOptions("three.npy", "out", ids="ids.csv", space_name="r50"))
    assert EmbeddingStore.open("out").items["label"].to_list() == ["01", "1", "001"]


def spoil():
    """Sources and tables with something wrong."""
    np.save("flat.npy", np.ones(5))
    np.save("objects.npy", np.array([[{}]]))
    np.save("nan.npy", np.full((ROWS, DIM), np.nan))
    Path("text.npy").write_text("dear")
    Path("taken.npy").write_text("dear")
    Path("text.parquet").write_text("dear")
    Path("text.faiss").write_text("dear dear dear")
    Path("ragged.csv").write_text('item_id,x\n1,2,3\n"')
    Path("short.csv").write_text("item_id\na\nb\n")
    Path("twice.csv").write_text("item_id\n" + "a\n" * ROWS)
    Path("names.txt").write_text("a")
    convert(ConvertOptions("old.npy", "known", space_name="r50"))


RAW = ["old.npy", "out", "--space-name", "r50"]
MISTAKES = {
    "no arguments": ([], "required: source, target"),
    "no target": (["old.npy"], "required: target"),
    "unknown option": ([*RAW, "--colour", "red"], "--help"),
    "no name for the space": (["old.npy", "out"], "--space-name resnet50"),
    "a name for a known space": (["known", "out", "--space-name", "vit"], "leave them out"),
    "normalized for a known space": (["known", "out", "--normalized", "yes"], "leave them out"),
    "normalized maybe": ([*RAW, "--normalized", "maybe"], "auto"),
    "batches of nothing": ([*RAW, "--batch-rows", "0"], "at least 1, found 0"),
    "missing source": (["gone.npy", *RAW[1:]], "no gallery at gone.npy"),
    "missing store": (["gone", *RAW[1:]], "no embedding store at gone"),
    "unknown scheme": (["lmdb:x", *RAW[1:]], "expected one of zarr, npy, parquet, faiss"),
    "one row": (["flat.npy", *RAW[1:]], "float64 [5]"),
    "objects": (["objects.npy", *RAW[1:]], "objects.npy"),
    "NaN": (["nan.npy", *RAW[1:]], "NaN or infinity"),
    "no array": (["text.npy", *RAW[1:]], "text.npy"),
    "no table": (["text.parquet", *RAW[1:]], "text.parquet"),
    "no index": (["text.faiss", *RAW[1:]], "b'dear'"),
    "target is taken": (["old.npy", "taken.npy", *RAW[2:]], "taken.npy already exists"),
    "target has another origin": (["old.npy", "known", "--space-name", "vit"], "expected vit"),
    "target below a file": (["old.npy", "taken.npy/out", *RAW[2:]], "taken.npy"),
    "missing ids": ([*RAW, "--ids", "gone.csv"], "no table at gone.csv"),
    "ids of unknown format": ([*RAW, "--ids", "names.txt"], "names.txt"),
    "ids that cannot be read": ([*RAW, "--ids", "ragged.csv"], "ragged.csv cannot be read"),
    "no column item_id": ([*RAW, "--ids", "labels.csv"], "no column item_id; found label"),
    "no column label": ([*RAW, "--labels", "names.csv"], "no column label; found item_id, camera"),
    "too few ids": ([*RAW, "--ids", "short.csv"], "2 rows, expected 60"),
    "ids twice": ([*RAW, "--ids", "twice.csv"], "'a' and 59 more"),
}


def test_every_mistake_is_one_line_and_leaves_nothing(work, capsys):
    spoil()
    before = sorted(path.name for path in work.iterdir())
    for case, (argv, expected) in MISTAKES.items():
        assert main(argv) == 2, case
        out, err = capsys.readouterr()
        assert (out, err.count("\n")) == ("", 1), (case, err)
        assert expected in err, case
        if case == "NaN":  # found on the way, when the target is begun
            shutil.rmtree("out")
        assert sorted(path.name for path in work.iterdir()) == before, case


@pytest.mark.parametrize(
    "case", ["no arguments", "no name for the space", "no table", "ids that cannot be read", "NaN"]
)
def test_a_mistake_as_people_see_it(case):
    spoil()
    argv, expected = MISTAKES[case]
    ran = run(*argv)
    assert ran.returncode == 2
    assert ran.stdout == ""
    assert ran.stderr.startswith("error: ")
    assert ran.stderr.count("\n") == 1
    assert expected in ran.stderr
    assert "Traceback" not in ran.stderr


def contents(folder):
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.mark.parametrize("target", ["out", "out.parquet"])
def test_killed_and_run_again_it_ends_as_if_never_interrupted(work, target):
    np.save("old.npy", np.random.default_rng(1).normal(size=(4000, 16)))
    argv = ["--space-name", "r50", "--normalized", "no", "--batch-rows", "10"]
    (work / "whole").mkdir()
    (work / "killed").mkdir()
    assert run("old.npy", f"whole/{target}", *argv).returncode == 0
    moments, kills = random.Random(2), 0
    for _ in range(3):
        process = subprocess.Popen(
            command("old.npy", f"killed/{target}", *argv),
            env=environment(),
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        deadline = time.monotonic() + 20
        while process.poll() is None and not list((work / "killed").glob("*/store.json")) + list(
            (work / "killed").glob(".*/store.json")
        ):
            assert time.monotonic() < deadline
            time.sleep(0.01)
        time.sleep(moments.uniform(0.1, 0.4))
        process.kill()
        kills += process.wait() < 0
    assert kills
    assert "4000 vectors" in run("old.npy", f"killed/{target}", *argv).stdout
    assert contents(work / "killed") == contents(work / "whole")


class TestFromEngines:
    """From places that others write to, and with passwords."""

    @pytest.fixture
    def table(self, postgres, schema):
        postgres.execute(f"CREATE TABLE {schema}.people (id int PRIMARY KEY, face vector(2))")
        postgres.execute(f"INSERT INTO {schema}.people SELECT i, ARRAY[i, 1]::vector FROM generate_series(0, 39) AS i")
        return f"{schema}.people"

    @pytest.fixture
    def uri(self, postgres, table):
        return postgres.uri(table).replace("postgres@", "postgres:Tr0ub4dor@") + "&password=Tr0ub4dor"

    def test_no_password_is_printed_or_kept(self, uri, postgres, schema, work, capsys):
        assert main([uri, "copy", "--space-name", "old"]) == 0
        back = uri.replace("people", "back")
        assert main(["copy", back]) == 0
        assert main([back, "again.parquet"]) == 0
        for argv in ([uri, "other"], [back, "other", "--space-name", "new"], ["old.npy", back, "--dtype", "float16"]):
            assert main(argv) == 2
        assert inspect(["copy"]) == 0
        for place in (uri, back, "qdrant:https://host:6333/c?api_key=Tr0ub4dor"):
            assert inspect([place]) == 2
        assert "Tr0ub4dor" not in "".join(capsys.readouterr())
        for path in work.rglob("*"):
            assert path.is_dir() or b"Tr0ub4dor" not in path.read_bytes(), path
        kept = postgres.execute(f"SELECT provenance::text FROM {schema}.embedding_galleries")
        assert "Tr0ub4dor" not in str(kept)
        assert EmbeddingStore.open("copy").provenance["converted_from"].startswith("postgresql://postgres@/postgres/")

    def test_what_a_target_loses_is_said(self, uri, postgres, schema, capsys):
        assert main([uri, postgres.uri(f"{schema}.half", type="halfvec"), "--space-name", "old"]) == 0
        assert "note: halfvec keeps three digits of each number\n" in capsys.readouterr().err

    def test_rows_that_changed_between_two_runs_are_not_lost_silently(self, uri, table, postgres, monkeypatch, capsys):
        argv = [uri, "copy", "--space-name", "old", "--normalized", "no", "--batch-rows", "10"]
        monkeypatch.setattr("stores.convert._BATCHES_PER_COMMIT", 1)
        with monkeypatch.context() as patch:
            real = StoreTarget.write

            def stop_at_the_third(target, batch):
                if target.rows_committed == 20:
                    raise KeyboardInterrupt
                real(target, batch)

            patch.setattr(StoreTarget, "write", stop_at_the_third)
            assert main(argv) == 130
        assert len(EmbeddingStore.open("copy")) == 20
        postgres.execute(f"DELETE FROM {table} WHERE id = 3")
        postgres.execute(f"INSERT INTO {table} VALUES (40, '[1,1]')")  # as many rows as before
        assert main(argv) == 2
        assert "copy already exists and has another origin (source_digest differ)" in capsys.readouterr().err
        with pytest.raises(ValueError, match="unfinished"):
            open_source("copy")
        postgres.execute(f"DELETE FROM {table} WHERE id = 40")
        postgres.execute(f"INSERT INTO {table} VALUES (3, '[3,1]')")
        assert main(argv) == 0
        assert items_and_vectors("copy")[0]["item_id"].to_list() == list(range(40))
