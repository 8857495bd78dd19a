"""Reading and writing a store against a bare memory-mapped array of the same bytes, and against zarr's own API."""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path

import numpy as np
import polars as pl
import zarr
from table import interleaved, markdown, publish

from stores.space import EmbeddingSpace
from stores.store import EmbeddingStore

BATCH = 4096


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", type=int, default=100_000)
    parser.add_argument("--dim", type=int, default=512)
    parser.add_argument("--repetitions", type=int, default=5)
    parser.add_argument("--save", action="store_true", help="write results/stores.md")
    options = parser.parse_args()
    vectors = np.random.default_rng(0).standard_normal((options.rows, options.dim), dtype=np.float32)
    items = pl.DataFrame({"item_id": np.arange(options.rows)})
    space = EmbeddingSpace("bench", None, options.dim, False)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        counter = iter(range(10**6))

        def write_store() -> None:
            with EmbeddingStore.create(folder / f"store{next(counter)}", space) as store:
                for start in range(0, options.rows, 10 * BATCH):
                    store.append(items[start : start + 10 * BATCH], vectors[start : start + 10 * BATCH])
                store.commit()

        def write_memmap() -> None:
            path = folder / f"memmap{next(counter)}.npy"
            array = np.lib.format.open_memmap(path, mode="w+", dtype=np.float32, shape=vectors.shape)
            for start in range(0, options.rows, BATCH):
                array[start : start + BATCH] = vectors[start : start + BATCH]
            array.flush()

        writing = interleaved({"store": write_store, "memmap": write_memmap}, options.repetitions)
        bare = np.load(folder / "memmap1.npy", mmap_mode="r")
        store = EmbeddingStore.open(folder / "store0")
        array = zarr.open_array(folder / "store0" / "vectors", mode="r")
        order = np.random.default_rng(1).permutation(options.rows)

        def batches(read: object) -> float:
            return sum(float(np.add.reduce(block, axis=None)) for block in read)  # pyright: ignore[reportGeneralTypeIssues]

        starts = range(0, options.rows, BATCH)
        reading = interleaved(
            {
                "memmap": lambda: batches(bare[s : s + BATCH] for s in starts),
                "store, verified before": lambda: batches(b.vectors for b in store.batches(BATCH)),
                "store, first touch": lambda: batches(
                    b.vectors for b in EmbeddingStore.open(folder / "store0").batches(BATCH)
                ),
                "zarr": lambda: batches(np.asarray(array[s : s + BATCH]) for s in starts),
                "memmap, shuffled 1,024": lambda: batches(
                    bare[order[s : s + 1024]] for s in range(0, len(order), 1024)
                ),
                "store, shuffled 1,024": lambda: batches(b.vectors for b in store.batches(1024, shuffle=True)),
            },
            options.repetitions,
        )
        store.close()
    size = vectors.nbytes / 1e9
    rows = [
        ["append + commit, on disk", f"{size / writing['store']:.2f}", f"{writing['memmap'] / writing['store']:.2f}"],
        ["memmap write + flush", f"{size / writing['memmap']:.2f}", "1.00"],
    ]
    for name, seconds in reading.items():
        ceiling = reading["memmap, shuffled 1,024" if "shuffled" in name else "memmap"]
        rows.append([f"read: {name}", f"{size / seconds:.2f}", f"{ceiling / seconds:.2f}"])
    text = markdown(["work", "GB/s", "of memmap"], rows)
    text += f"\n\n{options.rows} x {options.dim} float32, medians of {options.repetitions}; every byte read is summed."
    command = f"python benchmarks/bench_stores.py --rows {options.rows} --dim {options.dim}"
    publish("stores", command, text, ["numpy", "zarr", "polars"], save=options.save)


if __name__ == "__main__":
    main()
