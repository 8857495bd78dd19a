"""Training networks: speed against loops over tensors in memory, synthetic rows, memory, precision."""

from __future__ import annotations

import argparse
import datetime
import gc
import importlib.util
import multiprocessing
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from maps_data import font_identities
from own_memory import PeakMemory, anonymous
from table import RESULTS, interleaved, markdown, publish
from training_loops import (
    ITEMS_OF_ONE,
    anywhere,
    bare_epoch,
    engine,
    loader_epoch,
    recall_at_1,
    tensors_of,
)
from turned_stores import write_stores

from compat.metrics.intervals import Bootstrap
from compat.options import FitOptions, Precision
from compat.pairs import Pairs, join_pairs
from compat.training.fit import fit_transformer

BATCHES = (256, 1024)
MEMORY_DIM = 64


def speed(options: argparse.Namespace) -> str:
    """The engine beside both loops, for two sizes of batch."""
    rows = []
    device = torch.device(options.device)
    with tempfile.TemporaryDirectory(dir=options.folder) as name:
        pairs = join_pairs(*write_stores(Path(name), options.pairs, options.dim, items_of_one=ITEMS_OF_ONE))
        source, target = tensors_of(pairs, device)
        arrays = source.cpu().numpy(), target.cpu().numpy()
        for batch in BATCHES:
            runs = {precision: engine(pairs, batch, device, precision=precision) for precision in ("fp32", "bf16")}
            seconds = interleaved(
                {
                    "bare loop, tensors in memory": lambda batch=batch: bare_epoch(source, target, batch),
                    "this engine, from stores": runs["fp32"].epoch,
                    "this engine in bf16, from stores": runs["bf16"].epoch,
                    "DataLoader loop": lambda batch=batch: loader_epoch(*arrays, batch, device),
                },
                options.repetitions,
            )
            bare, people = seconds["bare loop, tensors in memory"], seconds["DataLoader loop"]
            for work, taken in seconds.items():
                rate = f"{options.pairs / taken:,.0f}"
                rows.append([str(batch), work, rate, f"{bare / taken:.2f}", f"{people / taken:.2f}"])
    text = markdown(["batch", "work", "pairs/s", "of the bare loop", "times the DataLoader loop"], rows)
    return text + (
        f"\n\nOne epoch of mlp over {options.pairs} pairs of {options.dim}-D, medians of {options.repetitions} turns, "
        f"{torch.get_num_threads()} threads, {options.device}. The bare loop: rows of a permutation by index_select, "
        "one set of products for both terms of the loss, fused Adam. The DataLoader loop: rows one by one, both "
        "terms by torch's functions, Adam as it comes."
    )


