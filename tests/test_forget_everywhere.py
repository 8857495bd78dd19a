"""Forgetting people in several galleries of several kinds at once, down to their bytes."""

import contextlib
import json
import shutil
import struct
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import polars as pl
import pytest
from real_postgres import postgres, schema

import stores.forgetting
import stores.galleries.rewriting
from stores.forget import main
from stores.galleries import open_source, open_target
from stores.galleries import zarr_store as engine
from stores.space import EmbeddingSpace
from stores.store import Batch, EmbeddingStore

__all__ = ["postgres", "schema"]
DIM = 6
SPACE = EmbeddingSpace("resnet", None, DIM, False)
ROWS = 30
NAMES = [f"p{n // 6}/{n % 6 // 2}.jpg" + ("#view1" if n % 2 else "") for n in range(ROWS)]
ITEMS = pl.DataFrame(
    {"item_id": NAMES, "label": [each[:2] for each in NAMES], "source_item": [each.split("#")[0] for each in NAMES]}
)
FILES = ["g.npy", "g.npz", "g.parquet", "g.arrow", "g.csv", "csv+json:j.csv", "g.h5", "g.faiss"]
ENGINES = ["lance:lancedb/g", "qdrant:qdrantdb/g"]


def vectors(seed):
    return np.random.default_rng(seed).normal(size=(ROWS, DIM)).astype(np.float32) * 3


def write(uri, seed=0, items=ITEMS):
    target = open_target(uri, SPACE, {"seed": seed})
    for start in range(0, ROWS, 10):
        target.write(Batch(items[start : start + 10], vectors(seed)[start : start + 10]))
        target.commit()
    target.finish()
    target.close()


def contents(uri):
    source = open_source(uri)
    batches = list(source.scan(7))
    found = pl.concat([batch.items for batch in batches]), np.concatenate([batch.vectors for batch in batches])
    return source.provenance, *found


def needles(vector):
    """Every form in which the vectors of these engines are kept: raw and of unit length, in either width, as text."""
    unit = vector.astype(np.float64) / np.linalg.norm(vector.astype(np.float64))
    for each in (vector, unit.astype(np.float32)):
        for part in (each[:2], each[-2:]):
            yield part.astype("<f4").tobytes()
            yield part.astype("<f8").tobytes()
            yield b"G" + struct.pack(">d", part[0]) + b"G" + struct.pack(">d", part[1])  # of a pickle
            yield ",".join(str(number) for number in part).encode()


def holding(folder, vector):
    wanted = list(needles(vector))
    return [
        path
        for path in sorted(Path(folder).rglob("*"))
        if path.is_file() and any(each in path.read_bytes() for each in wanted)
    ]


@pytest.fixture(autouse=True)
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


GONE = [0, 1, *range(12, 18)]  # p0/0.jpg with its view, and all of p2
LEFT = [row for row in range(ROWS) if row not in GONE]
COMMAND = ["--id", "p0/0.jpg", "--label", "p2"]


@pytest.mark.parametrize("uri", [*FILES, *ENGINES, "store"])
def test_no_file_holds_their_bytes_and_the_others_are_as_they_were(uri, capsys):
    write(uri)
    before = contents(uri)
    assert all(holding(".", vector) for vector in vectors(0)), "the search itself finds what is there"
    assert main([uri, *COMMAND]) == 0
    out, err = capsys.readouterr()
    held = "store" if uri == "store" else "gallery"
    assert out == f"forgot 8 items of {uri}, 22 are left; no file of the {held} holds their bytes\n"
    assert err == ""
    provenance, items, kept = contents(uri)
    assert provenance == before[0] == {"seed": 0}
    assert items.equals(before[1][LEFT])
    np.testing.assert_array_equal(kept.view(np.uint32), before[2][LEFT].view(np.uint32))
    assert [row for row in range(ROWS) if not holding(".", vectors(0)[row])] == GONE
    assert not list(Path().rglob("*.partial"))
    target = open_target(uri, SPACE, {"seed": 0})  # the same work is finished still
    assert target.finished
    assert target.rows_committed == 22
    target.close()


