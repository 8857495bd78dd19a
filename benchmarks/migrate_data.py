"""A planted old gallery, a map that turns it, and one timed migration."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import NamedTuple

import numpy as np
import polars as pl

from compat.migration.run import migrate_gallery
from compat.migration.state import live_engine
from compat.transformers.artefact import Transformer
from compat.transformers.linear import LinearMap
from stores.galleries import GalleryTarget, locate
from stores.space import EmbeddingSpace
from stores.store import Batch, EmbeddingStore

BLOCK = 4096
COMMITTED = 16  # blocks
_BASE_ROWS = 10 * BLOCK


class Took(NamedTuple):
    """What a run took.

    Attributes:
        seconds: In all.
        copied: Until the last row was copied; what follows is checking.
        cpu: Processor seconds of this process.
    """

    seconds: float
    copied: float
    cpu: float


def space(name: str, dim: int) -> EmbeddingSpace:
    return EmbeddingSpace(name, None, dim, False)


def turn(dim: int) -> np.ndarray:
    """An orthogonal matrix, float32 [dim, dim]."""
    return np.linalg.qr(np.random.default_rng(1).standard_normal((dim, dim)))[0].astype(np.float32)


def turning_map(dim: int) -> Transformer:
    linear = LinearMap.from_arrays(turn(dim), np.zeros(dim))
    return Transformer("procrustes", "old-to-new", space("old", dim), space("new", dim), linear)


def batches(rows: int, dim: int) -> Iterator[Batch]:
    """A gallery that is quickly made: random rows, shifted block by block so that none occurs twice."""
    base = np.random.default_rng(0).standard_normal((_BASE_ROWS, dim), np.float32)
    for first in range(0, rows, BLOCK):
        stop = min(first + BLOCK, rows)
        place = first % _BASE_ROWS
        ids = pl.select(item_id=pl.format("item-{}", pl.int_range(first, stop)))
        yield Batch(ids, base[place : place + stop - first] + np.float32(first // _BASE_ROWS % 97 / 97))


def write_source(path: Path, rows: int, dim: int) -> Path:
    """The old gallery as a store, on disk."""
    with EmbeddingStore.create(path, space("old", dim)) as store:
        for items, vectors in batches(rows, dim):
            store.append(items, vectors)
        store.commit()
    return path


def fill(target: GalleryTarget, rows: int, dim: int) -> None:
    """The old gallery in any engine."""
    for number, batch in enumerate(batches(rows, dim), start=1):
        target.write(batch)
        if number % COMMITTED == 0:
            target.commit()
    target.finish()
    target.close()


def timed_migration(source: str, transformer: Transformer, target: str, state: Path) -> Took:
    """Migrate by the public function, its checks included."""
    began, cpu = time.perf_counter(), time.process_time()
    copied = began

    def on_rows(_done: int, _rows: int) -> None:
        nonlocal copied
        copied = time.perf_counter()

    migrate_gallery(source, transformer, target, on_rows=on_rows, state=state)
    ended = time.perf_counter()
    return Took(ended - began, copied - began, time.process_time() - cpu)


@contextmanager
def scratch(folder: Path) -> Iterator[Path]:
    """A folder for one run, which is gone afterwards."""
    with TemporaryDirectory(dir=folder) as name:
        yield Path(name)


def discard(uri: str) -> None:
    """Delete a gallery of an engine that is no file."""
    scheme, location = locate(uri)
    engine = live_engine(scheme)
    if engine is not None:
        engine.discard(location)
