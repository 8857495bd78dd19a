"""Stores whose writer is killed or whose disk is full: the last commit stays readable, the work can be finished."""

import errno
import os
import random
import re
import threading
from itertools import count as numbers
from pathlib import Path

import numpy as np
import pytest
from store_faults import (
    CONTEXT,
    FORGOTTEN,
    LAYOUTS,
    SPACE,
    Plan,
    append_all,
    append_some,
    assert_nowhere,
    bytes_by_name,
    compact,
    contend,
    copied,
    create_and_tell,
    dies_at_byte,
    dies_at_step,
    everything,
    folder_in_memory,
    forget_by_and_by,
    forget_some,
    hold_lock,
    item_ids,
    killed_or_ended,
    layout_on_disk,
    no_file_larger_than,
    pages_free,
    planted,
    seconds_to_end,
    small_disk,
    told_by,
)

from stores.durable import StoreLocked
from stores.store import EmbeddingStore, StaleStore

ACTS = {"append": append_some, "forget": forget_some, "compact": compact}
IDS, VECTORS = item_ids(0, 80), planted(0, 80)[1]


@pytest.fixture
def tmp_path():
    with folder_in_memory() as folder:
        yield folder


def full(*values):
    """Values that only the slow tests take."""
    return [pytest.param(*(v if isinstance(v, tuple) else (v,)), marks=pytest.mark.slow) for v in values]


@pytest.fixture(scope="module")
def templates(tmp_path_factory):
    """Stores as they stand before an act, in every layout, made once and only copied."""
    folder = tmp_path_factory.mktemp("templates")
    for layout, options in LAYOUTS.items():
        for act in ACTS:
            # The longest note makes store.json the largest file.
            note = {"note": "x" * 2000}
            path = folder / f"{layout}-{act}"
            append_all(path, Plan(layout, rows=80, chunk_rows=16, step=20))
            with EmbeddingStore.open(path) as store:
                store.commit(note)
            assert store.chunk_rows == 16
            assert options or EmbeddingStore.open(path).verify().ok
            if act == "compact":
                forget_some(path)
    return folder


@pytest.fixture(scope="module")
def finished(templates, tmp_path_factory):
    """The same stores after the act, which nothing interrupted."""
    folder = tmp_path_factory.mktemp("finished")
    for path in templates.iterdir():
        ACTS[path.name.rpartition("-")[2]](copied(path, folder / path.name))
    return folder


def test_the_acts_do_what_they_say(finished):
    kept = np.setdiff1d(np.arange(80), FORGOTTEN)
    items, vectors = planted(0, 130)
    for path in finished.iterdir():
        rows = np.arange(130) if path.name.endswith("append") else kept
        assert everything(path).items == items[rows].to_dicts()
        assert everything(path).vectors == vectors[rows].tobytes()
    for path in finished.glob("*-forget"):  # so that `assert_nowhere` is known to find what is there
        with pytest.raises(AssertionError, match="still holds"):
            assert_nowhere(path, [], VECTORS[FORGOTTEN], "float16" if "float16" in path.name else "float32")
        for row in FORGOTTEN:
            with pytest.raises(AssertionError, match="still holds the id"):
                assert_nowhere(path, [IDS[row]], VECTORS[:0], "float32")


def assert_old_or_new(path, before, after):
    store = EmbeddingStore.open(path)
    assert store.verify().ok
    assert told_by(store) in (before, after)


def assert_finished(path, act, whole):
    """What the act leaves when nothing interrupts it, and no trace of the attempts before."""
    assert everything(path) == everything(whole)
    assert EmbeddingStore.open(path).verify().ok
    assert layout_on_disk(path) == layout_on_disk(whole)
    if act == "forget":
        compact(path)
    if act != "append":
        assert_nowhere(path, [IDS[row] for row in FORGOTTEN], VECTORS[FORGOTTEN], dtype_of(path))
        assert everything(path) == everything(whole)


def dtype_of(path):
    return "float16" if '"dtype": "float16"' in (path / "store.json").read_text() else "float32"


# ------------------------------------------------------------------------------------------------------- kill -9

PLANS = [
    Plan(rows=420),
    Plan("float16", 840, 64, 21, 1),
    Plan("sharded", 840, 8, 10, 3),
    Plan("sharded-float16", 840, 16, 30, 1),
]


