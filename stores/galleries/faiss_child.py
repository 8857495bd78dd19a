"""Decodes a FAISS index file into bare arrays: a script that `faiss_codes` runs as a process of its own.

faiss was not made to read files it cannot trust: one that lies can end the process, fill the memory or go round in
circles. So this process limits itself before it looks at the file, speaks through open files alone, and is run by its
path and imports nothing of the toolkit, so that it starts in a third of a second.

Written are float32 vectors [rows, dim], int64 ids [rows] (nothing where rows are numbered), and a report in JSON.
"""

from __future__ import annotations

import itertools
import json
import os
import resource
import sys
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any, NamedTuple

if TYPE_CHECKING:
    import numpy as np

_BLOCK_BYTES = 16 << 20
_BLOCK_ROWS = 8192
_SCALAR_CODES = [
    "8bit",
    "6bit",
    "4bit",
    "fp16",
    "bf16",
    "8bit_uniform",
    "4bit_uniform",
    "8bit_direct",
    "8bit_direct_signed",
]
_NESTING = 6  # more than any index that somebody builds: IDMap, PreTransform, Refine, HNSW, codes


class Task(NamedTuple):
    """What to decode and where to: descriptors of open files, and the limits of this process in bytes and seconds."""

    source: int
    vectors: int
    ids: int
    report: int
    rows: int
    dim: int
    memory: int
    output: int
    seconds: int


class Refused(Exception):
    """Why an index is not decoded: `outcome` is damaged or unsupported."""

    def __init__(self, outcome: str, reason: str) -> None:
        super().__init__(reason)
        self.outcome = outcome


class Part(NamedTuple):
    """A part of an index, able to give its vectors.

    Attributes:
        names: The index and those within it, outermost first, such as IDMap, IVF256, PQ16x8.
        exact: Whether the vectors given are those that were added, bit for bit.
        transforms: Names of the maps that the vectors went through and are brought back from.
        rows: Vectors.
        dim: Their length.
        ids: int64 [rows], None where rows are numbered.
        blocks: Gives (rows int64 [b], vectors float32 [b, dim]) until every row was given once.
    """

    names: tuple[str, ...]
    exact: bool
    transforms: tuple[str, ...]
    rows: int
    dim: int
    ids: np.ndarray | None
    blocks: Iterator[tuple[np.ndarray, np.ndarray]]


def limit_process(task: Task) -> None:
    """Bound what this process may use; the kernel holds it to that."""
    limits = {
        resource.RLIMIT_AS: task.memory,
        resource.RLIMIT_FSIZE: task.output,
        resource.RLIMIT_CPU: task.seconds,
        resource.RLIMIT_CORE: 0,
    }
    for kind, limit in limits.items():
        hard = resource.getrlimit(kind)[1]
        soft = limit if hard == resource.RLIM_INFINITY else min(limit, hard)
        # At the hard limit of processor time the kernel kills, at the soft one it says why.
        resource.setrlimit(kind, (soft, hard if kind == resource.RLIMIT_CPU else soft))


def decode(task: Task) -> dict[str, Any]:
    """Read the index, write its vectors and ids, and return the report."""
    try:
        import faiss
        import numpy as np
    except ImportError as error:
        return {"outcome": "missing", "reason": str(error)}
    try:
        if hasattr(faiss, "set_deserialization_vector_byte_limit"):
            # Not the file's size: faiss holds d x d floats against it even where a transform has no matrix.
            faiss.set_deserialization_vector_byte_limit(task.memory)
        index = faiss.read_index(f"/dev/fd/{task.source}", _flags(faiss))  # it owns the parts within: held to the end
        part = unwrap(faiss.downcast_index(index), _NESTING)
        if (part.rows, part.dim) != (task.rows, task.dim):
            raise Refused(
                "damaged", f"its header promises {task.rows} x {task.dim}, its codes are {part.rows} x {part.dim}"
            )
        for rows, vectors in part.blocks:
            _write_rows(task.vectors, rows, vectors)
        if part.ids is not None:
            _write_at(task.ids, part.ids.astype("<i8").view(np.uint8).data, 0)
    except Refused as error:
        return {"outcome": error.outcome, "reason": str(error)}
    except MemoryError:
        return {"outcome": "damaged", "reason": "it asks for more memory than a file of its size can fill"}
    except OSError as error:
        return {"outcome": "disk", "reason": error.strerror or type(error).__name__}
    except Exception as error:  # faiss raises RuntimeError, its wrappers AssertionError, ValueError and TypeError
        # What comes before is a function's signature and a place in faiss's sources.
        reason = str(error).split(" Error: ", 1)[-1] or type(error).__name__
        return {"outcome": "damaged", "reason": reason[:300]}
    return {
        "outcome": "decoded",
        "index": ",".join(part.names),
        "codec": part.names[-1],
        "exact": part.exact,
        "transforms": list(part.transforms),
    }


