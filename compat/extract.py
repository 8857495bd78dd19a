"""Embed a set of items: `python -m compat.extract --backbone iresnet18 --weights W --data DIR --out STORE`.

DIR holds one folder per identity; sets of other forms and texts work too. An interrupted extraction goes on when the
same command is run again. Several processes, here or on a dask cluster, make the same store as one.
"""

import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from stores.command_line import progress, run_command

if TYPE_CHECKING:
    from collections.abc import Iterator

    import numpy as np
    import polars as pl

    from compat.extraction.embedding import Embedded, Embedder
    from stores.space import EmbeddingSpace
    from stores.store import EmbeddingStore

SECONDS_PER_COMMIT = 30.0
ADABN_IMAGES = 1000
LONGEST_LIST = 16  # of the model card's that provenance repeats


@dataclass(frozen=True, kw_only=True)
class PreprocessingOptions:
    """How images become the input of an ONNX file; what is left out is in the file's metadata. Part of its space.

    Attributes:
        size: Side of the input, in pixels.
        mean: Subtracted, in pixel values 0 to 255: one number, or three as [r,g,b].
        std: Divided by, in pixel values: one number, or three.
        colour_order: Of the channels.
    """

    size: int | None = None
    mean: float | tuple[float, float, float] | None = None
    std: float | tuple[float, float, float] | None = None
    colour_order: Literal["RGB", "BGR"] | None = None

    def given(self) -> dict[str, Any]:
        """What was given, as fields of `backbones.encoders.preprocessing.Preprocessing`."""
        values: dict[str, Any] = {"size": self.size, "colour_order": self.colour_order}
        for name in ("mean", "std"):
            value = getattr(self, name)
            values[name] = (value,) * 3 if isinstance(value, int | float) else value
        return {name: value for name, value in values.items() if value is not None}