@pytest.mark.parametrize(("plan", "count"), [(Plan(rows=420), 5), *full(*((plan, 50) for plan in PLANS))])
def test_killed_again_and_again_it_ends_as_if_never_interrupted(tmp_path, plan, count):
    whole = tmp_path / "whole"
    takes = seconds_to_end(append_all, whole, plan)
    items, vectors = planted(0, plan.rows)
    chance = random.Random(count)
    kills, stores, lengths = 0, 0, [0]
    while stores == 0 or kills < count:
        path = tmp_path / f"killed-{stores}"
        left = takes * (1 - lengths[-1] / plan.rows)
        if kills >= count:
            append_all(path, plan)
        elif killed_or_ended(append_all, path, plan, longest=left, chance=chance):
            kills += 1
            lengths.append(rows_so_far(path, items, vectors))
            assert lengths[-1] >= lengths[-2]
            takes *= 1.2 if lengths[-1] == lengths[-2] else 1  # follows a machine that gets slower, or faster
            continue
        assert bytes_by_name(path) == bytes_by_name(whole)
        lengths.append(0)
        takes *= 0.8
        stores += 1
    print(f"append, {plan}: {kills} kills, {stores} stores finished, found at {len(set(lengths))} lengths")
    assert count < 50 or len(set(lengths)) > 5, lengths  # many kills fell at different moments


def rows_so_far(path, items, vectors):
    if not (path / "store.json").is_file():  # it was killed while it made the folder
        return 0
    store = EmbeddingStore.open(path)
    assert store.verify().ok
    assert store.items.equals(items[: len(store)]) or not len(store)
    np.testing.assert_array_equal(store.rows(0, len(store)), vectors[: len(store)])
    return len(store)


@pytest.mark.parametrize(("layout", "stride"), [("sharded", 7), *full(*((layout, 1) for layout in LAYOUTS))])
@pytest.mark.parametrize("act", ACTS)
def test_it_may_die_at_any_step(templates, finished, tmp_path, act, layout, stride):
    template, whole = templates / f"{layout}-{act}", finished / f"{layout}-{act}"
    before, after = everything(template), everything(whole)
    seen, step = set(), 0
    for step in numbers(step=stride):
        path = copied(template, tmp_path / "store")
        died = dies_at_step(step, ACTS[act], path)
        assert_old_or_new(path, before, after)
        seen.add(everything(path) == after)
        ACTS[act](path)
        assert_finished(path, act, whole)
        if not died:
            break
    print(f"{act}, {layout}: died at {-(-step // stride)} steps of {step}")
    assert step > 5
    assert seen == {True, before == after}


@pytest.mark.parametrize(("layout", "stride"), [("plain", 701), *full(*((layout, 97) for layout in LAYOUTS))])
@pytest.mark.parametrize("act", ACTS)
def test_it_may_die_within_a_write(templates, finished, tmp_path, act, layout, stride):
    template, whole = templates / f"{layout}-{act}", finished / f"{layout}-{act}"
    before, after = everything(template), everything(whole)
    largest = max(len(content) for content in bytes_by_name(whole).values())
    deaths = 0
    for size in range(0, largest + stride, stride):
        path = copied(template, tmp_path / "store")
        deaths += dies_at_byte(size, ACTS[act], path)
        assert_old_or_new(path, before, after)
        ACTS[act](path)
        assert_finished(path, act, whole)
    print(f"{act}, {layout}: died {deaths} times in mid-write")
    assert deaths > 2


@pytest.mark.parametrize(("layout", "count"), [("plain", 8), *full(*((layout, 50) for layout in LAYOUTS))])
def test_forgetting_killed_again_and_again_is_never_half_done(tmp_path, layout, count):
    rows = 400
    template = tmp_path / "template"
    append_all(template, Plan(layout, rows, 16, 100, 4))
    items, vectors = planted(0, rows)
    chance = random.Random(count)
    order = chance.sample(range(rows), 120)
    batches = [order[start : start + 10] for start in range(0, len(order), 10)]
    named = [[items["item_id"][row] for row in batch] for batch in batches]
    states = [np.setdiff1d(np.arange(rows), np.concatenate([[-1], *batches[:done]])) for done in range(13)]
    whole = copied(template, tmp_path / "whole")
    takes = seconds_to_end(forget_by_and_by, whole, named)
    kills, done, stores = 0, 0, 0
    path, found = copied(template, tmp_path / "store"), {0}
    while stores == 0 or kills < count:
        left = takes * (1 - done / 12)
        if kills >= count:
            forget_by_and_by(path, named)
        elif killed_or_ended(forget_by_and_by, path, named, longest=left, chance=chance):
            kills += 1
            store = EmbeddingStore.open(path)
            assert store.verify().ok
            assert len(store) in {len(kept) for kept in states}
            before, done = done, (rows - len(store)) // 10
            assert done >= before
            takes *= 1.2 if done == before else 1
            assert store.items.equals(items[states[done]])
            np.testing.assert_array_equal(store.rows(0, len(store)), vectors[states[done]])
            found.add(done)
            continue
        assert everything(path) == everything(whole)
        assert layout_on_disk(path) == layout_on_disk(whole)
        assert_nowhere(path, [name for batch in named for name in batch], vectors[order], dtype_of(path))
        stores, takes = stores + 1, takes * 0.8
        path, done = copied(template, tmp_path / "store"), 0
    print(f"forget and compact, {layout}: {kills} kills, found after {len(found)} different numbers of batches")
    assert count < 50 or len(found) > 1  # many kills fell at different moments


