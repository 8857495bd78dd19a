"""How a gallery lies in a collection of Qdrant, and its card.

A point's id is the UUID (version 5) of its item id, since Qdrant takes nothing but UUIDs and numbers. Its payload has
the item columns, `item_id` among them, the row's number as `_row`, and `_norm`: a collection compared by cosine gives
back vectors of unit length, which are multiplied by it. The card is a point of the collection `embedding_galleries`.
"""

from __future__ import annotations

import json
import uuid
import warnings
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import polars as pl

from stores.chunks import DamagedStore
from stores.galleries.missing import missing
from stores.galleries.qdrant_location import QdrantLocation
from stores.space import EmbeddingSpace
from stores.store import Batch

if TYPE_CHECKING:
    from qdrant_client import QdrantClient

FORMAT_VERSION = 1
CARDS = "embedding_galleries"
ROW = "_row"
NORM = "_norm"
ITEM_ID = "item_id"
RESERVED = (ROW, NORM)
POINTS_AT_A_TIME = 1_000
_MOST_NUMBERS = 2**19  # in one request; a server takes 32 MB of JSON
_NAMESPACE = uuid.UUID("3d1a5f5e-6a52-5a0f-9d06-6a7f0b0d2c11")
_KINDS: dict[str, Any] = {
    str(kind): kind
    for plain in (
        *(pl.String, pl.Boolean, pl.Int8, pl.Int16, pl.Int32, pl.Int64),
        *(pl.UInt8, pl.UInt16, pl.UInt32, pl.Float32, pl.Float64),
    )
    for kind in (plain, pl.List(plain))
}
"""Types of item columns that JSON gives back as they are."""


@dataclass(frozen=True)
class QdrantCard:
    """What a collection holds.

    Attributes:
        space: What the vectors are.
        provenance: JSON values that say where they come from.
        rows: Rows committed; once complete, the number that the next row gets.
        columns: Types of the item columns by their names; None before the first row.
        complete: Whether every row is in.
        erasing: Whether rows are being taken out down to their bytes; true after an interruption of that.
        writer: A name that whoever writes has given himself.
    """

    space: EmbeddingSpace
    provenance: dict[str, Any]
    rows: int = 0
    columns: dict[str, str] | None = None
    complete: bool = False
    erasing: bool = False
    writer: str | None = None

    @property
    def schema(self) -> pl.Schema | None:
        """The item table's schema; None before the first row."""
        return None if self.columns is None else pl.Schema({name: _KINDS[kind] for name, kind in self.columns.items()})


def no_collection(client: QdrantClient, location: QdrantLocation) -> FileNotFoundError:
    """The error of a collection that is not there, with the collections and aliases that are."""
    there = {each.name for each in client.get_collections().collections} - {CARDS}
    return missing(location, "collection", there | {each.alias_name for each in client.get_aliases().aliases})


def read_card(client: QdrantClient, location: QdrantLocation, collection: str) -> QdrantCard | None:
    """The card of a collection; None of somebody else's.

    Raises:
        DamagedStore: If it cannot be read.
        ValueError: If a later version of the toolkit wrote it.
    """
    if not client.collection_exists(CARDS):
        return None
    found = client.retrieve(CARDS, [point_id(collection)], with_payload=True)
    if not found:
        return None
    try:
        body = json.loads((found[0].payload or {})["card"])
        version = body.pop("format_version")
        if version == FORMAT_VERSION:
            space = EmbeddingSpace.from_dict(body.pop("space"))
            return QdrantCard(space=space, **body)
    except (ValueError, KeyError, TypeError):
        raise DamagedStore(f"{location} has a card that cannot be read; restore it from a copy") from None
    raise ValueError(
        f"{location} has format version {version}, this version reads {FORMAT_VERSION}; use the version of the toolkit "
        "that wrote it, or a later one"
    )


