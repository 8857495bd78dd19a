"""What the tests of damage and interruption share: planted stores of every layout, writers that die, a full disk."""

import faulthandler
import hashlib
import json
import multiprocessing
import os
import random
import re
import resource
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, redirect_stdout
from multiprocessing.context import ForkServerProcess
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, NamedTuple

import numpy as np
import polars as pl

from stores.durable import StoreLocked
from stores.space import EmbeddingSpace
from stores.store import EmbeddingStore

DIM = 8
SPACE = EmbeddingSpace("resnet", None, DIM, False)
LAYOUTS: dict[str, dict[str, Any]] = {
    "plain": {},
    "float16": {"dtype": "float16"},
    "sharded": {"shard_chunks": 2},
    "sharded-float16": {"shard_chunks": 3, "dtype": "float16"},
}
# float16 holds these exactly, so every layout is to give them back as they are.
_PLANTED = np.random.default_rng(0).normal(size=(4096, DIM)).astype(np.float16).astype(np.float32)

# Processes forked from a server that has imported the stores start at once. It must not be a fork of pytest's own
# process, where polars has threads.
CONTEXT = multiprocessing.get_context("forkserver")
CONTEXT.set_forkserver_preload(["stores.store", "zarr"])


_LONGEST = 60.0  # seconds that a process of a test may take


def item_ids(start: int, stop: int) -> list[str]:
    """Ids that occur in no file by chance."""
    return [f"image-{hashlib.sha256(b'%d' % row).hexdigest()[:16]}" for row in range(start, stop)]


def planted(start: int, stop: int) -> tuple[pl.DataFrame, np.ndarray]:
    """Item table and vectors [stop - start, DIM], which depend on the row numbers alone."""
    items = {"item_id": item_ids(start, stop), "label": [f"person {row % 7}" for row in range(start, stop)]}
    return pl.DataFrame(items), _PLANTED[start:stop]


class Plan(NamedTuple):
    """How a writer goes about it: rows in all, in a chunk and in an `append`, and the appends between two commits."""

    layout: str = "plain"
    rows: int = 840
    chunk_rows: int = 16
    step: int = 7
    appends_per_commit: int = 2


def append_all(path: Path, plan: Plan) -> None:
    """Write the planted rows to the end, from wherever the store stands."""
    with open_or_create(path, plan) as store:
        for number, start in enumerate(range(len(store), plan.rows, plan.step), start=1):
            store.append(*planted(start, min(start + plan.step, plan.rows)))
            if number % plan.appends_per_commit == 0:
                store.commit()
        store.commit()


FORGOTTEN = [0, 3, 4, 17, 38, 47, 48, 49, 50, 79]  # rows of the first 80


def append_some(path: Path) -> None:
    """Add rows 80 to 129 and commit."""
    with EmbeddingStore.open(path) as store:
        if len(store) < 100:
            store.append(*planted(80, 130))
        store.commit()


def forget_some(path: Path) -> None:
    """Forget some of the first 80 rows, as far as they are there."""
    with EmbeddingStore.open(path) as store:
        store.forget([item_ids(0, 80)[row] for row in FORGOTTEN], missing_ok=True)


def compact(path: Path) -> None:
    """Compact the store."""
    with EmbeddingStore.open(path) as store:
        store.compact()


def forget_by_and_by(path: Path, batches: list[list[str]]) -> None:
    """Forget ids batch by batch, as far as they are there, and compact after every third batch and in the end."""
    with EmbeddingStore.open(path) as store:
        for number, batch in enumerate(batches):
            if store.forget(batch, missing_ok=True) and number % 3 == 2:
                store.compact()
        store.compact()


def hold_lock(path: Path) -> None:
    """Append, never commit, and stay."""
    store = EmbeddingStore.open(path)
    store.append(*planted(4000, 4010))
    (path.parent / "held").touch()
    time.sleep(_LONGEST)


def contend(path: Path, acts: list[tuple[str, int, int]], barrier: Any, answers: Any) -> None:
    """Try to write at the same time as another process, again and again; tell how each attempt ended.

    Args:
        path: The store.
        acts: What to do at each attempt, `append`, `forget` or `compact`, and with which rows.
        barrier: Where both processes meet: before an attempt, and while whoever got the lock still holds it.
        answers: A pipe that takes the list of refusals, an empty string for an attempt that was not refused.
    """
    refusals = []
    for act, start, stop in acts:
        barrier.wait(_LONGEST)
        with EmbeddingStore.open(path) as store:
            refusal = ""
            try:
                if act == "append":
                    store.append(*planted(start, stop))
                elif act == "forget":
                    store.forget(item_ids(start, stop))
                else:
                    store.compact()
            except StoreLocked as error:
                refusal = str(error)
            barrier.wait(_LONGEST)
            if act == "append" and not refusal:
                store.commit()
        refusals.append(refusal)
    answers.send(refusals)


