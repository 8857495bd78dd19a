"""A store beside a bare memory-mapped array of the same bytes, and beside what people use to read vectors.

Everything is a ratio of rates measured in one run, in turns. Files are in the page cache where they fit.
`--memory-rows` adds the memory of a shuffled pass over a large store and over a tenth of it; `--data` adds what float16
costs in recall.
"""

from __future__ import annotations

import argparse
import json
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator
from itertools import islice
from pathlib import Path

import numpy as np
import polars as pl
import torch
import zarr
from maps_data import HOW_TO_GET_PAIRS, data_sets
from table import markdown, publish

from compat.metrics.retrieval import first_ranks, relevant_ranks
from compat.neighbors import ArrayRows, unit_rows
from compat.pairs import Pairs, join_pairs
from stores.space import EmbeddingSpace
from stores.store import EmbeddingStore

BATCH, SHUFFLED = 4096, 1024
WRITTEN = 40_960  # rows appended at a time
FEW_BATCHES = 3  # of the slow ways, enough for a rate
PEAK = """
import json, sys, threading, time
import numpy as np
from stores.store import EmbeddingStore

def anonymous():
    with open("/proc/self/status") as status:
        return next(int(line.split()[1]) * 1024 for line in status if line.startswith("RssAnon"))

peak, done = 0, threading.Event()
def watch():
    global peak
    while not done.wait(0.02):
        peak = max(peak, anonymous())
store = EmbeddingStore.open(sys.argv[1])
threading.Thread(target=watch).start()
started, total = time.perf_counter(), 0.0
for batch in store.batches(1024, shuffle=True):
    total += float(np.add.reduce(batch.vectors, axis=None)) + len(batch.items)
done.set()
print(json.dumps({"peak": peak, "seconds": time.perf_counter() - started}))
"""