def test_faiss_loads_the_index_with_the_rest():
    write("g.faiss")
    before = Path("g.faiss").read_bytes()
    assert main(["g.faiss", *COMMAND]) == 0
    script = (
        "import faiss, json; index = faiss.read_index('g.faiss'); "
        "print(index.ntotal, json.dumps(index.reconstruct_n(0, index.ntotal).tolist()))"
    )
    ran = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    total, found = ran.stdout.split(" ", 1)
    unit = np.frombuffer(before[-4 * DIM * ROWS :], "<f4").reshape(ROWS, DIM)
    assert int(total) == len(LEFT)
    np.testing.assert_array_equal(np.array(json.loads(found), np.float32), unit[LEFT])


def test_a_person_goes_from_the_old_and_the_migrated_galleries_at_once(capsys):
    bare = ITEMS.select("item_id")  # what a label or a view is, the old gallery alone tells
    uris = ["old", "new.parquet", "lance:lancedb/new", "qdrant:qdrantdb/new"]
    for seed, uri in enumerate(uris):
        write(uri, seed, ITEMS if uri == "old" else bare)
    assert main([*uris, *COMMAND]) == 0
    out, _ = capsys.readouterr()
    assert [line.split(";")[0] for line in out.splitlines()] == [
        f"forgot 8 items of {uri}, 22 are left" for uri in [*uris[1:], "old"]
    ]
    for seed, uri in enumerate(uris):
        assert contents(uri)[1]["item_id"].to_list() == [NAMES[row] for row in LEFT]
        assert [row for row in range(ROWS) if not holding(".", vectors(seed)[row])] == GONE
    assert not any(name in "".join(capsys.readouterr()) + out for name in ("p0", "p2"))
    assert main([*uris, *COMMAND]) == 2  # now they are unknown
    assert "1 of 1 items are not in any of the 4 galleries" in capsys.readouterr().err


def test_a_run_that_fails_at_one_gallery_is_finished_by_the_same_command(monkeypatch, capsys):
    write("old", 0)
    write("new.npy", 1, ITEMS.select("item_id"))
    real = stores.forgetting._forget_in_store

    def refuse(*_, **__):
        raise OSError("the disk is full")

    with monkeypatch.context() as patch:
        patch.setattr(stores.forgetting, "_forget_in_store", refuse)
        assert main(["old", "new.npy", *COMMAND]) == 2
    err = capsys.readouterr().err
    assert "not forgotten in old (the disk is full); forgotten in new.npy; mend that, and run the same" in err
    assert len(contents("new.npy")[1]) == 22
    assert stores.forgetting._forget_in_store is real
    assert main(["old", "new.npy", *COMMAND]) == 0
    assert capsys.readouterr().out.startswith("forgot 0 items of new.npy, 22 are left")
    assert len(contents("old")[1]) == 22


@pytest.mark.parametrize("uri", ["g.parquet", "g.faiss"])
@pytest.mark.parametrize("calls", range(6))
def test_a_rewriting_that_dies_is_finished_and_never_read_as_whole(uri, calls, monkeypatch):
    write(uri)
    count = 0

    def die_at_last(real):
        def step(*given, **named):
            nonlocal count
            if inside and (count := count + 1) > calls:
                raise KeyboardInterrupt
            return real(*given, **named)

        return step

    inside = False
    real_place = stores.galleries.rewriting._put_in_place

    def place(*given):
        nonlocal inside
        inside = True
        real_place(*given)

    with monkeypatch.context() as patch:
        patch.setattr("stores.galleries.rewriting._put_in_place", place)
        for step in ("pathlib.Path.replace", "pathlib.Path.unlink", "shutil.rmtree"):
            module, name = step.rsplit(".", 1)
            owner = Path if module == "pathlib.Path" else stores.galleries.rewriting.shutil
            patch.setattr(step, die_at_last(getattr(owner, name)))
        code = main([uri, *COMMAND])
    if code:
        try:
            assert len(contents(uri)[1]) in (22, 30)
        except ValueError as error:
            assert "unfinished" in str(error)  # noqa: PT017
    assert main([uri, *COMMAND]) == (0 if code else 2)
    assert contents(uri)[1]["item_id"].to_list() == [NAMES[row] for row in LEFT]
    assert [row for row in range(ROWS) if not holding(".", vectors(0)[row])] == GONE
    assert not list(Path().rglob("*.partial"))


