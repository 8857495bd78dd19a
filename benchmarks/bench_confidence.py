"""Which score tells, before or after the search, that a bridged search will fail; and what drift says of other queries.

Scores of a query's own vector: Mahalanobis distance (`novelty`), mean cosine distance to the nearest of a bank of
training vectors, mean error of the map on the nearest of pairs it was not fitted to, and the learned `strangeness` that
artefacts carry. Scores that need the search: the first neighbour's similarity, and its margin over the second. Each is
judged by the area under the ROC curve of failing recall@1 (0.5 is chance), and by what is gained when the strangest are
not answered.
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path

import numpy as np
import torch
from maps_data import DataSet, QuerySet, Split, data_sets
from maps_tables import estimate
from table import markdown, publish

from compat.evaluation.drift import distance_to_uniform
from compat.metrics.abstention import RiskCoverage
from compat.metrics.retrieval import ArrayRows, relevant_ranks, retrieval_scores
from compat.neighbors import comparable_rows, unit_rows
from compat.options import Direction, FitOptions
from compat.pairs import Pairs
from compat.training.familiarity import discrimination, fit_familiarity
from compat.training.fit import fit_transformer
from compat.transformers.artefact import Transformer

DIRECTIONS: tuple[Direction, ...] = ("new-to-old", "old-to-new")
BANK, NEIGHBOURS = 4000, 10
SHARES = (0.1, 0.2, 0.3)
SCORES = ("novelty", "nearest pairs", "map error nearby", "strangeness", "first", "margin", "margin + strangeness")


def nearest(queries: np.ndarray, bank: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Cosines and rows of the nearest of a bank, [q, NEIGHBOURS]."""
    product = torch.from_numpy(unit_rows(queries)) @ torch.from_numpy(unit_rows(bank)).T
    values, rows = torch.topk(product, NEIGHBOURS, dim=1)
    return values.numpy(), rows.numpy()


def ranks(scores: np.ndarray) -> np.ndarray:
    return np.argsort(np.argsort(scores, kind="stable")) / len(scores)


