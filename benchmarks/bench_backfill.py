"""Curves of a backfill: how fast beside the bare products and beside searching again, and what they say of real pairs.

The curve is recall@1 at every number of re-embedded items, from one pass over the scores of both forms of the gallery.
Searching again gives the same figures, one stage a search, so it is both what is compared with and the check. On real
pairs (`--data`, see README.md; without it the small ones of the tests) ridge maps bridge a gallery that is replaced in
several orders, and candidates are re-ranked instead.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from bench_search import timed
from maps_data import DataSet, QuerySet, Split, data_sets
from maps_tables import estimate
from table import markdown, publish

from compat.evaluation.backfill import BackfillSection, backfill_orders, backfill_section
from compat.metrics.backfill import BackfillCurve, backfill_curves
from compat.metrics.relevance import Relevance
from compat.metrics.reranking import DEPTHS, reranked_recall
from compat.metrics.retrieval import TIE
from compat.metrics.sides import GALLERY_ROWS, QUERY_ROWS, Side
from compat.neighbors import ArrayRows, ExactIndex, unit_rows
from compat.options import Direction, FitOptions
from compat.pairs import Pairs
from compat.training.fit import fit_transformer
from compat.transformers.artefact import Transformer

STAGES = 20
ROWS_EACH = 10
"""Gallery rows of an identity."""
NOISE, BRIDGE_NOISE = 2.5, 1.5
"""Lengths of a row's noise, and of what the bridge adds to it, where its identity's centre has length 1."""
DIRECTIONS: tuple[Direction, ...] = ("old-to-new", "new-to-old")
FLATTERING = "same document"
"""Queries that are gallery items: native search cannot miss, which is no backfill that anyone has."""
SHARE = "99% of new_to_new"


def planted(options: argparse.Namespace) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Queries [q, d], the gallery native and bridged [g, d], labels of the queries [q] and of the gallery [g]."""
    generator = np.random.default_rng(0)
    labels = np.arange(options.rows) // ROWS_EACH
    asked = generator.integers(int(labels[-1]) + 1, size=options.queries)
    centres = generator.standard_normal((int(labels[-1]) + 1, options.dim), dtype=np.float32)

    def near(rows: np.ndarray, length: float) -> np.ndarray:
        return unit_rows(rows + np.float32(length) * generator.standard_normal(rows.shape, dtype=np.float32))

    native = centres[labels] + np.float32(NOISE) * generator.standard_normal((len(labels), options.dim), np.float32)
    return near(centres[asked], NOISE), unit_rows(native), near(native, BRIDGE_NOISE), asked, labels


def bare(queries: np.ndarray, galleries: tuple[np.ndarray, np.ndarray], asked: int, columns: int) -> None:
    """Every score of both forms of the gallery once, and nothing done with it."""
    ours, product = torch.from_numpy(queries), torch.empty(asked * columns)
    for gallery in map(torch.from_numpy, galleries):
        for start in range(0, len(gallery), columns):
            block = gallery[start : start + columns].T
            for first in range(0, len(ours), asked):
                some = ours[first : first + asked]
                torch.mm(some, block, out=product[: len(some) * block.shape[1]].view(len(some), block.shape[1]))


def searched_again(
    queries: np.ndarray,
    galleries: tuple[np.ndarray, np.ndarray],
    labels: tuple[np.ndarray, np.ndarray],
    order: np.ndarray,
    stages: np.ndarray,
) -> list[float]:
    """Recall@1 at each stage of an order by a search of the gallery as it is then, ties against the query."""
    mixed, done, recalls = galleries[1].copy(), 0, []
    for stage in stages:
        mixed[order[done:stage]] = galleries[0][order[done:stage]]
        done = stage
        index = ExactIndex(mixed.shape[1])
        index.add(mixed)
        scores, rows = index.search(queries, ROWS_EACH + 1)  # of which one at least is of another identity
        right = labels[1][rows] == labels[0][:, None]
        relevant, others = (np.where(kind, scores, -np.inf).max(axis=1) for kind in (right, ~right))
        recalls.append(float(np.mean(relevant - TIE > others)))
    return recalls


