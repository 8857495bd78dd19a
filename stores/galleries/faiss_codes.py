"""Vectors decoded from a FAISS index file by faiss itself, in a process that may crash, hang or ask for too much.

The process (`faiss_child`) has limits that follow from the file's size, and is believed in nothing but the floats: how
many rows of which length there are is what the file's header says, and what was written has to be of just that size.
It writes into files without a name, mapped into memory here: rows x dim x 4 bytes, and 8 a row where there are ids, in
the folder for temporary files (TMPDIR names another). They are gone when the vectors are, however this process ends.
"""

from __future__ import annotations

import importlib.util
import json
import os
import shutil
import tempfile
from pathlib import Path
from typing import IO, Any, NamedTuple

import numpy as np

from stores.chunks import DamagedStore
from stores.galleries import faiss_child
from stores.galleries.faiss_process import Crashed, TookTooLong, memory_for, plain_reason, printable, run_script

_CHILD = faiss_child.__file__
_SECONDS = 20
_BYTES_PER_SECOND = 20e6  # a fifth of the slowest codec's speed, and of a slow disk's
_REPORT_BYTES = 1 << 16
_REMEDY = "rebuild it flat (faiss.IndexFlatIP) from the vectors"


class DecodedIndex(NamedTuple):
    """What an index file held.

    Attributes:
        vectors: float32 [n, d], a map of a temporary file.
        ids: int64 [n] of its id map or its inverted lists, None where rows are numbered. Rows of inverted lists are in
            the order of their ids, whichever list they are in; those of one id, if it was given twice, in the lists'.
        provenance: `index`, the parts of the index; `codec`, in which form it kept vectors; `exact`, whether these are
            the ones that were put in, bit for bit; `transforms` that vectors went through before, if any.
        notes: Lines to tell whoever uses the vectors.
    """

    vectors: np.ndarray
    ids: np.ndarray | None
    provenance: dict[str, Any]
    notes: tuple[str, ...]


def decode(path: Path, rows: int, dim: int) -> DecodedIndex:
    """Decode an index file whose header promises rows x dim.

    Raises:
        DamagedStore: If it is damaged.
        ValueError: If it is of a kind that is not read.
        ImportError: If faiss is missing.
        OSError: If there is no room for the vectors in the folder of temporary files.
    """
    if importlib.util.find_spec("faiss") is None:
        raise ImportError(_missing(path))
    size, output = path.stat().st_size, 4 * rows * dim
    # Every kind keeps at least a byte of each row, and half a byte of each number of one row.
    if dim < 1 or not 0 <= rows <= size or (rows and dim > 2 * size):
        raise DamagedStore(
            f"{path} is damaged: its header promises {rows} x {dim} floats in {size} bytes; restore it from a copy"
        )
    _require_room(path, output + 8 * rows)
    with (
        path.open("rb") as index,
        tempfile.TemporaryFile(buffering=0) as vectors,
        tempfile.TemporaryFile(buffering=0) as ids,
        tempfile.TemporaryFile(buffering=0) as report,
    ):
        seconds = _SECONDS + int((size + output) / _BYTES_PER_SECOND)
        task = faiss_child.Task(
            *(file.fileno() for file in (index, vectors, ids, report)),
            rows=rows,
            dim=dim,
            memory=memory_for(size, rows),
            output=max(output, 8 * rows, _REPORT_BYTES),
            seconds=seconds,
        )
        _run(path, task)
        provenance = _read_report(path, report)
        found = _size(vectors), _size(ids)
        if found not in ((output, 0), (output, 8 * rows)):
            raise DamagedStore(
                f"{path} is damaged: {found[0]} bytes of vectors and {found[1]} of ids were decoded from it, expected "
                f"{output} for {rows} x {dim} floats, and 0 or {8 * rows}; restore it from a copy"
            )
        mapped = np.memmap(vectors, "<f4", "r", shape=(rows, dim)) if rows else np.empty((0, dim), np.float32)
        return DecodedIndex(mapped, np.fromfile(ids, "<i8") if found[1] else None, provenance, _notes(path, provenance))


def _missing(path: Path) -> str:
    return f"reading {path}, which is not a flat index, needs faiss: pip install 'embedding-compat[cpu]'"


def _require_room(path: Path, needed: int) -> None:
    folder = tempfile.gettempdir()
    free = shutil.disk_usage(folder).free
    if needed > free:
        raise OSError(
            f"the vectors of {path} take {needed} bytes when decoded, {folder} has {free} free; set TMPDIR to a folder "
            "with room"
        )


def _run(path: Path, task: faiss_child.Task) -> None:
    try:
        run_script(_CHILD, task, (task.source, task.vectors, task.ids, task.report), seconds=task.seconds)
    except TookTooLong:
        raise DamagedStore(
            f"{path} is damaged: faiss had not read its {task.rows} vectors in {task.seconds} s; restore it from a copy"
        ) from None
    except Crashed as how:
        raise DamagedStore(f"{path} is damaged: faiss crashed on it ({how}); restore it from a copy") from None


def _read_report(path: Path, file: IO[bytes]) -> dict[str, Any]:
    """What the process says of the index, as provenance."""
    file.seek(0)
    try:
        report = json.loads(file.read(_REPORT_BYTES))
        outcome, reason = str(report.pop("outcome")), printable(report.pop("reason", ""))
        if outcome == "decoded":
            parts: dict[str, Any] = {name: printable(report[name]) for name in ("index", "codec")}
            parts["exact"] = report["exact"] is True
            transforms = [printable(name) for name in report["transforms"]]
            return {**parts, "transforms": transforms} if transforms else parts
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        raise DamagedStore(f"{path} is damaged: faiss gave no account of it; restore it from a copy") from None
    if outcome == "missing":
        raise ImportError(f"{_missing(path)} ({reason})")
    if outcome == "disk":
        raise OSError(f"the vectors of {path} could not be decoded into {tempfile.gettempdir()}: {reason}")
    if outcome == "unsupported":
        raise ValueError(f"{path} holds {reason}, which is not read; {_REMEDY}")
    raise DamagedStore(f"{path} is damaged: {plain_reason(reason)}; restore it from a copy")


def _size(file: IO[bytes]) -> int:
    return os.fstat(file.fileno()).st_size


def _notes(path: Path, provenance: dict[str, Any]) -> tuple[str, ...]:
    codec, transforms = provenance["codec"], provenance.get("transforms", [])
    notes = []
    if codec in ("SQfp16", "SQbf16"):
        notes.append(f"{path} keeps vectors in half precision ({codec}): they are rounded, not those that were indexed")
    elif codec != "Flat":
        notes.append(
            f"{path} keeps vectors as {codec} codes: they are approximations decoded from these, not those that were "
            "indexed"
        )
    if "L2norm" in transforms:
        notes.append(f"{path} scaled vectors to unit length before it kept them: their norms are lost")
    others = [name for name in transforms if name != "L2norm" and not name.startswith("Pad")]
    if others:
        notes.append(
            f"{path} put vectors through {', '.join(others)} before it kept them: they are mapped back, but for what "
            "that rounded or projected away"
        )
    return tuple(notes)
