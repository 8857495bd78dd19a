"""Every engine a gallery may live in: from a store into it, and out of it into a store."""

from __future__ import annotations

import importlib.util
import statistics
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

from migrate_data import discard, fill, scratch, space, timed_migration, turning_map, write_source
from migrate_postgres import server
from table import markdown

from stores.galleries import open_target


class Engine(NamedTuple):
    """Where an engine's galleries are, within a folder; what must be installed; and rows at most, of a slow one."""

    uri: str
    package: str | None = None
    most_rows: int | None = None


ENGINES = {
    "zarr": Engine("{folder}/gallery"),
    "npy": Engine("{folder}/gallery.npy"),
    "npz": Engine("{folder}/gallery.npz"),
    "parquet": Engine("{folder}/gallery.parquet", "pyarrow"),
    "arrow": Engine("{folder}/gallery.arrow", "pyarrow"),
    "hdf5": Engine("{folder}/gallery.h5", "h5py"),
    "faiss": Engine("{folder}/gallery.faiss", "faiss"),
    "lance": Engine("lance:{folder}/lance/gallery", "lancedb"),
    "qdrant, embedded": Engine("qdrant:{folder}/qdrant/gallery", "qdrant_client", 1_000),
}
TABLES = {"postgresql, vector": "", "postgresql, halfvec": "&type=halfvec"}


def engines(folder: Path, postgres: str | None, rows: int, dim: int, repetitions: int) -> str:
    """Rows per second of each engine, and which are missing."""
    lines: list[list[str]] = []
    missing = []
    for name, engine in ENGINES.items():
        if engine.package is not None and importlib.util.find_spec(engine.package) is None:
            missing.append(f"{name} ({engine.package})")
            continue
        count = min(rows, engine.most_rows or rows)
        lines.append(
            _line(name, folder, lambda place, uri=engine.uri: uri.format(folder=place), count, dim, repetitions)
        )
    with server(postgres) as database:
        if database is None:
            missing.append("postgresql (no server)")
        else:
            for name, options in TABLES.items():
                uri = database.format(table="bench_gallery") + options
                lines.append(_line(name, folder, lambda _, uri=uri: uri, rows, dim, repetitions))
    header = ["engine", "rows", "store to it, rows/s", "the copy alone", "it to a store, rows/s", "the copy alone"]
    told = (
        f"Migrations of {dim}-D vectors by a linear map, checked as always; a file is built in the end, which is no "
        f"part of the copy. Missing here: {', '.join(missing) or 'none'}."
    )
    return f"{told}\n\n{markdown(header, lines)}"


def _line(name: str, folder: Path, place_of: Callable[[Path], str], rows: int, dim: int, repetitions: int) -> list[str]:
    transformer = turning_map(dim)
    into, out = [], []
    with scratch(folder) as place:
        source = str(write_source(place / "source", rows, dim))
        for _ in range(repetitions):
            with scratch(place) as run:
                uri = place_of(run)
                discard(uri)
                into.append(timed_migration(source, transformer, uri, run / "state"))
                discard(uri)
        with scratch(place) as filled:
            uri = place_of(filled)
            fill(open_target(uri, space("old", dim), {}), rows, dim)
            for _ in range(repetitions):
                with scratch(place) as run:
                    out.append(timed_migration(uri, transformer, str(run / "new"), run / "state"))
            discard(uri)
    rates = [
        f"{rows / statistics.median(getattr(took, part) for took in runs):,.0f}"
        for runs in (into, out)
        for part in ("seconds", "copied")
    ]
    return [name, f"{rows:,}", *rates]
