"""How long to train the demo's networks: cross-validation among its training people alone, the others out of sight.

Each fold trains on two thirds of the training people and searches for the rest: one photograph of each in the gallery,
the others as queries, averaged over every choice of that one. Recall@1 is of a network against itself.
"""

from __future__ import annotations

import argparse
import shutil
import tempfile
import time
from pathlib import Path

import numpy as np
from table import markdown, publish

from backbones.datasets.folders import scan_image_folder
from backbones.encoders.images import load_image_backbone
from backbones.training.fit import fit
from compat.demo import DemoOptions, lay_out_faces
from compat.neighbors import unit_rows

RUNS = (("iresnet18", 8), ("iresnet50", 12))


def recall(embeddings: np.ndarray, labels: np.ndarray) -> float:
    cosines = unit_rows(embeddings) @ unit_rows(embeddings).T
    people = np.unique(labels)
    shots = [np.flatnonzero(labels == person) for person in people]
    found = []
    for shot in range(min(map(len, shots))):
        gallery = np.array([photographs[shot] for photographs in shots])
        queries = np.setdiff1d(np.arange(len(labels)), gallery)
        found.append(np.mean(people[cosines[np.ix_(queries, gallery)].argmax(axis=1)] == labels[queries]))
    return float(np.mean(found))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--folds", type=int, default=3)
    parser.add_argument("--only-folds", type=int, default=3, help="how many of the folds to run")
    parser.add_argument("--save", action="store_true", help="write results/demo_networks.md")
    options = parser.parse_args()
    rows = []
    with tempfile.TemporaryDirectory() as name:
        demo = DemoOptions(out=Path(name))
        people = lay_out_faces(demo)["train"]
        for arch, epochs in RUNS:
            recalls, seconds = [], 0.0
            for fold in range(options.only_folds):
                held_out = set(people[fold :: options.folds])
                folder = Path(name) / f"{arch}-{epochs}-{fold}"
                for person in people:
                    if person not in held_out:
                        shutil.copytree(demo.out / "images" / "train" / person, folder / "faces" / person)
                started = time.perf_counter()
                trained = fit(demo.training(arch, epochs, data=folder / "faces", out=folder / "network"))
                seconds += time.perf_counter() - started
                backbone = load_image_backbone(arch, trained.weights)
                items = [i for i in scan_image_folder(demo.out / "images" / "train") if i.label in held_out]
                embeddings = backbone.embed([backbone.read(item.path) for item in items])
                recalls.append(recall(embeddings, np.array([item.label for item in items])))
            shown = ", ".join(f"{value:.3f}" for value in recalls)
            rows.append([arch, str(epochs), f"{np.mean(recalls):.3f}", shown, f"{seconds / len(recalls):.0f}"])
            print(rows[-1], flush=True)
    text = markdown(["network", "epochs", "recall@1", "by fold", "seconds of training"], rows)
    command = f"python benchmarks/tune_demo.py --only-folds {options.only_folds}"
    publish("demo_networks", command, text, ["torch"], save=options.save)


if __name__ == "__main__":
    main()
