"""Store to store beside the bare loop over the same numbers, and beside isotrieve's file stores."""

from __future__ import annotations

import contextlib
import importlib.util
import io
import os
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from migrate_data import BLOCK, Took, batches, scratch, timed_migration, turn, turning_map, write_source
from table import markdown

LEAST = 0.80
PEER_ROWS = 100_000
"""isotrieve gathers the whole gallery in memory as float64, twice; more rows are left out."""
PAIRS = 2_000


def bare_array(path: Path, rows: int, dim: int) -> None:
    array = np.lib.format.open_memmap(path, "w+", np.float32, (rows, dim))
    first = 0
    for _, vectors in batches(rows, dim):
        array[first : first + len(vectors)] = vectors
        first += len(vectors)
    array.flush()


def bare_loop(source: Path, weight: np.ndarray, target: Path) -> None:
    """Map the file, multiply block by block, write, and wait for the disk."""
    array = np.load(source, mmap_mode="r")
    with target.open("wb") as file:
        for first in range(0, len(array), BLOCK):
            file.write((array[first : first + BLOCK] @ weight).data)
        file.flush()
        os.fsync(file.fileno())


def measured(run: Callable[[], object]) -> Took:
    began, cpu = time.perf_counter(), time.process_time()
    run()
    seconds = time.perf_counter() - began
    return Took(seconds, seconds, time.process_time() - cpu)


def isotrieve_runs(folder: Path, rows: int, dim: int) -> dict[str, Callable[[Path], Took]]:
    """Its command `transform` and its `migrate_store`, both from one of its file stores to another."""
    if importlib.util.find_spec("isotrieve") is None:
        return {}
    from isotrieve.cli import transform_cmd  # pyright: ignore[reportMissingImports]
    from isotrieve.mapping import OrthogonalProcrustesMapping  # pyright: ignore[reportMissingImports]
    from isotrieve.migrate import migrate_store  # pyright: ignore[reportMissingImports]
    from isotrieve.stores.numpy_files import NumpyFileStore  # pyright: ignore[reportMissingImports]

    pairs = np.random.default_rng(2).standard_normal((max(PAIRS, 10 * dim), dim))
    mapping: Any = OrthogonalProcrustesMapping().fit(pairs, pairs @ turn(dim))
    mapping.save(folder / "mapping.isotrieve")
    given: Any = list(batches(rows, dim))
    source: Any = NumpyFileStore.from_arrays(
        folder / "isotrieve",
        np.concatenate([vectors for _, vectors in given]),
        ids=[each for items, _ in given for each in items["item_id"].to_list()],
    )
    del given

    def transform(place: Path) -> Took:
        words = {"mapping_path": folder / "mapping.isotrieve", "source_dir": source.path, "target_dir": place / "new"}
        return measured(lambda: transform_cmd(**words, batch_size=2048, as_json=True))

    def migrate(place: Path) -> Took:
        target = NumpyFileStore(place / "new", create=True)
        return measured(lambda: migrate_store(source, target, mapping, manifest_path=place / "manifest.json"))

    def quietly(run: Callable[[Path], Took]) -> Callable[[Path], Took]:
        def silent(place: Path) -> Took:
            with contextlib.redirect_stdout(io.StringIO()):
                return run(place)

        return silent

    return {"isotrieve transform": quietly(transform), "isotrieve migrate_store": quietly(migrate)}


def one_size(folder: Path, rows: int, dim: int, repetitions: int) -> dict[str, Took]:
    """Medians of the ways, which take turns; isotrieve's once, where there are not too many rows."""
    source, array = write_source(folder / "old", rows, dim), folder / "old.npy"
    bare_array(array, rows, dim)
    transformer, weight = turning_map(dim), turn(dim)
    ways: dict[str, Callable[[Path], Took]] = {
        "bare": lambda place: measured(lambda: bare_loop(array, weight, place / "new.npy")),
        "ours": lambda place: timed_migration(str(source), transformer, str(place / "new"), place / "state"),
    }
    found: dict[str, list[Took]] = {}
    for _ in range(repetitions):
        for name, run in ways.items():
            with scratch(folder) as place:
                found.setdefault(name, []).append(run(place))
    for name, run in (isotrieve_runs(folder, rows, dim) if rows <= PEER_ROWS else {}).items():
        with scratch(folder) as place:
            found[name] = [run(place)]
    return {
        name: Took(*(statistics.median(values) for values in zip(*runs, strict=True))) for name, runs in found.items()
    }


def stores(folder: Path, sizes: list[tuple[int, int]], repetitions: int) -> str:
    """Rows per second of each size."""
    rows = []
    for count, dim in sizes:
        with scratch(folder) as place:
            took = one_size(place, count, dim, repetitions)
        bare, ours = took["bare"], took["ours"]
        peers = [took.get(name) for name in ("isotrieve transform", "isotrieve migrate_store")]
        rows.append(
            [
                f"{count:,}",
                str(dim),
                f"{count / bare.seconds:,.0f}",
                f"{count / ours.seconds:,.0f}",
                f"{bare.seconds / ours.seconds:.2f}",
                f"{bare.seconds / ours.copied:.2f}",
                f"{ours.cpu / bare.cpu:.1f}",
                *(f"{count / peer.seconds:,.0f}" if peer else "" for peer in peers),
            ]
        )
    header = [
        "rows",
        "dim",
        "bare loop, rows/s",
        "migration, rows/s",
        "of the bare loop",
        "the copy alone, of it",
        "CPU seconds, times its",
        "isotrieve transform, rows/s",
        "isotrieve migrate_store, rows/s",
    ]
    told = (
        "A store migrated to a store by a linear map, everything included: checksums of what is read and written, ids "
        "looked up, a record of each row, commits, then every id compared and 1,024 vectors recomputed. The bare loop "
        "maps a file, multiplies by the matrix block by block, writes to another file and flushes it, and checks "
        f"nothing (asked: {LEAST:.2f} of it). isotrieve keeps float64 and does not flush; it is left out beyond "
        f"{PEER_ROWS:,} rows, since it holds them all in memory."
    )
    return f"{told}\n\n{markdown(header, rows)}"