def speed_table(options: argparse.Namespace) -> str:
    queries, native, bridged, asked, labels = planted(options)
    galleries, known = (native, bridged), (asked, labels)
    sides = Side(queries, ArrayRows(native)), Side(queries, ArrayRows(bridged))
    relevance = Relevance.by_label(asked, labels, np.full(len(asked), -1))
    uncertainty = 1 - (native * bridged).sum(axis=1)
    orders = backfill_orders(len(labels), labels=labels, uncertainty=uncertainty)
    stages = np.linspace(0, len(labels), STAGES).round().astype(np.int64)
    curves: dict[str, BackfillCurve] = {}
    recalls: dict[str, list[float]] = {}

    def one_pass() -> None:
        curves.update(backfill_curves(*sides, relevance, orders))

    def again() -> None:
        recalls.update(
            {name: searched_again(queries, galleries, known, order, stages) for name, order in orders.items()}
        )

    tiles = ((QUERY_ROWS, GALLERY_ROWS), (1024, GALLERY_ROWS))
    candidates: dict[str, Callable[[], object]] = {
        f"torch products of both sides, tiles of {a} x {b}": lambda a=a, b=b: bare(queries, galleries, a, b)
        for a, b in tiles
    }
    products = list(candidates)
    first = dict(list(orders.items())[:1])
    every = f"ours, all {len(labels) + 1:,} stages of {len(orders)} orders"
    candidates[f"ours, all {len(labels) + 1:,} stages of one order"] = lambda: backfill_curves(*sides, relevance, first)
    candidates[every] = one_pass
    candidates["re-ranking 10, 50 and 100 candidates"] = lambda: reranked_recall(sides[1], sides[0], relevance)
    seconds = timed(candidates, options.repetitions)
    searches = f"searching again, {STAGES} stages of {len(orders)} orders"
    seconds |= timed({searches: again}, 1)
    ceiling = [min(seconds[name][i] for name in products) for i in (0, 1)]
    rows = []
    for name, (wall, cpu) in seconds.items():
        of_bare, of_search = cpu / ceiling[1], seconds[searches][1] / cpu
        rows.append([name, f"{wall:.1f}", f"{cpu:.1f}", f"{of_bare:.2f}", f"{of_search:.1f}"])
    header = [f"{len(queries):,} queries, {len(labels):,} rows", "wall s", "CPU s", "times the bare, CPU"]
    gaps = [float(np.abs(curves[name].recall_at_1[stages] - np.array(found)).max()) for name, found in recalls.items()]
    ends = curves["random"].recall_at_1[[0, -1]]
    areas = ", ".join(f"{name.replace('_', ' ')} {curve.area:.4f}" for name, curve in curves.items())
    exact = seconds[searches][1] / STAGES * (len(labels) + 1) / seconds[every][1]
    return (
        f"{markdown([*header, 'faster than searching again, CPU'], rows)}\n\nThe curve rises from {ends[0]:.4f} to "
        f"{ends[1]:.4f}; area {areas}. Largest difference to what the {STAGES * len(orders)} searches find: "
        f"{max(gaps):.1e}. Searching again at all stages, as exact as the curve, would take {exact:,.0f} times as long."
    )


def ridge(split: Split, count: int, direction: Direction, seed: int) -> Transformer:
    labels = None if split.pairs_labels is None else split.pairs_labels[:count]
    pairs = Pairs.from_arrays(split.pairs_old[:count], split.pairs_new[:count], labels)
    return fit_transformer(pairs, FitOptions(transformer="ridge", direction=direction, seed=seed))


def section_of(
    split: Split, queries: QuerySet, transformer: Transformer, seed: int, calibrated: bool | None
) -> BackfillSection:
    """The section of a report, in the orders that can be formed."""
    native = Side(queries.new, ArrayRows(split.gallery_new))
    mapped, uncertainty = transformer.serve_gallery(split.gallery_old), None
    if transformer.direction == "old-to-new" and transformer.familiarity:  # as a report forms it
        uncertainty = transformer.familiarity.novelty(mapped)
    return backfill_section(
        native,
        Side(transformer.serve_queries(queries.new), ArrayRows(mapped)),
        queries.relevance,
        backfill_orders(len(mapped), labels=split.gallery_labels, uncertainty=uncertainty, seed=seed),
        old=Side(queries.old, ArrayRows(split.gallery_old)),
        calibrated=calibrated,
        seed=seed,
    )


def measure(
    data_set: DataSet, count: int, seeds: int
) -> dict[tuple[Direction, str], list[tuple[BackfillSection, BackfillSection]]]:
    """For each direction and set of queries a seed's section as reports have it, and with the other calibration."""
    found: dict[tuple[Direction, str], list[tuple[BackfillSection, BackfillSection]]] = {}
    for seed in range(seeds):
        split = data_set.split(seed)
        for direction in DIRECTIONS:
            transformer = ridge(split, min(count, len(split.pairs_old)), direction, seed)
            for queries in split.query_sets:
                if queries.name != FLATTERING:
                    section = section_of(split, queries, transformer, seed, None)
                    other = section_of(split, queries, transformer, seed, not section.calibrated)
                    found.setdefault((direction, queries.name), []).append((section, other))
        print(f"{data_set.name}, seed {seed}: measured", flush=True)
    return found


def cost(section: BackfillSection, order: str) -> float:
    """Share of the gallery to re-embed for the target that every order reaches in the end."""
    share = section.curves[order].cost_to_reach(section.targets[SHARE])
    return np.nan if share is None else share