def scores_of(
    transformer: Transformer,
    half: Transformer,
    pairs: tuple[np.ndarray, np.ndarray],
    queries: QuerySet,
    top: np.ndarray,
) -> dict[str, np.ndarray]:
    """Each score of the queries, higher being likelier to fail."""
    assert transformer.familiarity is not None
    old, new = (side[: min(BANK, len(side) // 2)] for side in pairs)  # what `half` was not fitted to
    error = 1 - (unit_rows(old) * unit_rows(half.transform(new))).sum(axis=1)
    strangeness, margin = transformer.strangeness(queries.new), top[:, 1] - top[:, 0]
    found = (
        transformer.familiarity.novelty(queries.new),
        -nearest(queries.new, pairs[1][:BANK])[0].mean(axis=1),
        error[nearest(queries.new, new)[1]].mean(axis=1),
        strangeness,
        -top[:, 0],
        margin,
        ranks(margin) + ranks(strangeness),
    )
    return dict(zip(SCORES, found, strict=True))


def measure(split: Split, count: int, direction: Direction, family: str) -> dict[tuple[str, str], list[float]]:
    """Area under the ROC curve and gains, by query set and score; the accuracy and drift by query set."""
    old, new = split.pairs_old[:count], split.pairs_new[:count]
    labels = None if split.pairs_labels is None else split.pairs_labels[:count]
    options = FitOptions(transformer=family, direction=direction, correction=0.5, strength=0.3)
    transformer = fit_transformer(Pairs.from_arrays(old, new, labels), options)
    rest = Pairs.from_arrays(old[count // 2 :], new[count // 2 :])
    half = fit_transformer(rest, FitOptions(transformer=family, direction="new-to-old", strength=0.3))
    gallery, similarity = transformer.serve_gallery(split.gallery_old), transformer.served_space.similarity
    found: dict[tuple[str, str], list[float]] = {}
    for queries in split.query_sets:
        served = transformer.serve_queries(queries.new)
        placed = relevant_ranks(served, ArrayRows(gallery), queries.relevance, similarity=similarity)
        correct = np.asarray(retrieval_scores(placed, queries.relevance).recall_at_1)
        sides = (torch.from_numpy(comparable_rows(side, similarity)) for side in (served, gallery))
        top = torch.topk(next(sides) @ next(sides).T, 2, dim=1).values.numpy()
        for name, score in scores_of(transformer, half, (old, new), queries, top).items():
            curve = RiskCoverage.of(score, correct)
            gains = [curve.accuracy(share) - curve.accuracy(0) for share in SHARES]
            area = discrimination(score, correct < 1)
            found[queries.name, name] = [np.nan if area is None else area, *gains]
        assert transformer.familiarity is not None
        novelty = transformer.familiarity.novelty(queries.new)
        found[queries.name, ""] = [correct.mean(), (novelty > 0.95).mean(), distance_to_uniform(novelty)]
    return found


def seconds_to_fit(count: int, dim: int) -> float:
    """CPU seconds that an artefact's familiarity takes; the vectors of more than 20,000 pairs repeat."""
    drawn = np.random.default_rng(0).normal(size=(2, min(count, 20_000), dim)).astype(np.float32)
    new = np.resize(drawn[0], (count, dim))
    pairs = Pairs.from_arrays(np.resize(drawn[0] + 2.5 * drawn[1], (count, dim)), new)
    started = time.process_time()
    fit_familiarity(pairs, "new-to-old")
    return time.process_time() - started


def tables(data_set: DataSet, sizes: list[int], seeds: int, family: str) -> tuple[list[list[str]], list[list[str]]]:
    """Rows of scores and rows of drift."""
    scored, drifted = [], []
    for count in sizes:
        for direction in DIRECTIONS:
            runs = [measure(data_set.split(seed), count, direction, family) for seed in range(seeds)]
            print(f"{data_set.name}, {count} pairs, {direction}: measured", flush=True)
            for queries, name in runs[0]:
                cells = [str(estimate(column)) for column in zip(*(run[queries, name] for run in runs), strict=True)]
                head = [data_set.name, str(count), direction, queries]
                if name:
                    scored.append([*head, name, *cells])
                elif direction == DIRECTIONS[0]:
                    drifted.append([data_set.name, str(count), queries, *cells])
    return scored, drifted


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", type=Path, help="a folder that holds text_wordnet/, font_identities/, see README.md")
    parser.add_argument("--sizes", type=int, nargs="+", default=[500, 2000, 10_000], help="pairs")
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--transformer", default="shrunk")
    parser.add_argument("--save", action="store_true", help="write results/confidence.md")
    options = parser.parse_args()
    scored, drifted = [], []
    for data_set in data_sets(options.data):
        sizes = [size for size in options.sizes if size <= max(data_set.sizes)]
        rows = tables(data_set, sizes, options.seeds, options.transformer)
        scored += rows[0]
        drifted += rows[1]
    gains = [f"gain at {share:.0%}" for share in SHARES]
    text = markdown(["data", "pairs", "direction", "queries", "score", "ROC area", *gains], scored)
    text += (
        f"\n\n{options.transformer} with strength 0.3 and hubness correction 0.5, {options.seeds} seeds; ± is half of "
        "a 95% t interval. A gain is recall@1 of the queries answered less that of all, where that share of the "
        "strangest is not answered. `first`, `margin` and `margin + strangeness` (the sum of their ranks) need the "
        "search.\n\n"
    )
    text += markdown(["data", "pairs", "queries", "recall@1", "beyond 95%", "Kolmogorov-Smirnov"], drifted)
    text += (
        "\n\nNew-to-old maps; what drift sees: the share of queries beyond the 95th percentile of held-out pairs (0.05 "
        "is expected where queries are of their kind), and the distance of all percentiles to uniform.\n\n"
    )
    seconds = {count: seconds_to_fit(count, 512) for count in (10_000, 1_000_000)} if options.save else {}
    text += "; ".join(f"{count:,} pairs of 512-D: {value:.2f} CPU seconds" for count, value in seconds.items())
    command = f"python benchmarks/bench_confidence.py --data DIR --sizes {' '.join(map(str, options.sizes))}"
    command += f" --seeds {options.seeds} --transformer {options.transformer}"
    publish("confidence", command, text, ["numpy", "torch"], save=options.save)


if __name__ == "__main__":
    main()
