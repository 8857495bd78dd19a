"""All scores of a gallery and its queries, counted: how fast beside the bare product, and are the figures right.

Three questions: what counting every pair costs beside the product that no such program can do without; how far TAR at
FAR lies from scikit-learn's ROC curve of all scores, where those fit into memory; and whether the 95% intervals of
TAR@FAR and TPIR@FPIR hold the truth, in simulated worlds of 100 identities that go through the sections of a report.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from dataclasses import dataclass
from importlib.util import find_spec

import numpy as np
import torch
from bench_search import timed
from own_memory import PeakMemory
from table import markdown, publish

from compat.evaluation.openset import open_set_section
from compat.evaluation.reached import Reached
from compat.evaluation.searched import Searched
from compat.evaluation.verification import verification_section
from compat.metrics.openset import ProbeScores, search_probes, withheld_identities
from compat.metrics.score_histogram import WIDTH, ScoreHistogram, cross_histogram
from compat.neighbors import ArrayRows, unit_rows

TILES = ((256, 8192), (1024, 8192))
ROWS_EACH = 5
"""Rows of an identity, in the gallery and among the queries."""
SPREAD = 2.2
"""Length of a row's noise beside its identity's unit centre: in 512-D most genuine pairs pass at FAR 1e-4, not all."""
FARS = (1e-1, 1e-2, 1e-3, 1e-4)
MEBI = 2**20

IDENTITIES, QUERIES_EACH, GALLERY_EACH, WORLD_DIM = 100, 5, 3, 64
SPREADS = (0.9, 1.5)
COVERED_FARS, COVERED_FPIRS = (1e-1, 1e-2, 1e-3), (1e-1, 3e-2)
WITHHELD = 0.25
TRUTH_WORLDS, TRUTH_IDENTITIES = 1500, 12_000


def rows_of(labels: np.ndarray, centres: np.ndarray, spread: np.ndarray | float, seed: int) -> np.ndarray:
    """Unit rows float32 [n, d] near their identities' centres [i, d]; spreads may be an identity's own, [i]."""
    generator = np.random.default_rng(seed)
    rows = generator.standard_normal((len(labels), centres.shape[1]), dtype=np.float32)
    lengths = np.broadcast_to(np.float32(spread), len(centres))[labels]
    rows *= (lengths / centres.shape[1] ** 0.5)[:, None]
    rows += centres[labels]
    return unit_rows(rows)


def planted(rows: int, dim: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Queries and gallery float32 [rows, dim], and the labels int64 [rows] of either."""
    labels = np.arange(rows) // ROWS_EACH
    centres = unit_rows(np.random.default_rng(0).standard_normal((int(labels[-1]) + 1, dim), dtype=np.float32))
    return rows_of(labels, centres, SPREAD, 1), rows_of(labels, centres, SPREAD, 2), labels


def bare(queries: np.ndarray, gallery: np.ndarray, asked: int, columns: int) -> None:
    """Every score once, in tiles, and nothing done with it."""
    ours, theirs = torch.from_numpy(queries), torch.from_numpy(gallery)
    product = torch.empty(asked * columns)
    for start in range(0, len(theirs), columns):
        block = theirs[start : start + columns].T
        for first in range(0, len(ours), asked):
            some = ours[first : first + asked]
            torch.mm(some, block, out=product[: len(some) * block.shape[1]].view(len(some), block.shape[1]))


def histogram_of(queries: np.ndarray, gallery: np.ndarray, labels: np.ndarray) -> ScoreHistogram:
    return cross_histogram(queries, ArrayRows(gallery), labels, labels, np.full(len(queries), -1))


def memory_beyond(run: Callable[[], object]) -> float:
    """MiB of anonymous memory that a run takes at most beyond what the process held before."""
    peaks = []
    for job in (lambda: time.sleep(0.1), run):
        memory = PeakMemory()
        memory.start()
        job()
        peaks.append(memory.end())
    return max(peaks[1] - peaks[0], 0)


