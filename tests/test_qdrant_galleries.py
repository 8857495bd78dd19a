"""The gallery contract for collections of Qdrant in its embedded mode, and what is particular to them."""

import multiprocessing
import os
import pickle
import signal
import sqlite3
import subprocess
import sys
import time
from pathlib import Path
from urllib.parse import quote

import numpy as np
import polars as pl
import pytest
from test_galleries import ORIGIN, SPACE, Contract, assert_same, contents, read, rows, written

from stores.chunks import DamagedStore
from stores.durable import StoreLocked
from stores.galleries import GALLERIES, digest, locate, open_source, open_target, redact
from stores.galleries import qdrant as engine
from stores.galleries.gallery import notes_of
from stores.galleries.qdrant_collection import point_id
from stores.galleries.qdrant_location import parse_location
from stores.space import EmbeddingSpace
from stores.store import Batch

qdrant_client = pytest.importorskip("qdrant_client")
models = qdrant_client.models


def location(uri):
    return locate(uri)[1]


class TestQdrant(Contract):
    name = "gallery"
    scheme = "qdrant"

    def test_an_interrupted_run_goes_on_and_ends_with_the_same_bytes(self, uri, tmp_path):
        for commits in (0, 1, 3):
            target = open_target(uri, SPACE, ORIGIN)
            assert not target.finished
            for start in range(target.rows_committed, target.rows_committed + commits * 7, 7):
                target.write(rows(start, start + 7))
                target.commit()
            target.write(rows(target.rows_committed, target.rows_committed + 3))
            target.close()
            with pytest.raises(ValueError, match="unfinished"):
                open_source(uri)
        again = open_target(uri, SPACE, ORIGIN)
        assert again.rows_committed == 28
        again.close()
        assert (tmp_path / "there" / "meta.json").is_file()
        assert_same(read(written(uri, 50)), rows(0, 50))  # where points lie in the file is Qdrant's business

    def test_refuses_what_is_nobodys(self, uri, tmp_path):
        client = qdrant_client.QdrantClient(path=str(tmp_path / "there"))
        client.create_collection("gallery", models.VectorParams(size=5, distance=models.Distance.DOT))
        client.close()
        (tmp_path / "letters").mkdir()
        (tmp_path / "letters" / "first").write_bytes(b"dear")
        before = contents(tmp_path)
        with pytest.raises(FileExistsError, match="already exists"):
            open_target(uri, SPACE, ORIGIN)
        with pytest.raises(FileExistsError, match="already exists"):
            open_target(f"qdrant:{tmp_path}/letters/gallery", SPACE, ORIGIN)
        after = contents(tmp_path)
        assert after.pop("there/.lock", None) == before.pop("there/.lock", None)
        assert after == before

    def test_damage_is_reported(self, uri, tmp_path):
        written(uri, 20)
        file = tmp_path / "there" / "collection" / "gallery" / "storage.sqlite"
        content = file.read_bytes()
        for spoilt in (content[:5000], b"dear" * 1000, content[:20] + bytes(100) + content[120:]):
            file.write_bytes(spoilt)
            with pytest.raises(DamagedStore) as caught:
                read(open_source(uri))
            assert "storage.sqlite" in str(caught.value)
            assert "\n" not in str(caught.value)
        file.write_bytes(content)
        assert_same(read(open_source(uri)), rows(0, 20))

    def test_qdrant_searches_it_by_cosine_and_keeps_the_ids(self, uri, tmp_path):
        source = written(uri, 50)
        assert "embedded mode" in notes_of(source)[0]
        client = qdrant_client.QdrantClient(path=str(tmp_path / "there"))
        query = rows(8, 9).vectors[0]
        found = client.query_points("gallery", query=query.tolist(), limit=1).points[0]
        client.close()
        assert (found.id, found.payload["item_id"]) == (point_id("8"), "8")
        assert found.payload["_norm"] == pytest.approx(np.linalg.norm(query))
        assert found.score == pytest.approx(1)


