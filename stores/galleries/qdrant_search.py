"""Search inside Qdrant, by its own index."""

from __future__ import annotations

import numpy as np

from stores.galleries.found import Neighbours, neighbours, require_searchable
from stores.galleries.qdrant_collection import ITEM_ID, alias_target, no_collection, read_card
from stores.galleries.qdrant_location import connected, parse_location
from stores.space import Similarity

_DISTANCES = {"cosine": "Cosine", "inner_product": "Dot"}


def search(location: str, queries: np.ndarray, k: int, similarity: Similarity) -> Neighbours:
    """The k nearest points of a collection; see `SearchEngine`.

    Raises:
        FileNotFoundError: If there is no such collection.
        ValueError: If it is unfinished, was made for another similarity, or a query does not fit.
    """
    queries = require_searchable(queries, k)
    place = parse_location(location)
    with connected(place) as client:
        collection = alias_target(client, place.collection) or place.collection
        if not client.collection_exists(collection):
            raise no_collection(client, place)
        card = read_card(client, place, collection)
        if card is not None and not card.complete:
            raise ValueError(f"{place} is unfinished; run the command that writes it again")
        made = client.get_collection(collection).config.params.vectors
        size, distance = getattr(made, "size", None), getattr(getattr(made, "distance", None), "value", None)
        if distance != _DISTANCES[similarity]:
            raise ValueError(
                f"{place} compares by {distance}, expected {_DISTANCES[similarity]}; migrate it to a collection of "
                "that, or search with transformer.without_correction()"
            )
        if queries.shape[1] != size:
            raise ValueError(f"queries are [q, {queries.shape[1]}], expected [q, {size}] as {place} has")
        field = ITEM_ID if card is not None else place.id
        found = []
        for query in queries:
            points = client.query_points(
                collection, query=query.tolist(), limit=k, with_payload=[field] if field else False
            ).points
            found.append([((point.payload or {})[field] if field else str(point.id), point.score) for point in points])
    return neighbours(found, k)
