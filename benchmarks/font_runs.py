"""Training and judging the networks of font_identities, one after the other, each result in a file of its own.

A result that is there is not made again; a training that was killed goes on from its checkpoint.
"""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Callable, Collection, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import torch
from font_files import read_tar
from font_plan import COMPATIBLE, DISTILLED, NEW, OLD, Cell, Sizes, stored_teacher
from font_scores import Scores, score
from font_speed import training_speeds

from backbones.checkpoint import MODEL_FILE
from backbones.encoders.images import load_image_backbone
from backbones.networks.costs import network_cost
from backbones.train import train
from compat.options import FitOptions
from compat.pairs import Pairs
from compat.training.fit import fit_transformer
from compat.transformers.artefact import Transformer

MAPS = ("ridge", "auto")


class Runs:
    """A folder with `set/`, `networks/`, `vectors/` and `cells/`.

    Args:
        folder: Of everything.
        sizes: How much is trained.
        manifest: Of the image set.
        say: Called with a line about what is done.
    """

    def __init__(self, folder: Path, sizes: Sizes, manifest: dict[str, Any], say: Callable[[str], object]) -> None:
        self.folder, self.sizes, self.manifest, self.say = folder, sizes, manifest, say

    def train_all(self, cells: Sequence[Cell], only: Collection[str] = ()) -> None:
        """Train and judge each network, then compare across networks; or `only` those of these names."""
        for cell in cells:
            if not only or cell.name in only:
                self.result(cell.name, self._settings(cell), lambda cell=cell: self._trained(cell, cells))
        if only:
            return
        everything = {"cells": [self._settings(cell) for cell in cells]}
        self.result("speed", everything, lambda: self._speeds(cells))
        across = [cell for cell in cells if cell.name in (OLD, NEW, DISTILLED, COMPATIBLE)]
        self.result("across", {"cells": [self._settings(cell) for cell in across]}, lambda: self._across(across))

    def result(self, name: str, settings: dict[str, Any], make: Callable[[], dict[str, Any]]) -> dict[str, Any]:
        """A result from its file, or made and written.

        Raises:
            ValueError: If the file holds a result of other settings.
        """
        path = self.folder / "cells" / f"{name}.json"
        settings = json.loads(json.dumps(settings, default=str))
        if path.is_file():
            found = json.loads(path.read_text())
            if found["settings"] != settings:
                raise ValueError(
                    f"{path} was made with other settings; remove it to make it anew, or name another --out"
                )
            return found
        self.say(f"{name}: begins")
        started = time.monotonic()
        made = {"settings": settings, **make()}
        path.parent.mkdir(parents=True, exist_ok=True)
        partial = path.with_suffix(".partial")
        partial.write_text(json.dumps(made))
        partial.replace(path)
        self.say(f"{name}: done in {(time.monotonic() - started) / 60:.1f} min")
        return made

    def load(self, name: str) -> dict[str, Any] | None:
        """A result that is there, or None."""
        path = self.folder / "cells" / f"{name}.json"
        return json.loads(path.read_text()) if path.is_file() else None

    def test_labels(self, part: str) -> np.ndarray:
        """Characters of the test images of `gallery` or `queries` as integer codes [n]."""
        return np.array([int(item_id[2:].split("/")[0], 16) for item_id in read_tar(self._tar(part))[1]])

    def _settings(self, cell: Cell) -> dict[str, Any]:
        tars = {name: self.manifest["tars"][name]["sha256"] for name in (cell.data, "gallery", "queries")}
        return {"cell": asdict(cell), "side": self.sizes.build.side, "seed": self.sizes.build.seed, "tars": tars}

    def _trained(self, cell: Cell, cells: Sequence[Cell]) -> dict[str, Any]:
        build = self.sizes.build
        if cell.teacher:
            self._store_teacher(cell, next(other for other in cells if other.name == cell.teacher))
        trained = train(cell.training(self.folder, build.side, build.seed), on_epoch=self._say_epoch)
        gallery, queries = (self._vectors(cell, part) for part in ("gallery", "queries"))
        scores = self._scored(queries, gallery)
        cost = network_cost(cell.arch, input_size=build.side)
        return {
            "scores": scores.to_dict(),
            "parameters": cost.parameters,
            "multiply_adds": cost.multiply_adds,
            "accuracy": trained.history[-1].get("accuracy"),
            "loss": trained.history[-1]["loss"],
        }

    def _say_epoch(self, record: dict[str, Any]) -> None:
        accuracy = f", accuracy {record['accuracy']:.3f}" if "accuracy" in record else ""
        self.say(
            f"  epoch {record['epoch']}: loss {record['loss']:.2f}{accuracy}, {record['images_per_second']} images/s"
        )

    def _speeds(self, cells: Sequence[Cell]) -> dict[str, Any]:
        build = self.sizes.build
        trainings = {cell.name: cell.training(self.folder, build.side, build.seed) for cell in cells}
        return {"images_per_second": training_speeds(trainings), "threads": torch.get_num_threads()}

    def _across(self, cells: Sequence[Cell]) -> dict[str, Any]:
        """New queries in old galleries: as they are, through maps, and made compatible."""
        by_name = {cell.name: cell for cell in cells}

        def vectors(name: str, part: str) -> np.ndarray:
            return self._vectors(by_name[name], part)

        old_gallery, new_queries = vectors(OLD, "gallery"), vectors(NEW, "queries")
        scores = {
            "naive": self._scored(new_queries, old_gallery),
            "compatible in old": self._scored(vectors(COMPATIBLE, "queries"), old_gallery),
            "distilled in new": self._scored(vectors(DISTILLED, "queries"), vectors(NEW, "gallery")),
            "old in new": self._scored(vectors(OLD, "queries"), vectors(NEW, "gallery")),
        }
        data, seconds, families = by_name[OLD].data, {}, {}
        labels = np.array([int(item_id[2:].split("/")[0], 16) for item_id in read_tar(self._tar(data))[1]])
        pairs = Pairs.from_arrays(vectors(OLD, data), vectors(NEW, data), labels)
        for name in MAPS:
            started = time.monotonic()
            transformer: Transformer = fit_transformer(pairs, FitOptions(transformer=name, direction="new-to-old"))
            seconds[name], families[name] = time.monotonic() - started, transformer.family
            served, gallery = transformer.serve_queries(new_queries), transformer.serve_gallery(old_gallery)
            scores[name] = score(
                served,
                gallery,
                self.test_labels("queries"),
                self.test_labels("gallery"),
                similarity=transformer.served_space.similarity,
            )
        return {
            "scores": {name: each.to_dict() for name, each in scores.items()},
            "fit_seconds": seconds,
            "families": families,
        }

    def _scored(self, queries: np.ndarray, gallery: np.ndarray) -> Scores:
        return score(queries, gallery, self.test_labels("queries"), self.test_labels("gallery"))

    def _store_teacher(self, cell: Cell, teacher: Cell) -> None:
        """Embed the cell's training images with its teacher, as `stores.convert STORE FILE.npz` would write them."""
        item_ids, vectors = np.array(read_tar(self._tar(cell.data))[1]), self._vectors(teacher, cell.data)
        path = stored_teacher(self.folder, cell)
        if path.is_file() and np.array_equal(np.load(path)["vectors"], vectors):
            return  # the bytes of an .npz hold the time, and a training that goes on wants the teacher it began with
        partial = path.with_suffix(".partial.npz")
        np.savez(partial, vectors=vectors, item_id=item_ids)
        partial.replace(path)

    def _vectors(self, cell: Cell, part: str) -> np.ndarray:
        """Embeddings float32 [n, d] of a tar's images in its order, from their file or made and kept.

        The file's name has the digest of the weights, so that a network that was trained anew is used anew.
        """
        weights = self.folder / "networks" / cell.name / MODEL_FILE
        digest = hashlib.sha256(weights.read_bytes()).hexdigest()
        path = self.folder / "vectors" / f"{cell.name}-{part}-{digest[:16]}.npy"
        if path.is_file():
            return np.load(path)
        backbone = load_image_backbone(cell.arch, weights)
        images = list(read_tar(self._tar(part))[0])
        backbone.prepare(images)
        vectors = backbone.embed(images)
        path.parent.mkdir(parents=True, exist_ok=True)
        partial = path.with_suffix(".partial.npy")
        np.save(partial, vectors)
        partial.replace(path)
        return vectors

    def _tar(self, name: str) -> Path:
        return self.folder / "set" / f"{name}.tar"