def write_card(client: QdrantClient, collection: str, card: QdrantCard) -> None:
    """Put a card in the place of the one that is there, in one step."""
    from qdrant_client import models

    if not client.collection_exists(CARDS):
        client.create_collection(CARDS, models.VectorParams(size=1, distance=models.Distance.DOT))
    body = {
        "format_version": FORMAT_VERSION,
        "space": card.space.to_dict(),
        "provenance": card.provenance,
        "rows": card.rows,
        "columns": card.columns,
        "complete": card.complete,
        "erasing": card.erasing,
        "writer": card.writer,
    }
    payload = {"gallery": collection, "card": json.dumps(body)}
    client.upsert(CARDS, [models.PointStruct(id=point_id(collection), vector=[1.0], payload=payload)], wait=True)


def drop_card(client: QdrantClient, collection: str) -> None:
    """Remove a card, where there is one."""
    from qdrant_client import models

    if client.collection_exists(CARDS):
        client.delete(CARDS, models.PointIdsList(points=[point_id(collection)]), wait=True)


def alias_target(client: QdrantClient, name: str) -> str | None:
    """The collection that an alias leads to; None where there is no such alias."""
    return next((each.collection_name for each in client.get_aliases().aliases if each.alias_name == name), None)


def point_id(item_id: str | int) -> str:
    """The id of an item's point."""
    return str(uuid.uuid5(_NAMESPACE, str(item_id)))


def column_kinds(items: pl.DataFrame) -> dict[str, str]:
    """Types of an item table's columns by their names.

    Raises:
        ValueError: If one has no equal in JSON, or a number that JSON has not.
    """
    for name, dtype in items.schema.items():
        if str(dtype) not in _KINDS:
            raise ValueError(
                f"item column {name!r} of {dtype} would not come back from Qdrant as it is; cast it to text"
            )
        if dtype.is_float() and not items[name].is_finite().fill_null(True).all():
            raise ValueError(f"item column {name!r} holds NaN or infinity, which JSON has not; make them null")
    return {name: str(dtype) for name, dtype in items.schema.items()}


def put_points(client: QdrantClient, collection: str, batch: Batch, first: int, *, cosine: bool) -> None:
    """Write rows as points numbered from `first`; a point that is there is replaced."""
    from qdrant_client import models

    norms = np.linalg.norm(batch.vectors.astype(np.float64), axis=1)
    vectors = batch.vectors
    if cosine:
        # A vector of zeros has no direction and stays as it is.
        vectors = (vectors / np.where(norms > 0, norms, 1.0)[:, None]).astype(np.float32)
    step = max(1, min(POINTS_AT_A_TIME, _MOST_NUMBERS // vectors.shape[1]))
    for start in range(0, len(vectors), step):
        part = slice(start, start + step)
        payloads = batch.items[start : start + step].to_dicts()
        for place, payload in enumerate(payloads, start=start):
            payload |= {ROW: first + place, NORM: float(norms[place])}
        points = models.Batch(
            ids=[point_id(payload[ITEM_ID]) for payload in payloads], vectors=vectors[part].tolist(), payloads=payloads
        )
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)  # of many points: the notes say so
            client.upsert(collection, points, wait=True)


def raw_vectors(points: Iterable[Any], dim: int, *, own_cosine: bool) -> np.ndarray:
    """The vectors of points, float32 [n, d], as they were given."""
    points = list(points)
    vectors = np.array([point.vector for point in points], np.float32).reshape(len(points), dim)
    if not own_cosine:
        return vectors
    norms = np.array([point.payload[NORM] for point in points])
    with np.errstate(over="ignore", invalid="ignore"):
        return np.nan_to_num(vectors * norms[:, None]).astype(np.float32)


def all_points(client: QdrantClient, collection: str, fields: list[str]) -> Iterator[Any]:
    """Every point in the order of the ids, with some fields of its payload and without its vector."""
    place = None
    while True:
        points, place = client.scroll(
            collection, limit=10 * POINTS_AT_A_TIME, offset=place, with_payload=fields or False, with_vectors=False
        )
        yield from points
        if place is None:
            return
