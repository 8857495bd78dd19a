"""`python -m compat.migrate` as a user meets it: plans, pauses, and a view of what is going on."""

import os
import signal
import subprocess
import time

import numpy as np
import pytest
from migrating import OLD, turned
from planted import command, environment, space, write_store
from test_migration import committed

from compat import migrate
from compat.migration.plan import plan_migration
from compat.migration.progress import ProgressLines
from compat.migration.verify import verify_search
from compat.transformers.artefact import WrongSpace
from stores.galleries import open_source
from stores.space import EmbeddingSpace
from stores.store import EmbeddingStore


@pytest.fixture
def old(tmp_path):
    vectors = np.random.default_rng(0).normal(size=(500, 8)).astype(np.float32)
    write_store(tmp_path / "old", vectors, chunk_rows=64)
    turned().save(tmp_path / "t")
    return str(tmp_path / "old")


def words(tmp_path, target, *more):
    found = ["--transformer", tmp_path / "t", "--source", tmp_path / "old", "--target", target, *more]
    return [str(word) for word in found]


@pytest.mark.parametrize("target", ["new", "new.npy", "new.parquet", "deep/er/new.faiss"])
def test_a_plan_tells_what_would_be_and_leaves_nothing(old, tmp_path, target):
    before = sorted(tmp_path.rglob("*"))
    plan = plan_migration(old, turned(), str(tmp_path / target), sample_seconds=0.05)
    assert sorted(tmp_path.rglob("*")) == before
    assert (plan.rows, plan.space, plan.passed) == (500, space("new", 12), True)
    assert plan.bytes == 500 * (12 * 4 + 32)
    assert plan.free_bytes is not None
    assert plan.free_bytes > 2**20
    assert plan.seconds == pytest.approx(500 / plan.rows_per_second)
    told = str(plan)
    for part in ("500 vectors of new (12-D)", "rows/s (500 rows read, mapped and written", "ok     dimension: 8 to 12"):
        assert part in told
    assert "compared by cosine" in told
    assert f"{tmp_path / target}.migration: what the migration remembers" in told


def test_a_plan_finds_what_is_wrong_and_a_run_then_writes_nothing(tmp_path, capsys):
    unit = EmbeddingSpace("old", None, 8, True)
    with EmbeddingStore.create(tmp_path / "old", unit) as store:
        vectors = np.eye(8, dtype=np.float32).repeat(5, axis=0)
        vectors[7] *= 3
        import polars as pl

        store.append(pl.DataFrame({"item_id": range(40)}), vectors)
        store.commit()
    from dataclasses import replace

    transformer = replace(turned(), source=unit)
    plan = plan_migration(str(tmp_path / "old"), transformer, str(tmp_path / "new"), sample_seconds=0)
    assert not plan.passed
    assert plan.seconds is None
    assert "FAILED norms: 1 of 40 sampled vectors are not of unit length" in str(plan)
    transformer.save(tmp_path / "t")
    assert migrate.main(words(tmp_path, tmp_path / "new")) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: nothing was written: norms: 1 of 40 sampled vectors are not of unit length")
    assert error.count("\n") == 1
    assert not (tmp_path / "new").exists()
    with pytest.raises(WrongSpace):
        plan_migration(str(tmp_path / "old"), turned(), str(tmp_path / "new"))


def test_a_plan_looks_at_the_target(old, tmp_path, capsys):
    from compat.migration.run import migrate_gallery

    for target in ("new", "new.npy"):
        place = str(tmp_path / target)
        assert "ok     target: nothing is there yet" in str(plan_migration(old, turned(), place, sample_seconds=0))
        migrate_gallery(old, turned(), place, state=tmp_path / f"{target}.state")
        for state, told in ((f"{target}.state", "ok     norms"), ("gone", "ok     target: this migration's result")):
            assert told in str(plan_migration(old, turned(), place, sample_seconds=0, state=tmp_path / state))
        other = plan_migration(old, turned(seed=1), place, sample_seconds=0, state=tmp_path / "gone")
        assert f"FAILED target: {place} holds another gallery, which is left alone; name another" in str(other)
    before = sorted(tmp_path.rglob("*"))
    turned(seed=1).save(tmp_path / "t1")
    assert (
        migrate.main([*words(tmp_path, tmp_path / "new"), "--transformer", str(tmp_path / "t1"), "--state", "x"]) == 2
    )
    error = capsys.readouterr().err
    assert error.startswith("error: nothing was written: target: ")
    assert error.count("\n") == 1
    assert [path for path in sorted(tmp_path.rglob("*")) if "t1" not in path.parts] == before


