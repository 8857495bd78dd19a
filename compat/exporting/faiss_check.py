"""Whether an exported FAISS file answers raw queries as the index in it answers mapped ones; see `faiss_probe`."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np

from compat.exporting import faiss_probe
from stores.chunks import DamagedStore

NEAREST = 10
_MEMORY = 1 << 30  # of which Python, numpy and faiss take 0.3 GiB of addresses
_MEMORY_PER_BYTE = 3
_MEMORY_PER_ROW = 160  # ids, their order, and the hash table of an IndexIDMap2
_SECONDS = 30
_BYTES_PER_SECOND = 10e6  # read once and searched twice with some dozens of queries
_AGREEING = 0.9  # the others may lie where a rounding decides which cell of an index is looked into


def score_difference(path: Path, rows: int, raw: np.ndarray, mapped: np.ndarray) -> float:
    """Largest difference of a score as a share of the query's largest, for nine tenths of the queries.

    Args:
        path: An index file that begins with an `IndexPreTransform`.
        rows: Vectors that its header promises.
        raw: Queries float32 [q, s] for the whole of it.
        mapped: The same queries float32 [q, d] for the index within.

    Raises:
        DamagedStore: If faiss cannot read or search the file.
        ValueError: If it takes more memory than this check allows.
    """
    size = path.stat().st_size
    seconds = _SECONDS + int(size / _BYTES_PER_SECOND)
    queries = np.concatenate([raw.astype("<f4").ravel(), mapped.astype("<f4").ravel()])
    with (
        path.open("rb") as index,
        tempfile.TemporaryFile(buffering=0) as asked,
        tempfile.TemporaryFile(buffering=0) as answers,
        tempfile.TemporaryFile(buffering=0) as report,
    ):
        asked.write(queries.tobytes())
        task = faiss_probe.Task(
            *(file.fileno() for file in (index, asked, answers, report)),
            queries=len(raw),
            raw=raw.shape[1],
            mapped=mapped.shape[1],
            nearest=NEAREST,
            memory=_MEMORY + _MEMORY_PER_BYTE * size + _MEMORY_PER_ROW * rows,
            seconds=seconds,
        )
        _run(path, task)
        report.seek(0)
        _require_searched(path, report.read(1 << 16))
        answers.seek(0)
        content = answers.read()
    count = len(raw) * NEAREST
    if len(content) != 24 * count:
        raise DamagedStore(f"{path} is damaged: faiss gave {len(content)} bytes of answers, expected {24 * count}")
    scores = np.frombuffer(content[: 8 * count], "<f4").reshape(2, len(raw), NEAREST).astype(np.float64)
    ids = np.frombuffer(content[8 * count :], "<i8").reshape(2, len(raw), NEAREST)
    return _difference(scores, ids)


def _difference(scores: np.ndarray, ids: np.ndarray) -> float:
    found = ids >= 0
    apart = np.where(found.all(axis=0), np.abs(scores[0] - scores[1]), 0.0).max(axis=1)
    largest = np.where(found[1], np.abs(scores[1]), 0.0).max(axis=1)
    shares = apart / np.maximum(largest, np.finfo(np.float32).tiny)
    shares[(found[0] != found[1]).any(axis=1)] = np.inf
    return float(np.quantile(np.nan_to_num(shares, nan=np.inf), _AGREEING, method="lower"))


def _run(path: Path, task: faiss_probe.Task) -> None:
    one_thread = dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"), "1")
    try:
        ended = subprocess.run(
            [sys.executable, "-P", faiss_probe.__file__, *map(str, task)],  # -P: no faiss.py of the data's folder
            env=os.environ | one_thread,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            pass_fds=(task.source, task.asked, task.answers, task.report),
            timeout=3 * task.seconds,
            check=False,
        ).returncode
    except subprocess.TimeoutExpired:
        ended = -signal.SIGXCPU
    if ended == -signal.SIGXCPU:
        raise DamagedStore(
            f"faiss had not searched the index in {task.seconds} s: it is damaged, or very large; --check no exports "
            "it unsearched"
        )
    if ended:
        how = f"exit code {ended}" if ended > 0 else f"signal {-ended}, {signal.strsignal(-ended)}"
        raise DamagedStore(f"the index is damaged: faiss crashed on {path.name} ({how}); restore it from a copy")


def _require_searched(path: Path, report: bytes) -> None:
    try:
        found: dict[str, Any] = json.loads(report)
        outcome = found["outcome"]
    except (ValueError, KeyError, TypeError):
        raise DamagedStore(f"the index is damaged: faiss gave no account of {path.name}; restore it") from None
    if outcome == "memory":
        raise ValueError("the index takes more memory to search than a file of its size should; --check no exports it")
    if outcome != "searched":
        reason = "".join(letter if letter.isprintable() else " " for letter in str(found.get("reason")))
        reason = "it ends early" if "read error" in reason else reason
        raise DamagedStore(f"the index is damaged: {reason}; restore it from a copy")
