"""Writing an export, and what is told of it."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np

from stores.durable import sync_file, sync_folder, write_plainly

Format = Literal["onnx", "numpy", "faiss"]
PROBES = 64


@dataclass(frozen=True, kw_only=True)
class Exported:
    """What was written.

    Attributes:
        path: The file.
        format: What it is.
        family: The transformer's.
        digest: The transformer's.
        source_dim: Length of the vectors that go in.
        output_dim: Length of those that come out; for an index, of those that it holds.
        difference: Largest difference that was found between what the file gives and what the transformer gives: for
            vectors as a share of their length, for an index of a score as a share of the largest, for nine tenths of
            the queries. None: not checked, or an index found nothing to compare.
        checked: Vectors it was found on.
        rows: Vectors in the index; None for other formats.
        notes: Lines to tell whoever uses the file.
        recipe: For numpy: Python that applies the map without this toolkit.
    """

    path: Path
    format: Format
    family: str
    digest: str
    source_dim: int
    output_dim: int
    difference: float | None
    checked: int
    rows: int | None = None
    notes: tuple[str, ...] = ()
    recipe: str = ""

    def to_dict(self) -> dict[str, Any]:
        """The result as plain JSON values."""
        return {**asdict(self), "path": str(self.path), "notes": list(self.notes)}

    def __str__(self) -> str:
        what = f"{self.family} from {self.source_dim} to {self.output_dim} dimensions"
        if self.rows is not None:
            what = f"{what}, before an index of {self.rows} vectors"
        against = "not checked"
        if self.difference is not None and self.rows is None:
            against = f"differs from the transformer by at most {self.difference:.1e} of a vector's length on "
            against += f"{self.checked} vectors"
        elif self.difference is not None:
            against = f"differs from the transformer by at most {self.difference:.1e} of the largest score for nine "
            against += f"tenths of {self.checked} queries"
        return "\n".join([f"{self.path}: {what}; {against}", *(f"note: {note}" for note in self.notes)])


def publish(path: Path, parts: Callable[[], Iterable[Any]], check: Callable[[Path], float | None]) -> float | None:
    """Write a file that appears whole, checked, or not at all; one that is there already is checked and left.

    Args:
        path: Where to.
        parts: Gives the buffers of its content, from the start each time.
        check: Called with a file of that content before it gets its name; what it raises leaves nothing behind.

    Returns:
        What `check` returned.

    Raises:
        FileExistsError: If something else is at the path.
        FileNotFoundError: If its folder is missing.
    """
    if not path.parent.is_dir():
        raise FileNotFoundError(f"the folder {path.parent} of --out does not exist; make it, or name another")
    if path.exists():
        if not path.is_file() or not _same(path, parts()):
            raise FileExistsError(f"{path} exists and is not this export; name another --out or remove it")
        return check(path)
    temporary = path.with_name(f".{path.stem}.{os.getpid()}.tmp{path.suffix}")
    try:
        write_plainly(temporary, parts())
        found = check(temporary)
        sync_file(temporary)
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)
    sync_folder(path.parent)
    return found


def file_parts(path: Path, block: int = 1 << 22) -> Iterator[bytes]:
    """A file's bytes, block by block."""
    with path.open("rb") as file:
        while part := file.read(block):
            yield part


def _same(path: Path, parts: Iterable[Any]) -> bool:
    with path.open("rb") as file:
        for part in parts:
            view = memoryview(part).cast("B")
            if file.read(len(view)) != view:
                return False
        return not file.read(1)


def probe_vectors(dim: int) -> np.ndarray:
    """Vectors float32 [`PROBES`, dim] of all directions and lengths to compare two forms of a map on."""
    generator = np.random.default_rng(0)
    vectors = generator.normal(size=(PROBES, dim)) * 10.0 ** generator.uniform(-4, 4, size=(PROBES, 1))
    return vectors.astype(np.float32)


def relative_difference(found: np.ndarray, expected: np.ndarray) -> float:
    """Largest distance of two rows of [n, t] as a share of the expected row's length; infinity for NaN."""
    lengths = np.linalg.norm(expected.astype(np.float64), axis=1)
    apart = np.linalg.norm(found.astype(np.float64) - expected, axis=1)
    shares = apart / np.maximum(lengths, np.finfo(np.float32).tiny)
    return float(np.nan_to_num(shares, nan=np.inf).max(initial=0.0))


def require_close(difference: float, tolerance: float, path: Path) -> float:
    """The difference itself.

    Raises:
        ValueError: If it is above the tolerance.
    """
    if not difference <= tolerance:
        raise ValueError(
            f"what {path.name} gives differs from the transformer by {difference:.1e}, allowed is {tolerance:.1e}; it "
            "was not written; the map may be of very unequal scales: fit it again, or allow more with --tolerance"
        )
    return difference
