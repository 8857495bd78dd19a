"""An extraction by many processes, of this machine or of a dask cluster: each embeds a range of the items.

Which rows a range gives is known only when its unreadable items are: a process leaves what it made in a store of its
own under `OUT/pieces`, and the coordinator appends these in the order of the items, which costs little beside a
network. The store is then the one that a single process makes; what is unreadable is counted and refused as there.
"""

from __future__ import annotations

import shutil
import sys
import threading
import uuid
from collections.abc import Generator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import polars as pl

from compat.extraction.embedding import Embedded, Embedder, Encoding
from stores.commit import COMPLETE
from stores.durable import sync_folder
from stores.parts import run_parts
from stores.space import EmbeddingSpace
from stores.store import EmbeddingStore

PIECES = "pieces"
_MOST_ITEMS = 1024
_FEWEST_RANGES = 64  # of a large set, so that there is work for many


@dataclass(frozen=True, kw_only=True)
class RangesWork:
    """What every range of an extraction shares.

    Attributes:
        encoding: What is embedded, and how.
        folder: Working folder of the coordinator, where encoders of one's own are looked for too.
        pieces: Where the ranges' stores go.
        space: Of the embeddings.
        items_sha256: Digest of the set.
        inference: What the coordinator runs the network with.
        start: First item of range 0.
        stop: The item after the last.
        size: Items of a range.
    """

    encoding: Encoding
    folder: str
    pieces: Path
    space: EmbeddingSpace
    items_sha256: str
    inference: dict[str, Any]
    start: int
    stop: int
    size: int

    def piece(self, number: int) -> Path:
        """Where a range's store is."""
        first, stop = self.span(number)
        return self.pieces / f"{first:012d}-{stop:012d}"

    def span(self, number: int) -> tuple[int, int]:
        """First item of a range, and the item after its last."""
        first = self.start + number * self.size
        return first, min(first + self.size, self.stop)


class RangeDone(NamedTuple):
    """What comes back of a range: its items and its rows."""

    items: int
    rows: int