def test_long_reading_is_told_of_too(old, tmp_path, capsys, monkeypatch):
    from compat.migration.run import migrate_gallery, verify_migrated

    seen: list[tuple[int, int]] = []
    migrate_gallery(old, turned(), str(tmp_path / "new"), batch_rows=100, on_look=lambda *now: seen.append(now))
    assert seen[-1] == (500, 500)
    seen.clear()
    verify_migrated(old, turned(), str(tmp_path / "new"), on_look=lambda *now: seen.append(now))
    assert seen == [(500, 500)]
    clock = iter(range(0, 1000, 3))
    monkeypatch.setattr(time, "monotonic", lambda: next(clock))
    told = ProgressLines("looked at")
    for done in (100, 200, 300, 400, 500, 100, 200, 300, 400, 500):
        told(done, 500)
    assert capsys.readouterr().err.splitlines() == [
        "looked at 200/500 rows, 33 rows/s, 9 s left",
        "looked at 400/500 rows, 33 rows/s, 3 s left",
        "looked at 200/500 rows, 33 rows/s, 9 s left",
        "looked at 400/500 rows, 33 rows/s, 3 s left",
    ]


def test_a_plan_checks_the_disk(old, tmp_path, monkeypatch):
    from compat.migration import plan as module

    monkeypatch.setattr(module, "_free_bytes", lambda _: 1000)
    plan = plan_migration(old, turned(), str(tmp_path / "new"), sample_seconds=0)
    assert "FAILED disk: 39.06 KiB needed, 1000 bytes free; make room" in str(plan)


def test_a_signal_pauses_and_the_same_command_goes_on(tmp_path):
    rows = 40_000
    write_store(tmp_path / "old", np.random.default_rng(0).normal(size=(rows, 8)).astype(np.float32), chunk_rows=4096)
    turned().save(tmp_path / "t")
    given = words(tmp_path, tmp_path / "new", "--batch-rows", "16")
    with subprocess.Popen(
        command("compat.migrate", *given), env=environment(), stderr=subprocess.PIPE, text=True
    ) as process:
        deadline = time.monotonic() + 100
        while not committed(tmp_path / "new") and process.poll() is None and time.monotonic() < deadline:
            time.sleep(0.01)
        seen = committed(tmp_path / "new")
        os.kill(process.pid, signal.SIGTERM)
        errors = process.communicate(timeout=100)[1]
    assert process.returncode == 130, errors
    assert "pausing: what was copied is being committed" in errors
    assert "the same command run again goes on" in errors
    left = committed(tmp_path / "new")
    assert seen <= left < rows
    assert migrate.main(words(tmp_path, tmp_path / "new")) == 0
    assert committed(tmp_path / "new") == rows


def test_recall_of_an_index_is_that_of_a_slow_computation(old, tmp_path):
    gallery = open_source(old)
    vectors = EmbeddingStore.open(old).rows(0, 500)
    queries = np.random.default_rng(1).normal(size=(7, 8)).astype(np.float32)
    unit = vectors / np.linalg.norm(vectors, axis=1, keepdims=True)
    best = np.argsort(-(queries @ unit.T), axis=1)[:, :10]
    right = [[f"i{row}" for row in rows] for rows in best]
    assert verify_search(gallery, queries, lambda _queries, _k: right).recall == 1
    spoiled = [["none", *ids[1:]] for ids in right]
    found = verify_search(gallery, queries, lambda _queries, _k: spoiled)
    assert (found.queries, found.k, found.recall) == (7, 10, pytest.approx(0.9))
    assert str(found) == "its search finds 90.0% of the 10 nearest of 7 queries"