@pytest.mark.parametrize(
    ("argv", "expected"),
    [
        (["old", "g.npy", "--id", "nobody"], "1 of 1 items are not in any of the 2 galleries"),
        (["old", "bare.npy", "--id", "3"], "bare.npy has no card"),
        (["old", "half.parquet", "--id", "3"], "half.parquet is unfinished"),
        (["old", "zarr+array:group", "--id", "3"], "nothing is taken out of a gallery of the kind zarr+array"),
        (["old", "none.npy", "--id", "3"], "no gallery at none.npy"),
        (["old", "postgresql://me:hidden@127.0.0.1:9/db/t", "--id", "3"], "postgresql://me@127.0.0.1:9/db/t"),
        (["--id", "3"], "galleries"),
    ],
)
def test_a_mistake_forgets_nothing_anywhere(argv, expected, capsys):
    write("old")
    write("g.npy")
    np.save("bare.npy", vectors(0))
    target = open_target("half.parquet", SPACE, {})
    target.write(Batch(ITEMS, vectors(0)))
    target.commit()
    target.close()
    assert main(argv) == 2
    out, err = capsys.readouterr()
    assert (out, err.count("\n")) == ("", 1)
    assert expected in err
    assert "hidden" not in err
    assert (len(contents("old")[1]), len(contents("g.npy")[1])) == (30, 30)


def test_everybody_can_be_forgotten(capsys):
    for uri in ("g.npy", "g.faiss", "lance:lancedb/g", "qdrant:qdrantdb/g"):
        write(uri)
        assert main([uri, "--label", "p0", "p1", "p2", "p3", "p4"]) == 0
        assert len(open_source(uri)) == 0
    assert "forgot 30 items of g.npy, 0 are left" in capsys.readouterr().out


def test_without_compaction_engines_say_that_bytes_are_left(capsys):
    write("lance:lancedb/g")
    assert main(["lance:lancedb/g", *COMMAND, "--compact", "no"]) == 0
    assert "their bytes are there until" in capsys.readouterr().out
    assert holding(".", vectors(0)[0])


def test_a_store_puts_rows_in_the_place_of_others_in_one_commit(monkeypatch):
    write("store")
    new = ITEMS[28:].with_columns(label=pl.lit("new"))
    extra = pl.concat([new, ITEMS[:1].with_columns(item_id=pl.lit("p9/0.jpg"))])
    fresh = vectors(5)[:3]
    with monkeypatch.context() as patch:
        patch.setattr("stores.commit.write_atomically", lambda *_: (_ for _ in ()).throw(OSError("killed")))
        with pytest.raises(OSError, match="killed"):
            engine.put("store", Batch(extra, fresh))
    np.testing.assert_array_equal(contents("store")[2], vectors(0))
    engine.put("store", Batch(extra, fresh))
    _, items, found = contents("store")
    assert items.equals(pl.concat([ITEMS[:28], extra]))
    np.testing.assert_array_equal(found, np.concatenate([vectors(0)[:28], fresh]))
    assert EmbeddingStore.open("store").verify().ok
    with pytest.raises(ValueError, match="columns"):
        engine.put("store", Batch(new.drop("label"), fresh[:2]))
    assert engine.remove("store", pl.Series(["p9/0.jpg", "nobody", "p0/0.jpg"])) == 2
    assert engine.remove("store", pl.Series([7])) == 0
    assert len(contents("store")[1]) == 29
    engine.put("store", Batch(ITEMS[:1], vectors(0)[:1]))
    assert contents("store")[1]["item_id"][-1] == "p0/0.jpg"


