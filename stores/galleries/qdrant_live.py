"""Changing a gallery in Qdrant in place, and the alias that leads to the one that is served."""

from __future__ import annotations

import sqlite3
from dataclasses import replace
from typing import Any

import numpy as np
import polars as pl

from stores.galleries.fitting_rows import comparable_ids, fitting_rows
from stores.galleries.qdrant_collection import (
    POINTS_AT_A_TIME,
    RESERVED,
    QdrantCard,
    alias_target,
    column_kinds,
    drop_card,
    no_collection,
    point_id,
    put_points,
    read_card,
    write_card,
)
from stores.galleries.qdrant_location import QdrantLocation, connected, parse_location, require_qdrant
from stores.known_ids import KnownIds
from stores.store import Batch


def put(location: str, batch: Batch) -> None:
    """Add rows to a finished gallery; a row whose id is there is replaced; see `LiveEngine`.

    Qdrant has no transactions: where the work is cut short, a part may be done. Put the same rows again then.

    Raises:
        FileNotFoundError: If there is no gallery.
        ValueError: If it is unfinished or not the toolkit's, or the batch does not fit it.
    """
    place = parse_location(location)
    with connected(place) as client:
        name, card = _complete(client, place)
        rows = fitting_rows(
            batch,
            card.space,
            schema=card.schema if card.rows else None,
            known=KnownIds(pl.Series([], dtype=batch.items["item_id"].dtype)),
            number=np.dtype(np.float32),
            reserved=RESERVED,
        )
        kinds = column_kinds(rows.items)
        card = replace(card, rows=card.rows + len(rows.vectors), columns=card.columns or kinds)
        write_card(client, name, card)  # first: a number that no row has does no harm, one that two have does
        first = card.rows - len(rows.vectors)
        put_points(client, name, rows, first, cosine=card.space.similarity == "cosine")


def remove(location: str, item_ids: pl.Series) -> int:
    """Take rows out of a finished gallery and return how many there were; see `LiveEngine`.

    Raises:
        FileNotFoundError: If there is no gallery.
        ValueError: If it is unfinished or not the toolkit's.
    """
    place = parse_location(location)
    with connected(place) as client:
        name, card = _complete(client, place)
        return _removed(client, name, card, item_ids)


def erase(location: str, item_ids: pl.Series) -> int:
    """Take rows out and, in the embedded mode, leave no byte of them in the folder; see `ErasingEngine`.

    Raises:
        FileNotFoundError: If there is no gallery.
        ValueError: If it is unfinished or not the toolkit's.
    """
    place = parse_location(location)
    with connected(place) as client:
        name, card = _complete(client, place)
        write_card(client, name, replace(card, erasing=True))
        count = _removed(client, name, card, item_ids)
        if place.folder is not None:
            database = sqlite3.connect(place.folder / "collection" / name / "storage.sqlite")
            try:
                database.execute("VACUUM")  # pages that were let go of keep their bytes otherwise
            finally:
                database.close()
        write_card(client, name, replace(card, erasing=False))
        return count


def erasing(location: str) -> bool:
    """Whether an `erase` was interrupted; see `ErasingEngine`.

    Raises:
        FileNotFoundError: If there is no gallery.
        ValueError: If it is unfinished or not the toolkit's.
    """
    place = parse_location(location)
    with connected(place) as client:
        return _complete(client, place)[1].erasing


def residue(location: str) -> str | None:
    """What may still hold the bytes of rows that were erased; see `ErasingEngine`."""
    if parse_location(location).folder is not None:
        return None
    return "the server holds their bytes until its optimizer has rewritten the segments"


def serve(name: str, location: str) -> None:
    """Let the alias `name` lead to the collection at `location`, in one step; see `LiveEngine`.

    Args:
        name: The alias: its location, or the bare name of one beside the collection.
        location: The gallery.

    Raises:
        FileNotFoundError: If there is no such gallery.
        FileExistsError: If there is a collection of that name, which is never touched.
        ValueError: If the gallery is unfinished or on another server.
    """
    require_qdrant()
    from qdrant_client import models

    place = parse_location(location)
    alias = place.beside(name).collection
    with connected(place) as client:
        collection, _ = _complete(client, place)
        led = alias_target(client, alias)
        if led is None and client.collection_exists(alias):
            raise FileExistsError(f"{place.beside(alias)} is a collection, which is never replaced; name another alias")
        steps: list[Any] = []
        if led is not None:
            steps.append(models.DeleteAliasOperation(delete_alias=models.DeleteAlias(alias_name=alias)))
        new = models.CreateAlias(collection_name=collection, alias_name=alias)
        steps.append(models.CreateAliasOperation(create_alias=new))
        client.update_collection_aliases(steps)


def served(name: str) -> str | None:
    """The location, without a key, of the collection that the alias `name` (its location) leads to; None for none."""
    alias = parse_location(name)
    if alias.folder is not None and not (alias.folder / "meta.json").is_file():
        return None
    with connected(alias) as client:
        collection = alias_target(client, alias.collection)
    return None if collection is None else alias.beside(collection).public


def discard(location: str) -> None:
    """Delete a collection that no alias leads to, with its card; see `LiveEngine`.

    Raises:
        ValueError: If an alias leads to it, or it is one.
    """
    place = parse_location(location)
    if place.folder is not None and not (place.folder / "meta.json").is_file():
        return
    with connected(place) as client:
        led = alias_target(client, place.collection)
        if led is not None:
            raise ValueError(f"{place} is an alias; name the collection that it leads to")
        for each in client.get_aliases().aliases:
            if each.collection_name == place.collection:
                raise ValueError(f"the alias {each.alias_name} leads to {place}; let it lead to another gallery first")
        if client.collection_exists(place.collection):
            client.delete_collection(place.collection)
        drop_card(client, place.collection)


def _complete(client: Any, place: QdrantLocation) -> tuple[str, QdrantCard]:
    name = alias_target(client, place.collection) or place.collection
    if not client.collection_exists(name):
        raise no_collection(client, place)
    card = read_card(client, place, name)
    if card is None:
        raise ValueError(f"{place} was not written by this toolkit, which changes no rows of it; do it yourself")
    if not card.complete:
        raise ValueError(f"{place} is unfinished; run the command that writes it again")
    return name, card


def _removed(client: Any, name: str, card: QdrantCard, item_ids: pl.Series) -> int:
    from qdrant_client import models

    kind = card.schema["item_id"] if card.schema else pl.String()
    ids = [point_id(each) for each in comparable_ids(item_ids, kind)]
    count = 0
    for start in range(0, len(ids), POINTS_AT_A_TIME):
        part = client.retrieve(name, ids[start : start + POINTS_AT_A_TIME], with_payload=False)
        if part:
            client.delete(name, models.PointIdsList(points=[each.id for each in part]), wait=True)
            count += len(part)
    return count
