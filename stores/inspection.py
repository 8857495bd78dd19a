"""What a store holds and whether it is sound: found in bounded memory, told without a vector or an item id."""

from __future__ import annotations

import math
import os
from collections.abc import Callable
from contextlib import suppress
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from stores.chunks import DamagedStore
from stores.commit import COMMIT_FILE, COMPLETE, Commit
from stores.durable import StoreLocked
from stores.galleries import redact
from stores.item_parts import read_part
from stores.store import EmbeddingStore
from stores.summaries import LabelHistogram, Norms, NormSummary, label_histogram

SAMPLE_ROWS = 131_072
"""Vectors that are read where the damage check is left out, in chunks spread evenly over the store."""
LARGEST_SHOWN = 5
SPLITS_SHOWN = 20

_READ_VALUES = 1 << 21  # 8 MiB of float32
_ATTEMPTS = 3
_NAMES_ITEMS = {"item_id", "item_ids", "query_id", "query_ids", "source_item"}
_LIST_SHOWN = 8  # a longer list of plain values may be a vector, or the ids of items

OnStep = Callable[[str, int, int], None]


@dataclass(frozen=True)
class Layout:
    """How the store lies on disk; the forgotten rows are there until the store is compacted."""

    chunk_rows: int
    chunks: int
    shard_chunks: int
    dtype: str
    compression: str
    item_parts: int
    rows_forgotten: int
    bytes_vectors: int
    bytes_items: int
    bytes_total: int


@dataclass(frozen=True)
class ColumnSummary:
    """A column of the item table: its name, polars type and absent values."""

    name: str
    type: str
    nulls: int


@dataclass(frozen=True)
class Inspection:
    """What `inspect_store` found.

    Attributes:
        path: The store's folder.
        sound: False where anything is damaged; None where nothing was found but not everything was read.
        complete: Whether whoever wrote the store came to the end, None where no record of it is kept.
        problems: One line for each damaged file, with its path.
        notes: What may surprise and is no damage.
        format_version: Of the store.
        rows: Committed rows.
        space: Fields of the `EmbeddingSpace`.
        provenance: As the store has it, but lists of items and long lists are replaced by what they hold.
        layout: How it lies on disk.
        norms: Lengths of the vectors, None where none could be read.
        columns: Of the item table, as far as it could be read.
        labels: Of the column `label`, None where there is none.
        splits: Rows by value of the column `split`, None where there is none.
    """

    path: str
    sound: bool | None
    complete: bool | None
    problems: tuple[str, ...]
    notes: tuple[str, ...]
    format_version: int
    rows: int
    space: dict[str, Any]
    provenance: dict[str, Any]
    layout: Layout
    norms: NormSummary | None
    columns: tuple[ColumnSummary, ...]
    labels: LabelHistogram | None
    splits: dict[str, int] | None

    def to_dict(self) -> dict[str, Any]:
        """Everything as plain JSON values, the fields by their names."""
        return asdict(self)


def inspect_store(path: str | Path, *, check: bool = True, on_step: OnStep | None = None) -> Inspection:
    """Look at a store; nothing is written, and a process that appends meanwhile does no harm.

    Args:
        path: The store's folder.
        check: Whether to read every file and compare it with its checksum. Without it the item table and about
            `SAMPLE_ROWS` vectors are read; damage that is met there is told all the same.
        on_step: Called with (what is read, how many are done, how many there are) for progress.

    Raises:
        FileNotFoundError: If there is no store at path.
        NotADirectoryError: If path is a file.
        DamagedStore: If store.json is lost or altered, so that nothing tells what the store holds.
        StoreLocked: If another process rewrites what is being read, time after time.
        ValueError: If the store is of another format version.
    """
    path = Path(path)
    for _ in range(_ATTEMPTS):
        commit = _read_commit(path)
        try:
            found = _inspect(path, commit, check, on_step or (lambda *_: None))
        except FileNotFoundError:
            if Commit.read(path) == commit:
                raise
            continue
        # A writer merges small item parts; a file that is gone because of that is not lost.
        if not found.problems or _read_commit(path) == commit:
            return found
    raise StoreLocked(f"{path} is being rewritten faster than it can be read; inspect it when its writer has ended")