@dataclass(frozen=True, kw_only=True)
class ExtractOptions:
    """What to embed with what.

    Attributes:
        backbone: A built-in network (`python -m backbones.list` names them), `onnx:FILE`, or `module:function`
            returning a `backbones.encoders.encoder.Backbone`; `backbones.encoders.texts:minilm` is one for texts.
        data: The items. Images: a folder with one folder per identity, a .rec, .tar or .bin file, or a list. Texts: a
            .txt file, one text a line; a CSV, NDJSON or Parquet table with columns item_id, text and perhaps label; or
            a folder of .txt files.
        root: Folder that the paths of a list of images start from; the list's own by default.
        out: The store; run again to go on with it.
        weights: model.safetensors that `backbones.train` wrote, for a built-in network; what a module:function takes.
        space_name: What to call the embedding space; the backbone's name by default.
        views: Embeddings per item: the first of the item as it is, further ones of augmented views of the image. The
            views depend on view_seed and the item's id alone, so two networks see the same ones.
        view_seed: Chooses the augmented views.
        batch_size: Embeddings made at a time; changes speed and memory only.
        precision: Number format of the network; auto takes the fastest one that keeps the embeddings (cosine to fp32
            of at least 0.999 on the first items).
        engine: What runs the network; auto takes OpenVINO where it is installed and keeps the embeddings as well.
        flip_average: Average over the image and its mirror image, yes or no; by default as the network was trained for.
        preprocessing: How images become the input of an ONNX file that does not tell.
        test_transform: What is done to the images first, to measure robustness: low-light darkens them.
        adabn: Target images that the network's normalisation is adapted to first (AdaBN); makes a space of its own.
        adabn_images: How many of them are taken at most, evenly spaced; they need room for temporary files.
        max_bad: Unreadable items that are skipped and listed in the store's provenance; one more is an error.
        workers: Processes that embed, each with a network of its own.
        scheduler: Address of a dask scheduler, such as tcp://host:8786, whose workers embed instead; they need this
            package, and data, weights and store under the same paths.
        readers: Threads that read and decode while the network runs, in each process; changes speed only.
        dtype: What the store keeps numbers as; float16 takes half the space and keeps three digits.
        chunk_rows: Rows of the store that are checked and read together; 4096 by default.
        shard_chunks: Chunks in one file of the store; several make fewer files.
    """

    backbone: str
    data: Path
    out: Path
    root: Path | None = None
    weights: Path | None = None
    space_name: str | None = None
    views: int = 1
    view_seed: int = 0
    batch_size: int = 64
    precision: Literal["auto", "bf16", "fp32"] = "auto"
    engine: Literal["torch", "openvino", "auto"] = "torch"
    flip_average: bool | None = None
    preprocessing: PreprocessingOptions = field(default_factory=PreprocessingOptions)
    test_transform: Literal["none", "low-light"] = "none"
    adabn: Path | None = None
    adabn_images: int = ADABN_IMAGES
    max_bad: int = 10
    workers: int = 1
    scheduler: str | None = None
    readers: int = 2
    dtype: Literal["float32", "float16"] = "float32"
    chunk_rows: int | None = None
    shard_chunks: int = 1

    def __post_init__(self) -> None:
        for name in ("views", "batch_size", "workers", "readers", "adabn_images", "chunk_rows", "shard_chunks"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ValueError(f"{name} must be at least 1, found {value}")
        if self.max_bad < 0:
            raise ValueError(f"max_bad must not be negative, found {self.max_bad}")
        if self.adabn is None and self.adabn_images != ADABN_IMAGES:
            raise ValueError(f"adabn_images is {self.adabn_images}, but no images are named by --adabn; name them")

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
    from compat.extraction.distribute import remove_pieces
    from compat.extraction.embedding import Embedder, Encoding
    from stores.commit import COMPLETE
    from stores.space import EmbeddingSpace

    encoding = Encoding(
        backbone=options.backbone,
        data=options.data,
        root=options.root,
        weights=options.weights,
        flip_average=options.flip_average,
        preprocessing=options.preprocessing.given(),
        precision=options.precision,
        engine=options.engine,
        views=options.views,
        view_seed=options.view_seed,
        test_transform=options.test_transform,
        adabn=options.adabn,
        adabn_images=options.adabn_images,
        max_bad=options.max_bad,
        batch_size=options.batch_size,
        readers=options.readers,
    )
    embedder = Embedder(encoding)
    backbone = embedder.backbone
    space = EmbeddingSpace(options.space_name or backbone.name, backbone.fingerprint, backbone.dim, backbone.normalized)
    with _open_or_create(options, embedder, space) as store:
        before = len(store)
        if not store.provenance[COMPLETE]:
            _embed(options, embedder, space, store)
        remove_pieces(options.out)
        skipped = tuple(str(entry["item_id"]) for entry in store.provenance["skipped"])
        return ExtractResult(options.out, len(store), before, skipped, str(store.space))


def _open_or_create(options: ExtractOptions, embedder: "Embedder", space: "EmbeddingSpace") -> "EmbeddingStore":
    from compat.extraction.resumption import open_or_create

    backbone, items = embedder.backbone, embedder.items
    # Only what decides the vectors and where they lie: a run that goes on may have another batch size or more workers.
    extraction = {
        "backbone": options.backbone,
        "fingerprint": backbone.fingerprint,
        "items": items.count,
        "items_sha256": items.digest,  # names, sizes, labels, contents of texts: changed data are noticed
        "views": options.views,
        "view_seed": options.view_seed,
        "precision": options.precision,
        "engine": options.engine,
        "adabn": embedder.adapted,
        "test_transform": options.test_transform,
        "layout": options.layout(),
        "model_card": None if backbone.card is None else _without_long_lists(dict(backbone.card)),
    }
    return open_or_create(options.out, space, extraction, options.layout())


def _without_long_lists(value: Any) -> Any:
    if isinstance(value, dict):
        return {name: _without_long_lists(each) for name, each in value.items()}
    if isinstance(value, list | tuple):
        return [_without_long_lists(each) for each in value] if len(value) <= LONGEST_LIST else {"count": len(value)}
    return value


def _embed(options: ExtractOptions, embedder: "Embedder", space: "EmbeddingSpace", store: "EmbeddingStore") -> None:
    import time

    from compat.extraction.adaptation import require_few_bad
    from compat.extraction.distribute import remove_pieces
    from stores.commit import COMPLETE

    provenance, items = store.provenance, embedder.items
    # The guard's choice of precision must not depend on where an interrupted run went on.
    provenance["inference"] = embedder.prepare()
    last_commit = time.monotonic()
    for embedded in _embedded(options, embedder, space, store, provenance):
        provenance["skipped"] += embedded.skipped
        require_few_bad({entry["item_id"]: entry["reason"] for entry in provenance["skipped"]}, options.max_bad)
        if embedded.rows is not None:
            _append(store, embedded.rows, embedded.vectors, options.data)
        provenance["items_done"] += embedded.items
        if time.monotonic() - last_commit > SECONDS_PER_COMMIT:
            store.commit(provenance)
            remove_pieces(options.out, before=provenance["items_done"])
            last_commit = time.monotonic()
    if provenance["items_done"] != items.count:
        raise ValueError(f"{options.data} changed while it was read; run the same command again with another --out")
    if items.count and items.count == len(provenance["skipped"]):
        entry = provenance["skipped"][0]
        raise ValueError(
            f"none of the {items.count} items is readable; the first is {entry['item_id']}: {entry['reason']}"
        )
    store.commit({**provenance, COMPLETE: True})


def _embedded(
    options: ExtractOptions,
    embedder: "Embedder",
    space: "EmbeddingSpace",
    store: "EmbeddingStore",
    provenance: dict[str, Any],
) -> "Iterator[Embedded]":
    """The items that are not done, embedded in order: by this process, or by those that were asked for."""
    from compat.extraction.distribute import embed_in_ranges, range_items

    done, count = provenance["items_done"], embedder.items.count
    batch_items = embedder.encoding.batch_items
    if options.workers > 1 or options.scheduler:
        store.commit()  # takes the writer's lock before anybody works for it
        batch_items = range_items(count, batch_items)
        batches = embed_in_ranges(
            embedder,
            options.out,
            space,
            provenance["inference"],
            start=done,
            workers=options.workers,
            scheduler=options.scheduler,
        )
    else:
        batches = embedder.embed(done, count)
    return progress(batches, f"embedding {options.data}", total=-(-(count - done) // batch_items))


def _append(store: "EmbeddingStore", rows: "pl.DataFrame", vectors: "np.ndarray", data: Path) -> None:
    try:
        store.append(rows, vectors)
    except ValueError as error:
        if not str(error).startswith("item_id must be unique"):
            raise
        raise ValueError(f"{data} names items twice: {error}; give each an id of its own") from error


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
