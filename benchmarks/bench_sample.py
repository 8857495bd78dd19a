"""Which items to embed with the other model as training pairs: ways to pick N of an old gallery, against random picks.

A picker sees the old vectors and labels of a pool, nothing else. A map is fitted to the pairs it picked and judged on
items outside the pool. `--data` names a folder with the real pairs: `text_wordnet/` (old and new vectors of 24,000
definitions, 45 lexical groups) and `font_identities/` (face networks on characters; a label is a character).
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import NamedTuple, get_args

import numpy as np
import polars as pl
from table import markdown, publish

from compat.metrics.relevance import Relevance
from compat.metrics.retrieval import ArrayRows, relevant_ranks, retrieval_scores
from compat.neighbors import unit_rows
from compat.options import Direction, FitOptions
from compat.pairs import Pairs, label_codes
from compat.training.fit import fit_transformer
from compat.training.sampling import pick_rows

DIRECTIONS = get_args(Direction)
MAPS = ("ridge 0.3", "procrustes", "ridge")
MEASURES = ("recall@1", "MRR")
HELD_OUT, QUERIES = 10_000, 1_500
RANDOM_DRAWS = 3  # averaged for each seed: the baseline's own luck would widen every interval
RIDGE = 0.3  # strength for the pickers that plan for a ridge, in units of the mean variance


class Seen(NamedTuple):
    """What a picker may look at: unit rows of the old model [n, d] and label codes [n] of the pool."""

    old: np.ndarray
    labels: np.ndarray


class Case(NamedTuple):
    """A pool to pick from and held-out rows to judge on, all of one seed."""

    pool: Pairs
    seen: Seen
    queries: dict[str, np.ndarray]  # by model: old, new
    gallery: dict[str, np.ndarray]
    relevance: Relevance


def text_case(data: Path, seed: int) -> Case:
    """Find each of 1,500 held-out definitions by its other embedding among 10,000 held-out ones."""
    folder = data / "text_wordnet"
    old, new = (np.load(folder / f"docs_{name}.npy") for name in ("old_wordllama256", "new_minilm384"))
    labels = label_codes(pl.read_parquet(folder / "docs.parquet")["label"])
    rows = np.random.default_rng([seed, 1]).permutation(len(old))
    held_out, pool = rows[:HELD_OUT], np.sort(rows[HELD_OUT:])
    return Case(
        # Labels are for the picker; the search is by item, so the strength of a ridge is chosen by item too.
        Pairs.from_arrays(old[pool].astype(np.float32), new[pool].astype(np.float32)),
        Seen(unit_rows(old[pool]), labels[pool]),
        {"old": old[held_out[:QUERIES]], "new": new[held_out[:QUERIES]]},
        {"old": old[held_out], "new": new[held_out]},
        Relevance.by_item(np.arange(QUERIES)),
    )


def font_case(data: Path, seed: int) -> Case:
    """Find other drawings of 600 characters outside the pool; the pool is four fifths of 1,000 characters."""
    folder = data / "font_identities"
    generator = np.random.default_rng([seed, 2])
    sides = {}
    for part in ("train", "test"):
        old, new = (np.load(folder / part / f"{name}.npy") for name in ("old_iresnet18", "new_iresnet50"))
        items = pl.read_parquet(folder / part / "items.parquet")
        sides[part] = (old, new, label_codes(items["label"]), items["split"].to_numpy())
    old, new, labels, _ = sides["train"]
    kept = generator.permutation(labels.max() + 1)[: (labels.max() + 1) * 4 // 5]
    pool = np.flatnonzero(np.isin(labels, kept))
    test_old, test_new, test_labels, split = sides["test"]
    gallery = np.flatnonzero(split == "gallery")
    queries = generator.permutation(np.flatnonzero(split == "query"))[:QUERIES]
    return Case(
        Pairs.from_arrays(old[pool].astype(np.float32), new[pool].astype(np.float32), labels[pool]),
        Seen(unit_rows(old[pool]), labels[pool]),
        {"old": test_old[queries], "new": test_new[queries]},
        {"old": test_old[gallery], "new": test_new[gallery]},
        Relevance.by_label(test_labels[queries], test_labels[gallery], np.full(QUERIES, -1)),
    )


CASES: dict[str, Callable[[Path, int], Case]] = {"text_wordnet": text_case, "font_identities": font_case}

Scores = dict[tuple[str, int], np.ndarray]  # [maps, directions, measures] by picker and N
Picker = Callable[[Seen, int, np.random.Generator], np.ndarray]


def label_central(seen: Seen, wanted: int, lots: np.random.Generator) -> np.ndarray:
    """The same number of each label, those nearest to the label's mean."""
    codes = np.unique(seen.labels, return_inverse=True)[1]
    sums = np.zeros((codes.max() + 1, seen.old.shape[1]), np.float32)
    np.add.at(sums, codes, seen.old)
    return evenly(codes, wanted, lots, np.einsum("ij,ij->i", seen.old, unit_rows(sums)[codes]))


