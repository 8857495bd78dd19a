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
from pathlib import Path

import numpy as np
from compactness_data import Data, fold, hits, packed, read
from compactness_tables import DIRECTIONS, ENDS, FAMILIES, Cell, Record, report
from table import publish

from compat.options import FitOptions, LossWeights
from compat.pairs import Pairs
from compat.training.interpolation import NO_SAMPLES
from compat.training.network_run import NetworkRun
from compat.training.selection import HeldOutRetrieval, identity_folds
from compat.transformers.artefact import Transformer

NO_DATA = (
    "nothing measured: identities embedded by two models are needed, in the folder of --data DIR, which holds "
    "font_identities/ (see README.md)"
)


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


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, help="a folder that holds font_identities/; nothing is measured without")
    parser.add_argument("--out", type=Path, default=Path("runs/bench_compactness"), help="where cells are kept")
    parser.add_argument("--directions", nargs="+", default=DIRECTIONS, choices=DIRECTIONS)
    parser.add_argument("--families", nargs="+", default=FAMILIES, choices=FAMILIES)
    parser.add_argument("--weights", nargs="+", type=float, default=[0.0, 1.0, 3.0, 10.0, 30.0])
    parser.add_argument("--seeds", type=int, default=3, help="seeds 0, 1, ... below this")
    parser.add_argument("--epochs", type=int, default=30)
    parser.add_argument("--tables", action="store_true", help="measure nothing, print the table of what is there")
    parser.add_argument("--save", action="store_true", help="write results/compactness.md")
    options = parser.parse_args(argv)
    if options.data is None or not (options.data / "font_identities").is_dir():
        print(NO_DATA)
        return
    data = read(options.data / "font_identities")
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
    weights = " ".join(f"{weight:g}" for weight in options.weights)
    given = (("seeds", options.seeds), ("epochs", options.epochs), ("weights", weights))
    changed = [f"--{name} {value}" for name, value in given]
    command = f"python benchmarks/bench_compactness.py --data DIR {' '.join(changed)}"
    publish("compactness", command, text, ["numpy", "torch"], save=options.save)


if __name__ == "__main__":
    main()
