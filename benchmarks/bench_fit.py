"""Fitting the closed forms against the bare loop that forms their two matrices, and `auto` against the clock."""

from __future__ import annotations

import argparse
import resource
import time
from collections.abc import Callable

import numpy as np
from table import interleaved, markdown, publish

from compat.options import FitOptions
from compat.pairs import BLOCK_ROWS, Pairs
from compat.training.fit import fit_transformer


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--pairs", type=int, default=200_000)
    parser.add_argument("--dim", type=int, default=512)
    parser.add_argument("--repetitions", type=int, default=3)
    parser.add_argument("--auto-pairs", type=int, default=10_000, help="pairs that auto is given; 0 leaves it out")
    parser.add_argument("--save", action="store_true", help="write results/fit.md")
    options = parser.parse_args()
    generator = np.random.default_rng(0)
    new = generator.standard_normal((options.pairs, options.dim), dtype=np.float32)
    old = new @ np.linalg.qr(generator.standard_normal((options.dim, options.dim)))[0].astype(np.float32)
    old += generator.standard_normal(old.shape, dtype=np.float32)
    pairs = Pairs.from_arrays(old, new)

    def bare() -> None:
        gram, cross = np.zeros((options.dim, options.dim)), np.zeros((options.dim, options.dim))
        for start in range(0, options.pairs, BLOCK_ROWS):
            x, y = new[start : start + BLOCK_ROWS], old[start : start + BLOCK_ROWS]
            gram += x.T @ x
            cross += x.T @ y

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
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    text = markdown(["work", "seconds", "times the bare loop"], rows)
    text += (
        f"\n\n{options.pairs} pairs of {options.dim}-D float32, medians of {options.repetitions}. A fit also "
        "scales the pairs to unit length, looks for what is not finite and takes a fingerprint. Peak "
        f"memory {peak:.1f} GiB, of which the arrays are {(old.nbytes + new.nbytes) / 2**30:.1f}."
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
