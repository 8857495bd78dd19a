"""Migration and extraction by one process, a pool of processes and a local dask cluster, and what a billion takes."""

from __future__ import annotations

import argparse
import shutil
import statistics
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import polars as pl
from PIL import Image
from table import markdown, publish

from backbones.options import TrainOptions
from backbones.train import train
from compat.extract import ExtractOptions, extract
from compat.migration.copying import copy_rows, serving
from compat.migration.distribute import copy_in_parts
from compat.transformers.artefact import Transformer
from compat.transformers.linear import LinearMap
from stores.galleries import digest, open_source, open_target
from stores.space import EmbeddingSpace
from stores.store import EmbeddingStore

BILLION = 1_000_000_000
BILLION_DIM = 512
BILLION_WORKERS = (16, 128)
CHUNK_ROWS, SHARD_CHUNKS = 4096, 64
INPUT_SIZE = 36
FEW_IMAGES = 8


class Timed(NamedTuple):
    """Seconds until the first rows were done, from then to the last, and from there to the end; rows of the middle."""

    start: float
    steady: float
    end: float
    rows: int

    @property
    def rate(self) -> float:
        """Rows per second between the first part and the last."""
        return self.rows / max(self.steady, 1e-9)


class Clock:
    """An `on_rows` that notes the first time and the last."""

    def __init__(self) -> None:
        self.began = self.first = self.last = time.perf_counter()
        self.first_rows = self.rows = 0

    def __call__(self, done: int, _: int) -> None:
        self.last = time.perf_counter()
        if not self.first_rows:
            self.first, self.first_rows = self.last, done
        self.rows = done

    def timed(self) -> Timed:
        """What it came to, called when the work has ended."""
        ended = time.perf_counter()
        return Timed(self.first - self.began, self.last - self.first, ended - self.last, self.rows - self.first_rows)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", type=int, default=250_000)
    parser.add_argument("--dim", type=int, default=BILLION_DIM)
    parser.add_argument("--images", type=int, default=512, help="0 leaves extraction out")
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--repetitions", type=int, default=3)
    parser.add_argument("--save", action="store_true", help="write results/distribute.md")
    options = parser.parse_args()
    from distributed import LocalCluster

    started: Any = LocalCluster(n_workers=options.workers, threads_per_worker=1, dashboard_address=":0", memory_limit=0)
    with tempfile.TemporaryDirectory() as name, started as cluster:
        folder, scheduler = Path(name), cluster.scheduler_address
        parts = [migration(folder, options, scheduler)]
        if options.images:
            parts.append(extraction(folder, options, scheduler))
    parts.append(
        f"{options.workers} workers of one thread each, pool and cluster; medians of {options.repetitions} turns. The "
        "cluster runs already when a turn begins, the pool starts its processes anew."
    )
    command = (
        f"python benchmarks/bench_distribute.py --rows {options.rows} --dim {options.dim} --images {options.images} "
        f"--workers {options.workers} --repetitions {options.repetitions}"
    )
    publish("distribute", command, "\n\n".join(parts), ["torch", "distributed"], save=options.save)


def in_turns(candidates: dict[str, Callable[[], Timed]], repetitions: int) -> dict[str, Timed]:
    """Medians of what the candidates take, who take turns."""
    found: dict[str, list[Timed]] = {name: [] for name in candidates}
    for _ in range(repetitions):
        for name, run in candidates.items():
            found[name].append(run())
    return {
        name: Timed(*(statistics.median(values) for values in zip(*turns, strict=True)))
        for name, turns in found.items()
    }


def migration(folder: Path, options: argparse.Namespace, scheduler: str) -> str:
    """A store rewritten through a linear map of its dimension."""
    source, space = folder / "old", EmbeddingSpace("old", None, options.dim, False)
    generator = np.random.default_rng(0)
    with EmbeddingStore.create(source, space) as store:
        for first in range(0, options.rows, CHUNK_ROWS):
            rows = min(CHUNK_ROWS, options.rows - first)
            ids = pl.DataFrame({"item_id": [f"item-{row:010d}" for row in range(first, first + rows)]})
            store.append(ids, generator.standard_normal((rows, options.dim), np.float32))
        store.commit()
    weight = generator.standard_normal((options.dim, options.dim)) / options.dim**0.5
    new = EmbeddingSpace("new", None, options.dim, False)
    map_ = Transformer("ridge", "old-to-new", space, new, LinearMap.from_arrays(weight, np.zeros(options.dim)))
    origin = {"source_digest": digest(str(source))}
    target = folder / "new"

    def alone() -> Timed:
        clock = Clock()
        written = open_target(str(target), new, origin)
        copy_rows(open_source(str(source)), serving(map_, None), written, on_rows=clock)
        written.finish()
        written.close()
        return cleared(clock.timed())

    def many(how: dict[str, int | str]) -> Timed:
        clock = Clock()
        workers, address = int(how.get("workers", 1)), how.get("scheduler")
        copy_in_parts(
            str(source),
            map_,
            str(target),
            origin,
            workers=workers,
            scheduler=None if address is None else str(address),
            on_rows=clock,
        )
        return cleared(clock.timed())

    item_bytes = sum(path.stat().st_size for path in (source / "items").iterdir()) / options.rows

    def cleared(timed: Timed) -> Timed:
        shutil.rmtree(target)
        return timed

    found = in_turns(
        {
            "one process": alone,
            "pool": partial(many, {"workers": options.workers}),
            "cluster": partial(many, {"scheduler": scheduler}),
        },
        options.repetitions,
    )
    told = f"Migration of {options.rows:,} x {options.dim} vectors from store to store by a linear map."
    return "\n\n".join([told, rates(found, "rows/s"), billion(found["cluster"], item_bytes, options)])


