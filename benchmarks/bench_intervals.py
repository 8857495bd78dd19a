"""Do 95% intervals cover the truth? Simulated queries of identities whose true recall is known.

Two systems answer the same queries. An identity has a chance of its own in each system, so that its queries agree as
much as the intra-identity correlation says; the systems' luck goes together, for identities and for queries. The
intervals are those of reports: of a recall, of a mean reciprocal rank, of the difference and of the ratio (retention).

Run `python benchmarks/bench_intervals.py --save`; `--simulations 200` for a look.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy.stats import beta, norm
from table import markdown, publish

from compat.metrics.intervals import Bootstrap, bootstrap_means, interval

ALIKE = 0.8
"""Correlation of the two systems' luck, before it is cut into right and wrong."""
RECALLS = ((0.30, 0.35), (0.60, 0.63), (0.90, 0.92), (0.95, 0.93), (0.98, 0.98), (0.97, 0.995), (1.0, 0.98))
GROUPS = (30, 100, 300)
CORRELATIONS = (0.0, 0.3, 0.7)
COLUMNS = ("recall", "reciprocal rank", "difference", "retention", "percentiles")


@dataclass(frozen=True)
class Cell:
    """One planted world: how many identities of which sizes, how alike their queries are, and the true recalls."""

    groups: int
    sizes: str
    correlation: float
    recalls: tuple[float, float]

    @property
    def clusters(self) -> np.ndarray:
        """Identity of each query, int64 [q]."""
        if self.sizes == "one query each":
            counts = np.ones(self.groups)
        elif self.sizes == "five each":
            counts = np.full(self.groups, 5)
        else:  # log-normal: most have one to five, the largest forty and more
            quantiles = norm.ppf((np.arange(self.groups) + 0.5) / self.groups)
            counts = np.maximum(1, np.round(3 * np.exp(quantiles)))
        return np.repeat(np.arange(self.groups), counts.astype(int))


