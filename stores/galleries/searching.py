"""Search inside the engines that search: the vectors stay where they are.

A new engine is one module with a function `search`, and one line in `SEARCHES`. FAISS files are not among them: an
index file from outside is not loaded into this process. Whoever trusts one loads it and hands the index over.
"""

from __future__ import annotations

from typing import Protocol

import numpy as np

from stores.galleries import lance_search, postgres_search, qdrant_search
from stores.galleries.found import Neighbours
from stores.space import Similarity

__all__ = ["SEARCHES", "Neighbours", "SearchEngine"]


class SearchEngine(Protocol):
    """An engine that finds the nearest rows of a gallery itself, through its index where it has one."""

    def search(self, location: str, queries: np.ndarray, k: int, similarity: Similarity) -> Neighbours:
        """The k nearest items of each query in the gallery at `location`, the part of a URI after `scheme:`.

        Args:
            location: A finished gallery.
            queries: float32 [q, d], in the space of the gallery's vectors.
            k: Neighbours wanted.
            similarity: What they are near by. An index that was built for the other is not used, or refused.

        Raises:
            FileNotFoundError: If there is no gallery.
            ValueError: If it is unfinished, the dimension differs, or a query holds NaN.
        """
        ...


SEARCHES: dict[str, SearchEngine] = {
    "postgresql": postgres_search,
    "lance": lance_search,
    "qdrant": qdrant_search,
}
"""The engines that search, by the scheme of their URIs; all others are read and searched here."""