def test_a_link_leads_to_one_store_and_then_to_another():
    write("old", 0)
    write("new", 1)
    assert engine.served("live") is None
    engine.serve("live", "old")
    assert engine.served("live") == "old"
    reader = open_source("live")
    engine.serve("live", "new")
    assert engine.served("live") == "new"
    engine.serve(str(Path("live").absolute()), str(Path("new").absolute()))
    assert engine.served("live") == "new"
    np.testing.assert_array_equal(contents("live")[2], vectors(1))
    np.testing.assert_array_equal(next(reader.scan(ROWS)).vectors, vectors(0))
    with pytest.raises(FileExistsError, match="never replaced"):
        engine.serve("old", "new")
    with pytest.raises(ValueError, match="leads to new"):
        engine.discard("new")
    with pytest.raises(ValueError, match="is a link"):
        engine.discard("live")
    engine.discard("old")
    engine.discard("old")
    assert not Path("old").exists()
    Path("letters").mkdir()
    with pytest.raises(ValueError, match="no gallery"):
        engine.discard("letters")
    with pytest.raises(FileNotFoundError, match="no embedding store"):
        engine.serve("live", "nowhere")
    assert engine.served("live") == "new"


class TestPostgres:
    @pytest.fixture
    def uri(self, postgres, schema):
        self.begun = time.time()
        return postgres.uri(f"{schema}.forgetting", index="hnsw")

    def data(self, postgres):
        """Copies of the files of tables and indexes that the test has changed."""
        postgres.execute("CHECKPOINT")
        copies = Path("files")
        shutil.rmtree(copies, ignore_errors=True)
        copies.mkdir()
        for file in (postgres.data / "base").rglob("*"):
            if file.is_file() and file.stat().st_mtime >= self.begun:
                shutil.copy(file, copies)
        return copies

    def test_the_table_is_written_anew_without_them(self, uri, postgres, capsys):
        write(uri)
        before = contents(uri)
        data = self.data(postgres)
        assert all(holding(data, vector) for vector in vectors(0)), "the search itself finds what is there"
        assert main([uri, *COMMAND]) == 0
        out, err = capsys.readouterr()
        assert out == (
            f"forgot 8 items of {uri}, 22 are left; no file of the table holds their bytes, but the server's log, its "
            "replicas and backups may\n"
        )
        assert err == ""
        provenance, items, kept = contents(uri)
        assert provenance == before[0]
        assert items.equals(before[1][LEFT])
        np.testing.assert_array_equal(kept, before[2][LEFT])
        data = self.data(postgres)
        assert [row for row in range(ROWS) if not holding(data, vectors(0)[row])] == GONE

    def test_what_was_removed_before_goes_too(self, uri, postgres, capsys):
        write(uri)
        assert main([uri, *COMMAND, "--compact", "no"]) == 0
        assert "their bytes are there until" in capsys.readouterr().out
        assert holding(self.data(postgres), vectors(0)[0])
        assert main([uri]) == 0  # nobody is named: what waits is finished
        assert not holding(self.data(postgres), vectors(0)[0])
        assert main([uri]) == 2
        assert "nothing to forget" in capsys.readouterr().err

    def test_a_run_that_died_before_the_table_was_written_anew_is_finished(self, uri, postgres, monkeypatch, capsys):
        write(uri)
        with monkeypatch.context() as patch:
            patch.setattr("stores.galleries.postgres.compact", lambda _: (_ for _ in ()).throw(KeyboardInterrupt))
            assert main([uri, *COMMAND]) == 130
        assert holding(self.data(postgres), vectors(0)[0])
        assert main([uri, *COMMAND]) == 0
        assert "forgot 0 items" in capsys.readouterr().out
        assert not holding(self.data(postgres), vectors(0)[0])

    def test_rows_that_an_open_transaction_sees_are_not_called_gone(self, uri, postgres, capsys):
        write(uri)
        with contextlib.closing(postgres.connect()) as reader:
            reader.execute("BEGIN ISOLATION LEVEL REPEATABLE READ")
            reader.execute("SELECT 1")
            assert main([uri, *COMMAND]) == 2
            assert "8 rows that were taken out are still seen by an open transaction" in capsys.readouterr().err
            assert len(open_source(uri)) == 22
        assert main([uri, *COMMAND]) == 0
        assert not holding(self.data(postgres), vectors(0)[0])

    def test_who_does_not_own_the_table_is_told(self, uri, postgres, schema, capsys):
        write(uri)
        postgres.execute("CREATE ROLE clerk LOGIN")
        postgres.execute(f"GRANT USAGE ON SCHEMA {schema} TO clerk")
        postgres.execute(f"GRANT SELECT, DELETE, UPDATE ON ALL TABLES IN SCHEMA {schema} TO clerk")
        try:
            assert main([uri.replace("postgres@", "clerk@"), *COMMAND]) == 2
            assert "let its owner run the same command" in capsys.readouterr().err
            assert len(open_source(uri)) == 22
        finally:
            postgres.execute("DROP OWNED BY clerk")
            postgres.execute("DROP ROLE clerk")
        assert main([uri, *COMMAND]) == 0

    def test_a_table_of_others_is_not_written_anew(self, postgres, schema, capsys):
        postgres.execute(f"CREATE TABLE {schema}.people (id text PRIMARY KEY, face vector(2))")
        postgres.execute(f"INSERT INTO {schema}.people VALUES ('anna', '[1,2]'), ('bert', '[3,4]')")
        uri = postgres.uri(f"{schema}.people")
        assert main([uri, "--id", "anna"]) == 0
        assert (
            capsys.readouterr()
            .out.rstrip()
            .endswith(
                "1 are left; the table is not the toolkit's: their bytes are there until its owner runs "
                f'VACUUM FULL "{schema}"."people"'
            )
        )

    def test_through_a_view_the_gallery_is_meant(self, uri, postgres, schema):
        from stores.galleries import locate
        from stores.galleries import postgres as galleries

        write(uri)
        view = postgres.uri(f"{schema}.live")
        galleries.serve(locate(view)[1], locate(uri)[1])
        assert main([view, *COMMAND]) == 0
        assert not holding(self.data(postgres), vectors(0)[0])


