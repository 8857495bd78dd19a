"""Parts of work that processes of the tests run."""

import os
import signal
from pathlib import Path
from typing import NamedTuple


class Work(NamedTuple):
    """What the parts share: a folder for traces, a secret, and the part that ends its process the first few times."""

    folder: Path
    secret: str = "nobody's business"
    deadly: int = -1
    deaths: int = 0


def square(work: Work, number: int) -> int:
    """The number squared; each run leaves a trace, and the deadly part kills whoever runs it, but so often only."""
    run = len(list(work.folder.glob(f"{number}-*")))
    (work.folder / f"{number}-{run}-{os.getpid()}").touch()
    if number == work.deadly and run < work.deaths:
        os.kill(os.getpid(), signal.SIGKILL)
    return number**2


def fail(work: Work, number: int) -> int:
    """Fail at the third part."""
    if number == 3:
        raise ValueError("part three is wrong")
    return number


def threads(work: Work, number: int) -> str:
    """How many threads a process of the pool may compute with."""
    return os.environ["OMP_NUM_THREADS"]
