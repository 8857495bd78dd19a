"""The gallery contract for tables of LanceDB, and what is particular to them."""

import json
import multiprocessing
import os
import shutil
import signal
import sys
import time
from pathlib import Path

import numpy as np
import polars as pl
import pytest
from test_galleries import ORIGIN, SPACE, Contract, assert_same, read, rows, written

from stores.chunks import DamagedStore
from stores.galleries import GALLERIES, digest, locate, open_source, open_target
from stores.galleries import lance as engine
from stores.galleries.gallery import notes_of
from stores.space import EmbeddingSpace
from stores.store import Batch

lancedb = pytest.importorskip("lancedb")
pa = pytest.importorskip("pyarrow")


def location(uri):
    return locate(uri)[1]


class TestLance(Contract):
    name = "gallery"
    scheme = "lance"

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
        assert_same(read(written(uri, 50)), rows(0, 50))  # the names of Lance's files are random
        table = lancedb.connect(tmp_path / "there").open_table("gallery").to_arrow()
        assert table["row"].to_pylist() == list(range(50))

    def test_refuses_what_is_nobodys(self, uri, tmp_path):
        table = lancedb.connect(tmp_path / "there").create_table("gallery", [{"vector": [1.0, 2.0], "n": 3}])
        before = table.version
        with pytest.raises(FileExistsError, match="already exists"):
            open_target(uri, SPACE, ORIGIN)
        assert lancedb.connect(tmp_path / "there").open_table("gallery").version == before
        (tmp_path / "there" / "other.lance").mkdir()
        (tmp_path / "there" / "other.lance" / "letter").write_bytes(b"dear")
        with pytest.raises(FileExistsError, match="already exists"):
            open_target(f"{uri[: -len('gallery')]}other", SPACE, ORIGIN)

    def test_damage_is_reported(self, uri, tmp_path):
        written(uri, 20)
        files = sorted((tmp_path / "there" / "gallery.lance" / "data").iterdir())
        assert files
        for file in files:
            content = file.read_bytes()
            middle = len(content) // 2
            for spoilt in (content[:middle] + bytes([content[middle] ^ 1]) + content[middle + 1 :], content[:-3], b""):
                file.write_bytes(spoilt)
                with pytest.raises(DamagedStore) as caught:
                    read(open_source(uri))
                assert file.name in str(caught.value)
                assert "\n" not in str(caught.value)
            file.unlink()
            with pytest.raises(DamagedStore) as caught:
                read(open_source(uri))
            assert "\n" not in str(caught.value)
            file.write_bytes(content)
        assert_same(read(open_source(uri)), rows(0, 20))

    def test_lancedb_searches_it(self, uri, tmp_path):
        written(uri, 50)
        table = lancedb.connect(tmp_path / "there").open_table("gallery")
        assert table.schema.names == ["row", "item_id", "label", "vector"]
        vectors = rows(0, 50).vectors[1:]
        found = table.search(vectors[7]).metric("cosine").limit(1).to_arrow()
        assert found["item_id"].to_pylist() == ["8"]


@pytest.fixture
def uri(tmp_path):
    return f"lance:{tmp_path / 'db' / 'old'}"


def test_half_the_bytes_keep_three_digits(uri):
    source = written(f"{uri}?dtype=float16", 50)
    np.testing.assert_allclose(read(source).vectors, rows(0, 50).vectors, rtol=1e-3)
    assert "float16" in notes_of(source)[0]
    with pytest.raises(FileExistsError, match="dtype=float16&index=none"):
        open_target(uri, SPACE, ORIGIN)
    target = open_target(f"{uri}-more?dtype=float16", SPACE, ORIGIN)
    with pytest.raises(ValueError, match="65504"):
        target.write(Batch(rows(0, 2).items, np.full((2, 5), 1e5, np.float32)))
    target.close()


@pytest.mark.parametrize("index", ["ivf_pq", "hnsw"])
def test_an_index_is_built_when_every_row_is_in(uri, index, monkeypatch):
    monkeypatch.setattr("stores.galleries.lance_table._LEAST_INDEXED", 300)
    space = EmbeddingSpace("resnet", None, 16, False)
    draw = np.random.default_rng(0).normal(size=(600, 16)).astype(np.float32)
    target = open_target(f"{uri}?index={index}", space, {})
    target.write(Batch(pl.DataFrame({"item_id": range(600)}), draw))
    target.finish()
    table = lancedb.connect(Path(location(uri)).parent).open_table("old")
    assert [each.columns for each in table.list_indices()] == [["vector"]]
    np.testing.assert_array_equal(read(open_source(uri)).vectors, draw)
    engine.erase(location(uri), pl.Series([5, 6]))
    table = lancedb.connect(Path(location(uri)).parent).open_table("old")
    assert [each.columns for each in table.list_indices()] == [["vector"]]
    np.testing.assert_array_equal(read(open_source(uri)).vectors, np.delete(draw, [5, 6], axis=0))