def speed_table(options: argparse.Namespace) -> str:
    queries, gallery, labels = planted(options.rows, options.dim)
    histogram_of(queries[:300], gallery[:300], labels[:300])  # what a first call loads is not the count's
    beyond, found = [], []

    def ours() -> None:
        beyond.append(memory_beyond(lambda: found.append(histogram_of(queries, gallery, labels))))

    candidates: dict[str, Callable[[], object]] = {
        f"torch product, tiles of {asked} x {columns}": lambda asked=asked, columns=columns: bare(
            queries, gallery, asked, columns
        )
        for asked, columns in TILES
    }
    products = list(candidates)
    candidates["ours, cross_histogram"] = ours
    seconds = timed(candidates, options.repetitions)
    ceiling = [min(seconds[name][i] for name in products) for i in (0, 1)]
    pairs = len(queries) * len(gallery)
    rows = [
        [
            name,
            f"{wall:.1f}",
            f"{cpu:.1f}",
            f"{pairs / wall / 1e6:.0f}",
            f"{pairs / cpu / 1e6:.0f}",
            f"{ceiling[0] / wall:.2f}",
            f"{ceiling[1] / cpu:.2f}",
        ]
        for name, (wall, cpu) in seconds.items()
    ]
    speeds = ["million pairs a wall second", "million pairs a CPU second", "of the bare, wall", "of the bare, CPU"]
    table = markdown([f"{pairs:.3g} pairs", "wall s", "CPU s", *speeds], rows)
    curve = found[0].curve()
    tars = ", ".join(f"{curve.at_far(far).tar:.4f} at {far:g}" for far in (1e-2, 1e-4, 1e-6))
    return (
        f"{table}\n\nMemory beyond the arrays of {(queries.nbytes + gallery.nbytes) / MEBI:.0f} MiB: "
        f"{max(beyond):.0f} MiB at most, of which {queries.nbytes / MEBI:.0f} MiB are the queries scaled to "
        f"unit length; the scores themselves would take {pairs * 4 / MEBI:,.0f} MiB. {curve.genuine_pairs:,} pairs are "
        f"genuine; TAR {tars}."
    )


def others_table(options: argparse.Namespace) -> str:
    """TAR at FAR beside scikit-learn's curve of all scores."""
    if find_spec("sklearn") is None:
        return "scikit-learn is not installed (`pip install '.[bench]'`): not compared."
    from sklearn.metrics import roc_curve

    queries, gallery, labels = planted(options.compared_rows, options.dim)
    found: dict[str, ScoreHistogram] = {}
    curves: list[tuple[np.ndarray, np.ndarray, np.ndarray]] = []

    def ours() -> None:
        found["ours"] = histogram_of(queries, gallery, labels)
        found["ours"].curve()

    def theirs() -> None:
        curves.clear()
        scores = (queries @ gallery.T).ravel()
        same = (labels[:, None] == labels[None, :]).ravel()
        curves.append(roc_curve(same, scores, drop_intermediate=False))

    memory = [memory_beyond(ours), memory_beyond(theirs)]
    seconds = timed({"ours": ours, "scikit-learn": theirs}, options.repetitions)
    (far, tar, thresholds), curve = curves[0], found["ours"].curve()
    rows, differences, steps = [], [], []
    for rate in FARS:
        at = int(np.searchsorted(far, rate, "right")) - 1
        point = curve.at_far(rate)
        differences.append(abs(point.tar - float(tar[at])))
        steps.append(point.threshold - float(thresholds[at]))
        rows.append([f"{rate:g}", f"{tar[at]:.6f}", f"{point.tar:.6f}", f"{differences[-1]:.1e}", f"{steps[-1]:.1e}"])
    table = markdown(["FAR", "TAR, scikit-learn", "TAR, ours", "difference", "threshold, ours less theirs"], rows)
    cpu = {name: seconds[name][1] for name in seconds}
    return (
        f"{table}\n\nAll {len(labels) ** 2:,} scores of {len(labels):,} x {len(labels):,} vectors, product included: "
        f"{cpu['ours']:.2f} CPU seconds and {memory[0]:.0f} MiB, scikit-learn's `roc_curve` "
        f"{cpu['scikit-learn']:.2f} and {memory[1]:,.0f} MiB, {cpu['scikit-learn'] / cpu['ours']:.1f} times the "
        f"time. The largest difference of TAR is {max(differences):.1e}. A threshold here is a bin's edge, at most one "
        f"width of {WIDTH:.1e} above the exact one."
    )


@dataclass(frozen=True, eq=False)
class World:
    """Queries and gallery of identities drawn anew; some identities are harder than others."""

    queries: np.ndarray
    gallery: np.ndarray
    query_labels: np.ndarray
    gallery_labels: np.ndarray

    @classmethod
    def drawn(cls, spread: float, seed: int, identities: int = IDENTITIES, each: int = QUERIES_EACH) -> World:
        generator = np.random.default_rng(seed)
        centres = unit_rows(generator.standard_normal((identities, WORLD_DIM), dtype=np.float32))
        spreads = spread * np.exp(0.3 * generator.standard_normal(identities))
        asked, enrolled = (np.repeat(np.arange(identities), count) for count in (each, GALLERY_EACH))
        seeds = generator.integers(2**62, size=2)
        return cls(
            rows_of(asked, centres, spreads, int(seeds[0])),
            rows_of(enrolled, centres, spreads, int(seeds[1])),
            asked,
            enrolled,
        )

    @property
    def own(self) -> np.ndarray:
        return np.full(len(self.queries), -1)


def true_tars(spread: float) -> list[float]:
    """TAR at the FARs, of so many identities that its own error is small beside an interval."""
    world = World.drawn(spread, 2**40, TRUTH_IDENTITIES, each=1)
    gallery = ArrayRows(world.gallery)
    curve = cross_histogram(world.queries, gallery, world.query_labels, world.gallery_labels, world.own).curve()
    return [curve.at_far(far).tar for far in COVERED_FARS]