def simulate(cell: Cell, simulations: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Hits of both systems in every simulation, bool [q, simulations] each.

    Chances of identities are beta-distributed, which makes the correlation of two hits of one identity exactly the
    one asked for and leaves the recall as it is; a Gaussian copula couples the systems.
    """
    generator = np.random.default_rng(seed)
    clusters = cell.clusters

    def coupled(rows: int) -> tuple[np.ndarray, np.ndarray]:
        first, own = generator.standard_normal((2, rows, simulations), np.float32)
        return first, np.float32(ALIKE) * first + np.float32(np.sqrt(1 - ALIKE**2)) * own

    identities, queries = coupled(cell.groups), coupled(len(clusters))
    grid = np.linspace(-6, 6, 6001)
    hits = []
    for recall, of_identity, of_query in zip(cell.recalls, identities, queries, strict=True):
        if cell.correlation == 0 or recall == 1:
            threshold = np.full((cell.groups, simulations), norm.ppf(recall))
        else:
            spread = (1 - cell.correlation) / cell.correlation
            chances = beta.ppf(norm.cdf(grid), recall * spread, (1 - recall) * spread)
            threshold = norm.ppf(np.interp(of_identity, grid, chances))
        hits.append(of_query < threshold[clusters])
    return hits[0], hits[1]


def coverage(cell: Cell, simulations: int, seed: int) -> dict[str, float]:
    """Share of the simulations whose interval holds the truth, for each kind of interval."""
    first, second = simulate(cell, simulations, seed)
    generator = np.random.default_rng(seed + 1)
    ranks = 1 / generator.integers(2, 11, size=first.shape)  # a wrong answer has the right one at rank 2 to 10
    reciprocal = np.where(first, 1.0, ranks)
    a, b = cell.recalls
    truth = {
        "recall": a,
        "reciprocal rank": a + (1 - a) * float(np.mean(1 / np.arange(2, 11))),
        "difference": a - b,
        "retention": a / b,
        "percentiles": a,
    }
    drawn = Bootstrap(np.concatenate([first, second, reciprocal], axis=1), cell.clusters)
    plain = bootstrap_means(first.astype(np.float64), cell.clusters)
    covered: dict[str, int] = dict.fromkeys(COLUMNS, 0)
    for i in range(simulations):
        found = {
            "recall": drawn.proportion(i),
            "reciprocal rank": drawn.proportion(2 * simulations + i),
            "difference": drawn.difference(i, simulations + i),
            "retention": drawn.ratio(i, simulations + i),
            "percentiles": interval(drawn.means[i], plain[:, i]),
        }
        for name, ends in found.items():
            covered[name] += int(ends is not None and ends.low - 1e-9 <= truth[name] <= ends.high + 1e-9)
    return {name: count / simulations for name, count in covered.items()}


def cells() -> list[Cell]:
    """Every planted world; single queries have no correlation."""
    found = []
    for groups in GROUPS:
        for sizes in ("five each", "long-tailed", "one query each"):
            for correlation in CORRELATIONS if sizes != "one query each" else (0.0,):
                found += [Cell(groups, sizes, correlation, recalls) for recalls in RECALLS]
    return found


def outside(cell: Cell, name: str, share: float, noise: float) -> bool:
    """Whether a coverage is surely outside what is promised: 93 to 97% up to a recall of 0.95, 93% and more above."""
    highest = max(cell.recalls) if name in ("difference", "retention") else cell.recalls[0]
    return share < 0.93 - noise or (highest <= 0.95 and share > 0.97 + noise)


def seconds() -> str:
    """CPU time of the intervals of a large report: 10 settings of 5 measures for 10,000 queries."""
    values = np.random.default_rng(0).random((10_000, 50))
    told = []
    for name, clusters in (("each its own group", None), ("of 2,000 identities", np.arange(10_000) // 5)):
        started = time.process_time()
        drawn = Bootstrap(values, clusters)
        for column in range(50):
            drawn.proportion(column)
            drawn.ratio(column, 0)
        told.append(f"{name} {time.process_time() - started:.1f} s")
    what = "10,000 queries, 10 settings x 5 measures, 2,000 draws, 50 intervals and 50 ratios"
    return f"{what}, CPU time: {', '.join(told)}."


def report(simulations: int) -> str:
    """The tables as Markdown."""
    noise = 2 * np.sqrt(0.93 * 0.07 / simulations)
    text, tally = [], {name: [0, 0, 0] for name in COLUMNS}
    rows: list[list[str]] = []
    for number, cell in enumerate(cells()):
        found = coverage(cell, simulations, seed=number)
        print(cell, found, file=sys.stderr, flush=True)
        marks = []
        for name in COLUMNS:
            missed = outside(cell, name, found[name], noise)
            marks.append(f"{found[name]:.1%}" + (" *" if missed else ""))
            if cell.groups >= 100:
                tally[name][0] += 1
                tally[name][1] += found[name] < 0.93 - noise
                tally[name][2] += missed and found[name] > 0.93
        a, b = cell.recalls
        rows.append([str(cell.groups), cell.sizes, f"{cell.correlation:g}", f"{a:g} / {b:g}", *marks])
    text.append(
        f"Share of {simulations:,} simulations whose 95% interval holds the truth; two systems, recall of the judged "
        "one / of the other. Promised from 100 identities on: 93 to 97% up to a recall of 0.95, at least 93% above; "
        f"`*`: outside that by more than the simulation's own noise ({noise:.1%}). `percentiles` is the percentile "
        "bootstrap of the recall from the same draws, for comparison. Long-tailed: log-normal sizes, 1 to about 50 "
        "queries; 100 such identities say no more than some 43 of equal size."
    )
    text.append(
        markdown(
            ("100 identities and more", "cells", "too low", "too high"),
            [[name, *map(str, counts)] for name, counts in tally.items()],
        )
    )
    text.append(markdown(("identities", "queries", "correlation", "recalls", *COLUMNS), rows))
    text.append(seconds())
    return "\n\n".join(text)


def main(argv: Sequence[str] | None = None) -> None:
    """Simulate and print, and keep with --save."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--simulations", type=int, default=2000)
    parser.add_argument("--save", action="store_true", help="write benchmarks/results/intervals.md")
    options = parser.parse_args(argv)
    command = f"python benchmarks/bench_intervals.py --simulations {options.simulations}"
    publish("intervals", command, report(options.simulations), ("numpy", "scipy"), save=options.save)


if __name__ == "__main__":
    main()