def _read_commit(path: Path) -> Commit:
    if not path.exists():
        raise FileNotFoundError(f"no embedding store at {path}: the path does not exist")
    if not path.is_dir():
        raise NotADirectoryError(f"{path} is a file, expected the folder of an embedding store; name that folder")
    if not (path / COMMIT_FILE).is_file():
        if (path / "vectors").is_dir() and (path / "items").is_dir():
            raise DamagedStore(
                f"{path / COMMIT_FILE} is missing beside vectors and items, so nothing tells which rows are committed; "
                "restore it from a copy, or write the store again"
            )
        raise FileNotFoundError(f"no embedding store at {path}: it has no file {COMMIT_FILE}")
    return Commit.read(path)


def _inspect(path: Path, commit: Commit, check: bool, on_step: OnStep) -> Inspection:
    store = EmbeddingStore(path, commit)  # not `open`, which ends at the first missing file: all are to be named
    items = _look_at_items(commit.items_folder(path), commit, on_step)
    notes, problems = list(items.notes), list(items.problems)
    norms = Norms()
    if check:

        def look(done: int, chunks: int) -> None:
            _add_chunk(norms, store, done - 1)  # just read for its checksum, so still in memory
            on_step("checking chunks", done, chunks)

        problems = list(store.verify(on_chunk=look).problems)
    else:
        problems += _look_at_sample(store, commit, norms, on_step)
        if norms.rows < len(store):
            notes.append(f"the norms are those of a sample of {norms.rows:,} vectors; --check yes reads all")
    summary = norms.summary()
    notes += _remarks(commit, summary)
    complete = commit.provenance.get(COMPLETE)
    return Inspection(
        path=str(path),
        sound=False if problems else True if check else None,
        complete=complete if isinstance(complete, bool) else None,
        problems=tuple(problems),
        notes=tuple(notes),
        format_version=commit.version,
        rows=len(store),
        space=asdict(commit.space),
        provenance=_discreet({key: value for key, value in store.provenance.items() if key != COMPLETE}),
        layout=_layout(path, commit),
        norms=summary,
        columns=items.columns,
        labels=items.labels,
        splits=items.splits,
    )


class _Items(NamedTuple):
    columns: tuple[ColumnSummary, ...]
    labels: LabelHistogram | None
    splits: dict[str, int] | None
    problems: list[str]
    notes: list[str]


def _look_at_items(folder: Path, commit: Commit, on_step: OnStep) -> _Items:
    """Columns, labels and splits of those files of the item table that are whole, and what is wrong with the others."""
    problems, notes = [], []
    columns: dict[str, ColumnSummary] = {}
    whole: list[Path] = []
    for done, part in enumerate(commit.parts, start=1):
        try:
            table = read_part(folder, part)
        except (DamagedStore, OSError) as error:
            problems.append(str(error))
        else:
            whole.append(folder / part.name)
            for column in table:
                nulls = column.null_count() + (columns[column.name].nulls if column.name in columns else 0)
                columns[column.name] = ColumnSummary(column.name, str(column.dtype), nulls)
        on_step("reading item tables", done, len(commit.parts))
    labels = splits = None
    if commit.forgotten:
        notes.append("labels and splits are not counted until the store is compacted: forgotten rows have some too")
        return _Items(tuple(columns.values()), None, None, problems, notes)
    if "label" in columns:
        labels = label_histogram(whole, "label", largest=LARGEST_SHOWN)
        if labels is None:
            notes.append(f"labels of type {columns['label'].type} are not counted")
        elif labels.maximum == 1:
            labels = replace(labels, largest=())  # such labels name items
    if "split" in columns and (found := label_histogram(whole, "split", largest=SPLITS_SHOWN)):
        splits = {str(value): rows for value, rows in found.largest}
        if found.labels > len(splits):
            notes.append(f"only the {len(splits)} largest of {found.labels:,} splits are listed")
    return _Items(tuple(columns.values()), labels, splits, problems, notes)


