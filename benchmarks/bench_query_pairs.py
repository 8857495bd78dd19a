"""What a few hundred query-like pairs buy on real queries, besides pairs of documents.

The map is fitted to pairs of documents and N pairs of queries (a query embedded by both models; its right answer is not
told). It is asked other queries of the same kind, in a gallery that holds none of the documents it was fitted to. 500
and more query pairs are also where hubs are looked for. The settings of the family are chosen by held-out pairs.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
import polars as pl
from maps_tables import estimate
from table import markdown, publish

from compat.metrics.relevance import Relevance
from compat.metrics.retrieval import ArrayRows, relevant_ranks, retrieval_scores
from compat.neighbors import unit_rows
from compat.options import Direction, FitOptions
from compat.pairs import Pairs, Source, merge_pairs
from compat.training.fit import fit_transformer
from compat.training.selection import Distractors

SETS = ("lemma", "example")
DIRECTIONS: tuple[Direction, ...] = ("new-to-old", "old-to-new")


def scores(queries: np.ndarray, gallery: np.ndarray, relevance: Relevance, similarity: str) -> tuple[float, float]:
    """recall@1 and mean reciprocal rank."""
    kind = "inner_product" if similarity == "inner_product" else "cosine"
    found = retrieval_scores(relevant_ranks(queries, ArrayRows(gallery), relevance, similarity=kind), relevance)
    return float(found.recall_at_1.mean()), float(found.reciprocal_rank.mean())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", type=Path, help="a folder that holds text_wordnet/, see README.md")
    parser.add_argument("--documents", type=int, default=10_000, help="pairs of documents")
    parser.add_argument("--gallery", type=int, default=8000, help="documents searched")
    parser.add_argument("--queries", type=int, nargs="+", default=[0, 100, 500, 2000], help="pairs of queries")
    parser.add_argument("--transformer", default="whitened")
    parser.add_argument("--correction", type=float, default=0.5)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--save", action="store_true", help="write results/query_pairs.md")
    options = parser.parse_args()
    if options.data is None:
        print("nothing measured: real queries embedded by two models are needed, pass --data DIR (see README.md)")
        return
    folder = options.data / "text_wordnet"
    old, new = (unit_rows(np.load(folder / name)) for name in ("docs_old_wordllama256.npy", "docs_new_minilm384.npy"))
    rows_of_items = {item: row for row, item in enumerate(pl.read_parquet(folder / "docs.parquet")["item_id"])}
    found: dict[tuple[str, str], list[tuple[float, float]]] = {}
    for kind in SETS:
        queries_old = unit_rows(np.load(folder / f"q{kind}_old_wordllama256.npy"))
        queries_new = unit_rows(np.load(folder / f"q{kind}_new_minilm384.npy"))
        targets = pl.read_parquet(folder / f"queries_{kind}.parquet")["target_item_id"]
        target_rows = np.array([rows_of_items[item] for item in targets])
        for seed in range(options.seeds):
            order = np.random.default_rng(seed).permutation(len(old))
            gallery, fitted = order[: options.gallery], order[options.gallery :][: options.documents]
            place = np.full(len(old), -1)
            place[gallery] = np.arange(len(gallery))
            asked = np.flatnonzero(place[target_rows] >= 0)
            spare = np.random.default_rng(seed).permutation(np.flatnonzero(place[target_rows] < 0))
            relevance = Relevance.by_item(place[target_rows[asked]])
            native = {"old to old": (queries_old, old), "new to new": (queries_new, new)}
            for name, (side, space) in native.items():
                found.setdefault((kind, name), []).append(scores(side[asked], space[gallery], relevance, "cosine"))
            documents = Pairs.from_arrays(old[fitted], new[fitted])
            for count in options.queries:
                like_queries = Pairs.from_arrays(queries_old[spare[:count]], queries_new[spare[:count]])
                sources = [Source(documents), *([Source(like_queries, query_like=True)] if count else [])]
                for direction in DIRECTIONS:
                    transformer = fit_transformer(
                        merge_pairs(sources),
                        FitOptions(transformer=options.transformer, correction=options.correction, direction=direction),
                        gallery=Distractors(old[gallery]),
                    )
                    result = scores(
                        transformer.serve_queries(queries_new[asked]),
                        transformer.serve_gallery(old[gallery]),
                        relevance,
                        transformer.served_space.similarity,
                    )
                    found.setdefault((kind, f"{direction}, {count} query pairs"), []).append(result)
                    print(f"{kind}, seed {seed}, {direction}, {count} query pairs: {result}", flush=True)
    table = []
    for (kind, name), results in found.items():
        cells = [estimate(column) for column in zip(*results, strict=True)]
        without = found.get((kind, f"{name.split(',')[0]}, 0 query pairs"))
        gains = ["", ""]
        if without and without is not results:
            gains = [str(estimate(column)) for column in (np.array(results) - np.array(without)).T]
        table.append([kind, name, *map(str, cells), *gains])
    header = ["queries", "search", "recall@1", "MRR", "recall@1 gained by them", "MRR gained"]
    text = markdown(header, table)
    text += (
        f"\n\n{options.transformer} with hubness correction {options.correction}, {options.documents} pairs of "
        f"documents, a gallery of {options.gallery} others, {options.seeds} seeds; ± is half of a 95% t interval; "
        "gains are paired by seed."
    )
    command = (
        f"python benchmarks/bench_query_pairs.py --data DIR --documents {options.documents} --gallery "
        f"{options.gallery} --transformer {options.transformer} --correction {options.correction} "
        f"--seeds {options.seeds}"
    )
    publish("query_pairs", command, text, ["numpy", "torch"], save=options.save)


if __name__ == "__main__":
    main()
