"""How often is the verdict wrong? Maps whose worth is known, judged on simulated splits and on real pairs.

Wrong is any advice to serve a random, constant or shuffled map, and `re_embed` or `not_enough_evidence` for a perfect
one. A split draws two models, identities, a gallery and queries; the hard worlds have few identities, both models at
their ceiling, a tiny gallery, or no labels. Of honest maps, good or poor, nothing is wrong; what they get is told.

Run `python benchmarks/bench_verdict.py --save`; `--data DIR` adds real pairs (see README.md), `--splits 20` for a look.
"""

from __future__ import annotations

import argparse
import sys
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from maps_data import data_sets
from scipy.stats import beta
from table import markdown, publish

from compat.evaluation.comparison import Comparison, constant_answer
from compat.evaluation.verdict import Evidence, decide
from compat.metrics.relevance import Relevance
from compat.metrics.retrieval import ArrayRows, first_ranks, relevant_ranks
from compat.options import Direction

SERVED = ("bridge_queries", "migrate_gallery", "bridge_and_backfill")
DECISIONS = (*SERVED, "re_embed", "keep_old", "not_enough_evidence")
WRONG = {
    "random": SERVED,
    "constant": SERVED,
    "shuffled": SERVED,
    "perfect": ("re_embed", "not_enough_evidence"),
}
"""What must not be said of a map; of the others nothing is wrong."""
MAPS = (*WRONG, "good", "poor")
DIM = 24
TRAINING = 300


@dataclass(frozen=True)
class World:
    """What a split is drawn from.

    Attributes:
        name: What makes it hard.
        identities: Fewest and most identities in the gallery.
        gallery_samples: Gallery items of each.
        query_samples: Queries of each.
        noise: Least and most noise of the old model, relative to identities of unit variance.
        labels: Whether queries are known to be of one identity; without, the answer is the one item.
    """

    name: str
    identities: tuple[int, int]
    gallery_samples: int
    query_samples: int
    noise: tuple[float, float]
    labels: bool = True


WORLDS = (
    World("ordinary", (150, 300), 4, 4, (0.8, 1.2)),
    World("few identities (16 to 100)", (16, 100), 4, 5, (0.8, 1.2)),
    World("both models at their ceiling", (16, 200), 3, 5, (0.1, 0.2)),
    World("tiny gallery (12 to 40 items)", (12, 40), 1, 10, (0.7, 1.0)),
    World("no labels (60 to 400 queries)", (60, 400), 1, 1, (0.5, 0.8), labels=False),
)


@dataclass(frozen=True)
class Sides:
    """One split as both models see it.

    Attributes:
        old_queries: float32 [q, d_old].
        new_queries: float32 [q, d_new].
        old_gallery: float32 [g, d_old].
        new_gallery: float32 [g, d_new].
        old_pairs: float32 [n, d_old], of other identities.
        new_pairs: float32 [n, d_new].
        relevance: What each query should find.
        clusters: Identity of each query, or None.
    """

    old_queries: np.ndarray
    new_queries: np.ndarray
    old_gallery: np.ndarray
    new_gallery: np.ndarray
    old_pairs: np.ndarray
    new_pairs: np.ndarray
    relevance: Relevance
    clusters: np.ndarray | None


