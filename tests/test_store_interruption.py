"""Stores whose writer is killed or whose disk is full: the last commit stays readable, the work can be finished."""

import multiprocessing
import random
import resource
import signal
import time
from contextlib import contextmanager

import numpy as np
import polars as pl
import pytest

from stores.durable import StoreLocked
from stores.space import EmbeddingSpace
from stores.store import EmbeddingStore

SPACE = EmbeddingSpace("resnet", None, 8, False)
ROWS, STEP = 840, 7
# Processes forked from a server that has imported the stores start at once.
CONTEXT = multiprocessing.get_context("forkserver")
CONTEXT.set_forkserver_preload(["stores.store", "zarr"])


def rows(start, stop):
    vectors = np.random.default_rng(0).normal(size=(ROWS, 8)).astype(np.float32)[start:stop]
    return pl.DataFrame({"item_id": [f"image {i}" for i in range(start, stop)]}), vectors


def write(path, started=None):
    """Append to the end, committing every other time, from wherever the store stands."""
    made = (path / "store.json").is_file()
    with EmbeddingStore.open(path) if made else EmbeddingStore.create(path, SPACE, chunk_rows=16) as store:
        if started:
            started.set()
        for start in range(len(store), ROWS, STEP):
            store.append(*rows(start, start + STEP))
            if start // STEP % 2:
                store.commit()
        store.commit()


def hold_lock(path, started):
    store = EmbeddingStore.open(path)
    store.append(*rows(0, 1))
    started.set()
    time.sleep(60)


def kill_during(function, path, *, after):
    started = CONTEXT.Event()
    process = CONTEXT.Process(target=function, args=(path, started))
    process.start()
    assert started.wait(30)
    time.sleep(after)
    process.kill()
    process.join()
    return process.exitcode == -signal.SIGKILL


def contents(folder):
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_killed_again_and_again_it_ends_as_if_never_interrupted(tmp_path):
    write(tmp_path / "whole")
    path = tmp_path / "killed"
    EmbeddingStore.create(path, SPACE, chunk_rows=16).close()
    moments = random.Random(0)
    kills, lengths = 0, []
    for _ in range(15):
        kills += kill_during(write, path, after=moments.uniform(0, 0.06))
        store = EmbeddingStore.open(path)
        items, vectors = rows(0, len(store))
        assert store.verify().ok
        assert list(store.items["item_id"]) == list(items["item_id"])
        np.testing.assert_array_equal(store.rows(0, len(store)), vectors)
        lengths.append(len(store))
    assert kills >= 5, lengths
    assert lengths == sorted(lengths)
    write(path)
    assert contents(path) == contents(tmp_path / "whole")


def test_the_lock_dies_with_its_holder(tmp_path):
    path = tmp_path / "store"
    EmbeddingStore.create(path, SPACE).close()
    started = CONTEXT.Event()
    holder = CONTEXT.Process(target=hold_lock, args=(path, started))
    holder.start()
    assert started.wait(30)
    with EmbeddingStore.open(path) as store:
        with pytest.raises(StoreLocked, match="another process"):
            store.append(*rows(0, 1))
        holder.kill()
        holder.join()
        store.append(*rows(0, 3))
        store.commit()
    assert len(EmbeddingStore.open(path)) == 3


def run_through(steps):
    while steps:
        steps[0]()
        steps.pop(0)


@contextmanager
def no_file_larger_than(size):
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))  # Python ignores the signal and gets EFBIG
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


@pytest.mark.parametrize("size", [0, 300, 516, 700, 900, 2000])
def test_a_disk_that_is_full_leaves_the_last_commit_and_work_goes_on(tmp_path, size):
    path = tmp_path / "store"
    note = {"note": "x" * 2000}  # store.json is the largest file, then items, zarr.json and chunks of 516 bytes
    with EmbeddingStore.create(path, SPACE, chunk_rows=16, provenance=note) as store:
        store.append(*rows(0, 20))
        store.commit()
        steps = [lambda: store.append(*rows(20, 60)), store.commit]
        with no_file_larger_than(size), pytest.raises(OSError, match="File too large"):
            run_through(steps)
        again = EmbeddingStore.open(path)
        assert again.verify().ok
        assert len(again) == 20
        np.testing.assert_array_equal(again.rows(0, 20), rows(0, 20)[1])
        run_through(steps)
    finished = EmbeddingStore.open(path)
    assert finished.verify().ok
    assert finished.items.equals(rows(0, 60)[0])
    np.testing.assert_array_equal(finished.rows(0, 60), rows(0, 60)[1])
    assert not list(path.rglob("*.tmp"))
