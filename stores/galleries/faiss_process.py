"""Running a script that reads somebody's FAISS index, in a process that may crash, hang or ask for too much.

The script limits itself, speaks through open files alone and imports nothing of the toolkit; how it ended is told here,
what that means to the user by whoever ran it.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterable, Sequence
from typing import Any

_MEMORY = 1 << 30  # of which Python, numpy and faiss take 0.3 GiB of addresses
_MEMORY_PER_BYTE = 3  # of the file; it is mapped or loaded once, and graphs and lists add to that
_MEMORY_PER_ROW = 160  # ids, their order, and the hash table of an IndexIDMap2


class TookTooLong(Exception):
    """The process used up its time."""


class Crashed(Exception):
    """The process ended otherwise than it should; the message says how."""


def memory_for(size: int, rows: int) -> int:
    """Bytes that reading an index may take, from its file's size and the rows that its header promises."""
    return _MEMORY + _MEMORY_PER_BYTE * size + _MEMORY_PER_ROW * rows


def run_script(script: str, task: Iterable[int], descriptors: Sequence[int], *, seconds: int) -> None:
    """Run a script by its path to its end, with the numbers of its task as arguments.

    Args:
        script: Path of a Python file.
        task: What it is told.
        descriptors: Open files that it gets.
        seconds: Of processor time that it allows itself.

    Raises:
        TookTooLong: If they did not suffice, or it did not end.
        Crashed: If it failed.
    """
    # Several threads would take address space and win nothing: one decodes faster than the disk writes.
    one_thread = dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"), "1")
    try:
        ended = subprocess.run(
            [sys.executable, "-P", script, *map(str, task)],  # -P: a faiss.py in the folder of the data is not it
            env=os.environ | one_thread,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            pass_fds=descriptors,
            timeout=3 * seconds,
            check=False,
        ).returncode
    except subprocess.TimeoutExpired:
        ended = -signal.SIGXCPU
    if ended == -signal.SIGXCPU:
        raise TookTooLong
    if ended:
        raise Crashed(f"exit code {ended}" if ended > 0 else f"signal {-ended}, {signal.strsignal(-ended)}")


def printable(text: Any) -> str:
    """What such a process says, on one line without control characters."""
    return " ".join("".join(letter if letter.isprintable() else " " for letter in str(text)).split())


def plain_reason(reason: str) -> str:
    """Why faiss could not read an index, in plain words where we have them."""
    return "it ends early" if "read error" in reason else reason
