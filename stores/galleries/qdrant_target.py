"""Writing a gallery to a collection of Qdrant: points are written at once, and count when the card says so."""

from __future__ import annotations

import json
import uuid
from contextlib import ExitStack
from dataclasses import replace
from typing import Any

import numpy as np
import polars as pl

from stores.durable import StoreLocked
from stores.galleries.fitting_rows import fitting_rows
from stores.galleries.origin import already_finished, require_same_origin
from stores.galleries.qdrant_collection import (
    CARDS,
    ITEM_ID,
    RESERVED,
    ROW,
    QdrantCard,
    alias_target,
    all_points,
    column_kinds,
    put_points,
    read_card,
    write_card,
)
from stores.galleries.qdrant_location import QdrantLocation, connected, reported
from stores.known_ids import KnownIds
from stores.space import EmbeddingSpace
from stores.store import Batch

_writing: set[tuple[str, str]] = set()  # collections that this process writes


class QdrantTarget:
    """A collection that is filled and complete with its card.

    Args:
        location: The collection: new, or left by an interrupted or finished run with the same space and provenance.
        space: What the vectors are.
        provenance: JSON values that say where the vectors come from.

    Raises:
        FileExistsError: If something else is there.
        StoreLocked: If another process is writing it.
        ImportError: If qdrant-client is missing.
    """

    def __init__(self, location: QdrantLocation, space: EmbeddingSpace, provenance: dict[str, Any]) -> None:
        self._location = location
        self._cosine = space.similarity == "cosine"
        self._name = location.collection
        self._key = (location.server, location.collection)
        self._known: KnownIds | None = None
        self.notes = location.notes
        if self._name == CARDS:
            raise ValueError(f"{location} is where galleries are listed; name another target")
        if self._key in _writing:
            raise StoreLocked(
                f"{location} is being written by another process, or by this one through another object; wait for it "
                "to end, or close it"
            )
        self._open = ExitStack()
        try:
            self._client = self._open.enter_context(connected(location, make=True))
            self._begin(QdrantCard(space, json.loads(json.dumps(provenance)), writer=uuid.uuid4().hex))
        except BaseException as error:
            self._open.close()
            if isinstance(error, Exception):
                with reported(location):
                    raise
            raise

    def _begin(self, card: QdrantCard) -> None:
        from qdrant_client import models

        location, client = self._location, self._client
        if alias_target(client, self._name) is not None:
            raise FileExistsError(f"{location} already exists, as an alias; name another target")
        found, there = read_card(client, location, self._name), client.collection_exists(self._name)
        if found is None and there:
            raise FileExistsError(f"{location} already exists; name another target, or remove it")
        if found is not None:
            require_same_origin(str(location), found.space, found.provenance, card.space, card.provenance)
            if found.complete or (not there and found.rows):
                if not there:
                    raise FileExistsError(f"{location} lost its collection, which had rows; name another target")
                self._card, self._next = found, client.count(self._name, exact=True).count
                self.close()
                return
            card = replace(found, writer=card.writer)
        write_card(client, self._name, card)  # first, so that a collection without a card is somebody else's
        if not there:
            distance = models.Distance.COSINE if self._cosine else models.Distance.DOT
            client.create_collection(self._name, models.VectorParams(size=card.space.dim, distance=distance))
        self._card, self._next = card, card.rows
        later = models.FieldCondition(key=ROW, range=models.Range(gte=card.rows))
        client.delete(self._name, models.FilterSelector(filter=models.Filter(must=[later])), wait=True)
        _writing.add(self._key)
        self._open.callback(_writing.discard, self._key)

    @property
    def rows_committed(self) -> int:
        """Rows that survive an interruption."""
        return self._next if self.finished else self._card.rows

    @property
    def finished(self) -> bool:
        """Whether every row is in."""
        return self._card.complete

    def write(self, batch: Batch) -> None:
        """Add rows; see `GalleryTarget`."""
        self._require_open()
        if not len(batch.vectors):
            return
        with reported(self._location):
            if self._known is None:
                self._known = KnownIds(self._ids())
            rows = fitting_rows(
                batch,
                self._card.space,
                schema=self._card.schema,
                known=self._known,
                number=np.dtype(np.float32),
                reserved=RESERVED,
            )
            kinds = column_kinds(rows.items)
            put_points(self._client, self._name, rows, self._next, cosine=self._cosine)
        self._next += len(rows.vectors)
        self._known.add(rows.items[ITEM_ID])
        self._card = replace(self._card, columns=self._card.columns or kinds)

    def commit(self) -> None:
        """Make what was written outlive an interruption."""
        self._require_open()
        with reported(self._location):
            self._require_own()
            card = replace(self._card, rows=self._next)
            write_card(self._client, self._name, card)
        self._card = card

    def finish(self) -> None:
        """Commit, and record that every row is in."""
        if self.finished:
            return
        self._require_open()
        with reported(self._location):
            self._require_own()
            card = replace(self._card, rows=self._next, complete=True, writer=None)
            write_card(self._client, self._name, card)
        self._card = card
        self.close()

    def close(self) -> None:
        """Let others write; what was not committed does not count."""
        self._open.close()

    def _ids(self) -> pl.Series:
        points = all_points(self._client, self._name, [ITEM_ID, ROW])
        ids = [point.payload[ITEM_ID] for point in points if point.payload[ROW] < self._card.rows]
        schema = self._card.schema
        return pl.Series(ids, dtype=schema[ITEM_ID] if schema else pl.String)

    def _require_open(self) -> None:
        if self.finished:
            raise already_finished(str(self._location))
        if self._key not in _writing:
            raise ValueError(f"{self._location} is closed")

    def _require_own(self) -> None:
        # A server has no lock; whoever finds the card in another's hand stops.
        found = read_card(self._client, self._location, self._name)
        if found is None or found.writer != self._card.writer:
            raise StoreLocked(f"{self._location} was taken over by another process; let one of the two end")