def rates(found: dict[str, Timed], unit: str) -> str:
    """The candidates beside the pool."""
    rows = [
        [name, f"{timed.rate:,.0f}", f"{timed.rate / found['pool'].rate:.2f}", f"{timed.start:.1f}", f"{timed.end:.1f}"]
        for name, timed in found.items()
    ]
    header = ["by", unit, "of the pool", "until the first are done, s", "after the last, s"]
    return markdown(header, rows)


def billion(cluster: Timed, item_bytes: float, options: argparse.Namespace) -> str:
    """What a billion vectors would take, by the rates measured here."""
    per_worker = cluster.rate / options.workers * min(1.0, (options.dim / BILLION_DIM) ** 2)
    shard_rows = CHUNK_ROWS * SHARD_CHUNKS
    shards = -(-BILLION // shard_rows)
    vector_bytes = BILLION * BILLION_DIM * 4
    finish = cluster.end / options.rows * BILLION
    times = ", ".join(
        f"{_readable(BILLION / per_worker / workers)} with {workers} workers" for workers in BILLION_WORKERS
    )
    return (
        f"A billion vectors of {BILLION_DIM}-D, computed from these figures: {vector_bytes / 1e12:.2f} TB of vectors "
        f"(half of that as float16) and {BILLION * item_bytes / 1e9:.0f} GB of items, in {shards:,} shards of "
        f"{shard_rows * BILLION_DIM * 4 / 1e9:.2f} GB (--shard-chunks {SHARD_CHUNKS}), each one part of the work. At "
        f"{per_worker:,.0f} rows/s a worker that is {times}, where the storage takes "
        f"{per_worker * BILLION_DIM * 4 / 1e6:,.0f} MB/s of reading and as much of writing for each; then "
        f"{_readable(finish)} for the one process that joins the item table and looks for ids that occur twice."
    )


def _readable(seconds: float) -> str:
    return f"{seconds / 60:.0f} minutes" if seconds < 3 * 3600 else f"{seconds / 3600:.1f} hours"


def extraction(folder: Path, options: argparse.Namespace, scheduler: str) -> str:
    """Drawn faces through iresnet18, from files to a store; the start is that of a few images."""
    data = draw(folder / "drawn", options.images)
    few = draw(folder / "few", FEW_IMAGES)
    weights = train(
        TrainOptions(arch="iresnet18", data=few, out=folder / "network", input_size=INPUT_SIZE, epochs=1, batch_size=4)
    ).weights

    def run(images: Path, workers: int, address: str | None) -> float:
        out = folder / "extracted"
        began = time.perf_counter()
        extract(
            ExtractOptions(
                backbone="iresnet18",
                weights=weights,
                data=images,
                out=out,
                precision="fp32",
                workers=workers,
                scheduler=address,
                batch_size=8,
            )
        )
        seconds = time.perf_counter() - began
        shutil.rmtree(out)
        return seconds

    def timed(workers: int, address: str | None) -> Timed:
        start = run(few, workers, address)
        return Timed(start, max(run(data, workers, address) - start, 1e-9), 0.0, options.images - FEW_IMAGES)

    found = in_turns(
        {
            "one process": partial(timed, 1, None),
            "pool": partial(timed, options.workers, None),
            "cluster": partial(timed, 1, scheduler),
        },
        options.repetitions,
    )
    told = (
        f"Extraction of {options.images} drawn images of {INPUT_SIZE} px by iresnet18, float32, from files to a store; "
        f"the rate is that of all images beyond the first {FEW_IMAGES}, whose time is the start."
    )
    return "\n\n".join([told, rates(found, "images/s")])


def draw(folder: Path, images: int) -> Path:
    """Smooth random patterns, one for each of some identities, with noise."""
    generator = np.random.default_rng(0)
    for number in range(images):
        pattern = Image.fromarray(generator.integers(256, size=(5, 5, 3), dtype=np.uint8)).resize((64, 64))
        path = folder / f"p{number % 4}" / f"{number:06d}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        pattern.save(path)
    return folder


if __name__ == "__main__":
    main()
