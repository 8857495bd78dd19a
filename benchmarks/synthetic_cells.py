"""Fitting and judging the cells of bench_synthetic, each result in a file of its own."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
from synthetic_data import Labelled, Say, Source, draw
from synthetic_plan import CHOICE_SEED, CHOSEN_BY, CORRECTION, Cell, Map, Setting, Sizes, fit_options, within_rows

from compat.metrics.label_means import label_means
from compat.metrics.relevance import Relevance
from compat.metrics.retrieval import ArrayRows, relevant_ranks, retrieval_scores
from compat.neighbors import unit_rows
from compat.options import FitOptions
from compat.pairs import Pairs
from compat.training.fit import fit_transformer, with_correction
from compat.training.interpolation import plan_synthetic
from compat.training.selection import identity_folds
from compat.transformers.artefact import Transformer
from compat.vectors import ArrayVectors
from stores.space import Similarity

PLAIN, CORRECTED = "plain", "corrected"
REFERENCES = "references"
OK, VOID = "ok", "void"
PERMUTATION_SEED = 7

Record = dict[str, Any]


class Runs:
    """The folder `cells/` of results.

    Args:
        folder: Of everything.
        source: What is fitted to and judged by.
        sizes: How much is fitted.
        say: Called with a line about what is done.
    """

    def __init__(self, folder: Path, source: Source, sizes: Sizes, say: Say) -> None:
        self.folder, self.source, self.sizes, self.say = folder, source, sizes, say

    def references(self) -> Record:
        """Old queries in the old gallery and new ones in the new: what there is to keep, and to gain."""
        gallery, queries = self.source.gallery, self.source.queries

        def make() -> Record:
            sides = {"old to old": (queries.old, gallery.old), "new to new": (queries.new, gallery.new)}
            return {"scores": {name: judged(*side, self.source) for name, side in sides.items()}}

        return self._result(REFERENCES, {}, make)

    def has_chosen(self, setting: Setting, group: str) -> bool:
        """Whether the fits that a group's number of epochs is chosen by are there."""
        tried = [(family, epochs) for family in CHOSEN_BY[group] for epochs in self._choices(setting, group)]
        return all(self.load(_choice(setting, *each)) is not None for each in tried)

    def chosen_epochs(self, setting: Setting, group: str) -> tuple[int, dict[int, float]]:
        """The number of epochs by which a group's networks retrieve held-out identities best, and those retrievals.

        It is chosen once for a setting, by the mean reciprocal rank of a fold of training identities, without synthetic
        samples; the fewer of equals. No test character has a say.
        """
        found = {}
        for epochs in self._choices(setting, group):
            ranks = []
            for family in CHOSEN_BY[group]:
                cell = Cell(setting, CHOICE_SEED, Map(family))
                made = self._result(
                    _choice(setting, family, epochs),
                    self._settings(cell, epochs),
                    lambda c=cell, e=epochs: self._held(c, e),
                )
                ranks.append(made["held_out"])
            found[epochs] = float(np.mean(ranks))
        return max(found, key=lambda epochs: (found[epochs], -epochs)), found

    def _choices(self, setting: Setting, group: str) -> list[int]:
        pairs = len(self.pairs(setting, CHOICE_SEED))
        return sorted({within_rows(group, epochs, pairs, self.sizes) for epochs in self.sizes.epoch_choices})

    def cell(self, cell: Cell, epochs: int) -> Record:
        """A cell's result of so many epochs, from its file or made now."""
        return self._result(cell.name, self._settings(cell, epochs), lambda: self._fitted(cell, epochs))

    def load(self, name: str) -> Record | None:
        """A result that is there, or None."""
        path = self._path(name)
        return json.loads(path.read_text()) if path.is_file() else None

    def pairs(self, setting: Setting, seed: int) -> Pairs:
        """What a cell is fitted to."""
        return draw(self.source.fitted[setting.counts], seed, self.sizes.pairs_wanted(setting.size))

    def _path(self, name: str) -> Path:
        return self.folder / "cells" / f"{name}.json"

    def _settings(self, cell: Cell, epochs: int) -> Record:
        return {"cell": asdict(cell), "epochs": epochs, "sizes": {"pairs": self.sizes.pairs_wanted(cell.setting.size)}}

    def _result(self, name: str, settings: Record, make: Callable[[], Record]) -> Record:
        settings = json.loads(json.dumps(settings | {"source": self.source.digest}))
        path = self._path(name)
        if (found := self.load(name)) is not None:
            if found["settings"] != settings:
                raise ValueError(
                    f"{path} was made with other settings or data; remove it to make it anew, or name another --out"
                )
            return found
        started = time.monotonic()
        made = {"settings": settings, **make(), "seconds": time.monotonic() - started}
        path.parent.mkdir(parents=True, exist_ok=True)
        partial = path.with_suffix(f".{os.getpid()}.partial")  # another process may be making the same
        partial.write_text(json.dumps(made))
        partial.replace(path)
        self.say(f"{name}: {made.get('status', 'done')} in {made['seconds']:.0f} s")
        return made

    def _held(self, cell: Cell, epochs: int) -> Record:
        fitted = fit_transformer(self.pairs(cell.setting, cell.seed), fit_options(cell, epochs, self.sizes))
        return {"held_out": fitted.training["held_out"]["mean_reciprocal_rank"]}

    def _fitted(self, cell: Cell, epochs: int) -> Record:
        pairs, queries = self.pairs(cell.setting, cell.seed), self.source.queries.new
        if cell.map.permuted:
            pairs, queries = permuted(pairs), queries[:, permutation(queries.shape[1])]
        labels = pairs.labels
        assert labels is not None  # as `draw` gives them
        options = fit_options(cell, epochs, self.sizes)
        training = pairs.select(np.flatnonzero(identity_folds(pairs, options.folds, seed=options.seed) != 0))
        fitted = fit_transformer(training if cell.map.fold_out else pairs, options)
        facts = fitted.training
        of_synthetic = facts.get("synthetic")
        record: Record = {
            "status": OK,
            "pairs": len(pairs),
            "identities": int(labels.max()) + 1,
            "notes": facts["notes"],
            "epochs": options.epochs,
        }
        if "best_epoch" in facts:
            baseline, held_out = facts["linear_baseline"], facts["held_out"]
            record |= {
                "epochs_run": len(facts["epochs"]),
                "best_epoch": facts["best_epoch"] + 1,
                "held_out": held_out["mean_reciprocal_rank"],
                "held_out_of_ridge": baseline["mean_reciprocal_rank"],
            }
        if of_synthetic is not None:
            record["synthetic"] = {"samples": of_synthetic["samples"], "rate": of_synthetic["rate"]}
            if not of_synthetic["samples"]:
                return record | {"status": VOID}
            record["synthetic"] |= nearness(training, options)
        scores = {PLAIN: served(fitted.without_correction(), queries, self.source)}
        if cell.map.corrected:
            corrected = fitted if cell.map.family == "auto" else with_correction(fitted, pairs, CORRECTION)
            strength = corrected.correction.strength if corrected.correction else 0.0
            record |= {"family": fitted.family, "correction": strength}
            scores[CORRECTED] = served(corrected, queries, self.source)
        return record | {"scores": scores}


