"""A unified space beside maps of a single direction: on an old gallery mapped, and on one half enrolled by a new model.

`new-to-old` maps queries and new items into the old space, `old-to-new` old items into the new one, `unified` both into
a space of their own. Each cell is a data set, a number of pairs, a seed and a map; it is written down when measured,
and the same command run again measures what is missing.
"""

from __future__ import annotations

import argparse
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
from bench_maps import Cells
from maps_data import HOW_TO_GET_PAIRS, DataSet, QuerySet, Split, data_sets
from maps_tables import Estimate, estimate
from table import markdown, publish

from compat.metrics.retrieval import ArrayRows, relevant_ranks, retrieval_scores
from compat.neighbors import unit_rows
from compat.options import Direction, FitOptions
from compat.pairs import Pairs
from compat.training.fit import fit_transformer
from compat.training.selection import Distractors
from compat.training.unified import fit_unified
from compat.transformers.artefact import Transformer
from compat.transformers.hubness import lift_gallery
from stores.space import Similarity

DIRECTIONS: tuple[Direction, ...] = ("new-to-old", "old-to-new")
CORRECTED = "whitened + hubness"
SINGLES = {"ridge": ("ridge", None), CORRECTED: ("whitened", 0.5), "residual_mlp": ("residual_mlp", None)}
REFERENCES = ("old-to-old", "new-to-new")
GALLERIES = {"mapped": "old gallery", "mixed": "half from the new model"}

Record = dict[str, Any]


def recall(asked: QuerySet, queries: np.ndarray, gallery: np.ndarray, similarity: Similarity = "cosine") -> float:
    """Recall@1 of queries [q, d] in a gallery [g, d]."""
    rows = np.ascontiguousarray(gallery, np.float32)
    ranks = relevant_ranks(
        np.ascontiguousarray(queries, np.float32), ArrayRows(rows), asked.relevance, similarity=similarity
    )
    return float(retrieval_scores(ranks, asked.relevance).recall_at_1.mean())


def mixed(old: np.ndarray, new: np.ndarray, seed: int) -> np.ndarray:
    """A gallery [g, d] of which a random half of the items comes from the new model, all of unit length."""
    from_new = np.random.default_rng(seed).permutation(len(old)) < len(old) // 2
    return np.where(from_new[:, None], unit_rows(new), unit_rows(old))


def reference_cell(data: DataSet, split: Split, name: str, seed: int) -> Record:
    """Searching without a map: the old system, or the new one on a re-embedded gallery."""
    scores = {}
    for asked in split.query_sets:
        sides = (asked.old, split.gallery_old) if name == "old-to-old" else (asked.new, split.gallery_new)
        scores[asked.name] = {"mapped": recall(asked, *sides)}
    return {"data": data.name, "pairs": 0, "direction": "-", "seed": seed, "map": name, "scores": scores}


def single_cell(split: Split, pairs: Pairs, name: str, direction: Direction, seed: int, epochs: int) -> Record:
    """Both galleries through a map of one direction, as it is served."""
    family, correction = SINGLES[name]
    options = FitOptions(transformer=family, direction=direction, correction=correction, epochs=epochs, seed=seed)
    fitted = fit_transformer(pairs, options, gallery=Distractors(split.gallery_old, split.gallery_labels))
    mapped_new = fitted.transform(split.gallery_new) if direction == "new-to-old" else split.gallery_new
    mapped_old = split.gallery_old if direction == "new-to-old" else fitted.transform(split.gallery_old)
    galleries = {"mapped": unit_rows(mapped_old), "mixed": mixed(mapped_old, mapped_new, seed)}
    return {
        queries.name: {
            kind: recall(
                queries, fitted.serve_queries(queries.new), _served(fitted, rows), fitted.served_space.similarity
            )
            for kind, rows in galleries.items()
        }
        for queries in split.query_sets
    }


def _served(fitted: Transformer, rows: np.ndarray) -> np.ndarray:
    """Rows of the target space as they are searched."""
    return rows if fitted.correction is None else lift_gallery(rows, fitted.correction.offsets(rows, None))


def unified_cell(split: Split, pairs: Pairs, seed: int, epochs: int) -> tuple[Record, list[str]]:
    """Both galleries in the unified space, and what the fit had to say."""
    options = FitOptions(transformer="unified", epochs=epochs, seed=seed)
    halves = fit_unified(pairs, options, gallery=Distractors(split.gallery_old, split.gallery_labels))
    old, new = halves.old.transform(split.gallery_old), halves.new.transform(split.gallery_new)
    galleries = {"mapped": old, "mixed": mixed(old, new, seed)}
    found = {
        queries.name: {
            kind: recall(queries, halves.new.transform(queries.new), rows) for kind, rows in galleries.items()
        }
        for queries in split.query_sets
    }
    return found, halves.old.training["notes"]