def _flags(faiss: Any) -> int:
    # Tables for searching are not needed, and grow with the square of what the file says.
    wanted = ("IO_FLAG_READ_ONLY", "IO_FLAG_SKIP_PRECOMPUTE_TABLE", "IO_FLAG_PQ_SKIP_SDC_TABLE", "IO_FLAG_MMAP_IFC")
    return sum(getattr(faiss, name, 0) for name in wanted)


def unwrap(index: Any, depth: int) -> Part:
    """The vectors of an index of a kind that is read.

    Raises:
        Refused: If it is of another kind or contradicts itself.
    """
    kind = type(index).__name__
    if depth == 0:
        raise Refused("damaged", "it holds an index within an index within an index and so on")
    if kind in ("IndexIDMap", "IndexIDMap2"):
        return _id_map(index, depth)
    if kind == "IndexPreTransform":
        return _transformed(index, depth)
    if kind in ("IndexRefine", "IndexRefineFlat"):
        return _over(index, index.refine_index, "Refine", depth)
    if kind.startswith("IndexHNSW"):
        return _over(index, index.storage, "HNSW", depth)
    if kind.startswith("IndexNSG"):
        return _over(index, index.storage, "NSG", depth)
    if kind in ("IndexIVFFlat", "IndexIVFScalarQuantizer", "IndexIVFPQ"):
        return _inverted_lists(index)
    if kind in ("IndexFlat", "IndexFlatIP", "IndexFlatL2", "IndexScalarQuantizer", "IndexPQ"):
        return _codes(index)
    raise Refused("unsupported", f"an index of kind {kind}")


def _inner(index: Any, inner: Any, depth: int) -> Part:
    import faiss

    if inner is None:
        raise Refused("damaged", f"its {type(index).__name__} holds no vectors")
    part = unwrap(faiss.downcast_index(inner), depth - 1)
    if part.rows != index.ntotal:
        raise Refused("damaged", f"its {type(index).__name__} promises {index.ntotal} vectors and holds {part.rows}")
    return part


def _over(index: Any, inner: Any, name: str, depth: int) -> Part:
    part = _inner(index, inner, depth)
    if part.dim != index.d or part.ids is not None:
        raise Refused("damaged", f"the vectors within its {name} are of another kind than it says")
    return part._replace(names=(name, *part.names))


def _id_map(index: Any, depth: int) -> Part:
    import faiss
    import numpy as np

    part = _inner(index, index.index, depth)
    ids = faiss.vector_to_array(index.id_map).astype(np.int64)
    if len(ids) != part.rows or part.dim != index.d:
        raise Refused("damaged", f"its id map has {len(ids)} ids for {part.rows} vectors")
    # An id map names row numbers. Lists keep ids of their own, sorted by unwrap: row i has to be number i.
    if part.ids is not None and not np.array_equal(part.ids, np.arange(part.rows)):
        raise Refused(
            "damaged",
            "its id map is for vectors numbered from 0, those within have other numbers (faiss leaves it so when "
            "vectors are removed from an IDMap over IVF)",
        )
    return part._replace(names=("IDMap", *part.names), ids=ids)


def _transformed(index: Any, depth: int) -> Part:
    import faiss

    part = _inner(index, index.index, depth)
    chain = [faiss.downcast_VectorTransform(index.chain.at(i)) for i in range(index.chain.size())]
    names = tuple(_transform_name(transform) for transform in chain)
    widths = [index.d, *itertools.chain.from_iterable((t.d_in, t.d_out) for t in chain), part.dim]
    if widths[::2] != widths[1::2]:
        raise Refused("damaged", f"its transforms do not fit each other: {widths}")

    def blocks() -> Iterator[tuple[np.ndarray, np.ndarray]]:
        for rows, vectors in part.blocks:
            for transform in reversed(chain):
                vectors = transform.reverse_transform(vectors)
            yield rows, vectors

    return part._replace(
        names=(*names, *part.names),
        exact=part.exact and all(name.startswith("Pad") for name in names),
        transforms=names + part.transforms,
        dim=index.d,
        blocks=blocks(),
    )


def _transform_name(transform: Any) -> str:
    """The name of a transform that can be undone, but for what it projects or scales away."""
    kind = type(transform).__name__
    short = {"PCAMatrix": "PCA", "OPQMatrix": "OPQ", "RandomRotationMatrix": "RR", "LinearTransform": "Linear"}
    if kind in short and transform.is_orthonormal and _keeps_lengths(transform):
        return f"{short[kind]}{transform.d_out}"
    if kind == "RemapDimensionsTransform" and transform.d_out >= transform.d_in:
        return f"Pad{transform.d_out}"
    if kind == "NormalizationTransform":
        return "L2norm"
    if kind == "CenteringTransform":
        return "Centering"
    raise Refused("unsupported", f"vectors that went through a {kind} that cannot be undone")


def _keeps_lengths(transform: Any) -> bool:
    # faiss calls a whitening PCA orthonormal too, and then brings vectors back wrong.
    import faiss
    import numpy as np

    matrix = faiss.vector_to_array(transform.A).reshape(transform.d_out, transform.d_in)
    return np.allclose(matrix @ matrix.T, np.eye(transform.d_out), atol=1e-3)


