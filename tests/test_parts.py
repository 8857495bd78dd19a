"""Work in parts: by processes of this machine and by a real cluster of dask, whose workers are really killed."""

import multiprocessing
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import part_tasks
import polars as pl
import pytest
from store_faults import LAYOUTS, SPACE, bytes_by_name, item_ids, no_file_larger_than, planted

from stores import parts
from stores.commit import Commit
from stores.durable import StoreLocked
from stores.galleries import GALLERIES, npy, zarr_parts, zarr_store
from stores.galleries.gallery import PartsEngine
from stores.layout import VectorLayout
from stores.parts import run_parts
from stores.store import Batch, EmbeddingStore

ROWS = 330
ORIGIN = {"from": "a test"}


def test_a_pool_runs_every_part_once(tmp_path):
    done = dict(run_parts(part_tasks.square, part_tasks.Work(tmp_path), range(9), workers=2))
    assert done == {number: number**2 for number in range(9)}
    traces = [path.name.split("-") for path in tmp_path.iterdir()]
    assert sorted(int(number) for number, _, _ in traces) == list(range(9))
    assert str(os.getpid()) not in {process for _, _, process in traces}
    assert not multiprocessing.active_children()


def test_one_worker_is_this_process(tmp_path):
    assert dict(run_parts(part_tasks.square, part_tasks.Work(tmp_path), [4, 2])) == {4: 16, 2: 4}
    assert {path.name for path in tmp_path.iterdir()} == {f"{number}-0-{os.getpid()}" for number in (2, 4)}


def test_a_pool_goes_on_when_a_process_dies(tmp_path):
    work = part_tasks.Work(tmp_path, deadly=4, deaths=2)
    done = dict(run_parts(part_tasks.square, work, range(8), workers=2))
    assert done == {number: number**2 for number in range(8)}
    assert len(list(tmp_path.glob("4-*"))) >= 3


def test_a_pool_gives_up_when_processes_die_again_and_again(tmp_path):
    work = part_tasks.Work(tmp_path, deadly=0, deaths=99)
    with pytest.raises(ValueError, match=r"died 4 times in a row with 1 parts to go.*fewer --workers"):
        list(run_parts(part_tasks.square, work, range(1), workers=2))
    assert len(list(tmp_path.iterdir())) == parts.RESTARTS + 1


def test_what_a_part_raises_ends_the_work(tmp_path):
    with pytest.raises(ValueError, match="part three is wrong"):
        list(run_parts(part_tasks.fail, part_tasks.Work(tmp_path), range(6), workers=2))
    with pytest.raises(ValueError, match="workers must be at least 1, found 0"):
        run_parts(part_tasks.fail, part_tasks.Work(tmp_path), range(6), workers=0)


def test_processes_of_a_pool_share_the_processors(tmp_path, monkeypatch):
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    monkeypatch.setattr(os, "cpu_count", lambda: 6)
    assert dict(run_parts(part_tasks.threads, part_tasks.Work(tmp_path), range(2), workers=2)) == {0: "3", 1: "3"}


