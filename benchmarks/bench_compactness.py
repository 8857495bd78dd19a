"""Does drawing each identity's mapped embeddings together make a gallery of means work?

Networks are fitted with several weights of compactness to the pairs of four fifths of the training identities. The
fifth that is left out tells which weight is best: half of each identity's items are its gallery, the other half its
queries. The test identities, which no choice has seen, tell what it is worth: the share of queries whose nearest
neighbour is of the right label, in the gallery as it is and in one of a mean of unit vectors for each label.

A network keeps the epoch that retrieves single items best, which `fit_transformer` returns and the table calls kept;
what stands at the end of training is judged too, since a gallery of means may be best served by another epoch.

A seed leaves out a fifth of its own and starts the network anew. Each cell is a file in --out and is measured once.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
from table import markdown, publish

from compat.metrics.intervals import Bootstrap
from compat.metrics.label_means import label_means
from compat.neighbors import ArrayRows, nearest, unit_rows
from compat.options import Direction, FitOptions, LossWeights
from compat.pairs import Pairs
from compat.training.interpolation import NO_SAMPLES
from compat.training.network_run import NetworkRun
from compat.training.selection import HeldOutRetrieval, identity_folds
from compat.transformers.artefact import Transformer

DIRECTIONS: tuple[Direction, ...] = ("new-to-old", "old-to-new")
FAMILIES = ("residual_mlp", "mlp")
GALLERIES = ("items", "means")
ENDS = ("kept", "last")
FOLDS = 5
USUAL_DATA = Path("..") / "shared" / "data"
NO_DATA = (
    f"nothing measured: identities embedded by two models are needed, in {USUAL_DATA} or the folder of --data DIR, "
    "which holds font_identities/ (see README.md)"
)
Record = dict[str, Any]


@dataclass(frozen=True)
class Items:
    """Items embedded by both models.

    Attributes:
        old: float32 [n, d_old].
        new: float32 [n, d_new].
        labels: int64 [n].
    """

    old: np.ndarray
    new: np.ndarray
    labels: np.ndarray

    def where(self, mask: np.ndarray) -> Items:
        """Those of a mask [n]."""
        return Items(self.old[mask], self.new[mask], self.labels[mask])


@dataclass(frozen=True)
class Data:
    """Items to fit on, and the gallery and queries of other identities."""

    train: Items
    gallery: Items
    queries: Items


def read(folder: Path) -> Data:
    """The items under font_identities/."""
    tables = {part: pl.read_parquet(folder / part / "items.parquet") for part in ("train", "test")}
    labels = pl.concat([table["label"] for table in tables.values()]).rank("dense").cast(pl.Int64).to_numpy()
    parts, start = {}, 0
    for part, table in tables.items():
        old, new = (
            np.load(folder / part / f"{name}.npy").astype(np.float32) for name in ("old_iresnet18", "new_iresnet50")
        )
        parts[part] = Items(old, new, labels[start : start + len(table)])
        start += len(table)
    split = tables["test"]["split"]
    gallery, queries = (parts["test"].where((split == kind).to_numpy()) for kind in ("gallery", "query"))
    return Data(parts["train"], gallery, queries)


def fold(data: Data, seed: int) -> tuple[Items, Items, Items]:
    """Items to fit on, and the gallery and queries of the identities that this seed leaves out."""
    labels = data.train.labels
    distinct = np.random.default_rng(seed // FOLDS).permutation(np.unique(labels))
    left_out = np.isin(labels, distinct[seed % FOLDS :: FOLDS])
    held_out = data.train.where(left_out)
    order = np.random.default_rng(seed).permutation(len(held_out.labels))
    place = np.empty(len(order), int)
    for label in np.unique(held_out.labels):
        mine = order[held_out.labels[order] == label]
        place[mine] = np.arange(len(mine))
    return data.train.where(~left_out), held_out.where(place % 2 == 0), held_out.where(place % 2 == 1)


def hits(transformer: Transformer | None, gallery: Items, queries: Items, space: str) -> dict[str, np.ndarray]:
    """Whether each query's nearest neighbour is of its label, bool [q], in the gallery and in that of means.

    Without a transformer both sides are in the space named, `old` or `new`.
    """
    if transformer is None:
        rows, asked = (gallery.old, queries.old) if space == "old" else (gallery.new, queries.new)
    elif transformer.direction == "new-to-old":
        rows, asked = gallery.old, transformer.transform(queries.new)
    else:
        rows, asked = transformer.transform(gallery.old), queries.new
    means = label_means(ArrayRows(rows), gallery.labels)
    searched = {"items": (rows, gallery.labels), "means": (means.rows, means.labels)}
    found = {}
    for name, (vectors, labels) in searched.items():
        first = nearest(unit_rows(asked), unit_rows(vectors), 1)[1][:, 0]
        found[name] = labels[first] == queries.labels
    return found


@dataclass(frozen=True, order=True)
class Cell:
    """One fit."""

    direction: Direction
    family: str
    weight: float
    seed: int

    @property
    def file(self) -> str:
        """Its name in --out."""
        return f"{self.direction}-{self.family}-{self.weight:g}-{self.seed}.json"


def measured(cell: Cell, data: Data, epochs: int) -> Record:
    """Fit and judge."""
    fitted_on, gallery, queries = fold(data, cell.seed)
    options = FitOptions(
        transformer=cell.family,
        direction=cell.direction,
        loss=LossWeights(compactness_weight=cell.weight),
        epochs=epochs,
        seed=cell.seed,
    )
    started = time.perf_counter()
    run = trained(Pairs.from_arrays(fitted_on.old, fitted_on.new, fitted_on.labels), options)
    seconds = time.perf_counter() - started
    record: Record = {"epochs": len(run.history), "best_epoch": run.best_epoch, "seconds": seconds}
    source, target = run.real.spaces(cell.direction)
    for end, network in zip(ENDS, (run.best_network, run.network), strict=True):
        transformer = Transformer(cell.family, cell.direction, source, target, network)
        held_out = hits(transformer, gallery, queries, "")
        test = hits(transformer, data.gallery, data.queries, "")
        record[end] = {
            "held_out": {name: float(found.mean()) for name, found in held_out.items()},
            "test": {name: packed(found) for name, found in test.items()},
        }
    return record


def trained(pairs: Pairs, options: FitOptions) -> NetworkRun:
    """What `fit_transformer` does to a network, with the network as it stands at the end."""
    folds = identity_folds(pairs, options.folds, seed=options.seed)
    judge = HeldOutRetrieval(pairs, np.flatnonzero(folds == 0), options.direction, seed=options.seed)
    run = NetworkRun(pairs.select(np.flatnonzero(folds != 0)), NO_SAMPLES, judge, options, None)
    while not run.finished:
        run.epoch()
    return run


def packed(found: np.ndarray) -> str:
    """Hits as hexadecimal, eight queries in two digits."""
    return np.packbits(found).tobytes().hex()


def unpacked(text: str, queries: int) -> np.ndarray:
    """Hits [queries] from hexadecimal, as floats."""
    return np.unpackbits(np.frombuffer(bytes.fromhex(text), np.uint8))[:queries].astype(np.float64)


class Group:
    """The cells of a direction and a family: means over their seeds, intervals over labels.

    Args:
        records: By weight, the records of the same seeds; weight 0 is among them.
        end: Which of the networks of a fit, kept or last.
        labels: The label of each test query [q].
    """

    def __init__(self, records: Mapping[float, Sequence[Record]], end: str, labels: np.ndarray) -> None:
        self.records, self._end = records, end
        self.weights = sorted(records)
        self._bootstraps = {
            name: Bootstrap(
                np.stack([self._mean_hits(weight, name, len(labels)) for weight in self.weights], axis=1), labels
            )
            for name in GALLERIES
        }

    def _mean_hits(self, weight: float, gallery: str, queries: int) -> np.ndarray:
        return np.mean(
            [unpacked(record[self._end]["test"][gallery], queries) for record in self.records[weight]], axis=0
        )

    def held_out(self, weight: float, gallery: str) -> float:
        """Mean over seeds of the accuracy on identities left out of training."""
        return float(np.mean([record[self._end]["held_out"][gallery] for record in self.records[weight]]))

    def chosen(self, gallery: str) -> float:
        """The weight that is best on the identities left out; of equals the smallest."""
        return max(self.weights, key=lambda weight: (self.held_out(weight, gallery), -weight))

    def accuracy(self, weight: float, gallery: str) -> str:
        """On the test identities, with its interval."""
        return str(self._bootstraps[gallery].proportion(self.weights.index(weight)))

    def gain(self, weight: float, gallery: str) -> tuple[float, float, float]:
        """Over weight 0 on the test identities: value, low and high."""
        found = self._bootstraps[gallery].difference(self.weights.index(weight), self.weights.index(0.0))
        return found.value, found.low, found.high


def grouped(records: dict[Cell, Record], labels: np.ndarray) -> Iterator[tuple[str, str, str, Group]]:
    """Direction, family, end and cells; seeds that lack a weight are left out, and so are groups without weight 0."""
    for direction in DIRECTIONS:
        for family in FAMILIES:
            mine = {
                cell: record for cell, record in records.items() if (cell.direction, cell.family) == (direction, family)
            }
            weights = sorted({cell.weight for cell in mine})
            seeds = [
                seed
                for seed in sorted({cell.seed for cell in mine})
                if all(Cell(direction, family, weight, seed) in mine for weight in weights)
            ]
            if 0.0 in weights and seeds:
                by_weight = {w: [mine[Cell(direction, family, w, seed)] for seed in seeds] for w in weights}
                for end in ENDS:
                    yield direction, family, end, Group(by_weight, end, labels)


def report(records: dict[Cell, Record], data: Data) -> str:
    """The table and what follows from it."""
    rows, sentences = [], []
    for space in ("old", "new"):
        found = hits(None, data.gallery, data.queries, space)
        cells = [str(Bootstrap(found[name][:, None], data.queries.labels).proportion(0)) for name in GALLERIES]
        rows.append([f"{space} to {space}", "", "", "", "", cells[0], "", cells[1], "", ""])
    for direction, family, end, group in grouped(records, data.queries.labels):
        chosen = group.chosen("means")
        for weight in group.weights:
            row = [direction, family, end, f"{weight:g}" + (" *" if weight == chosen else "")]
            row.append(f"{group.held_out(weight, 'items'):.3f} / {group.held_out(weight, 'means'):.3f}")
            for name in GALLERIES:
                value, low, high = group.gain(weight, name)
                row += [group.accuracy(weight, name), "" if weight == 0 else f"{value:+.3f} [{low:+.3f}, {high:+.3f}]"]
            epochs = [
                record["best_epoch"] + 1 if end == "kept" else record["epochs"] for record in group.records[weight]
            ]
            rows.append([*row, " ".join(map(str, epochs))])
        sentences.append(f"- {direction}, {family} {end}, {len(group.records[0.0])} seeds: {conclusion(group, chosen)}")
    header = [
        "direction",
        "map",
        "network",
        "weight",
        "left out: items / means",
        "items",
        "gain",
        "means",
        "gain",
        "epochs",
    ]
    about = (
        f"1-NN accuracy by label on {len(data.queries.labels):,} queries of {len(np.unique(data.queries.labels))} test "
        f"identities, in a gallery of {len(data.gallery.labels):,} items and in one of a mean for each label; means "
        "over seeds, 95% intervals of a bootstrap over identities, gains over weight 0 paired by query. * is the weight"
        " chosen by the gallery of means of the identities left out of training. Kept is the epoch that retrieves "
        "single items held out best (0: the affine map that a residual_mlp starts at), last the end of training."
    )
    return "\n\n".join([markdown(header, rows), about, "\n".join(sentences)])


def conclusion(group: Group, chosen: float) -> str:
    """What the chosen weight does to both galleries, in a sentence."""
    if chosen == 0:
        return "identities left out of training are served best without compactness (weight 0)."
    parts = []
    for name, words in (("means", "in the gallery of means"), ("items", "in the gallery as it is")):
        value, low, high = group.gain(chosen, name)
        verb = "gains" if low > 0 else "loses" if high < 0 else "changes nothing that is sure"
        parts.append(f"{verb} {words} ({value:+.3f} [{low:+.3f}, {high:+.3f}])")
    return f"weight {chosen:g}, chosen on identities left out of training, {parts[0]} and {parts[1]}."


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default=USUAL_DATA, help="a folder that holds font_identities/")
    parser.add_argument("--out", type=Path, default=Path("runs/bench_compactness"), help="where cells are kept")
    parser.add_argument("--directions", nargs="+", default=DIRECTIONS, choices=DIRECTIONS)
    parser.add_argument("--families", nargs="+", default=FAMILIES, choices=FAMILIES)
    parser.add_argument("--weights", nargs="+", type=float, default=[0.0, 1.0, 3.0, 10.0, 30.0])
    parser.add_argument("--seeds", type=int, default=3, help="seeds 0, 1, ... below this")
    parser.add_argument("--epochs", type=int, default=30)
    parser.add_argument("--tables", action="store_true", help="measure nothing, print the table of what is there")
    parser.add_argument("--save", action="store_true", help="write results/compactness.md")
    options = parser.parse_args(argv)
    folder = options.data / "font_identities"
    if not folder.is_dir():
        print(NO_DATA)
        return
    data = read(folder)
    records: dict[Cell, Record] = {}
    wanted = [
        Cell(direction, family, weight, seed)
        for seed in range(options.seeds)
        for family in options.families
        for direction in options.directions
        for weight in sorted({0.0, *options.weights})
    ]
    for cell in wanted:
        path = options.out / f"epochs-{options.epochs}" / cell.file
        if path.exists():
            records[cell] = json.loads(path.read_text())
        elif not options.tables:
            records[cell] = measured(cell, data, options.epochs)
            path.parent.mkdir(parents=True, exist_ok=True)
            unfinished = path.with_suffix(".part")
            unfinished.write_text(json.dumps(records[cell]))
            unfinished.replace(path)
            print(f"{cell.file}: {records[cell]['seconds']:.0f} s", flush=True)
    if not records:
        print(f"nothing measured yet in {options.out}; run without --tables")
        return
    minutes = sum(record["seconds"] for record in records.values()) / 60
    text = report(records, data) + f"\n\n{len(records)} fits of at most {options.epochs} epochs, {minutes:.0f} minutes."
    changed = [f"--{name} {value}" for name, value in (("seeds", options.seeds), ("epochs", options.epochs))]
    command = f"python benchmarks/bench_compactness.py --data DIR {' '.join(changed)}"
    publish("compactness", command, text, ["numpy", "torch"], save=options.save)


if __name__ == "__main__":
    main()