# ------------------------------------------------------------------------------------------------- power cuts


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("act", ["create", *ACTS, "forget all"])
def test_all_that_a_commit_names_was_flushed_before_it(templates, tmp_path, monkeypatch, act, layout):
    """What was not flushed when store.json is replaced, a power cut may take away."""
    path = tmp_path / "store"
    if act != "create":
        copied(templates / f"{layout}-{act.partition(' ')[0]}", path)
    flushed = {entry: holds(entry) for entry in below(path)}  # what lies there before outlives the power cut
    lost = []
    flush, rename = os.fsync, os.replace

    def watched_flush(descriptor):
        flush(descriptor)
        entry = Path(os.readlink(f"/proc/self/fd/{descriptor}"))  # noqa: PTH115 - what is open, by its inode's path
        flushed[entry] = holds(entry)

    def watched_rename(source, target, **where):
        source, target = Path(source), Path(target)
        if target.name == "store.json":
            named = [entry for entry in below(path) if entry not in (path, source)]  # the folder is flushed afterwards
            lost.extend(entry for entry in named if not holds(entry) <= flushed.get(entry, frozenset()))
            assert flushed[source] == holds(source)
        rename(source, target, **where)
        if source in flushed:
            flushed[target] = flushed.pop(source)

    monkeypatch.setattr(os, "fsync", watched_flush)
    monkeypatch.setattr(os, "replace", watched_rename)
    if act == "create":
        append_all(path, Plan(layout, 50, 16, 10, 1))
    elif act == "forget all":
        with EmbeddingStore.open(path) as store:
            store.forget(list(store.items["item_id"]))
            store.compact()
    else:
        ACTS[act](path)
    assert not lost
    assert holds(path) <= flushed[path]


def below(path):
    return [entry for entry in (path, *path.rglob("*")) if entry.exists() and entry.name != ".lock"]


def holds(entry):
    """A file's version, or a folder's entries; of these some may be removed before the next flush and do no harm."""
    state = entry.stat()
    if not entry.is_dir():
        return frozenset({(state.st_ino, state.st_mtime_ns, state.st_size)})
    return frozenset((inside.name, inside.stat().st_ino) for inside in entry.iterdir() if inside.name != ".lock")


# ---------------------------------------------------------------------------------------------------- two writers


@pytest.mark.parametrize("count", [40, *full(500)])
def test_of_two_writers_one_is_refused(tmp_path, count):
    path = tmp_path / "store"
    EmbeddingStore.create(path, SPACE, chunk_rows=16).close()
    acts, kept, written = [], [], 0
    for attempt in range(count):
        if attempt % 5 == 4:
            acts.append(("forget", kept[-2], kept[-2] + 1))
            del kept[-2]
        elif attempt % 20 == 18:
            acts.append(("compact", 0, 0))
        else:
            acts.append(("append", written, written + 3))
            kept += range(written, written + 3)
            written += 3
    barrier, pipes = CONTEXT.Barrier(2), [CONTEXT.Pipe() for _ in range(2)]
    writers = [CONTEXT.Process(target=contend, args=(path, acts, barrier, pipe[1])) for pipe in pipes]
    reads, complaints, stop = [], [], threading.Event()
    reader = threading.Thread(target=read_all_along, args=(path, stop, reads, complaints))
    for writer in writers:
        writer.start()
    reader.start()
    refusals = [pipe[0].recv() if pipe[0].poll(50 + count) else [] for pipe in pipes]
    stop.set()
    reader.join()
    for writer in writers:
        writer.kill()
        writer.join()
    locked = f"{path} is being written by another process, or by this one through another object; wait for it to "
    locked += "end, or close it"
    assert [sorted(both) for both in zip(*refusals, strict=True)] == [["", locked]] * count
    wins = [sum(not refusal for refusal in one) for one in refusals]
    print(f"two writers: {count} attempts, won by {wins}; {len(reads)} reads meanwhile, {len(complaints)} failed")
    assert not complaints, set(complaints)
    assert len(reads) > 10
    assert min(wins) > 0
    items, vectors = planted(0, written)
    found = everything(path)
    assert found.items == items[kept].to_dicts()
    assert found.vectors == vectors[kept].tobytes()