def synthetic(options: argparse.Namespace) -> str:
    """Epochs of equally many rows, a third of them synthetic or none."""
    rows = []
    device = torch.device(options.device)
    with tempfile.TemporaryDirectory(dir=options.folder) as name:
        pairs = join_pairs(*write_stores(Path(name), options.pairs, options.dim, items_of_one=ITEMS_OF_ONE))
        fewer = pairs.select(np.arange(options.pairs * 2 // 3))
        mixed = anywhere(len(fewer), 0.5)
        for batch in BATCHES:
            plain, mixing = engine(pairs, batch, device), engine(fewer, batch, device, synthetic=mixed)
            seconds = interleaved({"none": plain.epoch, "a third": mixing.epoch}, options.repetitions)
            extra = seconds["a third"] / (len(fewer) + len(mixed)) / (seconds["none"] / len(pairs)) - 1
            rates = [f"{len(pairs) / taken:,.0f}" for taken in seconds.values()]
            rows.append([str(batch), *rates, f"{100 * extra:+.1f} %"])
    text = markdown(["batch", "rows/s, none synthetic", "rows/s, a third synthetic", "cost of a row"], rows)
    return text + (
        f"\n\nmlp, {options.pairs} rows an epoch of {options.dim}-D from stores, rate 0.5 of the real ones, both "
        f"parents anywhere in the store, medians of {options.repetitions} turns."
    )


def memory(options: argparse.Namespace) -> str:
    """One epoch from stores of growing size, each in a process of its own."""
    rows = []
    with tempfile.TemporaryDirectory(dir=options.folder) as name:
        for pairs in options.sizes:
            with multiprocessing.get_context("spawn").Pool(1) as pool:
                rows.append(pool.apply(_one_size, (Path(name) / str(pairs), pairs)))
    header = ["pairs", "MiB of vectors", "s per million, steps", "s per million, whole fit", "MiB: join", "MiB: fit"]
    return markdown(header, rows) + (
        f"\n\nOne epoch of mlp, {MEMORY_DIM}-D float32 to {MEMORY_DIM}-D, labelled, batches of 256, from stores on "
        "disk; MiB are the growth of memory of its own over what the process held (pages of mapped files are not "
        "counted): at most while the stores were joined, and at most while the map was fitted beyond what the join "
        "had left. The whole fit also divides the pairs by identity, takes their fingerprint and fits the ridge that "
        "mlp is compared with."
    )


def _one_size(folder: Path, pairs: int) -> list[str]:
    folder.mkdir()
    old, new = write_stores(folder, pairs, MEMORY_DIM, items_of_one=ITEMS_OF_ONE)
    gc.collect()
    before = anonymous()
    watch = PeakMemory()
    watch.start()
    joined = join_pairs(old, new)
    join = watch.end() - before
    gc.collect()
    before = anonymous()
    watch = PeakMemory()
    watch.start()
    started = time.perf_counter()
    training = fit_transformer(joined, FitOptions(transformer="mlp", epochs=1)).training
    whole = time.perf_counter() - started
    fitting = watch.end() - before
    steps = 1e6 / training["epochs"][0]["pairs_per_second"]
    sizes = (pairs * MEMORY_DIM * 8 / 2**20, steps, whole / pairs * 1e6, join, fitting)
    return [f"{pairs:,}", *(f"{value:.1f}" if 0 < i < 3 else f"{value:.0f}" for i, value in enumerate(sizes))]


def precision(options: argparse.Namespace) -> str:
    """Recall@1 of networks trained in fp32 and in bf16, on real pairs, several seeds."""
    if options.data is None or not (options.data / "font_identities").is_dir():
        return "Left out: name a folder that holds font_identities/ with --data."
    data = font_identities(options.data / "font_identities")
    rows = []
    for family, most, epochs in (
        ("mlp", options.mlp_pairs, 15),
        ("msresnet", options.msresnet_pairs, options.msresnet_epochs),
    ):
        hits: dict[Precision, list[np.ndarray]] = {"fp32": [], "bf16": []}
        seconds = dict.fromkeys(hits, 0.0)
        identities = []
        for seed in range(options.seeds if most else 0):
            split = data.split(seed)
            asked = split.query_sets[0]
            labels = None if split.pairs_labels is None else split.pairs_labels[:most]
            pairs = Pairs.from_arrays(split.pairs_old[:most], split.pairs_new[:most], labels)
            wanted = np.zeros((len(asked.new), len(split.gallery_old)), bool)
            wanted[asked.relevance.queries, asked.relevance.rows] = True
            identities.append(wanted.argmax(axis=1))
            for name, found in hits.items():
                started = time.perf_counter()
                fit = FitOptions(transformer=family, epochs=epochs, seed=seed, precision=name)
                network = fit_transformer(pairs, fit).network
                seconds[name] += time.perf_counter() - started
                found.append(recall_at_1(network, asked.new, split.gallery_old, wanted))
        if not identities:
            continue
        both = np.stack([np.concatenate(found) for found in hits.values()], axis=1)
        low = Bootstrap(both, np.concatenate(identities)).difference(1, 0)
        means = [f"{mean:.4f}" for mean in both.mean(axis=0)]
        change = f"{low.value:+.4f} [{low.low:+.4f}, {low.high:+.4f}]"
        rows.append([family, str(most), str(epochs), *means, change, f"{seconds['fp32'] / seconds['bf16']:.2f}"])
    header = ["family", "pairs", "epochs", "recall@1, fp32", "bf16", "bf16 less fp32 [95 %]", "times as quick"]
    return markdown(header, rows) + (
        f"\n\nfont_identities, new to old, networks fitted with {options.seeds} seeds, each asked the queries of "
        "another fifth of the identities; the interval resamples identities. Seconds are those of whole fits."
    )


def msresnet(options: argparse.Namespace) -> str:
    """The profile of msresnet, which has a module of its own."""
    if importlib.util.find_spec("training_msresnet") is None:
        return "Left out: there is no benchmarks/training_msresnet.py."
    from training_msresnet import msresnet_table, profile_table

    return f"{msresnet_table(options.repetitions)}\n\n{profile_table()}"


PARTS: dict[str, Callable[[argparse.Namespace], str]] = {
    "speed": speed,
    "synthetic": synthetic,
    "memory": memory,
    "precision": precision,
    "msresnet": msresnet,
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--part", action="append", choices=PARTS, help="may be given again; all of them by default")
    parser.add_argument("--pairs", type=int, default=100_000, help="of speed and synthetic")
    parser.add_argument("--dim", type=int, default=512)
    parser.add_argument("--repetitions", type=int, default=15)
    parser.add_argument("--sizes", type=int, nargs="+", default=[100_000, 1_000_000, 5_000_000], help="of memory")
    parser.add_argument(
        "--data", type=Path, help="folder with font_identities/, for precision, which is left out without"
    )
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--mlp-pairs", type=int, default=15_999)
    parser.add_argument("--msresnet-pairs", type=int, default=2_000, help="0 leaves it out")
    parser.add_argument("--msresnet-epochs", type=int, default=33, help="what bench_synthetic chose for 2,000 pairs")
    parser.add_argument("--folder", type=Path, help="where stores are written for a while")
    parser.add_argument("--device", default="cpu", choices=["cpu", "cuda"])
    parser.add_argument("--save", action="store_true", help="write the parts that ran into results/training.md")
    options = parser.parse_args()
    kept = _sections() if options.save else {}
    for part in options.part or PARTS:
        text = PARTS[part](options)
        print(f"## {part}\n\n{text}\n")
        kept[part] = f"{datetime.date.today()}, `{_command(options, part)}`\n\n{text}"
        if options.save:
            ordered = [f"## {name}\n\n{kept[name]}" for name in PARTS if name in kept]
            command = "python benchmarks/bench_training.py"
            publish("training", command, "\n\n".join(ordered), ["numpy", "torch"], save=True)


def _sections() -> dict[str, str]:
    """The parts that were saved before, by name."""
    path = RESULTS / "training.md"
    parts = path.read_text().split("\n## ")[1:] if path.exists() else []
    return {part.partition("\n")[0]: part.partition("\n")[2].strip() for part in parts}


def _command(options: argparse.Namespace, part: str) -> str:
    said = {"speed": ("pairs", "dim"), "synthetic": ("pairs", "dim"), "memory": ("sizes",)}
    said |= {"precision": ("seeds", "mlp_pairs", "msresnet_pairs", "msresnet_epochs")}
    words = [f"--part {part}"]
    for name in (*said.get(part, ()), "device"):
        value = getattr(options, name)
        shown = " ".join(map(str, value)) if isinstance(value, list) else value
        words.append(f"--{name.replace('_', '-')} {shown}")
    return f"python benchmarks/bench_training.py {' '.join(words)}"


if __name__ == "__main__":
    main()
