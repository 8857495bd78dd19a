"""Searching: our exact search beside the bare product with top-k, FAISS as it comes, and approximate indexes.

Also how much memory a search takes whose gallery stays in its store, how fast the ranks of relevant rows are found, and
whether our measures are those of pytorch-metric-learning.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import polars as pl
import torch
from own_memory import PeakMemory
from table import markdown, publish

from compat.metrics.relevance import Relevance
from compat.metrics.retrieval import relevant_ranks, retrieval_scores
from compat.neighbors import ApproximateIndex, ArrayRows, ExactIndex, recall_against, search_rows, unit_rows
from stores.space import EmbeddingSpace
from stores.store import EmbeddingStore

BLOCK = 16_384
QUERY_BLOCKS = (256, 1024)
FACTORIES = {
    "HNSW32": "efSearch=128",
    "IVF1024,Flat": "nprobe=64",
    "IVF1024,PQ64x4fs,RFlat": "nprobe=64,k_factor_rf=16",
}
WRITTEN = 50_000  # rows written to the store at a time


def unit_vectors(count: int, dim: int, seed: int, *, centres: np.ndarray | None = None) -> np.ndarray:
    """Random unit vectors [count, dim]; with centres, each near one of them, as embeddings of identities are."""
    generator = np.random.default_rng(seed)
    vectors = generator.standard_normal((count, dim), dtype=np.float32)
    if centres is not None:
        vectors *= np.float32(1.5 / dim**0.5)
        vectors += centres[generator.integers(len(centres), size=count)]
    return unit_rows(vectors)


def numpy_top(queries: np.ndarray, gallery: np.ndarray, k: int, asked: int) -> np.ndarray:
    """Rows [q, k] by numpy: a product of blocks, argpartition, and a sort of what is left."""
    found = []
    for first in range(0, len(queries), asked):
        scores, rows = [], []
        for start in range(0, len(gallery), BLOCK):
            product = queries[first : first + asked] @ gallery[start : start + BLOCK].T
            best = np.argpartition(product, -k, axis=1)[:, -k:]
            scores.append(np.take_along_axis(product, best, axis=1))
            rows.append(best + start)
        order = np.argsort(-np.concatenate(scores, axis=1), axis=1)[:, :k]
        found.append(np.take_along_axis(np.concatenate(rows, axis=1), order, axis=1))
    return np.concatenate(found)


def torch_top(
    queries: np.ndarray, gallery: np.ndarray, k: int, asked: int, dtype: torch.dtype = torch.float32
) -> np.ndarray:
    """Rows [q, k] by torch: a product of blocks and top-k."""
    ours, theirs = torch.from_numpy(queries).to(dtype), torch.from_numpy(gallery)
    if dtype != torch.float32:
        theirs = theirs.to(dtype)
    product = torch.empty(asked * BLOCK, dtype=dtype)
    found = []
    for first in range(0, len(ours), asked):
        some = ours[first : first + asked]
        scores, rows = [], []
        for start in range(0, len(theirs), BLOCK):
            block = theirs[start : start + BLOCK]
            out = product[: len(some) * len(block)].view(len(some), len(block))
            values, columns = torch.topk(torch.mm(some, block.T, out=out), k, dim=1)
            scores.append(values)
            rows.append(columns + start)
        order = torch.cat(scores, dim=1).topk(k, dim=1).indices
        found.append(torch.cat(rows, dim=1).gather(1, order))
    return torch.cat(found).numpy()


def timed(candidates: Mapping[str, Callable[[], object]], repetitions: int) -> dict[str, tuple[float, float]]:
    """Median wall and CPU seconds of each candidate; they take turns.

    CPU seconds are all threads'. On a machine that does other work too they are the fairer of the two.
    """
    taken: dict[str, list[tuple[float, float]]] = {name: [] for name in candidates}
    for _ in range(repetitions):
        for name, run in candidates.items():
            wall, cpu = time.perf_counter(), time.process_time()
            run()
            taken[name].append((time.perf_counter() - wall, time.process_time() - cpu))
    return {
        name: (statistics.median(w for w, _ in turns), statistics.median(c for _, c in turns))
        for name, turns in taken.items()
    }


def write_store(path: Path, gallery: np.ndarray) -> None:
    store = EmbeddingStore.create(path, EmbeddingSpace("random", None, gallery.shape[1], True))
    for start in range(0, len(gallery), WRITTEN):
        block = gallery[start : start + WRITTEN]
        store.append(pl.DataFrame({"item_id": np.arange(start, start + len(block))}), block)
    store.commit()


def stream(store: str, queries: int, k: int) -> None:
    """Search the store and print the seconds, peak anonymous memory and rows found: run in a process of its own."""
    gallery = EmbeddingStore.open(store)
    asked = unit_vectors(queries, gallery.space.dim, 1)
    search_rows(asked[:64], ArrayRows(asked[:2048]), 1)  # what a first call loads is not the search's
    memory = PeakMemory()
    memory.start()
    reports = []
    wall, cpu = time.perf_counter(), time.process_time()
    _, rows = search_rows(asked, gallery, k, on_rows=lambda done, of: reports.append(done / of))
    taken = {"wall": time.perf_counter() - wall, "cpu": time.process_time() - cpu}
    print(json.dumps({**taken, "memory": memory.end(), "reports": len(reports), "first": rows[:, 0].tolist()}))


def streamed(store: Path, options: argparse.Namespace) -> dict[str, float]:
    command = [sys.executable, __file__, "--stream", str(store), "--queries", str(options.queries)]
    ended = subprocess.run([*command, "--k", str(options.k)], capture_output=True, text=True, check=True)
    return json.loads(ended.stdout)


def exact_table(options: argparse.Namespace, gallery: np.ndarray, queries: np.ndarray) -> tuple[str, np.ndarray]:
    """The table of exact searches, and the rows [q, k] that ours finds."""
    import faiss  # after torch

    k = options.k
    ours, flat = ExactIndex(options.dim), faiss.IndexFlatIP(options.dim)
    ours.add(gallery)
    flat.add(gallery)  # pyright: ignore[reportCallIssue]
    candidates: dict[str, Callable[[], object]] = {}
    for asked in QUERY_BLOCKS:
        candidates[f"numpy product, argpartition, {asked} queries at a time"] = lambda asked=asked: numpy_top(
            queries, gallery, k, asked
        )
        candidates[f"torch product, topk, {asked} queries at a time"] = lambda asked=asked: torch_top(
            queries, gallery, k, asked
        )
    bare = list(candidates)
    rounded = f"torch bfloat16 product, topk, {max(QUERY_BLOCKS)} queries at a time (not exact)"
    candidates[rounded] = lambda: torch_top(queries, gallery, k, max(QUERY_BLOCKS), torch.bfloat16)
    candidates["FAISS IndexFlatIP as it comes"] = lambda: flat.search(queries, k)  # pyright: ignore[reportCallIssue]
    candidates["ours, ExactIndex"] = lambda: ours.search(queries, k)
    seconds = timed(candidates, options.repetitions)
    _, right = ours.search(queries, k)
    found = {name: np.asarray(run()) for name, run in candidates.items() if name in (bare[1], rounded)}
    found["FAISS IndexFlatIP as it comes"] = flat.search(queries, k)[1]  # pyright: ignore[reportCallIssue]
    with tempfile.TemporaryDirectory() as folder:
        write_store(Path(folder) / "gallery", gallery)
        from_store = streamed(Path(folder) / "gallery", options)
    seconds["ours, search_rows from a store"] = from_store["wall"], from_store["cpu"]
    same_first = float(np.mean(np.array(from_store["first"]) == right[:, 0]))
    ceiling = [min(seconds[name][i] for name in bare) for i in (0, 1)]
    faiss_cpu = seconds["FAISS IndexFlatIP as it comes"][1]
    work = 2 * len(gallery) * len(queries) * options.dim / 1e9
    rows = []
    for name, (wall, cpu) in seconds.items():
        same = f"{recall_against(right, found[name]).mean():.4f}" if name in found else ""
        ratios = [f"{ceiling[0] / wall:.2f}", f"{ceiling[1] / cpu:.2f}", f"{faiss_cpu / cpu:.1f}"]
        rows.append([name, f"{wall:.2f}", f"{cpu:.2f}", f"{work / cpu:.0f}", *ratios, same])
    header = ["exact search", "wall s", "CPU s", "GFLOP per CPU s", "of the bare, wall", "of the bare, CPU"]
    text = markdown([*header, "times FAISS, CPU", "neighbours as ours"], rows)
    text += (
        f"\n\nFrom a store, by a process of its own: {from_store['memory']:.0f} MiB of anonymous memory at "
        f"most, for a gallery of {gallery.nbytes / 2**20:.0f} MiB, {from_store['reports']} reports of progress; its "
        f"first neighbours are those of ExactIndex for {same_first:.4f} of the queries."
    )
    return text, right


def approximate_table(options: argparse.Namespace) -> str:
    """Approximate indexes on clustered vectors: on unstructured ones none of them finds anything."""
    centres = unit_vectors(options.approximate_rows // 20, options.dim, 2)
    gallery = unit_vectors(options.approximate_rows, options.dim, 3, centres=centres)
    queries = unit_vectors(options.queries, options.dim, 4, centres=centres)
    exact = ExactIndex(options.dim)
    exact.add(gallery)
    _, right = exact.search(queries, options.k)
    (_, cpu) = timed({"": lambda: exact.search(queries, options.k)}, options.repetitions)[""]
    rows = [["ours, ExactIndex", "", "", f"{cpu / len(queries) * 1e6:.0f}", "1.0000", "1.0000"]]
    for factory, settings in FACTORIES.items():
        index = ApproximateIndex(options.dim, factory, settings=settings)
        started = time.process_time()
        index.train(gallery)
        index.add(gallery)
        built = time.process_time() - started
        _, found = index.search(queries, options.k)
        (_, cpu) = timed({"": lambda index=index: index.search(queries, options.k)}, options.repetitions)[""]
        shares = [recall_against(right[:, :depth], found[:, :depth]).mean() for depth in (1, options.k)]
        speed = f"{cpu / len(queries) * 1e6:.0f}"
        rows.append([factory, settings, f"{built:.1f}", speed, *(f"{share:.4f}" for share in shares)])
    header = ["approximate search", "settings", "CPU s to build", "CPU µs a query", "first neighbour found"]
    text = markdown([*header, f"first {options.k} found"], rows)
    return f"{text}\n\n{len(gallery)} vectors near {len(centres)} centres."


def ranks_line(options: argparse.Namespace, gallery: np.ndarray, queries: np.ndarray) -> str:
    generator = np.random.default_rng(5)
    labels = generator.integers(len(gallery) // 3, size=len(gallery))
    asked = labels[generator.integers(len(labels), size=len(queries))]
    relevance = Relevance.by_label(asked, labels, np.full(len(queries), -1))
    rows = ArrayRows(gallery)
    wall, cpu = timed({"": lambda: relevant_ranks(queries, rows, relevance)}, options.repetitions)[""]
    pairs = len(queries) * len(gallery)
    return (
        f"Ranks of {relevance.counts.mean():.1f} relevant rows a query over the whole gallery (`relevant_ranks`): "
        f"{cpu:.2f} CPU seconds ({wall:.2f} wall), {cpu / pairs * 1e9:.1f} ns a pair of query and row."
    )


def others_table() -> str:
    """Our measures beside those of pytorch-metric-learning's calculator, on labelled vectors."""
    if find_spec("pytorch_metric_learning") is None:
        return "pytorch-metric-learning is not installed (`pip install '.[bench]'`): not compared."
    import pytorch_metric_learning.utils.accuracy_calculator as peer  # pyright: ignore[reportMissingImports]

    centres = unit_vectors(60, 64, 6)
    generator = np.random.default_rng(7)
    labels, query_labels = generator.integers(60, size=1500), generator.integers(60, size=400)
    gallery, queries = (
        unit_rows(centres[who] + 0.2 * generator.standard_normal((len(who), 64), dtype=np.float32))
        for who in (labels, query_labels)
    )
    names = {
        "precision_at_1": "recall_at_1",
        "mean_average_precision": "average_precision",
        "mean_reciprocal_rank": "reciprocal_rank",
    }
    calculator = peer.AccuracyCalculator(include=tuple(names), k=len(gallery), device=torch.device("cpu"))
    theirs = calculator.get_accuracy(queries, query_labels, gallery, labels)
    relevance = Relevance.by_label(query_labels, labels, np.full(len(queries), -1))
    ours = retrieval_scores(relevant_ranks(queries, ArrayRows(gallery), relevance), relevance)
    rows = []
    for name, field in names.items():
        mine = float(np.nanmean(getattr(ours, field)))
        rows.append([name, f"{theirs[name]:.9f}", f"{mine:.9f}", f"{abs(theirs[name] - mine):.1e}"])
    table = markdown(["measure", "pytorch-metric-learning", "ours", "difference"], rows)
    return f"{table}\n\nWhat differs: here scores within 1e-6 of each other are ties, and ties go against the query."


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", type=int, default=200_000, help="gallery vectors; 1000000 for the large one")
    parser.add_argument("--queries", type=int, default=2_000, help="queries; 10000 for the large one")
    parser.add_argument("--approximate-rows", type=int, default=50_000, help="gallery of the approximate indexes")
    parser.add_argument("--dim", type=int, default=512)
    parser.add_argument("--k", type=int, default=10)
    parser.add_argument("--repetitions", type=int, default=3)
    parser.add_argument("--stream", metavar="STORE", help="only search this store, and print what it took")
    parser.add_argument("--save", action="store_true", help="write results/search.md")
    options = parser.parse_args()
    if options.stream:
        stream(options.stream, options.queries, options.k)
        return
    gallery, queries = (unit_vectors(count, options.dim, i) for i, count in enumerate((options.rows, options.queries)))
    exact, _ = exact_table(options, gallery, queries)
    parts = [exact, ranks_line(options, gallery, queries)]
    del gallery
    parts += [approximate_table(options), others_table()]
    parts.append(
        f"{options.rows} random unit vectors of {options.dim} dimensions, {options.queries} queries, {options.k} "
        f"neighbours, {torch.get_num_threads()} threads, medians of {options.repetitions} turns; CPU "
        "seconds are all threads'. The bare is the fastest of the exact products with top-k above. What approximate "
        "indexes find depends on the data, so judge them on yours."
    )
    command = f"python benchmarks/bench_search.py --rows {options.rows} --queries {options.queries}"
    command += f" --approximate-rows {options.approximate_rows} --repetitions {options.repetitions}"
    publish("search", command, "\n\n".join(parts), ["faiss-cpu", "numpy", "torch"], save=options.save)


if __name__ == "__main__":
    main()
