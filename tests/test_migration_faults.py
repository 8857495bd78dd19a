"""Migrations killed at any act upon the disk, full disks, and stores that change meanwhile."""

import random
import shutil
import time

import numpy as np
import polars as pl
import pytest
from migrating import OLD, turned, work, work_until_the_server_dies, work_with_tables
from real_postgres import postgres, schema  # noqa: F401 - fixtures
from store_faults import CONTEXT, dies_at_byte, dies_at_step, killed, no_file_larger_than, seconds_to_end
from test_migration import contents
from test_migration_live import People, assert_migrated, change, held

from compat.migration.run import migrate_gallery
from stores.store import EmbeddingStore

ROWS = 300
CONTEXT.set_forkserver_preload(["stores.store", "zarr", "compat.migration.run", "psycopg"])


def vector(number):
    return np.sin(number * np.arange(1, 9) + 1).astype(np.float32)


def rows_of(numbers):
    return pl.DataFrame({"item_id": [f"i{number:04d}" for number in numbers]}), np.stack([vector(n) for n in numbers])


def plant_source(path):
    with EmbeddingStore.create(path, OLD, chunk_rows=32) as store:
        store.append(*rows_of(range(ROWS)))
        store.commit()
    return path


def change_source(path, round_=0):
    """Three rows more, one of another vector, two less; what the source then holds."""
    first = 1000 + 10 * round_
    with EmbeddingStore.open(path) as store:
        gone = store.items["item_id"][[3, 200]].to_list()
        other = store.items["item_id"][100]
        store.forget([*gone, other])
        store.append(*rows_of(range(first, first + 3)))
        store.append(pl.DataFrame({"item_id": [other]}), vector(first + 5)[None])
        store.commit()
        return dict(zip(store.items["item_id"], store.rows(0, len(store)), strict=True))


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory):
    folder = tmp_path_factory.mktemp("undisturbed")
    source = plant_source(folder / "old")
    for target in ("new", "new.parquet"):
        work(source, folder / target)
    return folder


def places(kills):
    return [pytest.param(kills), pytest.param(10 * kills, marks=pytest.mark.slow)]


@pytest.mark.parametrize("kills", places(5))
@pytest.mark.parametrize("target", ["new", "new.parquet"])
def test_killed_at_any_act_upon_the_disk_it_ends_as_if_never_interrupted(undisturbed, tmp_path, target, kills):
    source = undisturbed / "old"
    chance = random.Random(kills)
    died = 0
    for number in range(kills):
        path = tmp_path / str(number) / target
        path.parent.mkdir()
        for _ in range(2):  # the second run may die too
            died += dies_at_step(chance.randrange(40), work, source, path)
        work(source, path)
        assert contents(path) == contents(undisturbed / target)
        shutil.rmtree(path.parent)
    assert died >= kills


@pytest.mark.parametrize("kills", places(2))
@pytest.mark.parametrize("target", ["new", "new.parquet"])
def test_killed_while_the_source_changes_it_ends_with_what_the_source_holds(tmp_path, target, kills):
    chance = random.Random(kills)
    for number in range(kills):
        folder = tmp_path / str(number)
        folder.mkdir()
        source = plant_source(folder / "old")
        held = {}
        for round_ in range(2):
            dies_at_step(chance.randrange(10, 50), work, source, folder / target)
            if target == "new" or (folder / ".new.parquet.partial").exists() or not (folder / target).exists():
                held = change_source(source, round_)
        work(source, folder / target)
        assert_migrated(str(folder / target), held)


@pytest.mark.parametrize("kills", places(3))
def test_killed_while_changes_are_brought_over_none_is_lost(undisturbed, tmp_path, kills):
    chance = random.Random(kills)
    for number in range(kills):
        folder = tmp_path / str(number)
        shutil.copytree(undisturbed, folder)
        shutil.rmtree(folder / "new.migration")
        shutil.rmtree(folder / "new")
        work(folder / "old", folder / "new")
        change_source(folder / "old")
        dies_at_step(chance.randrange(60), work, folder / "old", folder / "new")
        held = change_source(folder / "old", 1)
        work(folder / "old", folder / "new")
        assert_migrated(str(folder / "new"), held)


@pytest.mark.parametrize("kills", [3, pytest.param(100, marks=pytest.mark.slow)])
@pytest.mark.parametrize("changing", [False, True])
def test_killed_at_any_moment_a_table_ends_with_what_the_source_holds(
    postgres,  # noqa: F811
    schema,  # noqa: F811
    tmp_path,
    kills,
    changing,
):
    """The migrator, from table to table, up to three times in a row; it prints how often."""
    chance = random.Random(kills)
    people = People(postgres, schema)
    whole = postgres.uri(f"{schema}.whole")
    longest = seconds_to_end(work_with_tables, people.uri, whole, tmp_path / "whole")
    died = number = 0
    while died < kills:
        target, state = postgres.uri(f"{schema}.new{number}"), tmp_path / str(number)
        for _ in range(3):
            dead = killed(work_with_tables, people.uri, target, state, after=chance.uniform(0, longest))
            longest *= 1.1 if dead else 0.8  # follows a machine that gets slower, or faster
            died += dead
            if changing:
                change(people, number)
                number += 1
        work_with_tables(people.uri, target, state)
        if changing:
            assert_migrated(target, people.vectors)
        else:
            assert_same(held(target), held(whole))
        number += 1
    print(f"killed {died} times, {len(list(tmp_path.iterdir())) - 1} migrations")


