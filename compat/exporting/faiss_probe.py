"""Searches an exported FAISS index with raw queries, and what it holds with mapped ones: a script run by `faiss_check`.

Most of the file is somebody else's index, which faiss was not made to distrust. So this process limits itself before it
looks at the file, speaks through open files alone, is run by its path, and imports nothing of the toolkit.
"""

from __future__ import annotations

import json
import os
import resource
import sys
from typing import Any, NamedTuple


class Task(NamedTuple):
    """Descriptors of open files, the queries' shapes, and the limits of this process in bytes and seconds.

    `asked` holds float32 [queries, raw], then float32 [queries, mapped]; `answers` gets float32 scores of the
    whole index and of that within [queries, nearest] each, then int64 ids alike.
    """

    source: int
    asked: int
    answers: int
    report: int
    queries: int
    raw: int
    mapped: int
    nearest: int
    memory: int
    seconds: int


def limit_process(memory: int, seconds: int, output: int) -> None:
    """Bound what this process may use; the kernel holds it to that."""
    limits = {
        resource.RLIMIT_AS: memory,
        resource.RLIMIT_FSIZE: output,
        resource.RLIMIT_CPU: seconds,
        resource.RLIMIT_CORE: 0,
    }
    for kind, limit in limits.items():
        hard = resource.getrlimit(kind)[1]
        soft = limit if hard == resource.RLIM_INFINITY else min(limit, hard)
        resource.setrlimit(kind, (soft, hard if kind == resource.RLIMIT_CPU else soft))


def probe(task: Task) -> dict[str, Any]:
    """Search both ways, write the answers, and return the report."""
    try:
        import faiss
        import numpy as np

        faiss.omp_set_num_threads(1)
        if hasattr(faiss, "set_deserialization_vector_byte_limit"):
            faiss.set_deserialization_vector_byte_limit(task.memory)
        # Tables for searching are not needed, and grow with the square of what the file says.
        wanted = ("IO_FLAG_READ_ONLY", "IO_FLAG_SKIP_PRECOMPUTE_TABLE", "IO_FLAG_PQ_SKIP_SDC_TABLE")
        flags = sum(getattr(faiss, name, 0) for name in wanted)
        read = faiss.read_index(f"/dev/fd/{task.source}", flags)  # it owns the parts within: held to the end
        whole: Any = faiss.downcast_index(read)
        inner = faiss.downcast_index(whole.index)
        floats = np.frombuffer(os.pread(task.asked, 4 * task.queries * (task.raw + task.mapped), 0), "<f4")
        raw = floats[: task.queries * task.raw].reshape(task.queries, task.raw)
        mapped = floats[task.queries * task.raw :].reshape(task.queries, task.mapped)
        (scores, ids), (inner_scores, inner_ids) = whole.search(raw, task.nearest), inner.search(mapped, task.nearest)
        parts = scores.astype("<f4"), inner_scores.astype("<f4"), ids.astype("<i8"), inner_ids.astype("<i8")
        os.pwrite(task.answers, b"".join(part.tobytes() for part in parts), 0)
        return {"outcome": "searched"}
    except MemoryError:
        return {"outcome": "memory"}
    except Exception as error:  # faiss raises RuntimeError, its wrappers AssertionError, ValueError and TypeError
        # What comes before is a function's signature and a place in faiss's sources.
        return {"outcome": "damaged", "reason": (str(error).split(" Error: ", 1)[-1] or type(error).__name__)[:300]}


def main() -> None:
    """Do the task named on the command line."""
    task = Task(*map(int, sys.argv[1:]))
    limit_process(task.memory, task.seconds, max(1 << 16, 24 * task.queries * task.nearest))
    os.pwrite(task.report, json.dumps(probe(task)).encode(), 0)
    os._exit(0)  # taking a damaged index apart is one more chance to crash, and a whole one's takes time


if __name__ == "__main__":
    main()
