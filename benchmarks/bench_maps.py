"""Our maps beside other people's: fitted in one process to the same pairs, judged on the same gallery and queries.

A cell is a data set, a number of pairs, a direction, a seed and a map. Each is written down when measured, and the same
command run again measures what is missing. `new-to-old` maps the queries, `old-to-new` the gallery.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from maps_data import HOW_TO_GET_PAIRS, DataSet, QuerySet, Split, data_sets
from maps_tables import report
from peers import PEERS
from table import publish

from compat.metrics.retrieval import ArrayRows, relevant_ranks, retrieval_scores
from compat.neighbors import unit_rows
from compat.options import Direction, FitOptions
from compat.pairs import Pairs
from compat.training.fit import fit_transformer
from compat.training.selection import Distractors
from stores.space import Similarity

OURS = ("procrustes", "ridge", "whitened", "residual_mlp", "auto")
REFERENCES = ("old-to-old", "new-to-new", "naive")
DIRECTIONS: tuple[Direction, ...] = ("new-to-old", "old-to-new")
NEIGHBOURS = 10
QUERY_ROWS = 512
TIMED_ROWS = 10_000

Record = dict[str, Any]


@dataclass(frozen=True)
class Served:
    """A fitted map as it is searched with.

    Attributes:
        queries: New queries [q, d_new] to what is asked.
        gallery: Old gallery [g, d_old] to what is searched.
        apply: The map alone, source rows [n, s] to [n, t].
        prepare: Makes source rows what `apply` takes; its time is not the map's.
        similarity: What is ranked by.
        chosen: What the fit chose, for the record.
    """

    queries: Callable[[np.ndarray], np.ndarray]
    gallery: Callable[[np.ndarray], np.ndarray]
    apply: Callable[[np.ndarray], np.ndarray]
    prepare: Callable[[np.ndarray], np.ndarray] = np.asarray
    similarity: Similarity = "cosine"
    chosen: dict[str, Any] | None = None


class Asked(NamedTuple):
    """The key of a cell."""

    data: str
    pairs: int
    direction: Direction
    seed: int
    map: str


class Refused(Exception):
    """A map that cannot be fitted to these pairs, or whose result is not finite."""


def neighbours(queries: np.ndarray, gallery: np.ndarray, k: int, similarity: Similarity = "cosine") -> np.ndarray:
    """The k nearest gallery rows of each query in no order, int64 [q, k], from float32 [q, d] and [g, d]."""
    if similarity == "cosine":
        queries, gallery = unit_rows(queries), unit_rows(gallery)
    asked, searched = torch.from_numpy(queries), torch.from_numpy(gallery).T
    found = [
        torch.topk(asked[start : start + QUERY_ROWS] @ searched, min(k, len(gallery)), sorted=False).indices
        for start in range(0, len(queries), QUERY_ROWS)
    ]
    return torch.cat(found).numpy()


def overlap(found: np.ndarray, truth: np.ndarray) -> float:
    """Mean share of the true neighbours [q, k] that are among those found [q, k]."""
    return float((found[:, :, None] == truth[:, None, :]).any(axis=1).mean())


def measure(
    asked: QuerySet, queries: np.ndarray, gallery: np.ndarray, truth: np.ndarray, similarity: Similarity = "cosine"
) -> dict[str, float]:
    """Retrieval by these queries [q, d] in this gallery [g, d], and how much of `truth` [q, k] is among the nearest.

    Raises:
        Refused: If a vector is not finite, which would rank first everywhere.
    """
    if not (np.isfinite(queries).all() and np.isfinite(gallery).all()):
        raise Refused("its output holds NaN or infinity")
    queries, gallery = (np.ascontiguousarray(side, np.float32) for side in (queries, gallery))
    ranks = relevant_ranks(queries, ArrayRows(gallery), asked.relevance, similarity=similarity)
    scores = retrieval_scores(ranks, asked.relevance)
    return {
        "recall_at_1": float(scores.recall_at_1.mean()),
        "recall_at_10": float(scores.recall_at_10.mean()),
        "mean_reciprocal_rank": float(scores.reciprocal_rank.mean()),
        "overlap_at_10": overlap(neighbours(queries, gallery, truth.shape[1], similarity), truth),
    }


def fit_ours(asked: Asked, split: Split) -> Served:
    """One of our families on the first pairs of the split, told of the old gallery that it will serve."""
    labels = None if split.pairs_labels is None else split.pairs_labels[: asked.pairs]
    fitted = fit_transformer(
        Pairs.from_arrays(split.pairs_old[: asked.pairs], split.pairs_new[: asked.pairs], labels),
        FitOptions(transformer=asked.map, direction=asked.direction, seed=asked.seed),
        gallery=Distractors(split.gallery_old, split.gallery_labels),
    )
    facts = {name: fitted.training[name] for name in ("chosen", "strength") if name in fitted.training}
    correction = fitted.correction.strength if fitted.correction else None
    return Served(
        fitted.serve_queries,
        fitted.serve_gallery,
        fitted.transform,
        similarity=fitted.served_space.similarity,
        chosen={"family": fitted.family, **facts, "correction": correction},
    )


def fit_peer(asked: Asked, split: Split) -> Served:
    """A peer on unit rows of the first pairs; its output is ranked by cosine.

    Raises:
        Refused: If it does not take these pairs, with its own words.
    """
    old, new = (_peer_rows(side[: asked.pairs]) for side in (split.pairs_old, split.pairs_new))
    source, target = (new, old) if asked.direction == "new-to-old" else (old, new)
    try:
        fitted = PEERS[asked.map].fit(source, target, asked.seed)
    except (ValueError, RuntimeError, ArithmeticError) as error:
        raise Refused(" ".join(str(error).split())) from None

    def mapped(vectors: np.ndarray) -> np.ndarray:
        return fitted(_peer_rows(vectors))

    queries, gallery = (mapped, np.asarray) if asked.direction == "new-to-old" else (np.asarray, mapped)
    return Served(queries, gallery, fitted, _peer_rows)


def _peer_rows(vectors: np.ndarray) -> np.ndarray:
    return unit_rows(vectors).astype(np.float64)


def reference_cells(split: Split, truths: dict[str, np.ndarray]) -> Iterator[tuple[str, Record]]:
    """Searching without a map: the old system, the new one on a re-embedded gallery, and new queries as they are."""
    for name in REFERENCES:
        scores: dict[str, dict[str, float]] = {}
        record: Record = {"status": "ok", "scores": scores}
        try:
            for asked in split.query_sets:
                queries = asked.old if name == "old-to-old" else asked.new
                gallery = split.gallery_new if name == "new-to-new" else split.gallery_old
                if queries.shape[1] != gallery.shape[1]:
                    raise Refused(f"queries are {queries.shape[1]}-D, the gallery {gallery.shape[1]}-D")
                scores[asked.name] = measure(asked, queries, gallery, truths[asked.name])
        except Refused as reason:
            record = {"status": "refused", "reason": str(reason)}
        yield name, record


def map_cell(asked: Asked, split: Split, truths: dict[str, np.ndarray], references: Record) -> Record:
    """Fit, serve, measure: one cell's record, without its key."""
    started, cpu_started = time.perf_counter(), time.process_time()
    try:
        served = fit_peer(asked, split) if asked.map in PEERS else fit_ours(asked, split)
        seconds, cpu_seconds = time.perf_counter() - started, time.process_time() - cpu_started
        gallery = served.gallery(split.gallery_old)
        scores = {}
        for queries in split.query_sets:
            result = measure(queries, served.queries(queries.new), gallery, truths[queries.name], served.similarity)
            scores[queries.name] = result | _compared(result["recall_at_1"], references, queries.name)
    except Refused as reason:
        return {"status": "refused", "reason": str(reason), "fit_seconds": time.perf_counter() - started}
    record: Record = {
        "status": "ok",
        "scores": scores,
        "fit_seconds": seconds,
        "fit_cpu_seconds": cpu_seconds,
        "rows_per_second": _rows_per_second(
            served, split.pairs_new if asked.direction == "new-to-old" else split.pairs_old
        ),
    }
    return record | ({"chosen": served.chosen} if served.chosen else {})


