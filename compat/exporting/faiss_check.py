"""Whether an exported FAISS file answers raw queries as the index in it answers mapped ones; see `faiss_probe`."""

from __future__ import annotations

import json
import tempfile
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from compat.exporting import faiss_probe
from stores.chunks import DamagedStore
from stores.galleries.faiss_process import Crashed, TookTooLong, memory_for, plain_reason, printable, run_script

NEAREST = 10
_SECONDS = 30
_BYTES_PER_SECOND = 10e6  # read once and searched twice with some dozens of queries
_ROUNDING = 1e-6  # of the largest score
_AGREEING = 0.9  # the others may lie where a rounding decides which cell of an index is looked into


class Compared(NamedTuple):
    """What two searches for the same queries gave.

    Attributes:
        difference: Largest difference of a score as a share of the query's largest, for nine tenths of the queries;
            infinity where the others found an item more, or another item whose score is none of its neighbours'.
            None: nothing was found.
        queries: Those that found anything.
        kept: Of what the index finds nearest to vectors that it holds, the mean share that it finds for them at unit
            length too. None: not asked, or it gives no vectors back.
        length: Median length of those vectors, or None.
    """

    difference: float | None
    queries: int
    kept: float | None = None
    length: float | None = None


def compare_searches(path: Path, rows: int, raw: np.ndarray, mapped: np.ndarray, *, lengths: bool) -> Compared:
    """Search an exported file with raw queries, the index within with mapped ones, and compare scores and ids.

    Args:
        path: An index file that begins with an `IndexPreTransform`.
        rows: Vectors that its header promises.
        raw: Queries float32 [q, s] for the whole of it.
        mapped: The same queries float32 [q, d] for the index within.
        lengths: Whether to ask what becomes of queries of unit length.

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
            lengths=int(lengths),
            memory=memory_for(size, rows),
            seconds=seconds,
        )
        _run(path, task)
        report.seek(0)
        facts = _require_searched(path, report.read(1 << 16))
        answers.seek(0)
        content = answers.read()
    count = len(raw) * NEAREST
    if len(content) != 24 * count:
        raise DamagedStore(f"{path} is damaged: faiss gave {len(content)} bytes of answers, expected {24 * count}")
    scores = np.frombuffer(content[: 8 * count], "<f4").reshape(2, len(raw), NEAREST).astype(np.float64)
    ids = np.frombuffer(content[8 * count :], "<i8").reshape(2, len(raw), NEAREST)
    compared = compare_answers(scores, ids)
    kept, length = (facts.get(name) for name in ("kept", "length"))
    if not isinstance(kept, float) or not isinstance(length, float):
        return compared
    return compared._replace(kept=kept, length=length)


def compare_answers(scores: np.ndarray, ids: np.ndarray) -> Compared:
    """Compare the answers of two searches, scores float64 and ids int64 [2, q, k], best first; id -1 for none."""
    found = ids >= 0
    answered = found.any(axis=(0, 2))
    if not answered.any():
        return Compared(None, 0)
    scores, ids, found = scores[:, answered], ids[:, answered], found[:, answered]
    both = np.logical_and(found[0], found[1])
    with np.errstate(invalid="ignore"):  # what was not found has an infinite score
        apart = np.where(both, np.abs(scores[0] - scores[1]), 0.0).max(axis=1)
        gaps = np.abs(np.diff(scores, axis=2)).min(axis=0)
    largest = np.where(found[1], np.abs(scores[1]), 0.0).max(axis=1)
    shares = apart / np.maximum(largest, np.finfo(np.float32).tiny)
    # An item stands alone where rounding could not have put a neighbour in its place; of the last, the next is unknown.
    rounding = np.maximum(2.0 * apart, _ROUNDING * largest)[:, None]
    before = np.pad(gaps, ((0, 0), (1, 0)), constant_values=np.inf)[:, :-1] > rounding
    alone = both[:, :-1] & before & (gaps > rounding)
    swapped = (alone & np.not_equal(ids[0, :, :-1], ids[1, :, :-1])).any(axis=1)
    shares[(found[0] != found[1]).any(axis=1) | swapped] = np.inf
    difference = np.quantile(np.where(np.isnan(shares), np.inf, shares), _AGREEING, method="lower")
    return Compared(float(difference), len(shares))


def _run(path: Path, task: faiss_probe.Task) -> None:
    descriptors = (task.source, task.asked, task.answers, task.report)
    try:
        run_script(faiss_probe.__file__, task, descriptors, seconds=task.seconds)
    except TookTooLong:
        raise DamagedStore(
            f"faiss had not searched the index in {task.seconds} s: it is damaged, or very large; --check no exports "
            "it unsearched"
        ) from None
    except Crashed as how:
        raise DamagedStore(
            f"the index is damaged: faiss crashed on {path.name} ({how}); restore it from a copy"
        ) from None


def _require_searched(path: Path, report: bytes) -> dict[str, Any]:
    try:
        found: dict[str, Any] = json.loads(report)
        outcome = found["outcome"]
    except (ValueError, KeyError, TypeError):
        raise DamagedStore(f"the index is damaged: faiss gave no account of {path.name}; restore it") from None
    if outcome == "memory":
        raise ValueError("the index takes more memory to search than a file of its size should; --check no exports it")
    if outcome != "searched":
        reason = plain_reason(printable(found.get("reason")))
        raise DamagedStore(f"the index is damaged: {reason}; restore it from a copy")
    return found