def read_all_along(path, stop, reads, complaints):
    """Open and read until told to stop; what one opening shows must be rows that belong together."""
    items, vectors = planted(0, 4000)
    places = {name: row for row, name in enumerate(items["item_id"])}
    while not stop.is_set():
        try:
            store = EmbeddingStore.open(path)
            rows = [places[name] for name in store.items["item_id"]]
            if not np.array_equal(store.rows(0, len(store)), vectors[rows]) or len(set(rows)) != len(rows):
                complaints.append("rows that do not belong together")
        except StaleStore:  # compacted since we opened it, as documented
            continue
        except Exception as error:
            complaints.append(re.sub(r"\d{12}", "N", repr(error)))
        reads.append(len(reads))


@pytest.mark.parametrize("count", [3, *full(50)])
def test_the_lock_dies_with_its_holder(tmp_path, count):
    path = tmp_path / "store"
    EmbeddingStore.create(path, SPACE, chunk_rows=4).close()
    for number in range(count):
        holder = CONTEXT.Process(target=hold_lock, args=(path,))
        holder.start()
        while not (tmp_path / "held").exists():
            assert holder.is_alive()
        (tmp_path / "held").unlink()
        with EmbeddingStore.open(path) as store:
            for attempt in (
                lambda: store.append(*planted(0, 1)),
                store.commit,
                store.compact,
                lambda: store.forget([]),
            ):
                with pytest.raises(StoreLocked, match="is being written by another process"):
                    attempt()
            holder.kill()
            holder.join()
            store.append(*planted(3 * number, 3 * number + 3))
            store.commit()
        assert everything(path).vectors == planted(0, 3 * number + 3)[1].tobytes()


@pytest.mark.parametrize("count", [3, *full(50)])
def test_of_two_creators_one_is_refused(tmp_path, count):
    for number in range(count):
        path = tmp_path / f"store-{number}"
        barrier, pipes = CONTEXT.Barrier(2), [CONTEXT.Pipe() for _ in range(2)]
        creators = [CONTEXT.Process(target=create_and_tell, args=(path, barrier, pipe[1])) for pipe in pipes]
        for creator in creators:
            creator.start()
        answers = sorted(pipe[0].recv() for pipe in pipes)
        for creator in creators:
            creator.join()
        assert answers[0] == ""
        assert "being written by another process" in answers[1] or "already exists and is not empty" in answers[1]
        append_some(path)
        assert len(EmbeddingStore.open(path)) == 50


# ----------------------------------------------------------------------------------------------------- full disks


def steps_of(act, store):
    """The act in steps, each of which can be taken again when the disk refused it."""
    if act == "append":
        return [lambda: store.append(*planted(80, 130)), store.commit]
    if act == "forget":
        return [lambda: store.forget([IDS[row] for row in FORGOTTEN], missing_ok=True)]
    return [store.compact]


def run_through(steps):
    while steps:
        steps[0]()
        steps.pop(0)


@pytest.mark.parametrize("layout", ["plain", *full(*list(LAYOUTS)[1:])])
@pytest.mark.parametrize("act", ACTS)
def test_a_disk_that_is_full_leaves_the_last_commit_and_work_goes_on(templates, finished, tmp_path, act, layout):
    template, whole = templates / f"{layout}-{act}", finished / f"{layout}-{act}"
    try:
        with small_disk(tmp_path / "disk", 4 << 20) as disk:
            refusals = fill_up(disk, template, whole, act)
    except PermissionError as reason:
        pytest.skip(f"a disk that is really full needs a mount: {reason}")
    print(f"{act}, {layout}: refused with 0 to {refusals - 1} pages free")
    assert refusals >= 1


def fill_up(disk, template, whole, act):
    before, after = everything(template), everything(whole)
    for pages in numbers():
        path = copied(template, disk / "store")
        with EmbeddingStore.open(path) as store:
            store.forget([])  # takes the lock
            steps = steps_of(act, store)
            with pages_free(disk, pages):
                try:
                    run_through(steps)
                except OSError as error:
                    assert error.errno == errno.ENOSPC  # noqa: PT017 - it is not refused where pages enough are free
                assert_old_or_new(path, before, after)
            refused = bool(steps)
            run_through(steps)
        # The next writer takes away what is left of the attempt.
        ACTS[act](path)
        assert_finished(path, act, whole)
        if not refused:
            return pages
    return 0


@pytest.mark.parametrize("size", [0, 300, 516, 700, 900, 2000])
@pytest.mark.parametrize("act", ACTS)
def test_a_file_that_may_not_grow_leaves_the_last_commit_and_work_goes_on(templates, finished, tmp_path, act, size):
    template, whole = templates / f"plain-{act}", finished / f"plain-{act}"
    path = copied(template, tmp_path / "store")
    with EmbeddingStore.open(path) as store:
        store.forget([])
        steps = steps_of(act, store)
        with no_file_larger_than(size), pytest.raises(OSError, match="File too large"):
            run_through(steps)
        assert_old_or_new(path, everything(template), everything(whole))
        run_through(steps)
    ACTS[act](path)
    assert_finished(path, act, whole)
