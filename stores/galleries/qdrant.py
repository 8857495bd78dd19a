"""A gallery in a collection of Qdrant: `qdrant:FOLDER/COLLECTION` or `qdrant:https://host:6333/COLLECTION`.

Needs qdrant-client, the extra `qdrant`. The key of a server is taken from QDRANT_API_KEY or from `?api_key=`. `?id=`
names the payload field of the ids of somebody else's collection, whose points go by their own ids otherwise; of its
payload `label` alone is read.

The same code drives the embedded mode and a server. Only the embedded mode was tried by the project's tests: speed,
limits of request size, keys, aliases and failures of a real server were not. Qdrant has no transactions, no snapshots
to read from and no locks: a `put` that is cut short may have done a part of its rows (put them again), a source that
loses rows while it is read refuses to go on, and two writers of one collection on a server are noticed at the next
commit. The embedded mode holds a folder's collections in memory, lets one process in, and checks no sums.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from typing import Any

import numpy as np
import polars as pl

from stores.galleries.gallery import row_ranges
from stores.galleries.qdrant_collection import (
    ITEM_ID,
    POINTS_AT_A_TIME,
    ROW,
    QdrantCard,
    alias_target,
    all_points,
    no_collection,
    raw_vectors,
    read_card,
)
from stores.galleries.qdrant_live import discard, erase, erasing, put, remove, residue, serve, served
from stores.galleries.qdrant_location import QdrantLocation, connected, parse_location
from stores.galleries.qdrant_target import QdrantTarget
from stores.space import EmbeddingSpace
from stores.store import Batch

__all__ = [
    "digest",
    "discard",
    "erase",
    "erasing",
    "open_source",
    "open_target",
    "put",
    "remove",
    "residue",
    "serve",
    "served",
]


class QdrantSource:
    """Points of a collection in the order of their rows, those of somebody else's in the order of their ids.

    The ids of all points are held in memory, about 40 bytes each.

    Args:
        location: The collection, or an alias.

    Raises:
        FileNotFoundError: If there is none.
        ValueError: If it is unfinished or damaged, or has no single unnamed vector.
        ImportError: If qdrant-client is missing.
    """

    def __init__(self, location: QdrantLocation) -> None:
        self._location = location
        with connected(location) as client:
            self._collection = alias_target(client, location.collection) or location.collection
            if not client.collection_exists(self._collection):
                raise no_collection(client, location)
            card = read_card(client, location, self._collection)
            if card is not None and not card.complete:
                raise ValueError(f"{location} is unfinished; run the command that writes it again")
            self.dim, distance = _vectors_of(location, client, self._collection)
            self._card = card
            self._cosine = distance == "Cosine"
            self._order, self._columns = self._points(client, card)
        self.space = card.space if card else None
        self.provenance: dict[str, Any] = card.provenance if card else {}
        notes = list(location.notes)
        if card is None and self._cosine:
            notes.append(
                "a collection compared by cosine need not keep the lengths of vectors; take these for directions"
            )
        self.notes = tuple(notes)

    def _points(self, client: Any, card: QdrantCard | None) -> tuple[np.ndarray, pl.Schema]:
        """Ids of the points in the order of the rows, as text or as numbers, and the item columns."""
        if card is None:
            wanted = [*([self._location.id] if self._location.id else []), "label"]
            ids, label = [], False
            for point in all_points(client, self._collection, wanted):
                ids.append(point.id)
                label |= isinstance((point.payload or {}).get("label"), str)
            columns = {ITEM_ID: pl.String} | ({"label": pl.String} if label else {})
            return np.array(ids, dtype=object), pl.Schema(columns)
        ids, rows = [], []
        for point in all_points(client, self._collection, [ROW]):
            ids.append(point.id)
            rows.append(point.payload[ROW])
        order = np.argsort(np.array(rows, np.int64), kind="stable")
        return np.array(ids, dtype="S36")[order], card.schema or pl.Schema({ITEM_ID: pl.String})

    def __len__(self) -> int:
        return len(self._order)

    def scan(self, size: int, *, start: int = 0) -> Iterator[Batch]:
        """Rows start.. in row order; see `GallerySource`. Points are asked for by their ids, so no row is skipped."""
        with connected(self._location) as client:
            for first, stop in row_ranges(len(self), size, start):
                found = []
                for begin in range(first, stop, POINTS_AT_A_TIME):
                    found += self._asked_for(client, begin, min(begin + POINTS_AT_A_TIME, stop))
                yield self._batch(found)

    def _asked_for(self, client: Any, first: int, stop: int) -> list[Any]:
        ids = [each.decode() if isinstance(each, bytes) else each for each in self._order[first:stop]]
        found = {each.id: each for each in client.retrieve(self._collection, ids, with_payload=True, with_vectors=True)}
        if len(found) < len(ids):
            raise ValueError(f"{self._location} lost {len(ids) - len(found)} rows while it was read; run again")
        return [found[each] for each in ids]

    def _batch(self, points: list[Any]) -> Batch:
        vectors = raw_vectors(points, self.dim, own_cosine=self._card is not None and self._cosine)
        if self._card is not None:
            table = {name: [point.payload.get(name) for point in points] for name in self._columns}
            return Batch(pl.DataFrame(table, schema=self._columns), vectors)
        field = self._location.id
        named = [point.payload.get(field) if field else point.id for point in points]
        if None in named:
            raise ValueError(f"{self._location} has a point without the field {field}; correct ?id=, or leave it out")
        found: dict[str, list[str | None]] = {ITEM_ID: [str(each) for each in named]}
        if "label" in self._columns:
            labels = (point.payload.get("label") for point in points)
            found["label"] = [None if label is None else str(label) for label in labels]
        return Batch(pl.DataFrame(found, schema=self._columns), vectors)


def _vectors_of(location: QdrantLocation, client: Any, collection: str) -> tuple[int, str]:
    vectors = client.get_collection(collection).config.params.vectors
    if not hasattr(vectors, "size"):
        raise ValueError(
            f"{location} has several vectors a point, or none; copy one of them to a collection of its own"
        )
    return vectors.size, str(vectors.distance.value)


def open_source(location: str) -> QdrantSource:
    """Open a collection or alias; see `QdrantSource`."""
    return QdrantSource(parse_location(location))


def open_target(location: str, space: EmbeddingSpace, provenance: dict[str, Any]) -> QdrantTarget:
    """Begin or go on with a collection; see `QdrantTarget`."""
    return QdrantTarget(parse_location(location), space, provenance)


def digest(location: str) -> str:
    """A name that a collection keeps whatever its rows, hexadecimal.

    Raises:
        FileNotFoundError: If there is no such collection.
    """
    place = parse_location(location)
    with connected(place) as client:
        collection = alias_target(client, place.collection) or place.collection
        if not client.collection_exists(collection):
            raise no_collection(client, place)
    return hashlib.sha256(f"qdrant:{place.server}/{collection}".encode()).hexdigest()
