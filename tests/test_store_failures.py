"""Errors and interruptions in a process that goes on with the same store, and records that come from elsewhere."""

import errno
import os
from dataclasses import replace

import numpy as np
import polars as pl
import pytest

from stores import commit as commit_module
from stores import durable
from stores.chunks import DamagedStore
from stores.commit import COMPLETE, Commit
from stores.durable import StoreLocked
from stores.inspect import main as inspect_main
from stores.sealed import seal, unseal
from stores.space import EmbeddingSpace
from stores.store import EmbeddingStore, StaleStore

SPACE = EmbeddingSpace("resnet", None, 4, False)


def rows(start, stop):
    vectors = np.random.default_rng(3).normal(size=(stop, 4)).astype(np.float32)[start:]
    return pl.DataFrame({"item_id": [f"i{n}" for n in range(start, stop)]}), vectors


def filled(path, stop, **layout):
    store = EmbeddingStore.create(path, SPACE, **{"chunk_rows": 8, **layout})
    store.append(*rows(0, stop))
    store.commit()
    return store


def assert_holds(path, numbers):
    store = EmbeddingStore.open(path)
    vectors = rows(0, 200)[1]
    assert store.items["item_id"].to_list() == [f"i{n}" for n in numbers]
    np.testing.assert_array_equal(store.rows(0, len(store)), vectors[list(numbers)])
    assert store.verify().ok


def after(module, name, monkeypatch, error, *, calls=1):
    """Let a function raise once, when it was called so many times and has done its work."""
    function, left = getattr(module, name), [calls]

    def failing(*arguments, **options):
        made = function(*arguments, **options)
        left[0] -= 1
        if left[0] == 0:
            raise error
        return made

    monkeypatch.setattr(module, name, failing)


@pytest.mark.parametrize("error", [KeyboardInterrupt(), OSError(errno.EIO, "disk")])
def test_a_commit_that_fails_once_it_is_in_force_is_gone_on_from(tmp_path, monkeypatch, error):
    with filled(tmp_path / "store", 10) as store:
        store.append(*rows(10, 21))
        with monkeypatch.context() as patched:
            after(commit_module, "write_atomically", patched, error)  # renamed, its folder not yet flushed
            with pytest.raises(type(error)):
                store.commit()
        store.append(*rows(21, 40))
        store.commit()
    assert_holds(tmp_path / "store", range(40))


def test_a_failure_after_that_does_not_touch_committed_files(tmp_path, monkeypatch):
    with filled(tmp_path / "store", 10) as store:
        store.append(*rows(10, 13))
        with monkeypatch.context() as patched:
            after(commit_module, "write_atomically", patched, KeyboardInterrupt())
            with pytest.raises(KeyboardInterrupt):
                store.commit()
        with monkeypatch.context() as patched:
            patched.setattr(durable, "_write_all", lambda *_: (_ for _ in ()).throw(OSError(errno.ENOSPC, "full")))
            with pytest.raises(OSError, match="full"):
                store.append(*rows(13, 40))
    assert_holds(tmp_path / "store", range(13))


def test_an_interrupted_flush_is_not_taken_for_one_that_ended(tmp_path, monkeypatch):
    with filled(tmp_path / "store", 10) as store:
        store.append(*rows(10, 100))
        with monkeypatch.context() as patched:
            patched.setattr("concurrent.futures.Future.result", lambda _: (_ for _ in ()).throw(KeyboardInterrupt()))
            with pytest.raises(KeyboardInterrupt):
                store.commit()
        with pytest.raises(OSError, match="did not reach the disk; close the store and append them again"):
            store.commit()
    with EmbeddingStore.open(tmp_path / "store") as again:
        again.append(*rows(10, 100))
        again.commit()
    assert_holds(tmp_path / "store", range(100))


@pytest.mark.parametrize("moment", ["published", "tidying up"])
def test_an_interrupted_compaction_can_be_followed_by_anything(tmp_path, monkeypatch, moment):
    with filled(tmp_path / "store", 30) as store:
        store.forget(["i3", "i29"])
        with monkeypatch.context() as patched:
            if moment == "published":
                after(commit_module, "sync_folder", patched, KeyboardInterrupt())
            else:
                patched.setattr("shutil.rmtree", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt()))
            with pytest.raises(KeyboardInterrupt):
                store.compact()
        store.commit()
        store.append(*rows(30, 33))
        store.commit()
        store.compact()
    assert_holds(tmp_path / "store", [n for n in range(33) if n not in (3, 29)])