def create_and_tell(path: Path, barrier: Any, answers: Any) -> None:
    """Create a store at the same time as another process; tell the refusal, an empty string where there was none."""
    barrier.wait(_LONGEST)
    try:
        EmbeddingStore.create(path, SPACE).close()
    except (StoreLocked, FileExistsError) as error:
        answers.send(str(error))
        return
    answers.send("")


def extract(folder: Path, words: list[str], seconds_per_commit: float) -> None:
    """`python -m compat.extract` in a folder, for a process that has imported torch already."""
    import compat.extract

    os.chdir(folder)
    compat.extract.SECONDS_PER_COMMIT = seconds_per_commit
    with Path(os.devnull).open("w") as nowhere, redirect_stdout(nowhere):
        code = compat.extract.main(words)
    if code:
        raise RuntimeError(f"the command ended with exit code {code}")


def open_or_create(path: Path, plan: Plan) -> EmbeddingStore:
    """The store in the folder, a new one where there is none."""
    if (path / "store.json").is_file():
        return EmbeddingStore.open(path)
    return EmbeddingStore.create(path, SPACE, chunk_rows=plan.chunk_rows, **LAYOUTS[plan.layout])


class Contents(NamedTuple):
    """All that a store tells: space, provenance, item table and the bytes of its float32 vectors."""

    space: dict[str, Any]
    provenance: dict[str, Any]
    items: list[dict[str, Any]]
    vectors: bytes


def everything(path: Path) -> Contents:
    """Read a store to its end, through the files alone."""
    return told_by(EmbeddingStore.open(path))


def told_by(store: EmbeddingStore) -> Contents:
    """Read an open store to its end."""
    vectors = np.asarray(store.rows(0, len(store)), np.float32)
    return Contents(store.space.to_dict(), store.provenance, store.items.to_dicts(), vectors.tobytes())


def outcome(read: Callable[[], Contents]) -> tuple[Contents | None, str]:
    """What reading gives, or the complaint; any error but these two kinds is a failure of the test."""
    try:
        return read(), ""
    except (ValueError, FileNotFoundError) as error:
        return None, str(error)


def store_files(path: Path) -> list[Path]:
    """Every file below a folder but the lock, which is empty, in order."""
    return sorted(entry for entry in path.rglob("*") if entry.is_file() and entry.name != ".lock")


def bytes_by_name(folder: Path) -> dict[str, bytes]:
    """The contents of all files below a folder."""
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def layout_on_disk(path: Path) -> list[str]:
    """Names of all entries of a store, with the generation in the names of folders left out."""
    names = {str(entry.relative_to(path)) for entry in path.rglob("*") if entry.name != ".lock"}
    return sorted(re.sub(r"^(vectors|items)-\d+", r"\1", name) for name in names)


def assert_nowhere(path: Path, ids: list[str], vectors: np.ndarray, dtype: str) -> None:
    """No file of the store holds an id or a vector, packed or not."""
    needles = {f"the id {name}": name.encode() for name in ids}
    needles |= {
        f"vector {row}": vector.astype("<f2" if dtype == "float16" else "<f4").tobytes()
        for row, vector in enumerate(vectors)
    }
    for file in store_files(path):
        contents = [file.read_bytes()]
        if file.suffix == ".parquet":  # its pages are compressed
            contents.append(json.dumps(pl.read_parquet(file).to_dicts()).encode())
        for what, needle in needles.items():
            assert not any(needle in content for content in contents), f"{file} still holds {what}"


def killed(function: Callable[..., object], *args: object, after: float) -> bool:
    """Run a function in a process of its own and kill it so many seconds after its start, unless it ended before.

    Raises:
        RuntimeError: If it failed by itself.
    """
    process = _started(function, args)
    time.sleep(after)
    process.kill()
    return _ended_by(signal.SIGKILL, process)


def killed_or_ended(function: Callable[..., object], *args: object, longest: float, chance: random.Random) -> bool:
    """Kill a function at a random moment within so many seconds; whether it was killed and had not ended before."""
    return killed(function, *args, after=chance.uniform(0, 1.2 * longest + 0.005))  # the machine may be slower by now


def seconds_to_end(function: Callable[..., object], *args: object) -> float:
    """Run a function in a process of its own to its end."""
    process = _started(function, args)
    started = time.monotonic()
    _ended_by(signal.SIGKILL, process)
    return time.monotonic() - started