def range_items(count: int, batch_items: int) -> int:
    """Items of a range: whole batches; the same however many processes there are, so that a run can go on."""
    return batch_items * max(1, min(_MOST_ITEMS, count // _FEWEST_RANGES) // batch_items)


def embed_in_ranges(
    embedder: Embedder,
    out: Path,
    space: EmbeddingSpace,
    inference: dict[str, Any],
    *,
    start: int,
    workers: int,
    scheduler: str | None,
) -> Generator[Embedded, None, None]:
    """Embed the items from `start` on by many processes; yield ranges in the order of the items.

    Args:
        embedder: What one process would embed with, which here only tells what the others must find as well.
        out: The store's folder, which all processes reach.
        space: Of the embeddings.
        inference: What `embedder.prepare` found.
        start: First item.
        workers: Processes of this machine, without a scheduler.
        scheduler: Address of a dask scheduler, whose workers reach data, weights and store under the same names.

    Raises:
        ValueError: If a worker finds other items or another network, or workers die again and again.
    """
    given, count = embedder.encoding, embedder.items.count
    encoding = given if scheduler is None else _from_anywhere(given)
    work = RangesWork(
        encoding=encoding,
        folder=str(Path.cwd()),
        pieces=(out / PIECES).absolute(),
        space=space,
        items_sha256=embedder.items.digest,
        inference=inference,
        start=start,
        stop=count,
        size=range_items(count, encoding.batch_items),
    )
    work.pieces.mkdir(exist_ok=True)
    ranges = -(-(count - start) // work.size)
    done = {number for number in range(ranges) if work.piece(number).is_dir()}
    left = [number for number in range(ranges) if number not in done]
    results = run_parts(embed_range, work, left, workers=workers, scheduler=scheduler, name="extract-range")
    try:
        for number in range(ranges):
            while number not in done:
                done.add(next(results)[0])
            embedded = _read(work.piece(number))
            for entry in embedded.skipped:  # as one process would have named the files
                entry["reason"] = entry["reason"].replace(str(encoding.data), str(given.data))
            yield embedded
    finally:
        results.close()


def remove_pieces(out: Path, before: int | None = None) -> None:
    """Delete the ranges' stores that end at item `before` or earlier; all, and what else is there, without a number."""
    if before is None:
        shutil.rmtree(out / PIECES, ignore_errors=True)
        return
    for piece in (out / PIECES).glob("*-*"):
        stop = piece.name.partition("-")[2]
        if stop.isdecimal() and int(stop) <= before:
            shutil.rmtree(piece)


_ready = threading.local()  # a worker of dask may have several threads, and an encoder is for one


def embed_range(work: RangesWork, number: int) -> RangeDone:
    """Embed one range into a store of its own; the encoder is kept for the next one."""
    piece = work.piece(number)
    if piece.is_dir():
        found = _read(piece)
        return RangeDone(found.items, len(found.vectors))
    ready: tuple[RangesWork, Embedder] | None = getattr(_ready, "value", None)
    if ready is None or ready[0] is not work:
        _ready.value = ready = work, _made_ready(work)
    embedded = list(ready[1].embed(*work.span(number)))
    tables = [each.rows for each in embedded if each.rows is not None]
    vectors = np.concatenate([each.vectors for each in embedded])
    made_of = {
        "items": sum(each.items for each in embedded),
        "skipped": [entry for each in embedded for entry in each.skipped],
        COMPLETE: True,
    }
    temporary = piece.with_name(f".{piece.name}.{uuid.uuid4().hex}")
    with EmbeddingStore.create(temporary, work.space, chunk_rows=max(1, len(vectors))) as store:
        if tables:
            store.append(pl.concat(tables), vectors)
        store.commit(made_of)
    try:
        temporary.rename(piece)
    except OSError:
        shutil.rmtree(temporary)
        if not piece.is_dir():  # else another worker that was given the range was faster
            raise
    sync_folder(work.pieces)
    return RangeDone(made_of["items"], len(vectors))


def _read(piece: Path) -> Embedded:
    with EmbeddingStore.open(piece) as store:
        found, rows = store.provenance, len(store)
        return Embedded(found["items"], store.items if rows else None, store.rows(0, rows), found["skipped"])


def _made_ready(work: RangesWork) -> Embedder:
    """Open the encoder and the items here, and make sure that they are the coordinator's.

    Raises:
        ValueError: If they are not.
    """
    if work.folder not in sys.path:
        sys.path.append(work.folder)
    embedder = Embedder(work.encoding)
    if embedder.backbone.fingerprint != work.space.fingerprint:
        raise ValueError(f"a worker finds another network at {work.encoding.backbone}; give all of them the same files")
    if embedder.items.digest != work.items_sha256:
        raise ValueError(f"a worker finds other items at {work.encoding.data}; give all of them the same files")
    found, wanted = (
        {name: value for name, value in facts.items() if not isinstance(value, float)}  # a cosine is a measurement
        for facts in (embedder.prepare(), work.inference)
    )
    if found != wanted:
        raise ValueError(
            f"a worker would run the network as {found}, the coordinator as {wanted}; name what all of them have, "
            "--precision fp32 and --engine torch if nothing else"
        )
    return embedder


def _from_anywhere(encoding: Encoding) -> Encoding:
    """With paths that lead to the same files from any working folder."""
    kind, _, rest = encoding.backbone.partition(":")
    return replace(
        encoding,
        backbone=f"onnx:{Path(rest).absolute()}" if kind == "onnx" and rest else encoding.backbone,
        data=encoding.data.absolute(),
        root=encoding.root and encoding.root.absolute(),
        weights=encoding.weights and encoding.weights.absolute(),
        adabn=encoding.adabn and encoding.adabn.absolute(),
    )
