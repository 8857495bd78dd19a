"""Changing an `EmbeddingStore` in place, and the link that leads to the one that is served."""

from __future__ import annotations

from pathlib import Path

import polars as pl

from stores.commit import COMMIT_FILE, COMPLETE
from stores.galleries.fitting_rows import comparable_ids
from stores.galleries.links import discard_folder, lead, leads_to
from stores.store import Batch, EmbeddingStore


def put(location: str, batch: Batch) -> None:
    """Add rows to a finished store in one commit; a row whose id is there is replaced; see `LiveEngine`.

    Raises:
        FileNotFoundError: If there is no store.
        ValueError: If it is unfinished or damaged, or the batch does not fit it.
        StoreLocked: If another process is writing it.
    """
    with _finished(location) as store:
        store.put(batch.items, batch.vectors)


def remove(location: str, item_ids: pl.Series) -> int:
    """Take rows out of a finished store and return how many there were; see `LiveEngine`.

    Their bytes stay until the store is compacted.

    Raises:
        FileNotFoundError: If there is no store.
        ValueError: If it is unfinished or damaged.
        StoreLocked: If another process is writing it.
    """
    with _finished(location) as store:
        if not len(store):
            return 0
        ids = comparable_ids(item_ids, store.items["item_id"].dtype)
        return store.forget(ids.to_list(), missing_ok=True) if len(ids) else 0


def serve(name: str, location: str) -> None:
    """Let the path `name` lead to the store in the folder `location`, by a link; see `LiveEngine`.

    Raises:
        FileNotFoundError: If there is no such store.
        FileExistsError: If `name` is no link.
        ValueError: If the store is unfinished or damaged.
    """
    with _finished(location) as store:
        lead(Path(name), store.path)


def served(name: str) -> str | None:
    """The folder of the store that the link `name` leads to; None where there is no such link."""
    folder = leads_to(Path(name))
    return None if folder is None else str(folder)


def discard(location: str) -> None:
    """Delete a store that no link beside it leads to; see `LiveEngine`.

    Raises:
        ValueError: If a link leads to it, or it is one, or no store.
        StoreLocked: If another process is writing it.
    """
    discard_folder(Path(location), COMMIT_FILE)


def _finished(location: str) -> EmbeddingStore:
    store = EmbeddingStore.open(location)
    if store.provenance.get(COMPLETE) is False:
        raise ValueError(f"{location} is unfinished; run the command that writes it again")
    return store
