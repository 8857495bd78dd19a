"""Gallery files without some of their rows: written anew beside, then put in their place with a new card.

Between the old file and the new one the card is absent and `.FILE.partial` is there, so that whoever reads meanwhile is
told that the file is unfinished; `.FILE.partial/rest` with its card is then all that it takes to go on.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import polars as pl

from stores.durable import WriterLock, sha256_of, sync_folder
from stores.galleries import GALLERIES
from stores.galleries.card import GalleryCard, card_path, partial_path, read_items, verified_card
from stores.galleries.faiss_index import write_some
from stores.store import Batch

REWRITTEN = ("npy", "npz", "parquet", "arrow", "csv", "csv+json", "hdf5", "faiss")
"""Schemes of the galleries that are files and can be written anew."""
_BATCH_ROWS = 8192
_BATCHES_PER_COMMIT = 8


def finish_rewriting(path: Path) -> bool:
    """Put what an interrupted rewriting had ready in place, and remove what it left; whether there was such a thing.

    Raises:
        StoreLocked: If another process is writing the file.
        DamagedStore: If the new card was altered.
    """
    rest = _rest(path)
    ready = GalleryCard.beside(rest / path.name) is not None
    if not rest.is_dir() or not (ready or card_path(path).is_file()):
        return False
    with _locked(path):
        if ready:
            _put_in_place(path, rest)
    return True


def write_without(scheme: str, path: Path, gone: pl.Series) -> int:
    """Write a gallery file anew without some rows, all others bit for bit as they were, and its card with it.

    Args:
        scheme: One of `REWRITTEN`.
        path: The file, with its card.
        gone: Ids of the rows, as text.

    Returns:
        How many rows are left.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If it is unfinished, damaged, or has no card.
        StoreLocked: If another process is writing it.
    """
    card = require_card(path)
    with _locked(path):
        rest = _rest(path)
        for left in partial_path(path).iterdir():  # of runs that were killed; a spool holds the bytes of every row
            if left.name != ".lock":
                shutil.rmtree(left) if left.is_dir() else left.unlink()
        rest.mkdir()
        if scheme == "faiss":
            items = read_items(path, card.rows)
            keep = (~_among(items, gone)).to_numpy()
            files = write_some(path, keep, rest / path.name)
            digests = {file.name: sha256_of(file) for file in files}
            GalleryCard(card.space, int(keep.sum()), card.provenance, digests).write(rest / path.name)
        else:
            _copy(scheme, path, card, gone, rest)
        sync_folder(rest)
        new = GalleryCard.beside(rest / path.name)
        _put_in_place(path, rest)
    return new.rows if new else 0


def require_card(path: Path) -> GalleryCard:
    """The card of a gallery file, its digests checked.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If it is unfinished, damaged, or has no card.
    """
    card = verified_card(path)
    if card is None:
        raise ValueError(
            f"{path} has no card: it is not the toolkit's and is not rewritten; copy it by stores.convert, forget in "
            "the copy, and remove it"
        )
    return card


def _copy(scheme: str, path: Path, card: GalleryCard, gone: pl.Series, rest: Path) -> None:
    source = GALLERIES[scheme].open_source(str(path))
    target = GALLERIES[scheme].open_target(str(rest / path.name), card.space, card.provenance)
    try:
        for number, (items, vectors) in enumerate(source.scan(_BATCH_ROWS), start=1):
            keep = ~_among(items, gone)
            if keep.any():
                target.write(Batch(items.filter(keep), vectors[keep.to_numpy()]))
            if number % _BATCHES_PER_COMMIT == 0:
                target.commit()
        target.finish()
    finally:
        target.close()


def _put_in_place(path: Path, rest: Path) -> None:
    card = card_path(rest / path.name)
    card_path(path).unlink(missing_ok=True)
    sync_folder(path.parent)
    for file in sorted(rest.iterdir()):
        if file != card and file.is_file():
            file.replace(path.parent / file.name)
    sync_folder(path.parent)
    card.replace(card_path(path))
    sync_folder(path.parent)


def _among(items: pl.DataFrame, gone: pl.Series) -> pl.Series:
    return items["item_id"].cast(pl.String).is_in(gone.implode())


def _rest(path: Path) -> Path:
    return partial_path(path) / "rest"


@contextmanager
def _locked(path: Path) -> Iterator[None]:
    """The lock that whoever writes the file has; afterwards nothing is left of the hidden folder, unless it failed."""
    partial = partial_path(path)
    partial.mkdir(exist_ok=True)
    lock = WriterLock(partial)
    lock.acquire()
    try:
        yield
        shutil.rmtree(partial)
    finally:
        lock.release()
    sync_folder(path.parent)