def test_processes_of_a_pool_end_with_the_one_that_began_them(tmp_path):
    code = (
        "import part_tasks, sys, time, pathlib\n"
        "from stores.parts import run_parts\n"
        "if __name__ == '__main__':\n"
        "    work = part_tasks.Work(pathlib.Path(sys.argv[1]))\n"
        "    for done in run_parts(part_tasks.square, work, range(4), workers=2):\n"
        "        print('one', flush=True)\n"
        "        time.sleep(60)\n"
    )
    (tmp_path / "hand_out.py").write_text(code)
    (tmp_path / "traces").mkdir()
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)}
    process = subprocess.Popen(
        [sys.executable, tmp_path / "hand_out.py", tmp_path / "traces"],
        env=environment,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "one\n"
    workers = {int(path.name.split("-")[2]) for path in (tmp_path / "traces").iterdir()}
    process.send_signal(signal.SIGKILL)
    process.wait()
    process.stdout.close()
    deadline = time.monotonic() + 20
    while any(alive(worker) for worker in workers):
        assert time.monotonic() < deadline, "a process of the pool outlived its parent"
        time.sleep(0.05)


def alive(process):
    try:
        return Path(f"/proc/{process}/stat").read_text().rsplit(")")[1].split()[0] != "Z"
    except FileNotFoundError:
        return False


def test_what_parts_share_is_shown_nowhere(tmp_path):
    carried = parts.Carried(part_tasks.square, part_tasks.Work(tmp_path, secret="s3cret"))
    assert "s3cret" not in repr(carried)
    assert carried.run(3) == 9


def test_a_scheduler_that_is_not_there(tmp_path, monkeypatch):
    monkeypatch.setattr(parts, "SECONDS_TO_CONNECT", 0.5)
    with pytest.raises(OSError, match=r"no dask scheduler answers at tcp://127.0.0.1:9"):
        list(run_parts(part_tasks.square, part_tasks.Work(tmp_path), range(2), scheduler="tcp://127.0.0.1:9"))


@pytest.fixture(scope="module", params=LAYOUTS)
def layout(request):
    return VectorLayout(SPACE.dim, chunk_rows=16, **LAYOUTS[request.param])


@pytest.fixture(scope="module")
def alone(layout, tmp_path_factory):
    """The store that one writer makes."""
    path = tmp_path_factory.mktemp("alone") / "store"
    zarr_store.begin_target(str(path), SPACE, ORIGIN, layout)
    target = zarr_store.open_target(str(path), SPACE, ORIGIN)
    target.write(Batch(*planted(0, ROWS)))
    target.finish()
    target.close()
    return path


def begun(path, layout, rows=ROWS):
    zarr_store.begin_target(str(path), SPACE, ORIGIN, layout)
    return str(path), zarr_store.begin_parts(str(path), SPACE, ORIGIN, rows)


def part(number, size, rows=ROWS):
    return Batch(*planted(number * size, min((number + 1) * size, rows)))


def count(size, rows=ROWS):
    return -(-rows // size)


def test_which_engines_take_parts():
    assert isinstance(GALLERIES["zarr"], PartsEngine)
    assert not isinstance(npy, PartsEngine)


def test_parts_in_any_order_and_more_than_once_make_the_same_files(tmp_path, layout, alone, monkeypatch):
    monkeypatch.setattr(zarr_parts, "PART_ROWS", 128)
    path, size = begun(tmp_path / "store", layout)
    assert size % layout.file_rows == 0
    order = np.random.default_rng(0).permutation(count(size)).tolist()
    for number in [*order, *order[:3]]:
        zarr_store.write_part(path, number, part(number, size))
    assert zarr_store.parts_done(path) == set(order)
    assert len(EmbeddingStore.open(path)) == 0
    with pytest.raises(ValueError, match="unfinished"):
        zarr_store.open_source(path)
    zarr_store.finish_parts(path)
    assert zarr_store.parts_done(path) == set(order)
    zarr_store.write_part(path, 0, part(0, size))
    zarr_store.finish_parts(path)
    store = EmbeddingStore.open(path)
    assert store.verify().ok
    assert store.items.equals(EmbeddingStore.open(alone).items)
    monkeypatch.undo()
    again, _ = begun(tmp_path / "again", layout)
    for number in range(count(size)):
        zarr_store.write_part(again, number, part(number, size))
    zarr_store.finish_parts(again)
    assert bytes_by_name(Path(again)) == bytes_by_name(alone)


@pytest.fixture
def plain(tmp_path):
    return begun(tmp_path / "store", VectorLayout(SPACE.dim, chunk_rows=16))


def test_item_parts_are_cut_as_one_writer_cuts_them(tmp_path, monkeypatch):
    from stores import writer

    monkeypatch.setattr(writer, "PART_ROWS", 100)
    monkeypatch.setattr(zarr_parts, "PART_ROWS", 100)
    layout = VectorLayout(SPACE.dim, chunk_rows=16)
    path, size = begun(tmp_path / "parts", layout)
    zarr_store.begin_target(str(tmp_path / "alone"), SPACE, ORIGIN, layout)
    target = zarr_store.open_target(str(tmp_path / "alone"), SPACE, ORIGIN)
    for number in range(count(size)):
        zarr_store.write_part(path, number, part(number, size))
        target.write(part(number, size))
    zarr_store.finish_parts(path)
    target.finish()
    target.close()
    assert len(list((tmp_path / "parts" / "items").iterdir())) == 4
    assert bytes_by_name(tmp_path / "parts") == bytes_by_name(tmp_path / "alone")


def test_a_part_that_is_missing_is_missed(plain):
    path, size = plain
    for number in range(1, count(size)):
        zarr_store.write_part(path, number, part(number, size))
    with pytest.raises(ValueError, match=r"1 parts of .* are missing, the first is 0"):
        zarr_store.finish_parts(path)
    zarr_store.write_part(path, 0, part(0, size))
    zarr_store.finish_parts(path)
    assert EmbeddingStore.open(path).verify().ok


def test_parts_that_do_not_fit_are_refused(plain):
    path, size = plain
    for number, batch in ((0, part(0, size - 1)), (count(size), part(0, size)), (-1, part(0, size))):
        with pytest.raises(ValueError, match="begin again"):
            zarr_store.write_part(path, number, batch)
    items, vectors = part(0, size)
    with pytest.raises(ValueError, match="NaN or infinity"):
        zarr_store.write_part(path, 0, Batch(items, np.full_like(vectors, np.nan)))
    assert not zarr_store.parts_done(path)


@pytest.mark.parametrize("buckets", [1, 7])
def test_an_id_that_two_parts_have_is_refused(plain, monkeypatch, buckets):
    monkeypatch.setattr(zarr_parts, "_BUCKET_IDS", -(-ROWS // buckets))
    path, size = plain
    for number in range(count(size)):
        items, vectors = part(number, size)
        if number == 5:
            doubled = pl.Series("item_id", [*items["item_id"][:-1], item_ids(3, 4)[0]])
            items = items.with_columns(doubled)
        zarr_store.write_part(path, number, Batch(items, vectors))
    with pytest.raises(ValueError, match=f"must be unique in a store; '{item_ids(3, 4)[0]}' and 0 more"):
        zarr_store.finish_parts(path)
    assert not list(Path(path, "parts").glob("hashes-*"))


def test_ids_of_one_hash_are_no_duplicates(plain, monkeypatch):
    monkeypatch.setattr(pl.Series, "hash", lambda ids, *_: pl.Series([7] * len(ids), dtype=pl.UInt64))
    path, size = plain
    for number in range(count(size)):
        zarr_store.write_part(path, number, part(number, size))
    zarr_store.finish_parts(path)
    assert len(EmbeddingStore.open(path)) == ROWS


def test_columns_must_be_those_of_the_other_parts(plain):
    path, size = plain
    for number in range(count(size)):
        items, vectors = part(number, size)
        zarr_store.write_part(path, number, Batch(items.drop("label") if number == 2 else items, vectors))
    with pytest.raises(ValueError, match="the items have the columns"):
        zarr_store.finish_parts(path)


def test_one_hands_out_the_parts_at_a_time(plain):
    path, size = plain
    with zarr_store.hold_parts(path):
        with pytest.raises(StoreLocked), zarr_store.hold_parts(path):
            pass
        with pytest.raises(StoreLocked):
            zarr_store.begin_parts(path, SPACE, ORIGIN, ROWS)
        with pytest.raises(StoreLocked):
            EmbeddingStore.open(path).commit()
        for number in range(count(size)):
            zarr_store.write_part(path, number, part(number, size))
        zarr_store.finish_parts(path)
    assert zarr_store.begin_parts(path, SPACE, ORIGIN, ROWS) == size


def test_one_writer_and_many_do_not_mix(tmp_path, plain):
    path, size = plain
    zarr_store.write_part(path, 0, part(0, size))
    with pytest.raises(FileExistsError, match="begun by several processes"):
        zarr_store.open_target(path, SPACE, ORIGIN)
    with pytest.raises(FileExistsError, match="another origin \\(from differ\\)"):
        zarr_store.begin_parts(path, SPACE, {"from": "elsewhere"}, ROWS)
    with pytest.raises(FileExistsError, match=f"begun for {ROWS} rows, expected 7"):
        zarr_store.begin_parts(path, SPACE, ORIGIN, 7)
    target = zarr_store.open_target(str(tmp_path / "one"), SPACE, ORIGIN)
    target.write(part(0, size))
    target.commit()
    target.close()
    with pytest.raises(FileExistsError, match=f"begun by one writer and has {size} rows"):
        zarr_store.begin_parts(str(tmp_path / "one"), SPACE, ORIGIN, ROWS)


def test_parts_that_somebody_took_for_leftovers_are_written_again(plain):
    path, size = plain
    for number in range(count(size)):
        zarr_store.write_part(path, number, part(number, size))
    with EmbeddingStore.open(path) as store:
        store.commit()
    for _ in range(2):  # vectors, then, had they gone alone, items
        with pytest.raises(ValueError, match="run again"):
            zarr_store.finish_parts(path)
        for number in set(range(count(size))) - zarr_store.parts_done(path):
            zarr_store.write_part(path, number, part(number, size))
        Path(path, "parts", "1.parquet").write_bytes(b"torn")
    with pytest.raises(ValueError, match="lost or altered"):
        zarr_store.finish_parts(path)
    zarr_store.write_part(path, 1, part(1, size))
    zarr_store.finish_parts(path)
    assert EmbeddingStore.open(path).verify().ok


def test_a_full_disk_fails_the_part_alone(plain):
    path, size = plain
    for number in range(count(size)):
        if number == 3:
            with no_file_larger_than(200), pytest.raises(OSError, match="too large"):
                zarr_store.write_part(path, number, part(number, size))
            assert number not in zarr_store.parts_done(path)
        zarr_store.write_part(path, number, part(number, size))
    zarr_store.finish_parts(path)
    assert EmbeddingStore.open(path).verify().ok


def test_a_coordinator_killed_while_it_tidied_up(plain):
    path, size = plain
    for number in range(count(size)):
        zarr_store.write_part(path, number, part(number, size))
    shutil.copytree(Path(path, "parts"), Path(path).parent / "kept")
    zarr_store.finish_parts(path)
    whole = bytes_by_name(Path(path))
    shutil.copytree(Path(path).parent / "kept", Path(path, "parts"))
    zarr_store.begin_parts(path, SPACE, ORIGIN, ROWS)
    assert bytes_by_name(Path(path)) == whole
    assert Commit.read(Path(path)).rows == ROWS