def _compared(recall: float, references: Record, query_set: str) -> dict[str, float | None]:
    old, new = (references[name]["scores"][query_set]["recall_at_1"] for name in ("old-to-old", "new-to-new"))
    return {
        "retention": recall / old if old else None,
        "update_gain": (recall - old) / (new - old) if new > old else None,
    }


def _rows_per_second(served: Served, source: np.ndarray) -> float:
    vectors = served.prepare(source[np.resize(np.arange(len(source)), TIMED_ROWS)])
    seconds = []
    for _ in range(3):
        started = time.perf_counter()
        served.apply(vectors)
        seconds.append(time.perf_counter() - started)
    return TIMED_ROWS / min(seconds)


class Cells:
    """The cells measured so far, one JSON line each; the last line of a key counts."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._records: dict[tuple[object, ...], Record] = {}
        text = path.read_text() if path.exists() else ""
        for line in text.splitlines():
            try:
                record = json.loads(line)
                self._records[self.key(record)] = record
            except (json.JSONDecodeError, KeyError, TypeError):
                continue  # a line that an interruption cut off: its cell is measured again
        self._between = "" if not text or text.endswith("\n") else "\n"

    @staticmethod
    def key(record: Record) -> tuple[object, ...]:
        return tuple(record[name] for name in ("data", "pairs", "direction", "seed", "map"))

    def get(self, *key: object) -> Record | None:
        return self._records.get(key)

    def add(self, record: Record) -> None:
        self._path.parent.mkdir(parents=True, exist_ok=True)
        with self._path.open("a") as file:
            file.write(self._between + json.dumps(record) + "\n")
        self._between = ""
        self._records[self.key(record)] = record

    def of(self, names: list[str]) -> list[Record]:
        return [record for record in self._records.values() if record["data"] in names]


def run(data: DataSet, options: argparse.Namespace, cells: Cells) -> None:
    """Measure the cells of one data set that are missing."""
    began = time.perf_counter()
    for seed in range(options.seeds):
        split = data.split(seed)
        wanted = [
            Asked(data.name, pairs, direction, seed, name)
            for pairs in _sizes(options.sizes, data, len(split.pairs_old))
            for direction in DIRECTIONS
            for name in options.maps
        ]
        wanted = [asked for asked in wanted if options.redo or not _done(cells.get(*asked), options.uncapped)]
        references = {name: cells.get(data.name, 0, "-", seed, name) for name in REFERENCES}
        if not wanted and all(references.values()):
            continue
        truths = {s.name: neighbours(s.new, split.gallery_new, NEIGHBOURS) for s in split.query_sets}
        if options.redo or not all(references.values()):
            for name, record in reference_cells(split, truths):
                references[name] = record
                cells.add({"data": data.name, "pairs": 0, "direction": "-", "seed": seed, "map": name} | record)
        for asked in wanted:
            peer = PEERS.get(asked.map)
            if peer and peer.most_pairs and asked.pairs > peer.most_pairs and not options.uncapped:
                reason = f"slow: left out beyond {peer.most_pairs:,} pairs (--uncapped measures it)"
                record: Record = {"status": "capped", "reason": reason}
            else:
                record = map_cell(asked, split, truths, references)
            record = asked._asdict() | record
            cells.add(record)
            print(f"[{time.perf_counter() - began:6.0f} s] {_line(record, split)}", file=sys.stderr, flush=True)


def _done(record: Record | None, uncapped: bool) -> bool:
    return record is not None and not (uncapped and record["status"] == "capped")


def _sizes(asked: list[str] | None, data: DataSet, pairs: int) -> list[int]:
    sizes = data.sizes if asked is None else tuple(pairs if size == "all" else int(size) for size in asked)
    return [size for size in sizes if size <= pairs]


def _line(record: Record, split: Split) -> str:
    text = f"{record['data']} seed {record['seed']} N={record['pairs']} {record['direction']} {record['map']}: "
    if record["status"] != "ok":
        return text + f"{record['status']}: {record['reason']}"
    scores = record["scores"][split.query_sets[0].name]
    return text + f"recall@1 {scores['recall_at_1']:.3f}, fitted in {record['fit_seconds']:.1f} s"


def _maps(asked: list[str] | None) -> list[str]:
    groups = {"peers": [*PEERS], "ours": [*OURS]}
    names = [name for group in asked or ["peers", "ours"] for name in groups.get(group, [group])]
    unknown = [name for name in names if name not in {*PEERS, *OURS}]
    if unknown:
        raise ValueError(f"no map is called {unknown[0]!r}; choose from peers, ours, {', '.join([*PEERS, *OURS])}")
    missing = [name for name in names if name in PEERS and not PEERS[name].installed]
    if missing:
        print(f'left out, not installed (pip install ".[bench]"): {", ".join(missing)}', file=sys.stderr)
    return [name for name in names if name not in missing]


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, help="a folder that holds text_wordnet/ or font_identities/ or both")
    parser.add_argument("--out", type=Path, default=Path("runs/bench_maps/maps.jsonl"), help="where cells are kept")
    parser.add_argument("--only", nargs="+", help="only these data sets")
    parser.add_argument("--maps", nargs="+", help="only these maps; peers and ours name all of either")
    parser.add_argument("--sizes", nargs="+", help="numbers of pairs to fit on, or all")
    parser.add_argument("--seeds", type=int, default=5, help="seeds 0, 1, ... below this")
    parser.add_argument("--uncapped", action="store_true", help="measure the slow peers beyond 2,000 pairs too")
    parser.add_argument("--redo", action="store_true", help="measure the chosen cells again")
    parser.add_argument("--tables", action="store_true", help="measure nothing, print the tables of what is there")
    parser.add_argument("--save", action="store_true", help="write results/maps.md")
    options = parser.parse_args(argv)
    try:
        options.maps = _maps(options.maps)
        chosen = [data for data in data_sets(options.data) if not options.only or data.name in options.only]
        if not chosen:
            raise ValueError(f"--only {' '.join(options.only)} leaves no data set")
    except (ValueError, OSError) as mistake:
        parser.error(str(mistake))
    if options.data is None:
        print(HOW_TO_GET_PAIRS, file=sys.stderr)
    cells = Cells(options.out)
    if not options.tables:
        for data in chosen:
            run(data, options, cells)
    about = "\n".join(f"- {data.name}: {data.about}" for data in chosen)
    threads = os.environ.get("OMP_NUM_THREADS", "all")
    timed = f"Threads: {threads}; a fit is timed in CPU seconds, of the cells where they were kept."
    tables = report(cells.of([data.name for data in chosen]), [*PEERS], [*OURS])
    text = f"{about}\n\n{timed}\n\n{tables}"
    packages = ["numpy", "torch", *(p for p in ("scikit-learn", "isotrieve", "vectormigrate") if _has(p))]
    command = "python benchmarks/bench_maps.py" + (" --data DIR" if options.data else "")
    publish("maps", command, text, packages, save=options.save)


def _has(package: str) -> bool:
    try:
        return bool(version(package))
    except ModuleNotFoundError:
        return False


if __name__ == "__main__":
    main()