def _choice(setting: Setting, family: str, epochs: int) -> str:
    return f"choice-{setting.counts}-{setting.size}-{family}-{epochs}"


def permutation(dim: int) -> np.ndarray:
    """An order of dimensions, int64 [dim], the same everywhere."""
    return np.random.default_rng(PERMUTATION_SEED).permutation(dim)


def permuted(pairs: Pairs) -> Pairs:
    """The same pairs with the dimensions of the new vectors in another order."""
    space = pairs.new.space
    vectors = pairs.new.take(np.arange(len(pairs.new)))[:, permutation(space.dim)]
    return replace(pairs, new=ArrayVectors(np.ascontiguousarray(vectors), space))


def nearness(training: Pairs, options: FitOptions) -> dict[str, float]:
    """Mean cosine of the centroids, in either space, of the two identities behind each synthetic sample."""
    assert training.labels is not None  # as `draw` gives them
    planned = plan_synthetic(training, options.interpolation, options.direction, seed=options.seed)
    found = {}
    for name, side in zip(("source", "target"), training.take(np.arange(len(training)), "new-to-old"), strict=True):
        means = label_means(ArrayRows(side), training.labels)
        rows = unit_rows(means.rows)
        a, b = (np.searchsorted(means.labels, training.labels[parents]) for parents in (planned.first, planned.second))
        found[f"{name}_cosine"] = float((rows[a] * rows[b]).sum(axis=1).mean())
    return found


def served(transformer: Transformer, queries: np.ndarray, source: Source) -> dict[str, str]:
    """What new queries [q, d_new] find through a map, in the old gallery and in the gallery of its characters' means.

    The means are made of the old gallery and served as any gallery is, so that a correction sees the means themselves.
    """
    asked, similarity = transformer.serve_queries(queries), transformer.served_space.similarity
    return judged(asked, source.gallery.old, source, similarity, transformer.serve_gallery)


def judged(
    queries: np.ndarray,
    gallery: np.ndarray,
    source: Source,
    similarity: Similarity = "cosine",
    serve: Callable[[np.ndarray], np.ndarray] = np.asarray,
) -> dict[str, str]:
    """Whether each query's nearest neighbour is of its character, a digit 0 or 1 for each: single items, then means."""
    labels = source.gallery.identities
    means = label_means(ArrayRows(gallery), labels)
    return {
        "items": _hits(queries, serve(gallery), source.queries, labels, similarity),
        "means": _hits(queries, serve(means.rows), source.queries, means.labels, similarity),
    }


def _hits(queries: np.ndarray, gallery: np.ndarray, asked: Labelled, labels: np.ndarray, similarity: Similarity) -> str:
    relevance = Relevance.by_label(asked.identities, labels, np.full(len(asked), -1))
    ranks = relevant_ranks(queries, ArrayRows(gallery), relevance, similarity=similarity)
    return "".join("1" if hit else "0" for hit in retrieval_scores(ranks, relevance).recall_at_1)