def _look_at_sample(store: EmbeddingStore, commit: Commit, norms: Norms, on_step: OnStep) -> list[str]:
    """Norms of some chunks, and what is damaged among what that takes."""
    chunks = commit.chunks(store.path)
    problems = [
        f"chunk file {file} is missing; restore it from a copy or extract again" for file in chunks.missing(commit.rows)
    ]
    try:
        chunks.check_metadata(commit.rows)
    except DamagedStore as error:
        problems.append(str(error))
    count = -(-len(store) // store.chunk_rows)
    sampled = np.unique(np.linspace(0, count - 1, max(1, min(count, SAMPLE_ROWS // store.chunk_rows)), dtype=np.int64))
    for done, chunk in enumerate(sampled if count else [], start=1):
        problem = _add_chunk(norms, store, int(chunk))
        if problem and problem not in problems:
            problems.append(problem)
        on_step("reading norms", done, len(sampled))
    return problems


def _add_chunk(norms: Norms, store: EmbeddingStore, chunk: int) -> str:
    """Take in a chunk's committed rows; the answer says what is damaged, in which case none of them are taken in."""
    first = chunk * store.chunk_rows
    stop = min(first + store.chunk_rows, len(store))
    rows = max(1, _READ_VALUES // store.space.dim)
    try:
        for start in range(first, stop, rows):
            norms.add(store.rows(start, min(start + rows, stop)))
    except (DamagedStore, OSError) as error:
        return str(error)
    return ""


def _layout(path: Path, commit: Commit) -> Layout:
    vectors, items = _bytes_below(commit.vectors_folder(path)), _bytes_below(commit.items_folder(path))
    return Layout(
        chunk_rows=commit.layout.chunk_rows,
        chunks=-(-commit.rows // commit.layout.chunk_rows),
        shard_chunks=commit.layout.shard_chunks,
        dtype=commit.layout.dtype,
        compression="none",
        item_parts=len(commit.parts),
        rows_forgotten=sum(stop - start for start, stop in commit.forgotten),
        bytes_vectors=vectors,
        bytes_items=items,
        bytes_total=_bytes_below(path),
    )


def _bytes_below(folder: Path) -> int:
    total = 0
    for parent, _, names in os.walk(folder):
        for name in names:
            with suppress(FileNotFoundError):  # a writer may be at work
                total += Path(parent, name).stat().st_size
    return total


def _remarks(commit: Commit, norms: NormSummary | None) -> list[str]:
    if norms is None:
        return []
    remarks = []
    if commit.space.normalized and norms.unit_length < norms.rows:
        odd = norms.rows - norms.unit_length
        remarks.append(f"the space says normalized, but {odd:,} of {norms.rows:,} vectors have another length than 1")
    if norms.zero:
        remarks.append(
            f"{norms.zero:,} of {norms.rows:,} vectors are all zeros, which have no direction and so no cosine"
        )
    if norms.not_finite:
        remarks.append(f"{norms.not_finite:,} of {norms.rows:,} vectors hold NaN or infinity, which `append` refuses")
    return remarks


def _discreet(value: Any) -> Any:
    """A provenance that names no item, holds no vector and no password: long lists give way to their length."""
    if isinstance(value, dict):
        return {key: "not shown" if key in _NAMES_ITEMS else _discreet(entry) for key, entry in value.items()}
    if isinstance(value, float) and not math.isfinite(value):
        return str(value)  # JSON has no such numbers
    if isinstance(value, str):
        return redact(value)
    if not isinstance(value, list):
        return value
    if any(isinstance(entry, dict) and entry.keys() & _NAMES_ITEMS for entry in value):
        return f"{len(value)} items, not shown"
    if len(value) > _LIST_SHOWN and not any(isinstance(entry, dict) for entry in value):
        return f"{len(value)} values, not shown"
    return [_discreet(entry) for entry in value]