def _codes(index: Any) -> Part:
    import numpy as np

    name, exact = _codec(index)
    rows, dim = index.ntotal, index.d
    if index.codes.size() != rows * index.code_size:
        raise Refused("damaged", f"it promises {rows} codes of {index.code_size} bytes, {index.codes.size()} are there")

    def blocks() -> Iterator[tuple[np.ndarray, np.ndarray]]:
        for first, stop in _cuts(rows, dim):
            yield np.arange(first, stop), index.reconstruct_n(first, stop - first)

    return Part((name,), exact, (), rows, dim, None, blocks())


def _codec(index: Any) -> tuple[str, bool]:
    import faiss

    kind = type(index).__name__
    if "Flat" in kind:
        return "Flat", True
    if "PQ" in kind:
        return f"PQ{index.pq.M}x{index.pq.nbits}", False
    for name in _SCALAR_CODES:
        if getattr(faiss.ScalarQuantizer, f"QT_{name}", None) == index.sq.qtype:
            return f"SQ{name.replace('bit', '')}", False
    raise Refused("unsupported", f"scalar codes of type {index.sq.qtype}")


def _inverted_lists(index: Any) -> Part:
    import faiss
    import numpy as np

    name, exact = _codec(index)
    dim, size, count = index.d, index.code_size, index.nlist
    lists: Any = faiss.downcast_InvertedLists(index.invlists) if index.invlists is not None else None
    if type(lists).__name__ != "ArrayInvertedLists":
        raise Refused("unsupported", "inverted lists that are kept in another file")
    if (lists.nlist, lists.code_size) != (count, size) or (index.quantizer.ntotal, index.quantizer.d) != (count, dim):
        raise Refused("damaged", "its inverted lists do not fit its header")
    sizes = [lists.list_size(number) for number in range(count)]
    rows = sum(sizes)
    if rows != index.ntotal:
        raise Refused(
            "damaged",
            f"its header promises {index.ntotal} vectors, its lists hold {rows} (faiss counts vectors with NaN but "
            "does not keep them)",
        )
    filled = [number for number in range(count) if sizes[number]]
    ids = np.empty(rows, np.int64)
    starts = list(itertools.accumulate((sizes[number] for number in filled), initial=0))
    for number, start in zip(filled, starts, strict=False):
        ids[start : start + sizes[number]] = faiss.rev_swig_ptr(lists.get_ids(number), sizes[number])
    # By id, so that the same vectors give the same gallery whatever lists they were put in.
    order = np.argsort(ids, kind="stable")
    row_of = np.empty(rows, np.int64)
    row_of[order] = np.arange(rows)
    coarse_size = index.coarse_code_size()

    def blocks() -> Iterator[tuple[np.ndarray, np.ndarray]]:
        for number, start in zip(filled, starts, strict=False):
            codes = faiss.rev_swig_ptr(lists.get_codes(number), sizes[number] * size).reshape(sizes[number], size)
            for first, stop in _cuts(sizes[number], dim):
                # Codes of their own, as faiss calls them, begin with the number of the list: its centroid may be part
                # of the vector (by_residual).
                whole = np.empty((stop - first, coarse_size + size), np.uint8)
                whole[:, :coarse_size] = np.frombuffer(number.to_bytes(coarse_size, "little"), np.uint8)
                whole[:, coarse_size:] = codes[first:stop]
                yield row_of[start + first : start + stop], index.sa_decode(whole)

    return Part((f"IVF{count}", name), exact, (), rows, dim, ids[order], blocks())


def _cuts(rows: int, dim: int) -> Iterator[tuple[int, int]]:
    step = min(_BLOCK_ROWS, max(1, _BLOCK_BYTES // (4 * dim)))
    return ((first, min(first + step, rows)) for first in range(0, rows, step))


def _write_rows(descriptor: int, rows: np.ndarray, vectors: np.ndarray) -> None:
    """Write vectors [b, dim] to the rows [b] of the array in a file, neighbours in one go."""
    import numpy as np

    buffer, width = np.ascontiguousarray(vectors, "<f4").reshape(-1).view(np.uint8).data, 4 * vectors.shape[1]
    breaks = np.flatnonzero(np.diff(rows) != 1) + 1
    for first, stop in itertools.pairwise([0, *breaks.tolist(), len(rows)]):
        _write_at(descriptor, buffer[first * width : stop * width], int(rows[first]) * width)


def _write_at(descriptor: int, buffer: memoryview, place: int) -> None:
    while buffer:
        done = os.pwrite(descriptor, buffer, place)
        buffer, place = buffer[done:], place + done


def main() -> None:
    """Do the task named on the command line."""
    task = Task(*map(int, sys.argv[1:]))
    limit_process(task)
    report = json.dumps(decode(task)).encode()
    _write_at(task.report, memoryview(report), 0)
    # Taking a damaged index apart is one more chance to crash, and a whole one's takes time.
    os._exit(0)


if __name__ == "__main__":
    main()