def test_tables_of_others_are_read(tmp_path):
    draw = np.random.default_rng(0).normal(size=(20, 3))
    vectors = pa.FixedSizeListArray.from_arrays(pa.array(draw.ravel()), 3)
    table = pa.table({"name": [f"n{i}" for i in range(20)], "embedding": vectors})
    lancedb.connect(tmp_path).create_table("theirs", table)
    source = open_source(f"lance:{tmp_path}/theirs")
    assert (source.space, source.dim, source.provenance, len(source)) == (None, 3, {}, 20)
    found = read(source, 6, 4)
    assert found.items.to_dict(as_series=False) == {
        "item_id": list(range(4, 20)),
        "name": [f"n{i}" for i in range(4, 20)],
    }
    np.testing.assert_array_equal(found.vectors, draw[4:].astype(np.float32))
    assert read(open_source(f"lance:{tmp_path}/theirs?id=name")).items["item_id"][3] == "n3"
    for wrong, message in {
        "?id=nope": "no column nope",
        "?vector=name": "1 columns of vectors",
        "?x=1": "option 'x'",
    }.items():
        with pytest.raises(ValueError, match=message):
            open_source(f"lance:{tmp_path}/theirs{wrong}")
    with pytest.raises(ValueError, match="not written by this toolkit"):
        engine.remove(f"{tmp_path}/theirs", pl.Series([1]))


@pytest.mark.parametrize("name", ["my table", "we'ird", "Groß", "per%cent", "a;b", "a\nb"])
def test_a_name_that_lance_takes_not_is_refused_before_anything_is_made(tmp_path, name):
    for work in (lambda uri: open_target(uri, SPACE, ORIGIN), open_source):
        with pytest.raises(ValueError, match=r"letters of ASCII, digits, _, - and \.; rename it") as caught:
            work(f"lance:{tmp_path}/db/{name}")
        assert "\n" not in str(caught.value)
    assert not list(tmp_path.iterdir())


def test_columns_that_would_come_back_otherwise_are_refused(uri):
    target = open_target(uri, SPACE, ORIGIN)
    items = rows(0, 2).items
    for name in ("row", "vector"):
        with pytest.raises(ValueError, match=f"'{name}' is reserved"):
            target.write(Batch(items.rename({"label": name}), rows(0, 2).vectors))
    clock = items.with_columns(at=pl.Series([1, 2], dtype=pl.Int128))
    with pytest.raises(ValueError, match=r"'at' of Int128 would not come back .* cast it"):
        target.write(Batch(clock, rows(0, 2).vectors))
    kept = items.with_columns(tags=pl.Series([["a"], []]), day=pl.date(2020, 2, 29), raw=pl.Series([b"x", None]))
    target.write(Batch(kept, rows(0, 2).vectors))
    target.finish()
    found = read(open_source(uri)).items
    assert found.schema == kept.schema
    assert found.equals(kept)


def test_put_replaces_and_adds_and_remove_passes_over_what_is_not_there(uri):
    written(uri, 30)
    known = locate(uri)[1]
    changed = rows(28, 33)
    changed = Batch(changed.items.with_columns(label=pl.lit("new")), changed.vectors + 1)
    engine.put(known, changed)
    found = read(open_source(uri))
    assert len(found.vectors) == 33
    kept = {
        each: (label, vector.tolist()) for (each, label), vector in zip(found.items.rows(), found.vectors, strict=True)
    }
    for each, label, vector in zip(*changed.items.get_columns(), changed.vectors, strict=True):
        assert kept[each] == (label, vector.tolist())
    for each, vector in zip(rows(0, 28).items["item_id"], rows(0, 28).vectors, strict=True):
        assert kept[each][1] == vector.tolist()
    assert engine.remove(known, pl.Series(["3", "nobody", "29", "o'hara"])) == 2
    assert engine.remove(known, pl.Series([4])) == 1
    left = set(read(open_source(uri)).items["item_id"])
    assert left == {str(i) for i in range(33)} - {"3", "4", "29"}
    with pytest.raises(ValueError, match="shape"):
        engine.put(known, rows(40, 42, dim=4))


