"""The tables of bench_compactness, from its cells."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from compactness_data import Data, hits, unpacked
from table import markdown

from compat.metrics.intervals import Bootstrap
from compat.options import Direction

DIRECTIONS: tuple[Direction, ...] = ("new-to-old", "old-to-new")
FAMILIES = ("residual_mlp", "mlp")
GALLERIES = ("items", "means")
ENDS = ("kept", "last")
Record = dict[str, Any]


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