def farthest_point(seen: Seen, wanted: int, lots: np.random.Generator) -> np.ndarray:
    """Greedy k-center: always the item farthest from those taken. Gonzalez, 1985; Sener and Savarese, 2018."""
    taken = [int(lots.integers(len(seen.old)))]
    nearest = seen.old @ seen.old[taken[0]]
    while len(taken) < wanted:
        taken.append(int(nearest.argmin()))
        np.maximum(nearest, seen.old @ seen.old[taken[-1]], out=nearest)
    return np.array(taken)


def leverage_scores(seen: Seen, wanted: int, lots: np.random.Generator) -> np.ndarray:
    """Drawn with chances in proportion to ridge leverage. Alaoui and Mahoney, NIPS 2015."""
    x = (seen.old - seen.old.mean(axis=0)).astype(np.float64)
    gram = x.T @ x
    precision = np.linalg.inv(gram + RIDGE * np.trace(gram) / len(gram) * np.eye(len(gram)))
    leverage = np.einsum("ij,ij->i", x @ precision, x)
    return lots.choice(len(x), wanted, replace=False, p=leverage / leverage.sum())


def d_optimal(seen: Seen, wanted: int, _: np.random.Generator) -> np.ndarray:
    """Greedy: always the item about which a ridge on those taken is least certain."""
    return designed(seen.old, wanted, lambda leverage, gain: leverage)  # noqa: ARG005


def v_optimal(seen: Seen, wanted: int, _: np.random.Generator) -> np.ndarray:
    """Greedy: the item that makes a ridge most certain about the pool on average. Yu, Bi and Tresp, ICML 2006."""
    return designed(seen.old, wanted, lambda leverage, gain: gain / (1.0 + leverage))


def designed(old: np.ndarray, wanted: int, value: Callable[[np.ndarray, np.ndarray], np.ndarray]) -> np.ndarray:
    """Greedy design for a ridge on centred rows: each pick has the largest value of x^T A^-1 x and x^T A^-1 C A^-1 x.

    A is the sum of x x^T over the picks plus the penalty, C the pool's covariance.
    """
    x = old - old.mean(axis=0)
    covariance = (x.T @ x).astype(np.float64) / len(x)
    penalty = wanted * RIDGE * np.trace(covariance) / len(covariance)
    inverse = np.eye(len(covariance)) / penalty
    leverage = np.einsum("ij,ij->i", x, x, dtype=np.float64) / penalty
    gain = np.einsum("ij,ij->i", x @ covariance.astype(np.float32), x, dtype=np.float64) / penalty**2
    free, taken = np.ones(len(x), bool), []
    for _ in range(wanted):
        best = int(np.where(free, value(leverage, gain), -np.inf).argmax())
        free[best] = False
        taken.append(best)
        pulled = inverse @ x[best]
        spread = covariance @ pulled
        shrink = 1.0 / (1.0 + x[best] @ pulled)
        along, across = (x @ np.stack([pulled, inverse @ spread], axis=1).astype(np.float32)).T.astype(np.float64)
        leverage -= shrink * along**2
        gain += shrink * along * (shrink * along * (pulled @ spread) - 2.0 * across)
        inverse -= shrink * np.outer(pulled, pulled)
    return np.array(taken)


