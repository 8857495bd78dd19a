"""What a gallery is to those who search it: an engine that searches itself, or rows that are searched in memory."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple, Protocol, cast, runtime_checkable

import numpy as np
import polars as pl

from compat.neighbors import ExactIndex, unit_rows
from compat.transformers.artefact import Transformer, WrongSpace
from compat.transformers.serving import served_rows
from stores.galleries import locate, open_source, redact
from stores.galleries.found import Neighbours, neighbours, require_searchable
from stores.galleries.gallery import GallerySource
from stores.galleries.searching import SEARCHES
from stores.galleries.zarr_store import open_complete
from stores.space import EmbeddingSpace
from stores.store import EmbeddingStore

_ALIKE = 1e-3


class Searches(Protocol):
    """Whatever finds the nearest items of vectors."""

    def search(self, queries: np.ndarray, k: int) -> tuple[Sequence[Sequence[str | int]], np.ndarray]:
        """Ids of the k nearest items of each query float32 [q, d], and their scores [q, k], both in falling order."""
        ...


@runtime_checkable
class SearchesItself(Searches, Protocol):
    """An engine that also says what its vectors are."""

    @property
    def space(self) -> EmbeddingSpace | None:
        """What its vectors are; None where it cannot tell."""
        ...


class Described(NamedTuple):
    """A gallery that somebody else opened: how messages call it, what it is, where it comes from."""

    path: str
    space: EmbeddingSpace
    provenance: Mapping[str, Any]


class Rows(NamedTuple):
    """A gallery whose vectors are read here, and searched in memory."""

    described: Described
    source: EmbeddingStore | GallerySource

    def batches(self, transformer: Transformer | None) -> Iterator[tuple[pl.Series, np.ndarray]]:
        """Ids and vectors as they are served: through a transformer that the gallery is not yet served by, or as is."""
        if isinstance(self.source, EmbeddingStore):
            store = self.source
            rows = served_rows(store, transformer) if transformer else store
            for start in range(0, len(store), store.chunk_rows):
                stop = min(start + store.chunk_rows, len(store))
                yield store.items["item_id"][start:stop], rows.rows(start, stop)
            return
        for items, vectors in self.source.scan(4096):
            ids = items["item_id"]
            yield ids, transformer.serve_gallery(vectors, ids) if transformer else vectors

    def item_table(self) -> pl.DataFrame:
        """Ids, and labels where there are any, [n]."""
        if isinstance(self.source, EmbeddingStore):
            return _named(self.source.items)
        return pl.concat([_named(items) for items, _ in self.source.scan(4096)])

    def vectors_of(self, item_ids: pl.Series) -> tuple[pl.Series, np.ndarray]:
        """Ids and raw vectors, floats [m, d], of those of some items that the gallery has, in its own order."""
        found: list[tuple[pl.Series, np.ndarray]] = []
        if isinstance(self.source, EmbeddingStore):
            ids = self.source.items["item_id"]
            rows = np.flatnonzero(among(ids, item_ids))
            return ids.gather(rows), self.source.take(rows)
        for items, vectors in self.source.scan(4096):
            mask = among(items["item_id"], item_ids)
            found.append((items["item_id"].filter(pl.Series(mask)), vectors[mask]))
        return pl.concat([ids for ids, _ in found]), np.concatenate([vectors for _, vectors in found])


class Searching(NamedTuple):
    """A gallery that an engine searches."""

    described: Described
    engine: SearchesItself


class UriEngine:
    """A gallery of `SEARCHES`, searched where it lies.

    Args:
        uri: Its URI.
        space: What its vectors are.
    """

    def __init__(self, uri: str, space: EmbeddingSpace) -> None:
        scheme, self._location = locate(uri)
        self._engine = SEARCHES[scheme]
        self.space: EmbeddingSpace | None = space

    def search(self, queries: np.ndarray, k: int) -> Neighbours:
        """The nearest items of each query; see `SearchesItself`."""
        assert self.space is not None
        return self._engine.search(self._location, queries, k, self.space.similarity)


class FaissEngine:
    """A FAISS index that is in memory.

    Args:
        index: A `faiss.Index` of inner products or squared distances. For a space compared by cosine its vectors must
            have unit length.
        space: What they are.
        item_ids: Ids [n] of the index's own numbers 0..n-1; None where these are the ids.
    """

    def __init__(self, index: Any, space: EmbeddingSpace, item_ids: Sequence[str | int] | None) -> None:
        import faiss

        if index.d != space.dim:
            raise ValueError(f"the FAISS index is {index.d}-D, expected {space.dim} as {space} has")
        if item_ids is not None and len(item_ids) != index.ntotal:
            raise ValueError(f"{len(item_ids)} item ids for a FAISS index of {index.ntotal} rows; give one for each")
        if index.metric_type not in (faiss.METRIC_INNER_PRODUCT, faiss.METRIC_L2) or (
            space.similarity == "inner_product" and index.metric_type == faiss.METRIC_L2
        ):
            raise ValueError("the FAISS index compares by another metric than its space; build it by inner product")
        self._index, self._ids = index, item_ids
        self._squared = index.metric_type == faiss.METRIC_L2
        self.space: EmbeddingSpace | None = space

    def search(self, queries: np.ndarray, k: int) -> Neighbours:
        """The nearest items of each query; see `SearchesItself`.

        Raises:
            ValueError: If the scores are no cosines, where the space is compared by cosine.
        """
        assert self.space is not None
        cosine = self.space.similarity == "cosine"
        queries = require_searchable(queries, k)
        if queries.shape[1] != self.space.dim:
            raise ValueError(f"queries are [q, {queries.shape[1]}], expected [q, {self.space.dim}] as the index has")
        scores, places = self._index.search(np.ascontiguousarray(unit_rows(queries) if cosine else queries), k)
        found = scores[places >= 0]  # -1 where there were not enough
        if self._squared:
            scores, found = 1 - scores / 2, 1 - found / 2
        if cosine and np.abs(found).max(initial=0.0) > 1 + _ALIKE:
            raise ValueError(
                "the FAISS index holds vectors that are not of unit length, so its scores are no cosines; build it "
                "from unit vectors"
            )
        rows = [
            [(int(p) if self._ids is None else self._ids[p], float(s)) for p, s in zip(ps, ss, strict=True) if p >= 0]
            for ps, ss in zip(places, scores, strict=True)
        ]
        return neighbours(rows, k)


def opened(gallery: object, *, space: EmbeddingSpace | None, item_ids: Sequence[str | int] | None) -> Rows | Searching:
    """A gallery in any of the forms that can be searched.

    Args:
        gallery: An `EmbeddingStore`; a URI or path; a `faiss.Index`; or whatever `SearchesItself`.
        space: What its vectors are, where it cannot tell; must agree where it can.
        item_ids: Ids of a `faiss.Index`.

    Raises:
        WrongSpace: If it cannot tell its space and none is given, or another is.
        TypeError: If it is none of these.
    """
    if isinstance(gallery, EmbeddingStore):
        return Rows(_described(str(gallery.path), gallery.space, gallery.provenance, space), gallery)
    if isinstance(gallery, str | Path):
        uri = str(gallery)
        scheme, location = locate(uri)
        if scheme == "zarr" and (Path(location) / "store.json").is_file():
            return opened(open_complete(location), space=space, item_ids=None)
        source = open_source(uri)
        described = _described(redact(uri), source.space, source.provenance, space)
        if scheme in SEARCHES:
            return Searching(described, UriEngine(uri, described.space))
        return Rows(described, source)
    if (faiss := sys.modules.get("faiss")) is not None and isinstance(gallery, faiss.Index):
        described = _described("the FAISS index", None, {}, space)
        return Searching(described, FaissEngine(gallery, described.space, item_ids))
    if isinstance(gallery, SearchesItself):
        name = f"the {type(gallery).__name__}"
        return Searching(_described(name, gallery.space, getattr(gallery, "provenance", {}), space), gallery)
    raise TypeError(
        f"{type(gallery).__name__} cannot be searched; give an EmbeddingStore, a URI, a faiss.Index, or an object with "
        "space and search(queries, k)"
    )


def _described(
    path: str, known: EmbeddingSpace | None, provenance: Mapping[str, Any], given: EmbeddingSpace | None
) -> Described:
    if known is None and given is None:
        raise WrongSpace(f"{path} does not tell what its vectors are; name it: space=EmbeddingSpace(...)")
    if known is not None and given is not None and known != given:
        raise WrongSpace(f"{path} is in {known}, not in {given} as it was said to be")
    return Described(path, cast(EmbeddingSpace, known or given), provenance)


class MemoryEngine:
    """Exact search of a gallery whose vectors are read into memory at the first search, 4 bytes a number.

    Args:
        rows: The gallery.
        transformer: What its vectors are served through; None where they are served as they are.
        leave_out: Ids of items that are not searched.
    """

    def __init__(self, rows: Rows, transformer: Transformer | None, leave_out: pl.Series) -> None:
        self._rows, self._transformer, self._leave_out = rows, transformer, leave_out
        self._index: ExactIndex | None = None
        self._ids = pl.Series("item_id", [], dtype=pl.String)

    def search(self, queries: np.ndarray, k: int) -> Neighbours:
        """The nearest items of each query; see `SearchesItself`."""
        if self._index is None:
            self._index = self._built()
        if not len(self._index) and len(self._leave_out):
            return neighbours([[] for _ in queries], k)
        scores, places = self._index.search(queries, k)
        return Neighbours([self._ids.gather(row).to_list() for row in places], scores)

    def _built(self) -> ExactIndex:
        space = self._transformer.served_space if self._transformer else self._rows.described.space
        index, kept = ExactIndex(space.dim, space.similarity), []
        for ids, vectors in self._rows.batches(self._transformer):
            if len(self._leave_out):
                mask = ~among(ids, self._leave_out)
                ids, vectors = ids.filter(pl.Series(mask)), vectors[mask]
            index.add(vectors)
            kept.append(ids)
        if kept:
            self._ids = pl.concat(kept)
        return index


def _named(items: pl.DataFrame) -> pl.DataFrame:
    return items.select([name for name in ("item_id", "label") if name in items.columns])


def read_rows(gallery: object, *, space: EmbeddingSpace | None = None) -> Rows:
    """A gallery whose rows can be read, whatever searches it.

    Raises:
        WrongSpace: As `opened`.
        TypeError: If it is an index or an engine, whose rows cannot be read.
    """
    if isinstance(gallery, str | Path) and locate(str(gallery))[0] in SEARCHES:
        source = open_source(str(gallery))
        return Rows(_described(redact(str(gallery)), source.space, source.provenance, space), source)
    found = opened(gallery, space=space, item_ids=None)
    if isinstance(found, Searching):
        raise TypeError(f"the rows of {found.described.path} cannot be read; give a store or the URI of a gallery")
    return found


def among(ids: pl.Series, some: pl.Series) -> np.ndarray:
    """Whether each id is one of some, bool [n]; a text and an integer that read alike are one id."""
    if ids.dtype != some.dtype:
        ids, some = ids.cast(pl.String), some.cast(pl.String)
    return ids.is_in(some.implode()).to_numpy()


def search_without(engine: Searches, queries: np.ndarray, k: int, leave_out: pl.Series) -> Neighbours:
    """The k nearest items that are not left out; an engine is asked for ever more until they are enough."""
    if not len(leave_out):
        ids, scores = engine.search(queries, k)
        return Neighbours([list(row) for row in ids], scores)
    hidden, most = set(leave_out.cast(pl.String).to_list()), k + len(leave_out)
    depth = min(2 * k, most)
    while True:
        ids, scores = engine.search(queries, depth)
        rows = [
            [(item, float(score)) for item, score in zip(row, values, strict=False) if str(item) not in hidden][:k]
            for row, values in zip(ids, scores, strict=True)
        ]
        short = any(len(kept) < k and len(row) == depth for kept, row in zip(rows, ids, strict=True))
        if depth >= most or not short:
            return neighbours(rows, k)
        depth = min(4 * depth, most)