def draw(world: World, generator: np.random.Generator) -> Sides:
    """A split: identities are random directions, the new model sees them turned and with less noise."""
    identities = int(generator.integers(world.identities[0], world.identities[1] + 1))
    noise = generator.uniform(*world.noise)
    new_noise = noise * generator.uniform(0.6, 1.0)
    shared = generator.uniform(0.3, 0.7)  # how much of a sample's noise both models see
    turn = np.linalg.qr(generator.normal(size=(DIM, DIM)))[0]

    def seen(people: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        both, first, second = generator.normal(size=(3, *people.shape))
        mixed = [np.sqrt(shared) * both + np.sqrt(1 - shared) * own for own in (first, second)]
        return (people + noise * mixed[0]).astype(np.float32), ((people + new_noise * mixed[1]) @ turn).astype(
            np.float32
        )

    people = generator.normal(size=(identities, DIM))
    gallery_labels = np.repeat(np.arange(identities), world.gallery_samples)
    query_labels = np.repeat(np.arange(identities), world.query_samples)
    (old_gallery, new_gallery), (old_queries, new_queries) = seen(people[gallery_labels]), seen(people[query_labels])
    old_pairs, new_pairs = seen(generator.normal(size=(TRAINING, DIM)))
    relevance = Relevance.by_label(query_labels, gallery_labels, np.full(len(query_labels), -1))
    clusters = query_labels if world.labels else None
    return Sides(old_queries, new_queries, old_gallery, new_gallery, old_pairs, new_pairs, relevance, clusters)


def ridge(source: np.ndarray, target: np.ndarray, strength: float = 10.0) -> tuple[np.ndarray, np.ndarray]:
    """Weight [d_source, d_target] and bias of a centred ridge regression."""
    mean, to = source.mean(axis=0), target.mean(axis=0)
    centred = (source - mean).astype(np.float64)
    weight = np.linalg.solve(centred.T @ centred + strength * np.eye(source.shape[1]), centred.T @ (target - to))
    return weight, to - mean @ weight


def planted(
    kind: str, sides: Sides, direction: Direction, generator: np.random.Generator
) -> tuple[np.ndarray, np.ndarray]:
    """Queries and gallery, both float32 and in one space, as they are served through a map of that kind."""
    forward = direction == "new-to-old"
    moved = sides.new_queries if forward else sides.old_gallery
    kept = sides.old_gallery if forward else sides.new_queries
    source, target = (sides.new_pairs, sides.old_pairs) if forward else (sides.old_pairs, sides.new_pairs)
    if kind == "perfect":
        mapped = sides.old_queries if forward else sides.new_gallery
    elif kind == "random":
        mapped = moved @ generator.normal(size=(moved.shape[1], kept.shape[1]))
    elif kind == "constant":
        mapped = np.ones((len(moved), kept.shape[1]))
    else:
        if kind == "shuffled":
            source = generator.permutation(source)
        if kind == "poor":  # few pairs, and the wrong ones among them
            some = generator.choice(len(source), 60, replace=False)
            source, target = source[some], target[some].copy()
            target[:20] = target[generator.permutation(20)]
        weight, bias = ridge(source, target)
        mapped = moved @ weight + bias
    mapped = mapped.astype(np.float32)
    return (mapped, kept) if forward else (kept, mapped)


def hits(queries: np.ndarray, gallery: np.ndarray, relevance: Relevance) -> np.ndarray:
    """Whether each query finds a right row first, float64 [q, 1]."""
    ranks = relevant_ranks(queries, ArrayRows(gallery), relevance)
    return (first_ranks(ranks, relevance) <= 1).astype(np.float64)[:, None]


def judge(sides: Sides, maps: dict[str, tuple[np.ndarray, np.ndarray]], direction: Direction) -> dict[str, str]:
    """The decision on each map, from queries and gallery as it serves them."""
    native = {
        "old_to_old": hits(sides.old_queries, sides.old_gallery, sides.relevance),
        "new_to_new": hits(sides.new_queries, sides.new_gallery, sides.relevance),
    }
    served = {name: hits(*pair, sides.relevance) for name, pair in maps.items()}
    seen = Comparison(native | served, sides.clusters, measures=("recall_at_1",))

    def recall(name: str):
        measures = seen.setting(name).measures
        return measures["recall_at_1"] if measures else None

    found = {}
    for name in maps:
        evidence = Evidence(
            direction=direction,
            old_to_old=recall("old_to_old"),
            new_to_new=recall("new_to_new"),
            transformed=recall(name),
            retention=seen.retention(name),
            bridge_gain=seen.gain(name, over="old_to_old"),
            model_gain=seen.gain("new_to_new", over="old_to_old"),
            groups=seen.groups,
            unit=seen.unit,
            constant_answer=constant_answer(sides.relevance),
            gallery_rows=len(sides.old_gallery),
        )
        found[name] = decide(evidence).decision
    return found


def simulated(splits: int) -> tuple[str, str]:
    """Tables of the wrong decisions by map and world, and of all."""
    said: dict[tuple[str, str], Counter[str]] = {}
    for number, world in enumerate(WORLDS):
        for split in range(splits):
            generator = np.random.default_rng((number, split))
            sides = draw(world, generator)
            direction: Direction = "new-to-old" if split % 2 == 0 else "old-to-new"
            maps = {kind: planted(kind, sides, direction, generator) for kind in MAPS}
            for kind, decision in judge(sides, maps, direction).items():
                said.setdefault((world.name, kind), Counter())[decision] += 1
        print(world.name, {k: dict(said[world.name, k]) for k in MAPS}, file=sys.stderr, flush=True)
    rows = []
    for kind, wrong in WRONG.items():
        counts = [sum(said[world.name, kind][decision] for decision in wrong) for world in WORLDS]
        total = splits * len(WORLDS)
        rows.append([kind, *map(str, counts), f"{sum(counts) / total:.1%}", f"{upper(sum(counts), total):.1%}"])
    head = ("map", *(world.name for world in WORLDS), "rate", "95% upper bound")
    detail = [[world, kind, *(str(count[d]) for d in DECISIONS)] for (world, kind), count in said.items()]
    return markdown(head, rows), markdown(("world", "map", *DECISIONS), detail)


def upper(wrong: int, total: int) -> float:
    """The exact one-sided 95% binomial bound of a rate (Clopper and Pearson, 1934)."""
    return 1.0 if wrong == total else float(beta.ppf(0.95, wrong + 1, total - wrong))


def real(folder: Path) -> str:
    """The verdict on each kind of map for the real pairs."""
    rows = []
    for data in data_sets(folder):
        split = data.split(0)
        for query_set in split.query_sets:
            labels = None
            if split.gallery_labels is not None:
                first = query_set.relevance.rows[query_set.relevance.offsets[:-1]]
                labels = split.gallery_labels[first]
            size = max(data.sizes)
            sides = Sides(
                *(query_set.old, query_set.new, split.gallery_old, split.gallery_new),
                *(split.pairs_old[:size], split.pairs_new[:size]),
                relevance=query_set.relevance,
                clusters=labels,
            )
            for direction in ("new-to-old", "old-to-new"):
                generator = np.random.default_rng(0)
                maps = {kind: planted(kind, sides, direction, generator) for kind in MAPS}
                found = judge(sides, maps, direction)
                print(data.name, query_set.name, direction, found, file=sys.stderr, flush=True)
                rows.append([data.name, query_set.name, direction, *(found[kind] for kind in MAPS)])
    return markdown(("data", "queries", "direction", *MAPS), rows)


def main(argv: Sequence[str] | None = None) -> None:
    """Judge and print, and keep with --save."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--splits", type=int, default=200, help="of each world")
    parser.add_argument(
        "--data", type=Path, help="a folder that holds text_wordnet/ or font_identities/, see README.md"
    )
    parser.add_argument("--save", action="store_true", help="write results/verdict.md")
    options = parser.parse_args(argv)
    wrong, said = simulated(options.splits)
    text = [
        f"Wrong verdicts in {options.splits} simulated splits of each world: serving a random, constant or shuffled "
        "map, re-embedding or deferring for a perfect one.",
        wrong,
        "What was said, in full:",
        said,
    ]
    command = f"python benchmarks/bench_verdict.py --splits {options.splits}"
    if options.data:
        command += " --data DIR"
        text += [
            "Real pairs, the same kinds of maps; `good` is plain ridge on all pairs, `poor` on 60:",
            real(options.data),
        ]
    publish("verdict", command, "\n\n".join(text), ("numpy", "scipy"), save=options.save)


if __name__ == "__main__":
    main()