def test_rows_that_nobody_committed_do_not_stay_in_the_last_file(tmp_path):
    for layout in ({}, {"chunk_rows": 4, "shard_chunks": 3}):
        path = tmp_path / f"store{len(layout)}"
        with filled(path, 10, **layout) as store:
            store.append(*rows(10, 19))
        with EmbeddingStore.open(path) as store:
            store.compact()
        content = b"".join(file.read_bytes() for file in path.rglob("*") if file.is_file())
        assert not any(vector.tobytes() in content for vector in rows(10, 19)[1])
        assert_holds(path, range(10))


def test_a_shard_keeps_no_whole_chunk_that_nobody_committed(tmp_path, monkeypatch):
    with filled(tmp_path / "store", 4, chunk_rows=4, shard_chunks=3) as store:
        store.append(*rows(4, 8))
        monkeypatch.setattr(Commit, "publish", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt()))
        with pytest.raises(KeyboardInterrupt):
            store.commit()
    monkeypatch.undo()
    with EmbeddingStore.open(tmp_path / "store") as store:
        store.compact()
    content = b"".join(file.read_bytes() for file in (tmp_path / "store").rglob("*") if file.is_file())
    assert not any(vector.tobytes() in content for vector in rows(4, 8)[1])
    assert_holds(tmp_path / "store", range(4))


def test_a_writer_whose_lock_was_removed_writes_nothing(tmp_path):
    with filled(tmp_path / "store", 10) as store:
        store.append(*rows(10, 11))
        (tmp_path / "store" / ".lock").unlink()
        with EmbeddingStore.open(tmp_path / "store") as other:
            other.append(*rows(10, 20))
            other.commit()
            with pytest.raises(StoreLocked, match="was removed while this process wrote"):
                store.append(*rows(11, 40))
            with pytest.raises(StoreLocked):
                store.commit()
    assert_holds(tmp_path / "store", range(20))


def test_a_forked_child_neither_writes_nor_keeps_the_store_locked(tmp_path):
    store = filled(tmp_path / "store", 10)
    ready, finish = os.pipe(), os.pipe()
    child = os.fork()
    if child == 0:
        try:
            store.append(*rows(10, 11))
            answer = b"wrote"
        except StoreLocked:
            answer = b"refused"
        os.write(ready[1], answer)
        os.read(finish[0], 1)
        os._exit(0)
    assert os.read(ready[0], 10) == b"refused"
    store.close()
    with EmbeddingStore.open(tmp_path / "store") as other:
        other.append(*rows(10, 12))
        other.commit()
    os.write(finish[1], b"x")
    os.waitpid(child, 0)
    assert_holds(tmp_path / "store", range(12))


def test_a_writer_that_cannot_begin_lets_others_write(tmp_path):
    filled(tmp_path / "store", 10).close()
    record = tmp_path / "store" / "store.json"
    content = record.read_bytes()
    store = EmbeddingStore.open(tmp_path / "store")
    record.write_bytes(b"{}")
    with pytest.raises(DamagedStore):
        store.append(*rows(10, 11))
    record.write_bytes(content)
    with EmbeddingStore.open(tmp_path / "store") as other:
        other.append(*rows(10, 11))
        other.commit()
    assert_holds(tmp_path / "store", range(11))


def test_verify_of_an_earlier_opening_is_of_what_is_there_or_says_to_open_again(tmp_path):
    with filled(tmp_path / "store", 10) as store:
        reader = EmbeddingStore.open(tmp_path / "store")
        store.append(*rows(10, 20))
        store.commit()
        assert reader.verify().ok
        store.forget(["i1"])
        store.compact()
        with pytest.raises(StaleStore, match="open it again"):
            reader.verify()


def test_an_unfinished_store_is_finished_before_anybody_is_forgotten(tmp_path):
    with EmbeddingStore.create(tmp_path / "store", SPACE, provenance={COMPLETE: False}) as store:
        store.append(*rows(0, 10))
        store.commit()
        with pytest.raises(ValueError, match="unfinished; run the command that writes it to its end, then forget"):
            store.forget(["i1"])
        store.commit({COMPLETE: True})
        assert store.forget(["i1"]) == 1


def test_a_store_whose_empty_folder_was_left_out_of_an_archive(tmp_path):
    EmbeddingStore.create(tmp_path / "store", SPACE).close()
    (tmp_path / "store" / "items").rmdir()
    with EmbeddingStore.open(tmp_path / "store") as store:
        store.append(*rows(0, 10))
        store.commit()
    (tmp_path / "store" / "items" / "notes").mkdir()
    with EmbeddingStore.open(tmp_path / "store") as store:
        store.append(*rows(10, 12))
        store.commit()
    assert_holds(tmp_path / "store", range(12))