def assert_same(found, expected):
    assert found.keys() == expected.keys()
    for item_id, vector in expected.items():
        np.testing.assert_array_equal(found[item_id], vector)


@pytest.mark.parametrize("kills", [1, pytest.param(20, marks=pytest.mark.slow)])
def test_a_server_killed_at_any_moment_of_a_migration_loses_nothing(
    postgres,  # noqa: F811
    schema,  # noqa: F811
    tmp_path,
    kills,
):
    chance = random.Random(kills)
    people = People(postgres, schema)
    whole = postgres.uri(f"{schema}.whole")
    longest = seconds_to_end(work_with_tables, people.uri, whole, tmp_path / "whole")
    unfinished = 0
    for number in range(kills):
        target, state = postgres.uri(f"{schema}.new{number}"), tmp_path / str(number)
        process = CONTEXT.Process(target=work_until_the_server_dies, args=(people.uri, target, state))
        process.start()
        time.sleep(chance.uniform(0.1, 0.9) * longest)
        try:
            postgres.kill()
            process.join(60)
        finally:
            postgres.start()
        assert process.exitcode == 0
        unfinished += not (state / "state.json").is_file() or "verified" not in (state / "state.json").read_text()
        work_with_tables(people.uri, target, state)
        assert_same(held(target), held(whole))
    print(f"the server was killed {kills} times, {unfinished} of them before the migration's end")


@pytest.mark.parametrize("target", ["new", "new.npy"])
def test_a_store_that_changes_during_the_run_is_followed(tmp_path, target):
    source = plant_source(tmp_path / "old")
    held = {}

    def disturb(rows, _):
        if not held:
            held.update(change_source(source))

    result = migrate_gallery(str(source), turned(), str(tmp_path / target), batch_rows=32, on_rows=disturb)
    assert result.changes is not None
    assert (result.changes.inserted, result.changes.updated, result.changes.removed) == (3, 1, 2)
    assert result.changes.passes == 1  # its digest tells that there is nothing more
    assert result.check.rows == len(held) == ROWS + 1
    assert_migrated(str(tmp_path / target), held)


def test_a_store_that_did_not_change_is_not_read_again(tmp_path, monkeypatch):
    from compat.migration import changes

    source = plant_source(tmp_path / "old")
    monkeypatch.setattr(changes, "record_rows", None)
    for _ in range(2):
        changed = migrate_gallery(str(source), turned(), str(tmp_path / "new")).changes
        assert changed is not None
        assert changed.passes == 0


def test_a_file_that_changed_while_it_was_copied_is_not_passed_off_as_one_version(tmp_path):
    from stores.convert import ConvertOptions, convert

    plant_source(tmp_path / "store")
    convert(ConvertOptions(str(tmp_path / "store"), str(tmp_path / "old.npy")))

    def disturb(rows, _):
        with (tmp_path / "old.npy").open("r+b") as file:
            file.seek(-4, 2)
            file.write(b"\0\0\0\0")

    with pytest.raises(ValueError, match=r"old.npy changed while it was copied, .*--step discard, then --step run"):
        migrate_gallery(str(tmp_path / "old.npy"), turned(), str(tmp_path / "new"), batch_rows=64, on_rows=disturb)
    with pytest.raises(ValueError, match="unfinished"):
        assert_migrated(str(tmp_path / "new"), {})


def test_a_full_disk_leaves_what_was_committed_and_the_next_run_goes_on(undisturbed, tmp_path):
    assert dies_at_byte(3000, work, undisturbed / "old", tmp_path / "new")
    with no_file_larger_than(1500), pytest.raises(OSError, match="too large"):
        work(undisturbed / "old", tmp_path / "new")
    work(undisturbed / "old", tmp_path / "new")
    assert contents(tmp_path / "new") == contents(undisturbed / "new")


def test_two_migrations_to_one_target_are_refused(tmp_path):
    source = plant_source(tmp_path / "old")
    seen = []

    def again(rows, _):
        if not seen:
            seen.append(True)
            with pytest.raises(ValueError, match=r"new.migration is being written by another process"):
                work(source, tmp_path / "new")

    migrate_gallery(str(source), turned(), str(tmp_path / "new"), on_rows=again)
    assert seen
