"""A gallery that is partly re-embedded: recall@1 by how bridged scores are made comparable with native ones.

A share of the gallery is native, the others are bridged; a query's first result is the best of both. Calibrations are
learned from 1,000 pairs that the map was not fitted to, each item asked as a query; those that need to know what is
right learn it from half of the real queries, and all are judged on the other half. On real pairs (`--data`, see
README.md; without it the small ones of the tests).
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
from maps_data import DataSet, QuerySet, Split, data_sets
from maps_tables import estimate
from sklearn.isotonic import IsotonicRegression
from sklearn.linear_model import LogisticRegression
from table import markdown, publish

from compat.metrics.sides import Calibration, Side
from compat.migration.calibration import shift_between
from compat.neighbors import ArrayRows, comparable_rows
from compat.options import Direction, FitOptions
from compat.pairs import Pairs
from compat.training.fit import fit_transformer
from compat.transformers.artefact import Transformer

Scores = Callable[[np.ndarray], np.ndarray]
SHARES = (0.25, 0.5, 0.75)
CALIBRATION_PAIRS = 1_000
MOST_QUERIES = 1_000
FLATTERING = "same document"
AS_THEY_ARE, SHIFT = "as they are", "shift"
HITS = 5
"""Results of each query that outcomes are learned from: those that compete for the first place."""


def ridge(split: Split, options: argparse.Namespace, direction: Direction, correction: float) -> Transformer:
    """A map fitted to all pairs but those for calibration."""
    count = min(options.pairs, len(split.pairs_old) - CALIBRATION_PAIRS if len(split.pairs_old) > 2_000 else 500)
    labels = None if split.pairs_labels is None else split.pairs_labels[:count]
    pairs = Pairs.from_arrays(split.pairs_old[:count], split.pairs_new[:count], labels)
    given = FitOptions(transformer="ridge", direction=direction, correction=correction, strength=1.0)
    return fit_transformer(pairs, given)


def sides(transformer: Transformer, queries: np.ndarray, old: np.ndarray, new: np.ndarray) -> tuple[Side, Side]:
    """Queries with a gallery through the bridge, and with its native form."""
    served = transformer.serve_gallery(old)
    bridged = Side(transformer.serve_queries(queries), ArrayRows(served), transformer.served_space.similarity)
    return bridged, Side(queries, ArrayRows(new))


def scores_of(side: Side) -> np.ndarray:
    """All scores, float32 [q, g]."""
    gallery = side.gallery.rows(0, len(side.gallery))
    return comparable_rows(side.queries, side.similarity) @ comparable_rows(gallery, side.similarity).T


def line(calibration: Calibration) -> Scores:
    return lambda scores: scores * np.float32(calibration.scale) + np.float32(calibration.shift)


def quantiles(bridged: np.ndarray, native: np.ndarray) -> Scores:
    """As many impostors exceed a bridged score as the native one it becomes: equal false match rates."""
    rates = np.append(0.999, np.logspace(-0.05, -np.log10(bridged.size / 10), 40))
    x, y = np.quantile(bridged, 1 - rates), np.quantile(native, 1 - rates)
    slope = (y[-1] - y[-9]) / (x[-1] - x[-9])
    return lambda scores: np.where(scores > x[-1], y[-1] + slope * (scores - x[-1]), np.interp(scores, x, y))


def top_hits(scores: np.ndarray, right: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Scores of each query's first `HITS` results and whether they are right."""
    top = np.argpartition(-scores, HITS, axis=1)[:, :HITS]
    return np.take_along_axis(scores, top, 1).ravel(), np.take_along_axis(right, top, 1).ravel()


def logistic(bridged: np.ndarray, native: np.ndarray, right: np.ndarray) -> Scores:
    """The native score at which a result is as likely right, by two logistic regressions."""
    fits = []
    for scores in (bridged, native):
        x, y = top_hits(scores, right)
        fit = LogisticRegression(C=1e6, max_iter=500).fit(x[:, None], y)
        fits.append((float(fit.coef_[0, 0]), float(fit.intercept_[0])))
    (a, b), (c, d) = fits
    return (lambda scores: (a * scores + b - d) / c) if min(a, c) > 0 else (lambda scores: scores)


def isotonic(bridged: np.ndarray, native: np.ndarray, right: np.ndarray) -> Scores:
    """The same by two isotonic regressions; where both are flat a native score's middle is taken."""
    chance_bridged, chance_native = (
        IsotonicRegression(out_of_bounds="clip").fit(*top_hits(scores, right)) for scores in (bridged, native)
    )
    grid = np.linspace(float(native.min()), float(native.max()), 512)
    # A little of the score itself keeps an order where the chance is flat.
    rising = chance_native.predict(grid) + 1e-4 * grid
    return lambda scores: np.interp(
        chance_bridged.predict(scores.ravel()).reshape(scores.shape) + 1e-4 * scores, rising, grid
    )