def real_tables(options: argparse.Namespace) -> str:
    curves, scales, reranked = [], [], []
    for data_set in data_sets(options.data):
        for (direction, queries), runs in measure(data_set, options.pairs, options.seeds).items():
            head = [data_set.name, queries, direction]
            first, sections = runs[0][0], [section for section, _ in runs]
            ends = [
                estimate(s.targets["old_to_old"] for s in sections),
                *(estimate(float(s.curves["random"].recall_at_1[end]) for s in sections) for end in (0, -1)),
            ]
            for name in first.curves:
                area = estimate(s.curves[name].area for s in sections)
                more = estimate(s.curves[name].area - s.curves["random"].area for s in sections)
                less = estimate(cost(s, name) - cost(s, "random") for s in sections)
                paired = ["", ""] if name == "random" else [str(more), str(less)]
                share = str(estimate(cost(s, name) for s in sections))
                curves.append([*head, name.replace("_", " "), *map(str, ends), str(area), paired[0], share, paired[1]])
            for turn, calibrated in enumerate((first.calibrated, not first.calibrated)):
                told = ("moved to the native scale" if calibrated else "as they are") + (", as reported" * (not turn))
                areas = [(run[turn].curves["random"].area, run[0].curves["random"].area) for run in runs]
                more = str(estimate(this - reported for this, reported in areas)) if turn else ""
                halfway = [float(run[turn].curves["random"].recall_at_1[first.gallery_rows // 2]) for run in runs]
                scales.append([*head, told, str(estimate(this for this, _ in areas)), more, str(estimate(halfway))])
            for proposer in dict.fromkeys(row.proposed_by for row in first.reranked):
                by_depth = [
                    estimate(
                        next(
                            row.recall_at_1.value
                            for row in s.reranked
                            if (row.proposed_by, row.candidates) == (proposer, depth)
                        )
                        for s in sections
                    )
                    for depth in DEPTHS
                ]
                if proposer != "old queries" or direction == DIRECTIONS[0]:  # they do not depend on the map
                    shown = direction if proposer != "old queries" else ""
                    reranked.append([data_set.name, queries, proposer, shown, *map(str, by_depth), str(ends[2])])
    where = ["data", "queries", "direction"]
    recalls = ["old to old", "bridge alone", "new to new"]
    costs = ["area", "less random", "share to re-embed", "less random"]
    text = markdown([*where, "order", *recalls, *costs], curves)
    text += (
        "\n\nRecall@1 before and after, its mean over all stages (`area`), and the share of the gallery to re-embed "
        "for 99% of new to new to be reached and kept. `uncertainty` re-embeds mapped items first that lie farthest "
        f"from what the map was fitted to. Ridge on {options.pairs:,} pairs at most, without correction; "
        f"{options.seeds} seeds draw pairs, orders and queries; ± is half of a 95% t interval over them, and "
        "differences are paired by seed.\n\n"
    )
    text += markdown([*where, "bridged scores", "area, random order", "less reported", "recall@1 half way"], scales)
    text += (
        "\n\nWhether bridged scores are put on the scale of native ones (mean and spread of unlabelled scores) before "
        "the halves of the gallery compete.\n\n"
    )
    text += markdown(["data", "queries", "proposed by", "map", *(f"{k} candidates" for k in DEPTHS), "all"], reranked)
    return f"{text}\n\nRecall@1 where candidates are embedded by the new model on demand and re-ranked."


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", type=Path, help="a folder that holds text_wordnet/, font_identities/, see README.md")
    parser.add_argument("--rows", type=int, default=30_000, help="gallery rows of the speeds")
    parser.add_argument("--queries", type=int, default=1_000, help="queries of the speeds")
    parser.add_argument("--dim", type=int, default=512)
    parser.add_argument("--repetitions", type=int, default=3)
    parser.add_argument("--pairs", type=int, default=10_000, help="real pairs that maps are fitted to, at most")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--save", action="store_true", help="write results/backfill.md")
    options = parser.parse_args()
    began = time.process_time()
    parts = [speed_table(options)]
    parts[0] += (
        f" Planted identities of {ROWS_EACH} rows, {options.dim}-D, `uncertainty` "
        f"being how far the bridge in truth moved an item, {torch.get_num_threads()} threads, medians of "
        f"{options.repetitions} turns, one of searching again; CPU seconds are all threads'. The bare is the faster of "
        "the products."
    )
    parts.append(real_tables(options))
    parts.append(f"{time.process_time() - began:.0f} CPU seconds in all.")
    command = "python benchmarks/bench_backfill.py" + (" --data DIR" if options.data else "")
    command += f" --rows {options.rows} --queries {options.queries} --repetitions {options.repetitions}"
    command += f" --pairs {options.pairs} --seeds {options.seeds}"
    publish("backfill", command, "\n\n".join(parts), ["numpy", "torch"], save=options.save)


if __name__ == "__main__":
    main()
