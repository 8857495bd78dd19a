"""Work cut into numbered parts, done by several processes of this machine or by the workers of dask.distributed.

Both run the same function, imported where it runs. A part may be run again after a worker died, and by two workers at a
time, which must make no difference. What comes back is small: whoever runs a part leaves its result where it belongs.

What the parts share (places, options, the weights of a map) travels once: to a process when it starts, to dask's
workers by `scatter`. It travels packed, so that no log, name or dashboard of dask shows what is inside.
"""

from __future__ import annotations

import multiprocessing
import os
import pickle
import signal
import threading
import uuid
from collections.abc import Callable, Generator, Iterable, Iterator
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from functools import cached_property
from itertools import islice
from multiprocessing.connection import wait as wait_for_sentinel
from typing import TYPE_CHECKING, Any, TypeVar

if TYPE_CHECKING:
    from distributed import Client

Shared = TypeVar("Shared")
Result = TypeVar("Result")

RESTARTS = 3
"""How often in a row the workers may die without one part done."""
RETRIES = 2
"""How often dask runs a part again that raised an error: a disk or a network may have been at fault."""
SECONDS_TO_CONNECT = 60
_AHEAD = 2  # parts for each process that wait in its queue


def run_parts(
    function: Callable[[Shared, int], Result],
    shared: Shared,
    numbers: Iterable[int],
    *,
    workers: int = 1,
    scheduler: str | None = None,
    name: str = "part",
) -> Generator[tuple[int, Result], None, None]:
    """Run a function of each number, and yield (number, what it returned) as they are done, in any order.

    Args:
        function: Called with `shared` and a number; a function at the top of a module that workers can import.
        shared: What pickle can carry; a few megabytes.
        numbers: The parts.
        workers: New processes of this machine, each with its share of the processors; 1 is this very process. Not used
            with a scheduler.
        scheduler: Address of a dask scheduler, such as tcp://host:8786.
        name: What dask calls the parts, in front of their numbers.

    Raises:
        ValueError: If workers is not positive, no worker comes, or the workers die again and again.
        ImportError: If a scheduler is given and dask is not installed.
        OSError: If the scheduler does not answer.
        Exception: What the function raised; parts that run are waited for, the others are left.
    """
    if workers < 1:
        raise ValueError(f"workers must be at least 1, found {workers}")
    carried = Carried(function, shared)
    if scheduler is None:
        return _in_processes(carried, list(numbers), workers) if workers > 1 else _alone(carried, list(numbers))
    return _on_cluster(carried, list(numbers), scheduler, name)


class Carried:
    """A function and what its calls share, packed."""

    def __init__(self, function: Callable[[Any, int], Any], shared: Any) -> None:
        self._packed = pickle.dumps((function, shared))

    def __repr__(self) -> str:
        return f"Carried({len(self._packed)} bytes)"

    def __getstate__(self) -> bytes:
        return self._packed

    def __setstate__(self, packed: bytes) -> None:
        self._packed = packed

    @cached_property
    def _unpacked(self) -> tuple[Callable[[Any, int], Any], Any]:
        return pickle.loads(self._packed)

    def run(self, number: int) -> Any:
        """What the function returns for a part."""
        function, shared = self._unpacked
        return function(shared, number)


def _alone(carried: Carried, numbers: list[int]) -> Generator[tuple[int, Any], None, None]:
    for number in numbers:
        yield number, carried.run(number)