def run(data: DataSet, options: argparse.Namespace, cells: Cells) -> None:
    """Measure the cells of one data set that are missing."""
    singles = [(name, direction) for name in options.maps for direction in DIRECTIONS]
    for seed in options.seeds:
        split = data.split(seed)
        count = min(options.pairs, len(split.pairs_old))
        labels = None if split.pairs_labels is None else split.pairs_labels[:count]
        pairs = Pairs.from_arrays(split.pairs_old[:count], split.pairs_new[:count], labels)
        for name in REFERENCES:
            if cells.get(data.name, 0, "-", seed, name) is None:
                cells.add(reference_cell(data, split, name, seed))
        for name, direction in [("unified", None), *singles]:
            key = {"data": data.name, "pairs": count, "direction": direction or "-", "seed": seed, "map": name}
            if cells.get(*key.values()) is not None:
                continue
            started, notes = time.perf_counter(), []
            if direction is None:
                scores, notes = unified_cell(split, pairs, seed, options.epochs)
            else:
                scores = single_cell(split, pairs, name, direction, seed, options.epochs)
            seconds = time.perf_counter() - started
            cells.add(key | {"scores": scores, "seconds": seconds, "notes": notes})
            print(f"{data.name} seed {seed} {name} {direction}: {scores}, {seconds:.0f} s", file=sys.stderr, flush=True)


def signed(difference: Estimate) -> str:
    """A paired difference with its 95% interval, which one seed alone does not give."""
    if np.isnan(difference.half):
        return f"{difference.mean:+.3f}"
    low, high = difference.mean - difference.half, difference.mean + difference.half
    return f"{difference.mean:+.3f} [{low:+.3f}, {high:+.3f}]"


def tables(data: DataSet, records: list[Record]) -> str:
    """A table for each set of queries."""
    mine = [record for record in records if record["data"] == data.name]
    if not mine:
        return f"## {data.name}\n\nNot measured."
    sets = [*dict.fromkeys(name for record in mine for name in record["scores"])]
    parts = [f"## {data.name}"]
    for queries in sets:
        by_map: dict[tuple[int, str, str], dict[int, Record]] = {}
        for record in mine:
            key = (record["pairs"], record["map"], record["direction"])
            by_map.setdefault(key, {})[record["seed"]] = record["scores"][queries]
        rows = []
        for (pairs, name, direction), found in sorted(by_map.items(), key=lambda item: item[0][0]):
            row = [f"{pairs:,}" if pairs else "-", name if direction == "-" else f"{name}, {direction}"]
            ours = by_map.get((pairs, "unified", "-"), {})
            for kind in GALLERIES:
                here = {seed: scores[kind] for seed, scores in found.items() if kind in scores}
                row.append(str(estimate(here.values())) if here else "")
                paired = [ours[seed][kind] - value for seed, value in here.items() if seed in ours]
                row.append(signed(estimate(paired)) if paired and name != "unified" else "")
            rows.append(row)
        header = ["pairs", "map"]
        header += [cell for kind in GALLERIES.values() for cell in (f"recall@1, {kind}", "unified less it")]
        parts.append(f"### {data.name}, {queries}\n\n{markdown(header, rows)}")
    return "\n\n".join(parts)


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, help="a folder that holds text_wordnet/ or font_identities/ or both")
    parser.add_argument("--out", type=Path, default=Path("runs/bench_unified/cells.jsonl"), help="where cells are kept")
    parser.add_argument("--only", nargs="+", help="only these data sets")
    parser.add_argument("--maps", nargs="+", default=["ridge", CORRECTED], choices=[*SINGLES], help="single directions")
    parser.add_argument("--pairs", type=int, default=4000, help="pairs to fit on")
    parser.add_argument("--epochs", type=int, default=15, help="most epochs of a network")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2], help="seeds to measure")
    parser.add_argument("--tables", action="store_true", help="measure nothing, print the tables of what is there")
    parser.add_argument("--save", action="store_true", help="write results/unified.md")
    options = parser.parse_args(argv)
    try:
        chosen = [data for data in data_sets(options.data) if not options.only or data.name in options.only]
    except (ValueError, OSError) as mistake:
        parser.error(str(mistake))
    if options.data is None:
        print(HOW_TO_GET_PAIRS, file=sys.stderr)
    cells = Cells(options.out)
    if not options.tables:
        for data in chosen:
            run(data, options, cells)
    records = cells.of([data.name for data in chosen])
    about = "\n".join(f"- {data.name}: {data.about}" for data in chosen)
    explained = (
        f"± is half of a 95% t interval over {len(options.seeds)} seeds; differences are paired by seed, positive "
        f"where the unified space finds more. Networks train for {options.epochs} epochs at most. '{CORRECTED}' has a "
        "correction of 0.5, computed for the very gallery searched; ridge and unified have none. In a mixed gallery a "
        "random half of the items was embedded by the new model; without labels a query whose item is in that half "
        "finds its own very vector."
    )
    text = "\n\n".join([about, explained, *(tables(data, records) for data in chosen)])
    command = (
        f"python benchmarks/bench_unified.py{' --data DIR' if options.data else ''} --pairs {options.pairs} "
        f"--epochs {options.epochs} --seeds {' '.join(map(str, options.seeds))}"
    )
    publish("unified", command, text, ["numpy", "torch"], save=options.save)


if __name__ == "__main__":
    main()
