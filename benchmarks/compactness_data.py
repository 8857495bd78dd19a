"""What bench_compactness measures on: identities in two folds of galleries and queries, and who finds whom there."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import polars as pl

from compat.metrics.label_means import label_means
from compat.neighbors import ArrayRows, nearest, unit_rows
from compat.transformers.artefact import Transformer

FOLDS = 5


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


def packed(found: np.ndarray) -> str:
    """Hits as hexadecimal, eight queries in two digits."""
    return np.packbits(found).tobytes().hex()


def unpacked(text: str, queries: int) -> np.ndarray:
    """Hits [queries] from hexadecimal, as floats."""
    return np.unpackbits(np.frombuffer(bytes.fromhex(text), np.uint8))[:queries].astype(np.float64)