def block(start: int, stop: int, dim: int, *, seed: int = 0) -> np.ndarray:
    """Vectors of some rows, quickly: one random block, shifted by the row."""
    base = np.random.default_rng(seed).standard_normal((BATCH, dim), dtype=np.float32)
    numbers = np.arange(start, stop)
    return base[numbers % BATCH] + (numbers // BATCH % 97).astype(np.float32)[:, None]


def items(numbers: np.ndarray) -> pl.DataFrame:
    """An item table such as extraction writes."""
    column = pl.Series(numbers)
    return pl.DataFrame(
        {
            "item_id": pl.select(pl.format("n{}/{}.jpg", column // 20, column)).to_series(),
            "label": pl.select(pl.format("n{}", column // 20)).to_series(),
        }
    )


def write_store(path: Path, rows: int, dim: int, *, order: np.ndarray | None = None, dtype: str = "float32") -> None:
    """A store of `rows` rows; with an order, it holds item order[i] in row i."""
    space = EmbeddingSpace(path.name, None, dim, False)
    with EmbeddingStore.create(path, space, dtype=dtype) as store:  # pyright: ignore[reportArgumentType]
        for start in range(0, rows, WRITTEN):
            numbers = np.arange(start, min(start + WRITTEN, rows))
            named = items(numbers if order is None else order[numbers])
            store.append(named, block(start, start + len(numbers), dim))
        store.commit()


def consumed(blocks: Iterable[np.ndarray]) -> int:
    """Add up every number, as somebody who needs them all, and return how many bytes that were."""
    size = 0
    for each in blocks:
        np.add.reduce(each, axis=None)
        size += each.nbytes
    return size


class RowByRow(torch.utils.data.Dataset):
    """What people write first: one vector at an index."""

    def __init__(self, array: np.ndarray) -> None:
        self.array = array

    def __len__(self) -> int:
        return len(self.array)

    def __getitem__(self, row: int) -> torch.Tensor:
        return torch.from_numpy(np.array(self.array[row]))


def from_loader(array: np.ndarray, batches: int) -> Iterator[np.ndarray]:
    loader = torch.utils.data.DataLoader(
        RowByRow(array), batch_size=SHUFFLED, shuffle=True, generator=torch.Generator().manual_seed(0)
    )
    for batch in islice(loader, batches):
        yield batch.numpy()


def rates(ways: dict[str, Callable[[], int]], repetitions: int) -> dict[str, float]:
    """Median GB/s of each way, which returns how many bytes it handled; the ways take turns."""
    measured: dict[str, list[float]] = {name: [] for name in ways}
    for _ in range(repetitions):
        for name, run in ways.items():
            started = time.perf_counter()
            size = run()
            measured[name].append(size / 1e9 / (time.perf_counter() - started))
    return {name: statistics.median(values) for name, values in measured.items()}


def writing(folder: Path, options: argparse.Namespace) -> dict[str, float]:
    """Both flushed to disk. The vectors are made beforehand, block by block the same ones."""
    vectors = block(0, WRITTEN, options.dim)
    named = [items(np.arange(start, min(start + WRITTEN, options.rows))) for start in range(0, options.rows, WRITTEN)]

    def by_store() -> int:
        shutil.rmtree(folder / "written", ignore_errors=True)
        with EmbeddingStore.create(folder / "written", EmbeddingSpace("bench", None, options.dim, False)) as store:
            for table in named:
                store.append(table, vectors[: len(table)])
            store.commit()
        return options.rows * options.dim * 4

    def by_memmap() -> int:
        (folder / "written.npy").unlink(missing_ok=True)
        shape = (options.rows, options.dim)
        array = np.lib.format.open_memmap(folder / "written.npy", mode="w+", dtype=np.float32, shape=shape)
        for start in range(0, options.rows, WRITTEN):
            array[start : start + WRITTEN] = vectors[: len(array) - start]
        array.flush()
        return array.nbytes

    found = rates({"memmap: write, flush": by_memmap, "store: append, commit": by_store}, options.repetitions)
    shutil.rmtree(folder / "written")
    (folder / "written.npy").unlink()
    return found


def reading(folder: Path, options: argparse.Namespace) -> dict[str, float]:
    rows = options.rows
    write_store(folder / "old", rows, options.dim)
    write_store(folder / "new", rows, options.dim)
    order = np.random.default_rng(2).permutation(rows)
    write_store(folder / "mixed", rows, options.dim, order=order)
    write_store(folder / "half", rows, options.dim, dtype="float16")
    bare = np.lib.format.open_memmap(folder / "bare.npy", mode="w+", dtype=np.float32, shape=(rows, options.dim))
    for start in range(0, rows, WRITTEN):
        bare[start : start + WRITTEN] = block(start, min(start + WRITTEN, rows), options.dim)
    bare.flush()
    bare = np.load(folder / "bare.npy", mmap_mode="r")
    store, half = EmbeddingStore.open(folder / "old"), EmbeddingStore.open(folder / "half")
    array = zarr.open_array(folder / "old" / "vectors", mode="r")
    agreeing = join_pairs(store, EmbeddingStore.open(folder / "new"))
    differing = join_pairs(store, EmbeddingStore.open(folder / "mixed"))
    scattered = np.random.default_rng(1).permutation(rows)
    starts = range(0, rows, BATCH)

    def pairs_in_order(pairs: Pairs) -> Iterator[np.ndarray]:
        for source, target in pairs.blocks("new-to-old", BATCH):
            yield from (source, target)

    def pairs_shuffled(pairs: Pairs) -> Iterator[np.ndarray]:
        for source, target in pairs.batches(SHUFFLED, "new-to-old", seed=0):
            yield from (source, target)

    return rates(
        {
            "memmap: in order": lambda: consumed(bare[s : s + BATCH] for s in starts),
            "store: in order, first touch": lambda: consumed(
                b.vectors for b in EmbeddingStore.open(folder / "old").batches(BATCH)
            ),
            "store: in order, verified before": lambda: consumed(b.vectors for b in store.batches(BATCH)),
            "zarr: in order": lambda: consumed(np.asarray(array[s : s + BATCH]) for s in starts),
            "float16 store: in order": lambda: consumed(b.vectors for b in half.batches(BATCH)),
            "memmap: shuffled": lambda: consumed(bare[scattered[s : s + SHUFFLED]] for s in range(0, rows, SHUFFLED)),
            "store: shuffled": lambda: consumed(b.vectors for b in store.batches(SHUFFLED, shuffle=True)),
            "zarr: random rows": lambda: consumed(
                np.asarray(array.get_orthogonal_selection((np.sort(scattered[s : s + SHUFFLED]), slice(None))))
                for s in range(0, FEW_BATCHES * SHUFFLED, SHUFFLED)
            ),
            "DataLoader: row by row": lambda: consumed(from_loader(bare, 20 * FEW_BATCHES)),
            "pairs: in order, orders agree": lambda: consumed(pairs_in_order(agreeing)),
            "pairs: in order, orders differ": lambda: consumed(pairs_in_order(differing)),
            "pairs: shuffled, orders agree": lambda: consumed(pairs_shuffled(agreeing)),
            "pairs: shuffled, orders differ": lambda: consumed(pairs_shuffled(differing)),
        },
        options.repetitions,
    )


def table(written: dict[str, float], read: dict[str, float]) -> str:
    beside = {  # what each is compared with, and at least how much of it is asked
        "store: append, commit": ("memmap: write, flush", 0.6),
        "store: in order, first touch": ("memmap: in order", 0.4),
        "store: in order, verified before": ("memmap: in order", 0.7),
        "zarr: in order": ("memmap: in order", None),
        "float16 store: in order": ("memmap: in order", None),
        "store: shuffled": ("memmap: shuffled", 0.5),
        "pairs: in order, orders agree": ("store: in order, verified before", 0.8),
        "pairs: in order, orders differ": ("store: in order, verified before", None),
        "pairs: shuffled, orders agree": ("store: shuffled", 0.8),
        "pairs: shuffled, orders differ": ("store: shuffled", None),
    }
    found = written | read
    rows = []
    for name, rate in found.items():
        other, asked = beside.get(name, (None, None))
        ratio = f"{rate / found[other]:.2f} of {other}" if other else ""
        rows.append([name, f"{rate:.3f}" if rate < 0.1 else f"{rate:.2f}", ratio, f"{asked:.2f}" if asked else ""])
    rows += [
        [f"store: shuffled / {slow}", "", f"{found['store: shuffled'] / found[slow]:.1f} times", "5"]
        for slow in ("zarr: random rows", "DataLoader: row by row")
    ]
    return markdown(["way", "GB/s of float32", "beside", "at least"], rows)


def memory(folder: Path, rows: int, dim: int) -> str:
    """Anonymous memory of a shuffled pass: of a tenth of the rows, and of all."""
    lines = []
    for count in (rows // 10, rows):
        write_store(folder / "large", count, dim)
        run = subprocess.run(
            [sys.executable, "-c", PEAK, str(folder / "large")], capture_output=True, text=True, check=True
        )
        found = json.loads(run.stdout)
        size = count * dim * 4 / 1e9
        lines.append([f"{count:,}", f"{size:.1f}", f"{found['peak'] / 2**20:.0f}", f"{size / found['seconds']:.2f}"])
        shutil.rmtree(folder / "large")
    return "A shuffled pass in a process of its own, the interpreter and its libraries included:\n\n" + markdown(
        ["rows", "GB of vectors", "peak anonymous MiB", "GB/s"], lines
    )


def half_precision(data: Path) -> str:
    """What a gallery kept as float16 costs each model in finding its own queries' answers."""
    lines = []
    for data_set in data_sets(data):
        split = data_set.split(0)
        for queries in split.query_sets:
            for side in ("old", "new"):
                gallery, asked = getattr(split, f"gallery_{side}"), unit_rows(getattr(queries, side))
                first = {}
                for dtype in (np.float32, np.float16):
                    kept = ArrayRows(unit_rows(gallery.astype(dtype).astype(np.float32)))
                    first[dtype] = first_ranks(relevant_ranks(asked, kept, queries.relevance), queries.relevance) == 1
                lines.append(
                    [
                        f"{data_set.name}, {queries.name}",
                        side,
                        f"{len(asked):,}",
                        *(f"{found.mean():.4f}" for found in first.values()),
                        f"{np.count_nonzero(first[np.float32] != first[np.float16])}",
                    ]
                )
    header = ["queries", "model", "number", "recall@1, float32", "recall@1, float16", "answers changed"]
    return "The gallery kept as float16, the queries as they are:\n\n" + markdown(header, lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", type=int, default=1_000_000)
    parser.add_argument("--dim", type=int, default=512)
    parser.add_argument("--repetitions", type=int, default=5)
    parser.add_argument("--memory-rows", type=int, default=0, help="rows of the store whose shuffled pass is watched")
    parser.add_argument("--data", type=Path, help=HOW_TO_GET_PAIRS)
    parser.add_argument("--folder", type=Path, help="where the stores are written; a temporary folder without")
    parser.add_argument("--save", action="store_true", help="write results/stores.md")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=options.folder) as name:
        folder = Path(name)
        text = table(writing(folder, options), reading(folder, options))
        text += (
            f"\n\n{options.rows:,} x {options.dim} float32, medians of {options.repetitions}; every number is added."
        )
        shutil.rmtree(folder)
        folder.mkdir()
        if options.memory_rows:
            text += f"\n\n{memory(folder, options.memory_rows, options.dim)}"
        if options.data:
            text += f"\n\n{half_precision(options.data)}"
    command = f"python benchmarks/bench_stores.py --rows {options.rows} --dim {options.dim}"
    command += f" --memory-rows {options.memory_rows}" if options.memory_rows else ""
    command += " --data DIR" if options.data else ""
    publish("stores", command, text, ["numpy", "zarr", "polars", "torch"], save=options.save)


if __name__ == "__main__":
    main()