def test_all_that_can_be_done_is_done_and_the_rest_is_named(monkeypatch, capsys):
    write("old", 0)  # tells whom the label stands for: must wait for the others
    for seed, name in enumerate(("a.npy", "b.npy", "c.npy"), start=1):
        write(name, seed, ITEMS.select("item_id"))
    real = stores.forgetting.write_without

    def refuse(scheme, path, gone):
        if path.name == "b.npy":
            raise OSError("the disk is full")
        return real(scheme, path, gone)

    with monkeypatch.context() as patch:
        patch.setattr(stores.forgetting, "write_without", refuse)
        assert main(["old", "a.npy", "b.npy", "c.npy", *COMMAND]) == 2
    err = capsys.readouterr().err
    assert err == (
        "error: not forgotten in b.npy (the disk is full), old (left for later, since it tells whom a label or a view "
        "stands for); forgotten in a.npy, c.npy; mend that, and run the same command again\n"
    )
    assert [len(contents(uri)[1]) for uri in ("old", "a.npy", "b.npy", "c.npy")] == [30, 22, 30, 22]
    assert main(["old", "a.npy", "b.npy", "c.npy", *COMMAND]) == 0
    assert {len(contents(uri)[1]) for uri in ("old", "a.npy", "b.npy", "c.npy")} == {22}