def test_a_name_leads_to_one_gallery_and_then_to_another(uri, tmp_path):
    written(uri, 10)
    written(f"{uri}-new", 12, provenance={"map": "other"})
    name, old, new = f"{tmp_path}/db/live", location(uri), f"{location(uri)}-new"
    assert engine.served(name) is None
    engine.serve(name, old)
    assert engine.served(name) == old
    reader = open_source(f"lance:{name}")
    assert (len(reader), digest(f"lance:{name}")) == (10, digest(uri))
    engine.serve(name, new)
    assert engine.served(name) == new
    assert len(open_source(f"lance:{name}")) == 12
    assert_same(read(reader), rows(0, 10))
    with pytest.raises(FileExistsError, match="never replaced"):
        engine.serve(old, new)
    with pytest.raises(ValueError, match="leads to"):
        engine.discard(new)
    engine.discard(old)
    engine.discard(old)
    assert not Path(f"{old}.lance").exists()
    assert_same(read(open_source(f"lance:{name}")), rows(0, 12))
    with pytest.raises(ValueError, match="names no table"):
        engine.serve("s3://bucket", new)


def commit_for_ever(uri):
    target = open_target(uri, SPACE, ORIGIN)
    for start in range(target.rows_committed, 10_000, 5):
        target.write(rows(start, start + 5))
        target.commit()
    os._exit(1)


def test_a_killed_writer_leaves_whole_commits(uri):
    context = multiprocessing.get_context("spawn")
    written(f"{uri}-warm", 1)
    for delay in (0.3, 0.6):
        before = 0
        if (Path(f"{location(uri)}.lance") / "_versions").is_dir():
            again = open_target(uri, SPACE, ORIGIN)
            before = again.rows_committed
            again.close()
        writer = context.Process(target=commit_for_ever, args=(uri,))
        writer.start()
        while not (Path(f"{location(uri)}.lance") / "data").is_dir() and writer.is_alive():
            time.sleep(0.05)
        time.sleep(delay)
        assert writer.pid is not None
        os.kill(writer.pid, signal.SIGKILL)
        writer.join()
        again = open_target(uri, SPACE, ORIGIN)
        assert again.rows_committed % 5 == 0
        assert again.rows_committed >= before
        again.close()
    total = again.rows_committed + 9
    assert total > 9
    assert_same(read(written(uri, total)), rows(0, total))


def test_an_interrupted_erasure_is_known_and_finished(uri, monkeypatch):
    written(uri, 30)
    known = locate(uri)[1]
    with monkeypatch.context() as patch:
        patch.setattr("stores.galleries.lance_live.forget_versions", lambda _: (_ for _ in ()).throw(KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            engine.erase(known, pl.Series(["3"]))
    needle = rows(3, 4).vectors.tobytes()
    folder = Path(f"{known}.lance")

    def there():
        return any(needle in path.read_bytes() for path in folder.rglob("*") if path.is_file())

    assert there()
    assert engine.erasing(known)
    assert engine.erase(known, pl.Series(["3"])) == 0
    assert not engine.erasing(known)
    assert not there()
    assert_same(read(open_source(uri), 3), _without(rows(0, 30), 3))


def _without(batch, row):
    keep = np.arange(len(batch.vectors)) != row
    return Batch(batch.items.filter(pl.Series(keep)), batch.vectors[keep])


def test_without_lancedb_the_command_is_named(uri, monkeypatch):
    monkeypatch.setitem(sys.modules, "lancedb", None)
    Path(f"{location(uri)}.lance/_versions").mkdir(parents=True)
    for work in (lambda: open_source(uri), lambda: open_target(uri, SPACE, ORIGIN)):
        with pytest.raises(ImportError, match=r"pip install 'embedding-compat\[lance\]'"):
            work()


def test_a_card_of_a_later_version_or_damaged_is_one_line(uri):
    written(uri, 3)
    table = lancedb.connect(Path(location(uri)).parent).open_table("old")
    card = json.loads(table.schema.field("vector").metadata[b"embedding_gallery"])
    for body, message in ((json.dumps(card | {"format_version": 9}), "format version 9"), ("{", "cannot be read")):
        table.update_field_metadata({"path": "vector", "metadata": {"embedding_gallery": body}})
        with pytest.raises(ValueError, match=message):
            open_source(uri)


def test_the_engine_is_listed():
    assert GALLERIES["lance"] is engine
    shutil.rmtree("nowhere", ignore_errors=True)
    with pytest.raises(FileNotFoundError, match=r"no gallery at .*, nor another; correct the place"):
        open_source("lance:nowhere/table")
    assert not Path("nowhere").exists()


def test_one_that_is_not_there_is_told_with_those_that_are(uri):
    written(uri, 3)
    nosuch = f"lance:{Path(location(uri)).parent}/nosuch"
    for work in (open_source, digest):
        with pytest.raises(FileNotFoundError, match="no such table, found old; name one of them"):
            work(nosuch)
    with pytest.raises(FileNotFoundError, match="no such table, found old; name one of them"):
        engine.put(location(nosuch), rows(0, 1))