@pytest.mark.parametrize(
    ("ids", "message"),
    [("i1", "a single string"), ([1], "ids of this store are strings"), ([1.5], "ids of this store are strings")],
)
def test_ids_of_another_type_are_refused(tmp_path, ids, message):
    with filled(tmp_path / "store", 10) as store, pytest.raises(ValueError, match=message):
        store.forget(ids)
    with EmbeddingStore.create(tmp_path / "numbers", SPACE) as numbers:
        numbers.append(pl.DataFrame({"item_id": [1, 2]}), np.ones((2, 4)))
        numbers.commit()
        with pytest.raises(ValueError, match="ids of this store are integers"):
            numbers.forget(["1"])
        assert numbers.forget([2**70], missing_ok=True) == 0
        assert numbers.forget([2]) == 1


@pytest.mark.parametrize(
    ("vectors", "dtype", "message"),
    [
        (np.ones((2, 4), complex), "float32", "complex128, expected real numbers"),
        (np.array([[1, 1, 1, 1], [1e-9, 0, 0, 0]]), "float16", "1 of 2 vectors are too short for float16 .* item 'i1'"),
    ],
)
def test_vectors_that_would_lose_everything_are_refused(tmp_path, vectors, dtype, message):
    with EmbeddingStore.create(tmp_path / "store", SPACE, dtype=dtype) as store:
        with pytest.raises(ValueError, match=message):
            store.append(rows(0, 2)[0], vectors)
        with pytest.raises(ValueError, match="column thing holds Python objects"):
            store.append(rows(0, 2)[0].with_columns(pl.Series("thing", [object(), object()])), np.ones((2, 4)))
        store.append(rows(0, 2)[0], np.zeros((2, 4)))  # zeros that were zeros stay


@pytest.mark.parametrize(
    "change",
    [
        {"rows": 20.0},
        {"rows": True},
        {"chunk_rows": 4096.0},
        {"chunk_rows": 0},
        {"provenance": None},
        {"provenance": [1]},
        {"forgotten": ["ab"]},
        {"forgotten": [[0, 10**15]]},
        {"forgotten": [[3, 5], [4, 6]]},
        {"forgotten": [[5, 3]]},
        {"forgotten": [[0, 2], [2, 4]]},
        {"forgotten": [[1.0, 2.0]]},
        {"generation": "1"},
        {"generation": -1},
        {"shard_chunks": 0},
        {"dtype": "float64"},
        {"checksums": "AAAA"},
        {"checksums": 7},
        {"items": [{"file": "../../etc/passwd", "rows": 20, "sha256": "x"}]},
        {"items": [{"file": "0-5.parquet", "rows": n, "sha256": "x"} for n in (25, -5)]},
        {"items": None},
        {"space": {}},
    ],
)
def test_a_record_that_no_release_writes_is_refused_though_it_is_sealed(tmp_path, change, capsys):
    filled(tmp_path / "store", 20, dtype="float16").close()
    record = tmp_path / "store" / "store.json"
    record.write_bytes(seal(unseal(record, version=2) | change))
    with pytest.raises(DamagedStore, match=r"store\.json is no record of a store") as caught:
        EmbeddingStore.open(tmp_path / "store")
    assert "\n" not in str(caught.value)
    assert inspect_main([str(tmp_path / "store")]) == 1
    assert capsys.readouterr().err.count("\n") == 1


def test_many_small_appends_to_a_shard_cost_as_much_as_one(tmp_path, monkeypatch):
    copied = []
    concatenate = np.concatenate

    def counting(parts, **options):
        copied.extend(part.nbytes for part in parts if part.dtype == np.float32)
        return concatenate(parts, **options)

    monkeypatch.setattr("numpy.concatenate", counting)
    with EmbeddingStore.create(tmp_path / "store", SPACE, chunk_rows=4, shard_chunks=50) as store:
        for start in range(0, 190, 2):
            store.append(*rows(start, start + 2))
        assert not sum(copied)
        store.commit()
    assert_holds(tmp_path / "store", range(190))


def test_replaced_rows_are_checked_against_the_commit(tmp_path):
    with filled(tmp_path / "store", 20) as store:
        assert len(Commit.read(store.path).checksums or b"") == 3 * 4
    changed = replace(Commit.read(tmp_path / "store"), checksums=b"\0" * 12)
    changed.publish(tmp_path / "store")
    with pytest.raises(DamagedStore, match="holds other rows than were committed"):
        EmbeddingStore.open(tmp_path / "store").rows(0, 20)
