"""Workers as processes of their own, each with its share of the cores."""

from __future__ import annotations

import multiprocessing
import os
import signal
import sys
from multiprocessing.connection import Connection
from typing import Any

from compat.tuning.options import TuneOptions


def run_workers(options: TuneOptions) -> None:
    """Start as many processes as were asked for, and wait for them.

    One that is killed is told of and no more: the others try its trial again.

    Raises:
        ValueError: If a worker met an error of the user's; or all of them were killed.
        KeyboardInterrupt: If one was interrupted.
    """
    spawn: Any = multiprocessing.get_context("spawn")  # a forked copy of torch's threads deadlocks
    started = []
    try:
        for number in range(options.workers):
            ours, theirs = spawn.Pipe(duplex=False)
            process = spawn.Process(target=_worker, args=(options, number, os.getpid(), theirs), daemon=True)
            process.start()
            theirs.close()
            started.append((process, ours))
        killed = 0
        for number, (process, said) in enumerate(started):
            process.join()
            if said.poll():
                _raise_mistake(said)
            if process.exitcode:
                killed += 1
                print(f"worker {number} ended with {_how(process.exitcode)}", file=sys.stderr, flush=True)
        if killed == options.workers:
            raise ValueError("all workers were killed; run the same command again to go on, with fewer --workers")
    finally:
        for process, _ in started:
            process.terminate()


def _raise_mistake(said: Connection) -> None:
    try:
        message = said.recv()
    except EOFError:  # it died without a word
        return
    raise ValueError(message)


def _how(exit_code: int) -> str:
    return f"signal {signal.Signals(-exit_code).name}" if exit_code < 0 else f"exit code {exit_code}"


def _worker(options: TuneOptions, number: int, parent: int, say: Connection) -> None:
    threads = max(1, len(os.sched_getaffinity(0)) // options.workers)
    os.environ["OMP_NUM_THREADS"] = str(min(threads, int(os.environ.get("OMP_NUM_THREADS") or threads)))
    import torch

    torch.set_num_threads(int(os.environ["OMP_NUM_THREADS"]))
    from compat.tuning.opening import made_of, open_study, opened_work
    from compat.tuning.storage import opened_storage, require_optuna
    from compat.tuning.trials import Orphaned, work

    require_optuna()
    try:
        with opened_work(options, worker=number) as job, opened_storage(options.storage, options.out) as storage:
            work(open_study(storage, options.name, made_of(job)), job, parent=parent)
    except (Orphaned, KeyboardInterrupt):
        sys.exit(1)
    except (ValueError, OSError, ImportError) as mistake:
        say.send(str(mistake))