def _started(function: Callable[..., object], args: tuple[object, ...]) -> ForkServerProcess:
    started = CONTEXT.Event()
    process = CONTEXT.Process(target=_announced, args=(started, function, args))
    process.start()
    if not started.wait(_LONGEST):
        raise RuntimeError("the process did not start")
    return process


def _announced(started: Any, function: Callable[..., object], args: tuple[object, ...]) -> None:
    faulthandler.enable()  # so that a process that hangs tells where, see `_ended_by`
    started.set()
    function(*args)


def _ended_by(expected: signal.Signals, process: ForkServerProcess) -> bool:
    process.join(_LONGEST)
    if process.is_alive():
        os.kill(int(process.pid or 0), signal.SIGABRT)
    process.join()
    if process.exitcode not in (0, -expected):
        raise RuntimeError(f"the process ended with exit code {process.exitcode}")
    return process.exitcode == -expected


def dies_at_step(step: int, function: Callable[..., object], *args: object) -> bool:
    """Run a function in a process that kills itself before its `step`-th act upon the disk; whether it came to that.

    Acts are opening a file to write, renaming, removing, making a folder and flushing to disk.
    """
    return _ended_by(signal.SIGKILL, _started(_die_at_step, (step, function, args)))


def dies_at_byte(size: int, function: Callable[..., object], *args: object) -> bool:
    """Run a function in a process that the kernel kills where it writes past so many bytes of a file, in mid-write."""
    return _ended_by(signal.SIGXFSZ, _started(_die_at_byte, (size, function, args)))


def _die_at_step(step: int, function: Callable[..., object], args: tuple[object, ...]) -> None:
    steps = 0

    def take_step() -> None:
        nonlocal steps
        if steps == step:
            os.kill(os.getpid(), signal.SIGKILL)
        steps += 1

    def watch(event: str, arguments: tuple[Any, ...]) -> None:
        writes = event == "open" and isinstance(arguments[2], int) and arguments[2] & (os.O_WRONLY | os.O_RDWR)
        if writes or event in {"os.rename", "os.remove", "os.rmdir", "os.mkdir", "os.truncate", "os.link"}:
            take_step()

    flush = os.fsync

    def watched_flush(descriptor: int) -> None:
        take_step()
        flush(descriptor)

    os.fsync = watched_flush
    sys.addaudithook(watch)  # for ever, which in this process is not long
    function(*args)


def _die_at_byte(size: int, function: Callable[..., object], args: tuple[object, ...]) -> None:
    signal.signal(signal.SIGXFSZ, signal.SIG_DFL)  # Python ignores it and gets an error instead
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, resource.RLIM_INFINITY))
    function(*args)


@contextmanager
def no_file_larger_than(size: int) -> Iterator[None]:
    """In this process, a disk that takes no file of more bytes."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


@contextmanager
def small_disk(folder: Path, size: int) -> Iterator[Path]:
    """A disk of its own in memory, mounted at a folder.

    Raises:
        PermissionError: Where one may not mount.
    """
    folder.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", str(folder)]
    try:
        mounted = subprocess.run(command, capture_output=True, text=True)
    except OSError as error:
        raise PermissionError(f"there is no command mount: {error}") from error
    if mounted.returncode:
        raise PermissionError(f"mounting is not permitted here: {mounted.stderr.strip()}")
    try:
        yield folder
    finally:
        subprocess.run(["umount", "-l", str(folder)], check=True)  # a map of a file may still be alive


@contextmanager
def pages_free(folder: Path, pages: int) -> Iterator[None]:
    """Fill the disk of a folder up to so many pages."""
    filler = folder / "filler"
    with filler.open("wb") as file:
        disk = os.statvfs(folder)
        if disk.f_bavail > pages:
            os.posix_fallocate(file.fileno(), 0, (disk.f_bavail - pages) * disk.f_frsize)
    try:
        yield
    finally:
        filler.unlink()


@contextmanager
def folder_in_memory() -> Iterator[Path]:
    """A temporary folder that no disk slows down: a killed process leaves all it wrote, on a disk or not."""
    memory = Path("/dev/shm")
    with TemporaryDirectory(prefix="store-", dir=memory if os.access(memory, os.W_OK) else None) as folder:
        yield Path(folder)


def copied(source: Path, target: Path) -> Path:
    """A fresh copy of a store in the place of an older one."""
    shutil.rmtree(target, ignore_errors=True)
    shutil.copytree(source, target)
    return target