@pytest.fixture
def uri(tmp_path):
    return f"qdrant:{tmp_path / 'db'}/old"


def test_collections_of_others_are_read(tmp_path):
    client = qdrant_client.QdrantClient(path=str(tmp_path / "db"))
    draw = np.random.default_rng(0).normal(size=(20, 3)).astype(np.float32)
    for name, distance in (("dot", models.Distance.DOT), ("cosine", models.Distance.COSINE)):
        client.create_collection(name, models.VectorParams(size=3, distance=distance))
        payloads = [{"key": f"k{i}", "label": f"person {i % 3}", "n": i} for i in range(20)]
        client.upsert(name, models.Batch(ids=list(range(20)), vectors=draw.tolist(), payloads=payloads))
    client.create_collection("named", {"a": models.VectorParams(size=3, distance=models.Distance.DOT)})
    client.close()
    source = open_source(f"qdrant:{tmp_path}/db/dot")
    assert (source.space, source.dim, source.provenance, len(source)) == (None, 3, {}, 20)
    found = read(source, 6, 4)
    assert found.items["item_id"].to_list() == [str(i) for i in range(4, 20)]
    assert found.items["label"][0] == "person 1"
    np.testing.assert_array_equal(found.vectors, draw[4:])
    assert read(open_source(f"qdrant:{tmp_path}/db/dot?id=key")).items["item_id"][3] == "k3"
    by_cosine = open_source(f"qdrant:{tmp_path}/db/cosine")
    assert "take these for directions" in notes_of(by_cosine)[1]
    directions = read(by_cosine).vectors
    directions = directions / np.linalg.norm(directions, axis=1, keepdims=True)
    np.testing.assert_allclose(directions, draw / np.linalg.norm(draw, axis=1, keepdims=True), rtol=1e-5)
    with pytest.raises(ValueError, match="several vectors"):
        open_source(f"qdrant:{tmp_path}/db/named")
    with pytest.raises(ValueError, match="without the field nope"):
        read(open_source(f"qdrant:{tmp_path}/db/dot?id=nope"))
    with pytest.raises(ValueError, match="not written by this toolkit"):
        engine.remove(f"{tmp_path}/db/dot", pl.Series(["1"]))


def test_a_pickle_that_is_no_point_is_not_opened(uri, tmp_path):
    written(uri, 5)
    file = tmp_path / "db" / "collection" / "old" / "storage.sqlite"

    class Trap:
        def __reduce__(self):
            return (Path.touch, (tmp_path / "sprung",))

    with sqlite3.connect(file) as database:
        database.execute("INSERT INTO points VALUES ('x', ?)", (pickle.dumps(Trap()),))
    database.close()
    with pytest.raises(ValueError, match="not plain points"):
        open_source(uri)
    assert not (tmp_path / "sprung").exists()


def test_columns_that_json_has_not_are_refused(uri):
    target = open_target(uri, SPACE, ORIGIN)
    items, vectors = rows(0, 2)
    for name in ("_row", "_norm"):
        with pytest.raises(ValueError, match=f"'{name}' is reserved"):
            target.write(Batch(items.rename({"label": name}), vectors))
    with pytest.raises(ValueError, match="cast it to text"):
        target.write(Batch(items.with_columns(day=pl.date(2020, 2, 29)), vectors))
    with pytest.raises(ValueError, match="NaN or infinity"):
        target.write(Batch(items.with_columns(score=pl.lit(float("nan"))), vectors))
    full = items.with_columns(
        tags=pl.Series([["a"], []]), n=pl.Series([1, None], dtype=pl.UInt8), score=pl.Series([0.1, None])
    )
    target.write(Batch(full, vectors))
    target.finish()
    found = read(open_source(uri)).items
    assert found.schema == full.schema
    assert found.equals(full)