def herding(seen: Seen, wanted: int, _: np.random.Generator) -> np.ndarray:
    """Kernel herding without replacement, Gaussian kernel of median width. Chen, Welling and Smola, UAI 2010."""
    some = seen.old[:: max(1, len(seen.old) // 1000)]
    width = np.median(1.0 - some @ some.T)

    def kernel(rows: np.ndarray) -> np.ndarray:
        return np.exp((rows @ seen.old.T - 1.0) / width)

    value = np.concatenate([kernel(seen.old[i : i + 1024]).mean(axis=1) for i in range(0, len(seen.old), 1024)])
    covered, taken = np.zeros(len(value)), []
    for step in range(wanted):
        taken.append(int((value - covered / (step + 1)).argmax()))
        value[taken[-1]] = -np.inf
        covered += kernel(seen.old[taken[-1] :][:1])[0]
    return np.array(taken)


PICKERS: dict[str, Picker] = {
    "random": lambda seen, wanted, lots: lots.permutation(len(seen.old))[:wanted],
    "central items of N clusters (compat.sample)": lambda seen, wanted, lots: (
        pick_rows(ArrayRows(seen.old), wanted, seed=int(lots.integers(2**31))).rows
    ),
    "a random item of each of N clusters": lambda seen, wanted, lots: strata(
        k_means(seen.old, wanted, lots)[1], wanted, lots
    ),
    "N/10 clusters in proportion": lambda seen, wanted, lots: strata(
        k_means(seen.old, wanted // 10, lots)[1], wanted, lots
    ),
    "labels evenly": lambda seen, wanted, lots: evenly(seen.labels, wanted, lots),
    "labels evenly, most central": label_central,
    "farthest point": farthest_point,
    "ridge leverage scores": leverage_scores,
    "D-optimal": d_optimal,
    "V-optimal": v_optimal,
    "herding": herding,
}


def k_means(old: np.ndarray, clusters: int, generator: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """Unit centroids [c, d] and the cluster of each row, int64 [n]."""
    import faiss  # after torch

    means = faiss.Kmeans(
        old.shape[1], clusters, niter=15, spherical=True, min_points_per_centroid=1, seed=int(generator.integers(2**31))
    )
    means.train(old)
    assert means.centroids is not None  # set by train
    return means.centroids, (old @ means.centroids.T).argmax(axis=1)


def strata(groups: np.ndarray, wanted: int, generator: np.random.Generator) -> np.ndarray:
    """Systematic picks along rows sorted by group and mixed within: each group gets its share, to within one."""
    order = generator.permutation(len(groups))
    order = order[np.argsort(groups[order], kind="stable")]
    return order[((np.arange(wanted) + generator.random()) * len(groups) / wanted).astype(np.int64)]


def evenly(
    groups: np.ndarray, wanted: int, generator: np.random.Generator, preference: np.ndarray | None = None
) -> np.ndarray:
    """One of each group, then a second of each, and so on; by falling preference, or at random."""
    order = generator.permutation(len(groups))
    by_group = order[np.lexsort((np.zeros(len(order)) if preference is None else -preference[order], groups[order]))]
    starts = np.flatnonzero(np.r_[True, np.diff(groups[by_group]) != 0])
    turn = np.arange(len(groups)) - np.repeat(starts, np.diff(np.r_[starts, len(groups)]))
    lots = generator.permutation(groups.max() + 1)[groups[by_group]]  # which groups come first in the last turn
    return by_group[np.lexsort((lots, turn))[:wanted]]


def judge(case: Case, picked: np.ndarray, maps: list[str]) -> np.ndarray:
    """Recall@1 and MRR [maps, directions, 2] of the maps fitted to the picked pairs."""
    pairs = case.pool.select(np.sort(picked))
    scores = np.empty((len(maps), len(DIRECTIONS), len(MEASURES)))
    for m, family in enumerate(maps):
        for d, direction in enumerate(DIRECTIONS):
            mapped = fitted(pairs, family, direction)
            queries, gallery = case.queries["new"], case.gallery["old"]
            if direction == "new-to-old":
                queries = mapped(queries.astype(np.float32))
            else:
                gallery = mapped(gallery.astype(np.float32))
            found = retrieval_scores(relevant_ranks(queries, ArrayRows(gallery), case.relevance), case.relevance)
            scores[m, d] = found.recall_at_1.mean(), found.reciprocal_rank.mean()
    return scores


def fitted(pairs: Pairs, family: str, direction: Direction) -> Callable[[np.ndarray], np.ndarray]:
    """A map of float32 [n, source] to [n, target] fitted to the pairs."""
    if family == "ridge":
        return fit_transformer(pairs, FitOptions(transformer="ridge", direction=direction)).transform
    # Without the cross-validation of `fit_transformer`, which here would cost most of the time and change nothing but
    # the strength: whether a picker wins must not hang on the strength that its folds choose.
    x, y = (unit_rows(rows) for rows in pairs.take(np.arange(len(pairs)), direction))
    centred, cross = x - x.mean(axis=0), (x - x.mean(axis=0)).T @ y
    if family == "ridge 0.3":
        gram = centred.T @ centred
        weight = np.linalg.solve(gram + RIDGE * np.trace(gram) / len(gram) * np.eye(len(gram)), cross)
    else:
        left, singular, right = np.linalg.svd(cross, full_matrices=False)
        weight = singular.sum() / np.sum((centred @ (left @ right)) ** 2) * (left @ right)
    return lambda rows: (unit_rows(rows) - x.mean(axis=0)) @ weight.astype(np.float32) + y.mean(axis=0)


def one_seed(data: Path, name: str, seed: int, options: argparse.Namespace) -> Scores:
    """Scores of every picker at every N on the case of this seed."""
    case = CASES[name](data, seed)
    scores = {}
    for wanted in options.sizes:
        for picker in ["random", *options.pickers]:
            draws = []
            for draw in range(RANDOM_DRAWS if picker == "random" else 1):
                picked = PICKERS[picker](case.seen, wanted, np.random.default_rng([seed, draw]))
                if len(np.unique(picked)) != wanted:
                    raise ValueError(f"{picker} picked {len(np.unique(picked))} different items, expected {wanted}")
                draws.append(judge(case, picked, options.maps))
            scores[picker, wanted] = np.mean(draws, axis=0)
    print(f"{name}: seed {seed} done", file=sys.stderr, flush=True)
    return scores


def interval(differences: np.ndarray) -> tuple[float, float]:
    """Mean and half width of the 95% t interval of paired differences, one a seed."""
    from scipy.stats import t

    half = t.ppf(0.975, len(differences) - 1) * differences.std(ddof=1) / np.sqrt(len(differences))
    return float(differences.mean()), float(half)


def tables(name: str, seeds: list[Scores], options: argparse.Namespace) -> str:
    """One table for each N and measure: the baseline, then each picker's paired differences in points."""
    columns = [(m, d) for m in range(len(options.maps)) for d in range(len(DIRECTIONS))]
    parts = []
    for wanted in options.sizes:
        for k, measure in enumerate(MEASURES):
            base = np.stack([seed["random", wanted][..., k] for seed in seeds])
            rows = [["random", *(f"{100 * base[:, m, d].mean():.1f}" for m, d in columns)]]
            for picker in options.pickers:
                gain = 100 * (np.stack([seed[picker, wanted][..., k] for seed in seeds]) - base)
                cells = []
                for m, d in columns:
                    mean, half = interval(gain[:, m, d])
                    sign = " **+**" if mean > half else " **-**" if mean < -half else ""
                    cells.append(f"{mean:+.1f} ± {half:.1f}{sign}")
                rows.append([picker, *cells])
            header = [f"{name}, N = {wanted}, {measure}", *(f"{options.maps[m]}, {DIRECTIONS[d]}" for m, d in columns)]
            parts.append(markdown(header, rows))
    return "\n\n".join(parts)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", type=Path, help="folder with text_wordnet/ and font_identities/")
    parser.add_argument("--sets", nargs="+", default=list(CASES), choices=list(CASES))
    parser.add_argument("--sizes", nargs="+", type=int, default=[200, 500])
    parser.add_argument("--pickers", nargs="+", default=list(PICKERS)[1:], choices=list(PICKERS))
    parser.add_argument("--maps", nargs="+", default=list(MAPS)[:2], choices=list(MAPS))
    parser.add_argument("--seeds", type=int, default=8)
    parser.add_argument("--first-seed", type=int, default=0)
    parser.add_argument("--processes", type=int, default=1)
    parser.add_argument("--save", action="store_true", help="write results/sample.md")
    options = parser.parse_args()
    if options.data is None:
        print("bench_sample needs --data with real pairs; nothing measured")
        return
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    seeds = range(options.first_seed, options.first_seed + options.seeds)
    jobs = [(name, seed) for name in options.sets for seed in seeds]
    with ProcessPoolExecutor(options.processes) as pool:
        running = [pool.submit(one_seed, options.data, name, seed, options) for name, seed in jobs]
        done = {job: future.result() for job, future in zip(jobs, running, strict=True)}
    text = "\n\n".join(tables(name, [done[name, seed] for seed in seeds], options) for name in options.sets)
    text += (
        f"\n\nRandom picks: points (mean of {RANDOM_DRAWS} draws a seed). Pickers: points above random, mean and 95% t "
        f"interval over {options.seeds} seeds, each with its own pool and held-out queries; **+** and **-** mark "
        "intervals that leave out zero, as one in twenty does by luck. ridge 0.3 has that strength; `--maps ridge` "
        "has it chosen by cross-validation."
    )
    command = f"python benchmarks/bench_sample.py --data DIR --first-seed {options.first_seed} --seeds {options.seeds}"
    publish("sample", command, text, ["numpy", "torch", "polars", "faiss-cpu"], save=options.save)


if __name__ == "__main__":
    main()
