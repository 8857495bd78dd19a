"""Rewriting a store without the rows it was told to forget."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import polars as pl

from stores.chunks import VectorChunks
from stores.commit import GENERATION_NAME, Commit
from stores.durable import sync_file, sync_folder
from stores.item_parts import PART_ROWS
from stores.layout import CHECKSUM_BYTES
from stores.writer import StoreWriter


def compacted(
    path: Path, commit: Commit, rows: int, read: Callable[[int, int], tuple[pl.DataFrame, np.ndarray]]
) -> StoreWriter:
    """Write the rows that exist into folders of the next generation; the writer returned can publish them.

    Files before the first forgotten row are linked, not copied, where the disk can link. A process that dies leaves the
    old generation or the new one in force, never a mix; `remove_other_generations` removes the other.

    Args:
        path: The store's folder, whose lock the caller holds.
        commit: What is there.
        rows: How many rows exist.
        read: Gives the items and vectors of the rows that exist from start to stop - 1.

    Raises:
        OSError: If the disk refuses.
        DamagedStore: If a file that must be rewritten is damaged.
    """
    kept = _untouched_rows(commit)
    source = commit.chunks(path)
    later = replace(
        commit,
        rows=kept,
        parts=commit.parts[: kept // PART_ROWS],
        forgotten=(),
        generation=commit.generation + 1,
        checksums=source.checksums()[: kept // commit.layout.chunk_rows * CHECKSUM_BYTES],
    )
    items, vectors = later.items_folder(path), later.vectors_folder(path)
    for folder in (items, vectors):
        if folder.exists():  # of a process that died here
            shutil.rmtree(folder)
        folder.mkdir()
    target = VectorChunks.create(vectors, commit.layout)
    target.expect(kept, later.checksums)
    for part in later.parts:
        _link(commit.items_folder(path) / part.name, items / part.name)
    for file in range(kept // commit.layout.file_rows):
        target.path(file).parent.mkdir(parents=True)
        _link(source.path(file), target.path(file))
    target.set_rows(kept)
    target.sync()
    sync_folder(items)
    sync_folder(path)
    writer = StoreWriter(path, later, target)
    for start in range(kept, rows, PART_ROWS):
        table, block = read(start, min(start + PART_ROWS, rows))
        writer.append(table, block.astype(commit.layout.number, copy=False))
    return writer


def remove_other_generations(path: Path, commit: Commit) -> None:
    """Remove the folders that an unfinished or finished compaction left, and the rows forgotten in them."""
    for folder, generation in _generations(path).items():
        if generation != commit.generation:
            shutil.rmtree(folder)
    sync_folder(path)


def earlier_generations(path: Path, commit: Commit) -> list[Path]:
    """Folders of a finished compaction that had no time to remove them."""
    return [folder for folder, generation in _generations(path).items() if generation < commit.generation]


def _generations(path: Path) -> dict[Path, int]:
    """The folders of vectors and items that are there, and which generation each is of."""
    found = {entry: GENERATION_NAME.fullmatch(entry.name) for entry in path.iterdir() if entry.is_dir()}
    return {entry: int(name[1] or 0) for entry, name in found.items() if name}


def _link(source: Path, target: Path) -> None:
    try:
        os.link(source, target)
    except OSError:  # some disks cannot
        shutil.copyfile(source, target)
        sync_file(target)
    sync_folder(target.parent)


def _untouched_rows(commit: Commit) -> int:
    """Rows before the first forgotten one that fill whole parts and whole files."""
    first = commit.forgotten[0][0] if commit.forgotten else commit.rows
    kept = first - first % PART_ROWS
    while kept % commit.layout.file_rows:
        kept -= PART_ROWS
    return kept if all(part.rows == PART_ROWS for part in commit.parts[: kept // PART_ROWS]) else 0