def test_put_replaces_and_adds_and_remove_passes_over_what_is_not_there(uri):
    written(uri, 30)
    known = location(uri)
    items, vectors = rows(28, 33)
    engine.put(known, Batch(items.with_columns(label=pl.lit("new")), vectors + 1))
    found = read(open_source(uri))
    kept = {each: (label, vector) for (each, label), vector in zip(found.items.rows(), found.vectors, strict=True)}
    assert len(found.vectors) == len(kept) == 33
    for each, vector in zip(items["item_id"], vectors + 1, strict=True):
        assert kept[each][0] == "new"
        np.testing.assert_allclose(kept[each][1], vector, rtol=1e-6)
    for each, vector in zip(rows(0, 28).items["item_id"], rows(0, 28).vectors, strict=True):
        np.testing.assert_allclose(kept[each][1], vector, rtol=1e-6)
    assert engine.remove(known, pl.Series(["3", "nobody", "29"])) == 2
    assert engine.remove(known, pl.Series([4])) == 1
    assert set(read(open_source(uri)).items["item_id"]) == {str(i) for i in range(33)} - {"3", "4", "29"}
    with pytest.raises(ValueError, match="shape"):
        engine.put(known, rows(40, 42, dim=4))


def test_rows_that_go_while_they_are_read_are_noticed(uri):
    source = written(uri, 30)
    engine.remove(location(uri), pl.Series(["3"]))
    with pytest.raises(ValueError, match="lost 1 rows while it was read; run again"):
        read(source)
    assert len(open_source(uri)) == 29


def test_an_alias_leads_to_one_gallery_and_then_to_another(uri, tmp_path):
    written(uri, 10)
    written(f"{uri}-new", 12, provenance={"map": "other"})
    name, old, new = f"{tmp_path}/db/live", location(uri), f"{location(uri)}-new"
    assert engine.served(name) is None
    assert engine.served(f"{tmp_path}/nowhere/live") is None
    engine.serve("live", old)
    assert engine.served(name) == old
    assert (len(open_source(f"qdrant:{name}")), digest(f"qdrant:{name}")) == (10, digest(uri))
    engine.serve(name, new)
    assert engine.served(name) == new
    assert len(open_source(f"qdrant:{name}")) == 12
    with pytest.raises(FileExistsError, match="already exists, as an alias"):
        open_target(f"qdrant:{name}", SPACE, ORIGIN)
    with pytest.raises(FileExistsError, match="never replaced"):
        engine.serve("old", new)
    with pytest.raises(ValueError, match="leads to"):
        engine.discard(new)
    with pytest.raises(ValueError, match="different servers"):
        engine.serve("http://localhost:6333/live", new)
    engine.discard(old)
    engine.discard(old)
    with pytest.raises(FileNotFoundError, match="no such collection, found live, old-new; name one of them"):
        open_source(uri)
    written(uri, 4, provenance={"map": "a third"})  # nothing is left of its card
    assert len(open_source(f"qdrant:{name}")) == 12


def hold(uri, there):
    target = open_target(uri, SPACE, ORIGIN)
    for start in range(target.rows_committed, 100_000, 5):
        target.write(rows(start, start + 5))
        target.commit()
        there.set()


def test_a_killed_writer_leaves_whole_commits_and_another_process_is_kept_out(uri):
    context = multiprocessing.get_context("spawn")
    there = context.Event()
    writer = context.Process(target=hold, args=(uri, there))
    writer.start()
    assert there.wait(60)
    with pytest.raises(StoreLocked, match="another process"):
        open_source(uri)
    time.sleep(0.3)
    assert writer.pid is not None
    os.kill(writer.pid, signal.SIGKILL)
    writer.join()
    again = open_target(uri, SPACE, ORIGIN)
    count = again.rows_committed
    again.close()
    assert count % 5 == 0
    assert count > 0
    assert_same(read(written(uri, count + 9)), rows(0, count + 9))


