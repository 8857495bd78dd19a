"""Embed a folder of items: `python -m compat.extract --backbone iresnet18 --weights W --data DIR --out STORE`.

DIR holds one folder per identity. An interrupted extraction goes on when the same command is run again.
"""

import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from stores.command_line import progress, run_command

if TYPE_CHECKING:
    from backbones.backbone import Backbone
    from backbones.images import ImageItem
    from stores.store import EmbeddingStore

SECONDS_PER_COMMIT = 30.0


@dataclass(frozen=True, kw_only=True)
class ExtractOptions:
    """What to embed with what.

    Attributes:
        backbone: A built-in network (iresnet18, iresnet34, iresnet50, iresnet100), `onnx:FILE`, or `module:function`
            returning a `backbones.backbone.Backbone`.
        data: Folder of items, one folder per identity.
        out: The store; run again to go on with it.
        weights: model.safetensors that `backbones.train` wrote, for a built-in network.
        space_name: What to call the embedding space; the backbone's name by default.
        views: Embeddings per item: the first of the item as it is, further ones of augmented views of the image. The
            views depend on view_seed and the item's id alone, so two networks see the same ones.
        view_seed: Chooses the augmented views.
        batch_size: Items embedded together.
        precision: Number format of the network; auto takes the fastest one that keeps the embeddings (cosine to fp32
            of at least 0.999 on the first items).
        flip_average: Average over the image and its mirror image, yes or no; by default as the network was trained for.
        max_bad: Unreadable items that are skipped and listed in the store's provenance; one more is an error.
        workers: Threads that read and decode.
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
    flip_average: bool | None = None
    max_bad: int = 10
    workers: int = 2

    def __post_init__(self) -> None:
        for name in ("views", "batch_size", "workers"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, found {getattr(self, name)}")
        if self.max_bad < 0:
            raise ValueError(f"max_bad must not be negative, found {self.max_bad}")


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
    """Embed every item of a folder into an `EmbeddingStore`, or go on with an interrupted extraction.

    Raises:
        FileNotFoundError: If data or weights are missing.
        FileExistsError: If something else is at `out`.
        ValueError: If the backbone is unknown or does not fit its weights, or too many items are unreadable.
    """
    from backbones.backbone import load_backbone
    from backbones.images import scan_folder
    from stores.galleries.zarr_store import COMPLETE

    backbone = load_backbone(
        options.backbone,
        weights=options.weights,
        flip_average=options.flip_average,
        precision=options.precision,
        micro_batch=options.batch_size,
    )
    items = scan_folder(options.data, backbone.suffixes)
    with _open_or_create(options, backbone, items) as store:
        before = len(store)
        if not store.provenance[COMPLETE]:
            _embed(options, backbone, items, store)
        skipped = tuple(entry["item_id"] for entry in store.provenance["skipped"])
        return ExtractResult(options.out, len(store), before, skipped, str(store.space))


def _open_or_create(options: ExtractOptions, backbone: "Backbone", items: "list[ImageItem]") -> "EmbeddingStore":
    import hashlib

    from stores.galleries.zarr_store import COMPLETE
    from stores.space import EmbeddingSpace
    from stores.store import EmbeddingStore

    space = EmbeddingSpace(options.space_name or backbone.name, backbone.fingerprint, backbone.dim, backbone.normalized)
    listing = "\n".join(f"{item.item_id} {item.path.stat().st_size}" for item in items)
    extraction = {
        "backbone": options.backbone,
        "fingerprint": backbone.fingerprint,
        "items": len(items),
        "items_sha256": hashlib.sha256(listing.encode()).hexdigest(),  # names and sizes: changed files are noticed
        "views": options.views,
        "view_seed": options.view_seed,
        "batch_size": options.batch_size,
        "precision": options.precision,
    }
    if not (options.out / "store.json").exists():
        provenance = {"extraction": extraction, COMPLETE: False, "items_done": 0, "skipped": []}
        return EmbeddingStore.create(options.out, space, provenance=provenance)
    store = EmbeddingStore.open(options.out)
    found = store.provenance.get("extraction")
    if found != extraction:
        odd = [name for name in extraction if not isinstance(found, dict) or found.get(name) != extraction[name]]
        raise FileExistsError(
            f"{options.out} holds another extraction (it differs in {', '.join(odd)}); name another --out or remove it"
        )
    return store


def _embed(options: ExtractOptions, backbone: "Backbone", items: "list[ImageItem]", store: "EmbeddingStore") -> None:
    import time

    import polars as pl

    from stores.galleries.zarr_store import COMPLETE

    provenance = store.provenance
    # The guard's choice of precision must not depend on where an interrupted run went on: always the first items.
    sample = [content for _, content, _ in _read(backbone, items[: options.batch_size], options) if content is not None]
    provenance["inference"] = backbone.prepare(sample) if sample else {}
    per_batch = max(1, options.batch_size // options.views)
    starts = range(provenance["items_done"], len(items), per_batch)
    last_commit = time.monotonic()
    for start in progress(starts, f"embedding {options.data}"):
        contents, rows = [], []
        for item, content, reason in _read(backbone, items[start : start + per_batch], options):
            if content is None:
                provenance["skipped"].append({"item_id": item.item_id, "reason": reason})
                continue
            for view in range(options.views):
                contents.append(_view(content, item, view, options))
                name = f"{item.item_id}#view{view}" if view else item.item_id
                rows.append({"item_id": name, "label": item.label, "source_item": item.item_id, "view": view})
        if len(provenance["skipped"]) > options.max_bad:
            first = provenance["skipped"][0]
            raise ValueError(
                f"{len(provenance['skipped'])} items are unreadable, --max-bad allows {options.max_bad}; "
                f"the first is {first['item_id']}: {first['reason']}"
            )
        if rows:
            store.append(pl.DataFrame(rows), backbone.embed(contents))
        provenance["items_done"] = min(start + per_batch, len(items))
        if time.monotonic() - last_commit > SECONDS_PER_COMMIT:
            store.commit(provenance)
            last_commit = time.monotonic()
    if provenance["items_done"] and not len(items) > len(provenance["skipped"]):
        first = provenance["skipped"][0]
        raise ValueError(
            f"none of the {len(items)} items is readable; the first is {first['item_id']}: {first['reason']}"
        )
    store.commit({**provenance, COMPLETE: True})


def _read(
    backbone: "Backbone", items: "list[ImageItem]", options: ExtractOptions
) -> "Iterator[tuple[ImageItem, Any, str]]":
    """Each item with its content, or with None and the reason why it cannot be read."""
    from concurrent.futures import ThreadPoolExecutor

    def read(item: "ImageItem") -> tuple[Any, str]:
        try:
            return backbone.read(item.path), ""
        except (ValueError, OSError) as error:
            return None, str(error)

    with ThreadPoolExecutor(options.workers) as pool:
        for item, (content, reason) in zip(items, pool.map(read, items), strict=True):
            yield item, content, reason


def _view(content: Any, item: "ImageItem", view: int, options: ExtractOptions) -> Any:
    if view == 0:
        return content
    import numpy as np

    from backbones.augment import augmented_view
    from backbones.options import AugmentOptions

    if not (isinstance(content, np.ndarray) and content.dtype == np.uint8 and content.ndim == 3):
        raise ValueError(
            f"--views {options.views} needs a backbone that reads images; this one does not: use --views 1"
        )
    return augmented_view(content, item_id=item.item_id, view=view, seed=options.view_seed, options=AugmentOptions())


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