def methods(
    pair_sides: tuple[Side, Side], known: tuple[np.ndarray, np.ndarray, np.ndarray]
) -> Iterator[tuple[str, Scores]]:
    """Each way to calibrate, from held-out pairs without labels or from judged queries."""
    bridged, native = (scores_of(side) for side in pair_sides)
    other = ~np.eye(len(bridged), dtype=bool)
    yield AS_THEY_ARE, lambda scores: scores
    yield SHIFT, line(shift_between(*pair_sides))
    yield "mean and spread", line(Calibration.between(bridged[other], native[other]))
    yield "false match rate", quantiles(bridged[other], native[other])
    yield "logistic, judged", logistic(*known)
    yield "isotonic, judged", isotonic(*known)


def found_first(scores: np.ndarray, right: np.ndarray) -> float:
    """recall@1, ties against the query."""
    best = np.where(right, scores, -np.inf).max(axis=1)
    return float(np.mean(best - 1e-6 > np.where(right, -np.inf, scores).max(axis=1)))


def measure(
    split: Split, queries: QuerySet, transformer: Transformer, seed: int
) -> tuple[list[float], dict[str, list[float]]]:
    """recall@1 of the bridge and of the new model alone; and of each method, by share that is re-embedded."""
    generator = np.random.default_rng(seed)
    asked = generator.permutation(len(queries.new))[:MOST_QUERIES]
    bridged, native = map(scores_of, sides(transformer, queries.new[asked], split.gallery_old, split.gallery_new))
    right = np.zeros((len(queries.new), len(split.gallery_old)), bool)
    right[queries.relevance.queries, queries.relevance.rows] = True
    right = right[asked]
    learn, judge = slice(None, len(asked) // 2), slice(len(asked) // 2, None)
    held = slice(len(split.pairs_old) - CALIBRATION_PAIRS if len(split.pairs_old) > 2_000 else 500, None)
    pair_sides = sides(transformer, split.pairs_new[held], split.pairs_old[held], split.pairs_new[held])
    drawn = [generator.random(bridged.shape[1]) < share for share in SHARES]
    found = {
        name: [found_first(np.where(done, native[judge], moved), right[judge]) for done in drawn]
        for name, scale in methods(pair_sides, (bridged[learn], native[learn], right[learn]))
        for moved in [scale(bridged[judge])]
    }
    return [found_first(side[judge], right[judge]) for side in (bridged, native)], found


def table(data_set: DataSet, options: argparse.Namespace) -> str:
    runs: dict[tuple[str, str, str], list[tuple[list[float], dict[str, list[float]]]]] = {}
    for seed in range(options.seeds):
        split = data_set.split(seed)
        for direction in ("new-to-old", "old-to-new"):
            for correction in (0.0, 0.5):
                transformer = ridge(split, options, direction, correction)
                for queries in split.query_sets:
                    if queries.name != FLATTERING:
                        key = (queries.name, direction, "yes" if correction else "no")
                        runs.setdefault(key, []).append(measure(split, queries, transformer, seed))
                print(f"{data_set.name}, seed {seed}, {direction}, {correction}: measured", flush=True)
    rows = []
    for (queries, direction, corrected), seeds in runs.items():
        head = [data_set.name, queries, direction, corrected]
        ends = [str(estimate(run[0][end] for run in seeds)) for end in (0, 1)]
        for name in seeds[0][1]:
            shares = [str(estimate(run[1][name][i] for run in seeds)) for i in range(len(SHARES))]
            gain = estimate(float(np.mean(run[1][name]) - np.mean(run[1][AS_THEY_ARE])) for run in seeds)
            rows.append([*head, name, ends[0], *shares, ends[1], "" if name == AS_THEY_ARE else str(gain)])
    head = ["data", "queries", "direction", "corrected", "bridged scores", "bridge alone"]
    return markdown([*head, *(f"{share:.0%} native" for share in SHARES), "new to new", "less as they are"], rows)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", type=Path, help="a folder that holds text_wordnet/, font_identities/, see README.md")
    parser.add_argument("--pairs", type=int, default=3_000, help="pairs that maps are fitted to, at most")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--save", action="store_true", help="write results/mixed.md")
    options = parser.parse_args()
    began = time.process_time()
    text = "\n\n".join(table(data_set, options) for data_set in data_sets(options.data))
    text += (
        "\n\nRecall@1 where a share of the gallery, drawn at random, is re-embedded and the others are bridged; the "
        "last column is the mean over the shares, paired by seed. "
        f"Ridge on {options.pairs:,} pairs at most; {options.seeds} seeds draw pairs, gallery, queries and shares; "
        "± is half of a 95% t interval over them. `shift` makes the mean score of different items alike and is what is "
        "served where the bridge corrects hubs; elsewhere scores are merged as they are. `false match rate` matches "
        "quantiles of impostors; `judged` ones learn the chance that a result is right from half of the queries, and "
        "leave scores as they are where that falls as scores rise. "
        f"{time.process_time() - began:.0f} CPU seconds in all."
    )
    command = "python benchmarks/bench_mixed.py" + (" --data DIR" if options.data else "")
    command += f" --pairs {options.pairs} --seeds {options.seeds}"
    publish("mixed", command, text, ["numpy", "torch", "scikit-learn"], save=options.save)


if __name__ == "__main__":
    main()
