"""Embed a set of items: `python -m compat.extract --backbone iresnet18 --weights W --data DIR --out STORE`.

DIR holds one folder per identity; sets of other forms and texts work too. An interrupted extraction goes on when the
same command is run again.
"""

import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from stores.command_line import progress, run_command

if TYPE_CHECKING:
    import numpy as np
    import polars as pl

    from backbones.datasets.items import Item, Items
    from backbones.datasets.reading import Reading
    from backbones.encoders.encoder import Backbone
    from stores.store import EmbeddingStore

SECONDS_PER_COMMIT = 30.0
SAMPLE_ITEMS = 64  # that the precision is judged by; fixed, so that it does not depend on how the work is cut up
LONGEST_LIST = 16  # of the model card's that provenance repeats


@dataclass(frozen=True, kw_only=True)
class ExtractOptions:
    """What to embed with what.

    Attributes:
        backbone: A built-in network (`python -m backbones.list` names them), `onnx:FILE`, or `module:function`
            returning a `backbones.encoders.encoder.Backbone`; `backbones.encoders.texts:minilm` is one for texts.
        data: The items. Images: a folder with one folder per identity, a .rec, .tar or .bin file, or a list. Texts: a
            .txt file, one text a line; a CSV, NDJSON or Parquet table with columns item_id, text and perhaps label; or
            a folder of .txt files.
        out: The store; run again to go on with it.
        weights: model.safetensors that `backbones.train` wrote, for a built-in network.
        space_name: What to call the embedding space; the backbone's name by default.
        views: Embeddings per item: the first of the item as it is, further ones of augmented views of the image. The
            views depend on view_seed and the item's id alone, so two networks see the same ones.
        view_seed: Chooses the augmented views.
        batch_size: Embeddings made at a time; changes speed and memory only.
        precision: Number format of the network; auto takes the fastest one that keeps the embeddings (cosine to fp32
            of at least 0.999 on the first items).
        engine: What runs the network; auto takes OpenVINO where it is installed and keeps the embeddings as well.
        flip_average: Average over the image and its mirror image, yes or no; by default as the network was trained for.
        adabn: Target images that the network's normalisation is adapted to first (AdaBN); makes a space of its own.
        max_bad: Unreadable items that are skipped and listed in the store's provenance; one more is an error.
        workers: Threads that read and decode while the network runs; changes speed only.
        chunk_rows: Rows in a chunk of the store.
        dtype: Number format of the store's vectors.
        shard_chunks: Chunks of the store that share a file.
    """

    backbone: str
    data: Path
    out: Path
    weights: Path | None = None
    space_name: str | None = None
    views: int = 1
    view_seed: int = 0
    batch_size: int = 64
    precision: Literal["auto", "bf16", "fp32"] = "auto"
    engine: Literal["torch", "openvino", "auto"] = "torch"
    flip_average: bool | None = None
    adabn: Path | None = None
    max_bad: int = 10
    workers: int = 2
    chunk_rows: int | None = None
    dtype: Literal["float32", "float16"] = "float32"
    shard_chunks: int = 1

    def __post_init__(self) -> None:
        for name in ("views", "batch_size", "workers", "chunk_rows", "shard_chunks"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ValueError(f"{name} must be at least 1, found {value}")
        if self.max_bad < 0:
            raise ValueError(f"max_bad must not be negative, found {self.max_bad}")

    def layout(self) -> dict[str, Any]:
        """What of the store's layout is not as `EmbeddingStore.create` has it."""
        chosen: dict[str, Any] = {} if self.chunk_rows is None else {"chunk_rows": self.chunk_rows}
        chosen |= {} if self.dtype == "float32" else {"dtype": self.dtype}
        return chosen | ({} if self.shard_chunks == 1 else {"shard_chunks": self.shard_chunks})


@dataclass(frozen=True)
class ExtractResult:
    """What an extraction came to; `rows_before` rows were there from an earlier run."""

    store: Path
    rows: int
    rows_before: int
    skipped: tuple[str, ...]
    space: str

    def __str__(self) -> str:
        skipped = f", {len(self.skipped)} unreadable items skipped" if self.skipped else ""
        before = f" ({self.rows_before} of them from an earlier run)" if self.rows_before else ""
        return f"{self.rows} embeddings of {self.space}{before} in {self.store}{skipped}"


def extract(options: ExtractOptions) -> ExtractResult:
    """Embed every item of a set into an `EmbeddingStore`, or go on with an interrupted extraction.

    Raises:
        FileNotFoundError: If data or weights are missing.
        FileExistsError: If something else is at `out`.
        ValueError: If the backbone is unknown or does not fit its weights, or too many items are unreadable.
        ImportError: If the backbone or engine needs a package that is not installed.
    """
    from backbones.datasets.item_sets import open_items
    from backbones.encoders.load import load_backbone
    from stores.galleries.zarr_store import COMPLETE

    backbone = load_backbone(
        options.backbone,
        weights=options.weights,
        flip_average=options.flip_average,
        precision=options.precision,
        engine=options.engine,
        micro_batch=options.batch_size,
    )
    items = open_items(options.data, backbone.suffixes)
    backbone.require_reads(items)
    adapted = None if options.adabn is None else _adapt(options, options.adabn, backbone)
    with _open_or_create(options, backbone, items, adapted) as store:
        before = len(store)
        if not store.provenance[COMPLETE]:
            _embed(options, backbone, items, store)
        skipped = tuple(str(entry["item_id"]) for entry in store.provenance["skipped"])
        return ExtractResult(options.out, len(store), before, skipped, str(store.space))


def _adapt(options: ExtractOptions, folder: Path, backbone: "Backbone") -> dict[str, Any]:
    """Adapt the norms to the images of a folder; return what the store's provenance says of it."""
    from backbones.datasets.item_sets import open_items
    from backbones.datasets.reading import read_ahead
    from backbones.encoders.images import ImageBackbone

    if not isinstance(backbone, ImageBackbone):
        raise ValueError(
            f"--adabn adapts networks that `backbones.train` wrote, {options.backbone} is none; leave it out"
        )
    target = open_items(folder, backbone.suffixes)
    bad: dict[str, str] = {}

    class Pass:
        """One pass over the images, each time it is iterated over."""

        def __iter__(self) -> "Iterator[list[np.ndarray]]":
            batches = read_ahead(target.since(0), backbone.read_item, batch_size=SAMPLE_ITEMS, workers=options.workers)
            for readings in batches:
                bad.update({str(r.item.item_id): r.reason for r in readings if r.content is None})
                _require_few_bad(bad, options.max_bad)
                yield [r.content for r in readings if r.content is not None]

    statistics = backbone.adapt_norms(Pass())
    return {**statistics.to_dict(), "items": target.count, "items_sha256": target.digest, "skipped": len(bad)}


def _open_or_create(
    options: ExtractOptions, backbone: "Backbone", items: "Items", adapted: dict[str, Any] | None
) -> "EmbeddingStore":
    from stores.galleries.zarr_store import COMPLETE
    from stores.space import EmbeddingSpace
    from stores.store import EmbeddingStore

    space = EmbeddingSpace(options.space_name or backbone.name, backbone.fingerprint, backbone.dim, backbone.normalized)
    # Only what decides the vectors and where they lie: a run that goes on may have another batch size or more workers.
    extraction = {
        "backbone": options.backbone,
        "fingerprint": backbone.fingerprint,
        "items": items.count,
        "items_sha256": items.digest,  # names and sizes of files, contents of texts: changed data are noticed
        "views": options.views,
        "view_seed": options.view_seed,
        "precision": options.precision,
        "engine": options.engine,
        "adabn": adapted,
        "layout": options.layout(),
        "model_card": None if backbone.card is None else _without_long_lists(dict(backbone.card)),
    }
    if not (options.out / "store.json").exists():
        provenance = {"extraction": extraction, COMPLETE: False, "items_done": 0, "skipped": []}
        return EmbeddingStore.create(options.out, space, provenance=provenance, **options.layout())
    store = EmbeddingStore.open(options.out)
    found = store.provenance.get("extraction")
    if found != extraction:
        odd = [name for name in extraction if not isinstance(found, dict) or found.get(name) != extraction[name]]
        raise FileExistsError(
            f"{options.out} holds another extraction (it differs in {', '.join(odd) or 'options'}); "
            "name another --out or remove it"
        )
    return store


def _without_long_lists(value: Any) -> Any:
    if isinstance(value, dict):
        return {name: _without_long_lists(each) for name, each in value.items()}
    if isinstance(value, list | tuple):
        return [_without_long_lists(each) for each in value] if len(value) <= LONGEST_LIST else {"count": len(value)}
    return value


def _embed(options: ExtractOptions, backbone: "Backbone", items: "Items", store: "EmbeddingStore") -> None:
    import time
    from itertools import islice

    from backbones.datasets.reading import read_ahead
    from stores.galleries.zarr_store import COMPLETE

    provenance = store.provenance
    # The guard's choice of precision must not depend on where an interrupted run went on: always the first items.
    first = islice(items.since(0), SAMPLE_ITEMS)
    read = read_ahead(first, backbone.read_item, batch_size=SAMPLE_ITEMS, workers=options.workers)
    sample = [reading.content for readings in read for reading in readings if reading.content is not None]
    _require_views(options, sample)
    provenance["inference"] = backbone.prepare(sample) if sample else {}
    per_batch = max(1, options.batch_size // options.views)
    done = provenance["items_done"]
    batches = read_ahead(items.since(done), _reader(backbone, options), batch_size=per_batch, workers=options.workers)
    last_commit = time.monotonic()
    for readings in progress(batches, f"embedding {options.data}", total=-(-(items.count - done) // per_batch)):
        bad = [reading for reading in readings if reading.content is None]
        provenance["skipped"] += [{"item_id": each.item.item_id, "reason": each.reason} for each in bad]
        _require_few_bad({entry["item_id"]: entry["reason"] for entry in provenance["skipped"]}, options.max_bad)
        contents = [view for reading in readings if reading.content is not None for view in reading.content]
        if contents:
            store.append(_table(readings, items), backbone.embed(contents))
        provenance["items_done"] += len(readings)
        if time.monotonic() - last_commit > SECONDS_PER_COMMIT:
            store.commit(provenance)
            last_commit = time.monotonic()
    if provenance["items_done"] != items.count:
        raise ValueError(f"{options.data} changed while it was read; run the same command again with another --out")
    if items.count and items.count == len(provenance["skipped"]):
        entry = provenance["skipped"][0]
        raise ValueError(
            f"none of the {items.count} items is readable; the first is {entry['item_id']}: {entry['reason']}"
        )
    store.commit({**provenance, COMPLETE: True})


def _require_few_bad(bad: dict[str, str], most: int) -> None:
    if len(bad) > most:
        name, reason = next(iter(bad.items()))
        raise ValueError(f"{len(bad)} items are unreadable, --max-bad allows {most}; the first is {name}: {reason}")


def _table(readings: "list[Reading[Item, list[Any]]]", items: "Items") -> "pl.DataFrame":
    """The item table's rows of the readable items, one for each view."""
    import polars as pl

    columns: dict[str, list[Any]] = {"item_id": [], "label": [], "source_item": [], "view": []}
    for item, content, _ in readings:
        for view in range(len(content or ())):
            columns["item_id"].append(f"{item.item_id}#view{view}" if view else item.item_id)
            columns["label"].append(None if item.label == "" else item.label)
            columns["source_item"].append(item.item_id)
            columns["view"].append(view)
    ids = pl.Int64 if isinstance(next(iter(columns["item_id"]), ""), int) else pl.String
    # told by the whole set: the labels of a batch may all be missing
    labels = {int: pl.Int64, str: pl.String}.get(items.label_type) if items.label_type else None
    types = {"item_id": ids, "label": labels, "source_item": ids, "view": pl.Int64}
    schema = {name: kind for name, kind in types.items() if kind is not None}
    return pl.DataFrame({name: columns[name] for name in schema}, schema=schema)


def _reader(backbone: "Backbone", options: ExtractOptions) -> "Callable[[Item], list[Any]]":
    """Read an item and return its views, of which the first is the item itself."""

    def read(item: "Item") -> list[Any]:
        content = backbone.read_item(item)
        return [_view(content, item, view, options) for view in range(options.views)]

    return read


def _require_views(options: ExtractOptions, sample: list[Any]) -> None:
    import numpy as np

    images = all(isinstance(c, np.ndarray) and c.dtype == np.uint8 and c.ndim == 3 for c in sample)
    if options.views > 1 and not images:
        raise ValueError(
            f"--views {options.views} needs a backbone that reads images; this one does not: use --views 1"
        )


def _view(content: Any, item: "Item", view: int, options: ExtractOptions) -> Any:
    if view == 0:
        return content
    from backbones.augmentation.views import augmented_view
    from backbones.options import AugmentOptions

    name = str(item.item_id)
    return augmented_view(content, item_id=name, view=view, seed=options.view_seed, options=AugmentOptions())


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line and return its exit code."""
    return run_command(
        ExtractOptions,
        lambda options: print(extract(options)),
        argv,
        prog="python -m compat.extract",
        description=str(__doc__),
    )


if __name__ == "__main__":
    sys.exit(main())