def test_verify_searches_with_the_queries_given(old, tmp_path):
    from compat.migration.run import migrate_gallery, verify_migrated

    migrate_gallery(old, turned(), str(tmp_path / "new"))
    queries = turned().transform(EmbeddingStore.open(old).rows(0, 20))
    write_store(tmp_path / "queries", queries, name="new")
    asked = []

    def search(given, k):
        asked.append(given)
        return [[f"i{row}"] for row in range(20)]

    found = verify_migrated(old, turned(), str(tmp_path / "new"), queries=tmp_path / "queries", search=search)
    np.testing.assert_array_equal(asked[0], queries)
    assert found.search is not None
    assert found.search.recall == pytest.approx(0.1)
    with pytest.raises(WrongSpace, match=r"old is in old \(8-D\), expected new \(12-D\), which the queries are in"):
        verify_migrated(old, turned(), str(tmp_path / "new"), queries=old, search=search)
    assert EmbeddingStore.open(old).space == OLD


def test_what_is_cheap_to_tell_is_told_before_the_map_is_loaded(old, tmp_path, capsys):
    table = "postgresql://nobody@localhost:1/db/table"
    for target, more, told in [
        ("lance:place/new?indx=hnsw", (), "has an option 'indx', expected one of"),
        (f"{table}?type=float", (), "has type=float, expected one of vector, halfvec"),
        ("new.npy", ("--source", table, "--workers", "2"), "is read by one process only, as it may change"),
        (str(tmp_path / "old2"), (), "old2 holds another gallery, which is left alone; name another target"),
    ]:
        if target.endswith("old2"):
            write_store(tmp_path / "old2", np.eye(12, dtype=np.float32))
        given = ["--transformer", str(tmp_path / "none"), "--source", old, "--target", target, *more]
        assert migrate.main(given) == 2
        assert told in capsys.readouterr().err  # and nothing of the missing transformer


def test_a_dead_scheduler_is_told_of_soon_and_leaves_nothing(old, tmp_path, capsys, monkeypatch):
    from compat.migration import early

    monkeypatch.setattr(early.require_scheduler, "__kwdefaults__", {"seconds": 1.2})
    before = sorted(tmp_path.rglob("*"))
    began = time.monotonic()
    assert migrate.main(words(tmp_path, tmp_path / "new", "--scheduler", "tcp://127.0.0.1:1")) == 2
    error = capsys.readouterr().err
    assert "waiting for tcp://127.0.0.1:1\n" in error
    assert "error: no dask scheduler answers at tcp://127.0.0.1:1 (Connection refused); start one with" in error
    assert time.monotonic() - began < 10
    assert sorted(tmp_path.rglob("*")) == before


@pytest.mark.parametrize("rows", [10, 1024, 1025, 2000, 4000, 5000])
def test_no_row_of_a_plan_is_looked_at_twice(tmp_path, rows):
    from dataclasses import replace

    unit = EmbeddingSpace("old", None, 8, True)
    with EmbeddingStore.create(tmp_path / "old", unit) as store:
        import polars as pl

        store.append(pl.DataFrame({"item_id": range(rows)}), np.eye(8, dtype=np.float32)[np.arange(rows) % 8])
        store.commit()
    plan = plan_migration(str(tmp_path / "old"), replace(turned(), source=unit), str(tmp_path / "new"))
    found = int(str(plan).partition("norms: ")[2].split()[0])
    assert min(rows, 4096) - 4 < found <= min(rows, 4096)


def test_a_map_of_queries_is_told_to_need_no_migration(old, tmp_path, capsys):
    from compat.transformers.artefact import Transformer
    from compat.transformers.linear import LinearMap

    turn = np.linalg.qr(np.random.default_rng(0).normal(size=(12, 12)))[0][:, :8]
    Transformer("procrustes", "new-to-old", space("new", 12), OLD, LinearMap.from_arrays(turn, np.zeros(8))).save(
        tmp_path / "back"
    )
    given = ["--transformer", str(tmp_path / "back"), "--source", old, "--target", str(tmp_path / "new")]
    assert migrate.main(given) == 2
    error = capsys.readouterr().err
    assert "needs no migration" in error
    assert "python -m compat.export --format faiss, onnx or numpy" in error
    assert error.count("\n") == 1