def true_tpirs(spread: float) -> list[float]:
    """TPIR at the FPIRs, of the probes of many worlds of the size simulated: it depends on how many are enrolled."""
    found = []
    for number in range(TRUTH_WORLDS):
        world = World.drawn(spread, 2**41 + number)
        kept = withheld_identities(world.query_labels, world.gallery_labels, share=WITHHELD, seed=number)
        found.append(
            search_probes(
                world.queries,
                ArrayRows(world.gallery),
                world.query_labels,
                world.gallery_labels,
                world.own,
                enrolled=kept,
            )
        )
    joined = (np.concatenate([getattr(probes, name) for probes in found]) for name in ("mate", "top", "bar"))
    curve = ProbeScores(*joined).curve()
    return [curve.at_far(fpir).tar for fpir in COVERED_FPIRS]


def intervals(spread: float, seed: int) -> list[Reached]:
    """What a report says of one world: TAR at each FAR, then TPIR at each FPIR."""
    world = World.drawn(spread, seed)
    settings = {"": Searched(world.queries, ArrayRows(world.gallery), "cosine")}
    labels = world.query_labels, world.gallery_labels, world.own
    verified = verification_section(settings, *labels, fars=COVERED_FARS, seed=seed)
    searched = open_set_section(settings, *labels, fpirs=COVERED_FPIRS, withheld=WITHHELD, seed=seed)
    return [*verified.settings[""].tar_at_far, *searched.settings[""].tpir_at_fpir]


def coverage_table(simulations: int) -> str:
    names = [f"TAR at FAR {far:g}" for far in COVERED_FARS] + [f"TPIR at FPIR {fpir:g}" for fpir in COVERED_FPIRS]
    rows, began = [], time.process_time()
    for spread in SPREADS:
        truths = true_tars(spread) + true_tpirs(spread)
        simulated = [intervals(spread, seed) for seed in range(simulations)]
        for column, (name, truth) in enumerate(zip(names, truths, strict=True)):
            shares = [found[column].share for found in simulated]
            ends = np.array([(share.low, share.value, share.high) for share in shares if share])
            missed = [float((truth < ends[:, 0] - 1e-9).mean()), float((truth > ends[:, 2] + 1e-9).mean())]
            covered, width = 1 - sum(missed), float((ends[:, 2] - ends[:, 0]).mean())
            cells = [f"{truth:.3f}", f"{ends[:, 1].mean():.3f}", f"{covered:.1%}", *(f"{m:.1%}" for m in missed)]
            rows.append([name, f"{spread:g}", *cells, f"{width:.3f}", str(len(ends))])
    header = ["figure", "noise", "truth", "mean reported", "truth inside", "truth below", "truth above", "mean width"]
    noise = 2 * (0.95 * 0.05 / simulations) ** 0.5
    return (
        f"{markdown([*header, 'simulations'], rows)}\n\n95% intervals of the sections of a report in {simulations} "
        f"simulated worlds each; a coverage of 95% would be seen as 95% ± {noise:.1%}. A world draws {IDENTITIES} "
        f"identities with {QUERIES_EACH} queries and {GALLERY_EACH} gallery rows each, {WORLD_DIM}-D, centres and the "
        f"difficulty of each identity anew, gallery included; for TPIR {WITHHELD:.0%} of them are taken out of the "
        f"gallery. The truth is TAR at the threshold of that FAR among {TRUTH_IDENTITIES:,} identities, and TPIR among "
        f"the probes of {TRUTH_WORLDS:,} other worlds together. {time.process_time() - began:.0f} CPU seconds."
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", type=int, default=20_000, help="queries, and gallery rows; 100000 for 10^10 pairs")
    parser.add_argument("--compared-rows", type=int, default=3_000, help="the same, beside scikit-learn")
    parser.add_argument("--dim", type=int, default=512)
    parser.add_argument("--repetitions", type=int, default=3)
    parser.add_argument("--simulations", type=int, default=300, help="of each world, for the intervals; 0 for none")
    parser.add_argument("--save", action="store_true", help="write results/verification.md")
    options = parser.parse_args()
    parts = [speed_table(options), others_table(options)]
    if options.simulations:
        parts.append(coverage_table(options.simulations))
    parts.append(
        f"Speeds: unit vectors of {options.dim} dimensions, {ROWS_EACH} of an identity on either side, "
        f"{torch.get_num_threads()} threads, medians of {options.repetitions} turns; CPU seconds are all threads'. The "
        "bare is the faster of the products above."
    )
    command = f"python benchmarks/bench_verification.py --rows {options.rows} --compared-rows {options.compared_rows}"
    command += f" --repetitions {options.repetitions} --simulations {options.simulations}"
    packages = ["numpy", "torch", *(["scikit-learn"] if find_spec("sklearn") else [])]
    publish("verification", command, "\n\n".join(parts), packages, save=options.save)


if __name__ == "__main__":
    main()
