"""Fitting the closed forms against the bare loop that forms the two matrices they need."""

from __future__ import annotations

import argparse

import numpy as np
from table import interleaved, markdown, publish

from compat.neighbors import unit_rows
from compat.options import FitOptions
from compat.pairs import BLOCK_ROWS, Pairs
from compat.training.fit import fit_transformer


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--pairs", type=int, default=50_000)
    parser.add_argument("--dim", type=int, default=512)
    parser.add_argument("--repetitions", type=int, default=3)
    parser.add_argument("--save", action="store_true", help="write results/fit.md")
    options = parser.parse_args()
    generator = np.random.default_rng(0)
    new = generator.standard_normal((options.pairs, options.dim), dtype=np.float32)
    old = new @ np.linalg.qr(generator.standard_normal((options.dim, options.dim)))[0].astype(np.float32)
    pairs = Pairs.from_arrays(old, new)

    def bare() -> None:
        gram, cross = np.zeros((options.dim, options.dim)), np.zeros((options.dim, options.dim))
        for start in range(0, options.pairs, BLOCK_ROWS):
            x, y = unit_rows(new[start : start + BLOCK_ROWS]), unit_rows(old[start : start + BLOCK_ROWS])
            gram += x.T @ x
            cross += x.T @ y

    def fit(family: str) -> None:
        fit_transformer(pairs, FitOptions(transformer=family))

    seconds = interleaved(
        {"bare gram + cross-gram loop": bare} | {f: lambda f=f: fit(f) for f in ("procrustes", "ridge")},
        options.repetitions,
    )
    ceiling = seconds["bare gram + cross-gram loop"]
    rows = [[name, f"{value:.2f}", f"{value / ceiling:.1f}"] for name, value in seconds.items()]
    text = markdown(["work", "seconds", "times the bare loop"], rows)
    text += (
        f"\n\n{options.pairs} pairs of {options.dim}-D float32, medians of {options.repetitions}. A fit includes "
        "scoring every fold (and, for ridge, every strength) by held-out retrieval, and the fingerprint of the pairs."
    )
    command = f"python benchmarks/bench_fit.py --pairs {options.pairs} --dim {options.dim}"
    publish("fit", command, text, ["numpy", "torch"], save=options.save)


if __name__ == "__main__":
    main()
