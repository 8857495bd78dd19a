"""Search inside LanceDB, through the table's index where it has one."""

from __future__ import annotations

import numpy as np

from stores.galleries.found import Neighbours, neighbours, require_searchable
from stores.galleries.lance_location import no_table, open_table, parse_location, reported
from stores.galleries.lance_table import ITEM_ID, VECTOR, read_card, require_complete
from stores.space import Similarity

_METRICS = {"cosine": "cosine", "inner_product": "dot"}
_REFINED = 10
"""So many times k candidates of an index are compared by their whole vectors: a score is then a true one."""


def search(location: str, queries: np.ndarray, k: int, similarity: Similarity) -> Neighbours:
    """The k nearest rows of a table; see `SearchEngine`. Its files are checked for damage when it is opened, not here.

    By cosine a vector of zeros is near nothing, so that Lance finds no such row, and nothing for such a query.

    Raises:
        FileNotFoundError: If there is no such table.
        ValueError: If it is unfinished, has no usable columns, or a query does not fit.
    """
    queries = require_searchable(queries, k)
    place = parse_location(location)
    table = open_table(place)
    if table is None:
        raise no_table(place)
    card = read_card(place, table)
    if card is not None:
        require_complete(place, card)
    vector, name = place.vector or VECTOR, place.id or ITEM_ID
    for column, option in ((vector, "vector"), (name, "id")):
        if column not in table.schema.names:
            raise ValueError(f"{place} has no column {column}; name the one to search: ?{option}=COLUMN")
    dim = table.schema.field(vector).type.list_size
    if queries.shape[1] != dim:
        raise ValueError(f"queries are [q, {queries.shape[1]}], expected [q, {dim}] as {place} has")
    found = []
    with reported(place):
        for query in queries:
            asked = table.search(query, vector_column_name=vector).distance_type(_METRICS[similarity])
            rows = asked.refine_factor(_REFINED).limit(k).select([name, "_distance"]).to_arrow()
            distances = rows["_distance"].to_numpy()
            found.append(list(zip(rows[name].to_pylist(), (1 - distances).tolist(), strict=True)))  # of both metrics
    return neighbours(found, k)
