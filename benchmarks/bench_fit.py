"""Fitting the closed forms against the bare loop that forms their two matrices, and `auto` against the clock."""

from __future__ import annotations

import argparse
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
from own_memory import PeakMemory
from table import interleaved, markdown, publish
from turned_stores import write_stores

from compat.options import FitOptions
from compat.pairs import Pairs, join_pairs
from compat.training.closed_form import MOMENT_ROWS
from compat.training.fit import fit_transformer
from stores.store import EmbeddingStore


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--pairs", type=int, default=200_000)
    parser.add_argument("--dim", type=int, default=512)
    parser.add_argument("--repetitions", type=int, default=3)
    parser.add_argument("--auto-pairs", type=int, default=10_000, help="pairs that auto is given; 0 leaves it out")
    parser.add_argument("--save", action="store_true", help="write results/fit.md")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        old, new = write_stores(Path(name), options.pairs, options.dim)
        measure(join_pairs(old, new), old, new, options)


def measure(pairs: Pairs, old: EmbeddingStore, new: EmbeddingStore, options: argparse.Namespace) -> None:
    """Time every fit beside the bare loop over the same stores, and tell."""

    def bare() -> None:
        gram, cross = np.zeros((options.dim, options.dim)), np.zeros((options.dim, options.dim))
        for start in range(0, options.pairs, MOMENT_ROWS):
            stop = min(start + MOMENT_ROWS, options.pairs)
            x, y = new.rows(start, stop), old.rows(start, stop)
            gram += x.T @ x
            cross += x.T @ y

    bare()  # a store compares each chunk with its checksum once
    memory = PeakMemory()
    memory.start()
    work: dict[str, Callable[[], object]] = {"bare gram + cross-gram loop": bare}
    for name, fit in {
        "ridge, strength given": FitOptions(transformer="ridge", strength=0.1),
        "ridge, strength given, inputs centred": FitOptions(transformer="ridge", strength=0.1, inputs="centred"),
        "shrunk, strength given": FitOptions(transformer="shrunk", strength=0.1),
        "whitened, strength given (a third product)": FitOptions(transformer="whitened", strength=0.1),
        "procrustes, judged on five folds": FitOptions(transformer="procrustes"),
        "ridge, strength chosen on five folds": FitOptions(transformer="ridge"),
    }.items():
        work[name] = lambda fit=fit: fit_transformer(pairs, fit)
    seconds = interleaved(work, options.repetitions)
    ceiling = seconds["bare gram + cross-gram loop"]
    rows = [[name, f"{value:.2f}", f"{value / ceiling:.2f}"] for name, value in seconds.items()]
    text = markdown(["work", "seconds", "times the bare loop"], rows)
    text += (
        f"\n\n{options.pairs} pairs of {options.dim}-D float32 in two stores, medians of {options.repetitions}. The "
        "bare loop reads the same stores; a fit also scales to unit length, looks for what is not finite and takes a "
        f"fingerprint. Peak memory but for mapped files {memory.peak:.0f} MiB; the vectors are "
        f"{options.pairs * options.dim * 8 / 2**20:.0f} MiB."
    )
    if options.auto_pairs:
        some = pairs.select(np.arange(options.auto_pairs))
        for direction in ("new-to-old", "old-to-new"):
            started = time.perf_counter()
            fit_transformer(some, FitOptions(direction=direction))
            taken = time.perf_counter() - started
            text += f"\n\nauto, {direction}, {options.auto_pairs} pairs: {taken:.0f} s."
    command = f"python benchmarks/bench_fit.py --pairs {options.pairs} --dim {options.dim}"
    publish("fit", command, text, ["numpy", "torch"], save=options.save)


if __name__ == "__main__":
    main()
