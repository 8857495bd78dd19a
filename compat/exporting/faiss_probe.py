"""Searches an exported FAISS index with raw queries, and what it holds with mapped ones: a script run by `faiss_check`.

Most of the file is somebody else's index, which faiss was not made to distrust. So this process limits itself before it
looks at the file, speaks through open files alone, is run by its path, and imports nothing of the toolkit.
"""

from __future__ import annotations

import json
import os
import resource
import sys
from typing import TYPE_CHECKING, Any, NamedTuple

if TYPE_CHECKING:
    import numpy as np

_SAMPLE = 64
_NESTING = 6  # more than any index that somebody builds: IDMap, PreTransform, Refine, HNSW, codes


class Task(NamedTuple):
    """Descriptors of open files, the queries' shapes, and the limits of this process in bytes and seconds.

    `asked` holds float32 [queries, raw], then float32 [queries, mapped]; `answers` gets float32 scores of the
    whole index and of that within [queries, nearest] each, then int64 ids alike. `lengths` is 1 where the report shall
    say what becomes of queries whose length is 1.
    """

    source: int
    asked: int
    answers: int
    report: int
    queries: int
    raw: int
    mapped: int
    nearest: int
    lengths: int
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
        return {"outcome": "searched", **(unit_length_loss(inner, task.nearest) if task.lengths else {})}
    except MemoryError:
        return {"outcome": "memory"}
    except Exception as error:  # faiss raises RuntimeError, its wrappers AssertionError, ValueError and TypeError
        # What comes before is a function's signature and a place in faiss's sources.
        return {"outcome": "damaged", "reason": (str(error).split(" Error: ", 1)[-1] or type(error).__name__)[:300]}


def unit_length_loss(index: Any, nearest: int) -> dict[str, Any]:
    """What an index finds with its own vectors brought to unit length, beside what it finds with them as they are.

    Returns:
        `kept`: the mean share of the nearest that are found again; `length`: the sample's median length. Nothing where
        the index is of a kind that gives no vectors back.
    """
    import faiss
    import numpy as np

    try:
        vectors = sample(faiss.downcast_index(index), _SAMPLE, _NESTING)
    except (RuntimeError, AttributeError):  # faiss: "reconstruct not implemented for this type of index"
        return {}
    lengths = np.linalg.norm(vectors.astype(np.float64), axis=1)
    whole = np.isfinite(lengths) & (lengths > 0)
    if not whole.any():
        return {}
    vectors, lengths = vectors[whole], lengths[whole]
    found = index.search(vectors, nearest)[1]
    again = index.search((vectors / lengths[:, None]).astype(np.float32), nearest)[1]
    rows = [(set(own[own >= 0].tolist()), set(other.tolist())) for own, other in zip(found, again, strict=True)]
    shares = [len(own & other) / len(own) for own, other in rows if own]
    return {"kept": float(np.mean(shares)), "length": float(np.median(lengths))} if shares else {}


def sample(index: Any, count: int, depth: int) -> np.ndarray:
    """Up to `count` of an index's vectors as it takes them, float32 [n, d], spread over its rows.

    Raises:
        RuntimeError: If the index is of a kind that gives no vectors back.
    """
    import faiss
    import numpy as np

    kind = type(index).__name__
    if depth == 0:
        raise RuntimeError("an index within an index within an index and so on")
    if kind in ("IndexIDMap", "IndexIDMap2"):
        return sample(faiss.downcast_index(index.index), count, depth - 1)
    if kind == "IndexPreTransform":
        vectors = sample(faiss.downcast_index(index.index), count, depth - 1)
        for place in reversed(range(index.chain.size())):
            vectors = faiss.downcast_VectorTransform(index.chain.at(place)).reverse_transform(vectors)
        return vectors
    if kind.startswith("IndexIVF"):
        lists = index.invlists  # by their place in a list: a table of where each id is would take memory
        filled = [number for number in range(index.nlist) if lists.list_size(number)]
        chosen = [filled[place] for place in _spread(len(filled), count)]
        vectors = np.empty((len(chosen), index.d), np.float32)
        for row, number in enumerate(chosen):
            index.reconstruct_from_offset(number, 0, faiss.swig_ptr(vectors[row]))
        return vectors
    rows = [index.reconstruct(place) for place in _spread(index.ntotal, count)]
    return np.array(rows, np.float32).reshape(len(rows), index.d)


def _spread(total: int, count: int) -> list[int]:
    return sorted({place * total // count for place in range(count)}) if total else []


def main() -> None:
    """Do the task named on the command line."""
    task = Task(*map(int, sys.argv[1:]))
    limit_process(task.memory, task.seconds, max(1 << 16, 24 * task.queries * task.nearest))
    os.pwrite(task.report, json.dumps(probe(task)).encode(), 0)
    os._exit(0)  # taking a damaged index apart is one more chance to crash, and a whole one's takes time


if __name__ == "__main__":
    main()