def _in_processes(carried: Carried, numbers: list[int], workers: int) -> Generator[tuple[int, Any], None, None]:
    left = dict.fromkeys(numbers)
    deaths = 0
    while left:
        processes = min(workers, len(left))
        pool = ProcessPoolExecutor(
            processes,
            mp_context=multiprocessing.get_context("spawn"),  # a fork of a process with threads may hang
            initializer=_begin_process,
            initargs=(carried, max(1, (os.cpu_count() or 1) // processes)),
        )
        try:
            for number, result in _from_pool(pool, list(left), processes * (1 + _AHEAD)):
                del left[number]
                deaths = 0
                yield number, result
        except BrokenProcessPool:
            deaths += 1
            if deaths > RESTARTS:
                raise ValueError(
                    f"worker processes died {deaths} times in a row with {len(left)} parts to go, perhaps for want of "
                    "memory; run again with fewer --workers, which goes on from here"
                ) from None
        finally:
            pool.shutdown(cancel_futures=True)


def _from_pool(pool: ProcessPoolExecutor, numbers: list[int], size: int) -> Iterator[tuple[int, Any]]:
    coming = iter(numbers)
    pending: dict[Future[Any], int] = {}
    while True:
        for number in islice(coming, size - len(pending)):
            pending[pool.submit(_run_in_process, number)] = number
        if not pending:
            return
        done, _ = wait(pending, return_when=FIRST_COMPLETED)
        for future in done:
            yield pending.pop(future), future.result()


_here: Carried | None = None


def _begin_process(carried: Carried, threads: int) -> None:
    """Prepare a process of a pool, before anything that computes is imported there."""
    global _here
    _here = carried
    os.environ.setdefault("OMP_NUM_THREADS", str(threads))
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the one who hands out the parts
    threading.Thread(target=_end_with_parent, daemon=True).start()


def _end_with_parent() -> None:
    """Leave nothing behind when the process that handed out the parts is killed: its pipes do not tell."""
    parent = multiprocessing.parent_process()
    if parent is not None:
        wait_for_sentinel([parent.sentinel])
        os._exit(1)


def _run_in_process(number: int) -> Any:
    assert _here is not None
    return _here.run(number)


def _on_cluster(
    carried: Carried, numbers: list[int], scheduler: str, name: str
) -> Generator[tuple[int, Any], None, None]:
    try:
        from distributed import KilledWorker
    except ImportError:
        raise ImportError("--scheduler needs dask.distributed: pip install 'embedding-compat[distributed]'") from None
    left = dict.fromkeys(numbers)
    losses = 0
    client = _connected(scheduler)
    try:
        while left:
            try:
                for number, result in _from_cluster(client, carried, list(left), name):
                    del left[number]
                    losses = 0
                    yield number, result
            except KilledWorker:
                raise ValueError(
                    f"the workers that ran one part of {name} died again and again, perhaps for want of memory; see "
                    "their logs, and run again, which goes on from here"
                ) from None
            if left:  # all who had what the parts share are gone
                losses += 1
                if losses > RESTARTS:
                    raise ValueError(
                        f"the workers at {scheduler} were lost {losses} times in a row with {len(left)} parts to go; "
                        "see their logs, and run again, which goes on from here"
                    )
                _require_workers(client, scheduler)
    finally:
        client.close()


def _connected(scheduler: str) -> Client:
    from distributed import Client

    try:
        client = Client(scheduler, timeout=SECONDS_TO_CONNECT, set_as_default=False)
    except (OSError, TimeoutError):
        raise OSError(f"no dask scheduler answers at {scheduler}; start one with `dask scheduler`") from None
    try:
        _require_workers(client, scheduler)
    except BaseException:
        client.close()
        raise
    return client


def _require_workers(client: Client, scheduler: str) -> None:
    try:
        client.wait_for_workers(1, timeout=SECONDS_TO_CONNECT)
    except TimeoutError:
        raise ValueError(f"the scheduler at {scheduler} has no workers; start some: dask worker {scheduler}") from None


def _from_cluster(client: Client, carried: Carried, numbers: list[int], name: str) -> Iterator[tuple[int, Any]]:
    """Results of the parts, as far as the workers that have `carried` do not all go."""
    from distributed import as_completed

    run = uuid.uuid4().hex[:8]  # so that dask takes no part for one of an earlier run
    shared = client.scatter(carried, broadcast=True, hash=False)
    futures = {
        client.submit(Carried.run, shared, number, key=f"{name}-{run}-{number}", retries=RETRIES, pure=False): number
        for number in numbers
    }
    try:
        for future in as_completed(list(futures), loop=client.loop):
            number = futures.pop(future)
            if future.status == "error":
                raise future.exception() or RuntimeError(f"part {number} failed")
            if future.status == "finished":
                yield number, future.result()
    finally:
        client.cancel(list(futures))