def test_a_process_killed_amid_a_write_to_the_file_leaves_no_damage(uri, tmp_path):
    written(uri, 5)
    program = (
        "import os, signal, sqlite3, sys\n"
        "database = sqlite3.connect(sys.argv[1])\n"
        "database.execute('PRAGMA cache_size = 1')\n"
        "database.execute('BEGIN IMMEDIATE')\n"
        "for number in range(200):\n"
        "    database.execute('INSERT INTO points VALUES (?, ?)', (str(number), bytes(4000)))\n"
        "os.kill(os.getpid(), signal.SIGKILL)\n"
    )
    file = tmp_path / "db" / "collection" / "old" / "storage.sqlite"
    killed = subprocess.run([sys.executable, "-c", program, str(file)], check=False)
    assert killed.returncode == -signal.SIGKILL
    assert file.with_name("storage.sqlite-journal").stat().st_size > 0
    assert_same(read(open_source(uri)), rows(0, 5))


@pytest.mark.parametrize("name", ["my table", "we'ird", "Groß", "per%cent", "%41", "a;b"])
def test_any_name_that_qdrant_takes_leads_back_to_the_gallery(tmp_path, name):
    place = f"{tmp_path}/db/{quote(name)}"
    assert len(written(f"qdrant:{place}", 3)) == 3
    engine.serve(f"{tmp_path}/db/live", place)
    found = engine.served(f"{tmp_path}/db/live")
    assert len(open_source(f"qdrant:{found}")) == 3
    engine.serve(f"{tmp_path}/db/live", str(found))


@pytest.mark.parametrize("name", ["..%2Fup", "a%3Fb", 'a"b', "a%00b", "a:b"])
def test_a_name_that_qdrant_takes_not_is_refused_before_anything_is_made(tmp_path, name):
    for work in (lambda uri: open_target(uri, SPACE, ORIGIN), open_source):
        with pytest.raises(ValueError, match="Qdrant takes in no name; rename it"):
            work(f"qdrant:{tmp_path}/db/{name}")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("place", "told"),
    [
        ("http://host:6333/faces", True),
        ("http://localhost:6333/faces", False),
        ("http://[::1]:6333/faces", False),
        ("https://host:6333/faces", False),
    ],
)
def test_a_key_that_others_on_the_way_can_read_is_told_in_one_line(place, told):
    notes = parse_location(f"{place}?api_key=secret").notes
    assert notes == (
        ("the key goes to http://host:6333 unencrypted; use https:// beyond a network of your own",) * told
    )
    assert parse_location(place).notes == ()


def test_the_key_of_a_server_is_never_shown(monkeypatch):
    place = "http://127.0.0.1:9/faces"
    assert parse_location(place).api_key is None
    monkeypatch.setenv("QDRANT_API_KEY", "hidden-7")
    assert parse_location(place).api_key == "hidden-7"
    found = parse_location(f"{place}?api_key=secret%2F8")
    assert found.api_key == "secret/8"
    assert "secret" not in f"{found} {found!r} {found.public}"
    assert redact(f"qdrant:{place}?api_key=secret") == f"qdrant:{place}"
    with pytest.raises(ConnectionError, match=r"no server answers at qdrant:http://127.0.0.1:9/faces") as caught:
        open_source(f"qdrant:{place}?api_key=secret")
    assert "secret" not in str(caught.value)
    assert "\n" not in str(caught.value)
    for wrong in ("http://host", "http://user:pw@host/faces", "db/faces?key=secret", "s3://a/b"):
        with pytest.raises(ValueError, match=r"names no collection|no user or password|option 'key'") as caught:
            parse_location(wrong)
        assert "pw" not in str(caught.value).replace("password", "")
        assert "secret" not in str(caught.value)


def test_without_the_client_the_command_is_named(uri, monkeypatch):
    monkeypatch.setitem(sys.modules, "qdrant_client", None)
    for work in (lambda: open_source(uri), lambda: open_target(uri, SPACE, ORIGIN)):
        with pytest.raises(ImportError, match=r"pip install 'embedding-compat\[qdrant\]'"):
            work()


def test_the_engine_is_listed():
    assert GALLERIES["qdrant"] is engine
    assert EmbeddingSpace.from_dict(SPACE.to_dict()) == SPACE
