"""Checking a migrated gallery against its source."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import polars as pl

from compat.migration.copying import ahead
from compat.migration.records import RECORD, RecordFile, differences, id_hashes, read_records, sort_records
from compat.neighbors import comparable_rows, unit_rows
from compat.neighbors.best_rows import BestRows
from compat.transformers.artefact import Transformer
from stores.galleries import locate
from stores.galleries.gallery import GallerySource
from stores.galleries.searching import SEARCHES
from stores.space import Similarity
from stores.store import Batch

SAMPLE_ROWS = 1024
LEAST_COSINE = 0.99999
"""A target may keep unit vectors and norms apart, which costs rounding, never direction."""
MOST_DIFFERENCE = 1e-4
"""Of a number in a row compared by inner product, where length counts: products in other blocks round differently."""
_HALF_COSINE, _HALF_DIFFERENCE = 0.9999, 2e-2
_SCAN_ROWS = 4096

Search = Callable[[np.ndarray, int], Sequence[Sequence[str | int]]]
"""Queries as the gallery takes them, float32 [q, d], and k, to the ids of the k items that an index finds for each."""


@dataclass(frozen=True)
class MigrationCheck:
    """Every id present once, and how a sample recomputed now compares with what was written.

    Attributes:
        rows: Ids compared.
        sampled: Vectors recomputed.
        lowest_cosine: Between a recomputed vector and the written one; None where they are compared by inner product.
        largest_difference: Between their numbers; None where they are compared by cosine.
        in_order: Whether the rows are in the source's order; else each id was found once, in some order.
    """

    rows: int
    sampled: int
    lowest_cosine: float | None = None
    largest_difference: float | None = None
    in_order: bool = True

    def __str__(self) -> str:
        if self.lowest_cosine is not None:
            found = f"lowest cosine {self.lowest_cosine:.6f}"
        else:
            found = f"largest difference {self.largest_difference:.1e}"
        order = "in order" if self.in_order else "each once, in another order"
        return f"checked: {self.rows} ids {order}, {self.sampled} vectors recomputed, {found}"


@dataclass(frozen=True)
class SearchCheck:
    """How much of what exact search finds the gallery's own search finds, through its index where it has one.

    Attributes:
        queries: Searched for.
        k: Neighbours compared.
        recall: Share of the exact k nearest that the index returned, 0..1.
    """

    queries: int
    k: int
    recall: float

    def __str__(self) -> str:
        return f"its search finds {self.recall:.1%} of the {self.k} nearest of {self.queries} queries"


def verify_migration(
    source: GallerySource,
    transformer: Transformer,
    target: GallerySource,
    *,
    sample: int = SAMPLE_ROWS,
    offsets: np.ndarray | None = None,
    any_order: bool = False,
) -> MigrationCheck:
    """Compare every id, and recompute an even sample of the vectors.

    Args:
        source: What was migrated.
        transformer: With the correction that was written, and with no other.
        target: What came of it.
        sample: Vectors to recompute, or a few more.
        offsets: The correction's offsets float32 [rows of source] where they were known beforehand.
        any_order: Whether the target's rows may be in another order than the source's, as those of a database, or of a
            gallery whose rows were changed.

    Raises:
        ValueError: If rows, ids or a sampled vector differ.
    """
    if len(source) != len(target) and not any_order:
        raise ValueError(f"the migrated gallery has {len(target)} rows, its source {len(source)}; migrate again")
    compare = _Comparison(transformer, precise=not keeps_halves(target))
    in_order = len(source) == len(target) and _compare_in_order(source, target, compare, sample, offsets, any_order)
    if not in_order:
        compare = _Comparison(transformer, precise=compare.precise)
        _compare_in_any_order(source, target, compare, sample)
    return compare.result(len(source), in_order=in_order)


class _Comparison:
    """Recomputed vectors beside written ones."""

    def __init__(self, transformer: Transformer, *, precise: bool) -> None:
        self.transformer, self.precise = transformer, precise
        self.by_cosine = transformer.served_space.similarity == "cosine"
        self.lowest, self.furthest, self.sampled = 1.0, 0.0, 0

    def add(self, vectors: np.ndarray, ids: pl.Series, found: np.ndarray, known: np.ndarray | None) -> None:
        wanted = self.transformer.serve_gallery(vectors, ids, offsets=known)
        if self.by_cosine:
            cosines = np.sum(unit_rows(wanted) * unit_rows(found), axis=1)
            self.lowest = float(np.minimum(self.lowest, cosines.min()))  # of Python's own, NaN would pass
        else:
            self.furthest = float(np.maximum(self.furthest, np.abs(wanted - found).max()))
        self.sampled += len(vectors)

    def result(self, rows: int, *, in_order: bool) -> MigrationCheck:
        least = LEAST_COSINE if self.precise else _HALF_COSINE
        most = MOST_DIFFERENCE if self.precise else _HALF_DIFFERENCE
        if not self.lowest >= least:
            raise ValueError(
                f"a recomputed vector has cosine {self.lowest:.6f} to the migrated one, expected {least}; migrate again"
            )
        if not self.furthest <= most:
            raise ValueError(
                f"a recomputed vector differs by {self.furthest:.1e} from the migrated one, expected {most} at most; "
                "migrate again"
            )
        if self.by_cosine:
            return MigrationCheck(rows, self.sampled, self.lowest, None, in_order)
        return MigrationCheck(rows, self.sampled, None, self.furthest, in_order)


def keeps_halves(target: GallerySource) -> bool:
    """Whether a gallery keeps three digits of a number."""
    return any("three digits" in note for note in getattr(target, "notes", ()))


def _compare_in_order(
    source: GallerySource,
    target: GallerySource,
    compare: _Comparison,
    sample: int,
    offsets: np.ndarray | None,
    any_order: bool,
) -> bool:
    """Whether all ids are in the same order.

    Raises:
        ValueError: If they are not, and must be.
    """
    first, step = 0, max(1, len(source) // sample)
    with closing(ahead(source.scan(_SCAN_ROWS))) as theirs, closing(ahead(target.scan(_SCAN_ROWS))) as ours:
        for their, our in zip(theirs, ours, strict=True):
            if not _same_ids(their, our):
                if any_order:
                    return False
                raise ValueError(
                    f"the ids of rows {first} to {first + len(their.items)} differ from the source's; migrate again"
                )
            chosen = np.arange(-first % step, len(their.vectors), step)
            if len(chosen):
                known = None if offsets is None else offsets[first + chosen]
                compare.add(their.vectors[chosen], their.items["item_id"].gather(chosen), our.vectors[chosen], known)
            first += len(their.items)
    return True


def _same_ids(theirs: Batch, ours: Batch) -> bool:
    return theirs.items["item_id"].equals(ours.items["item_id"])


def _compare_in_any_order(source: GallerySource, target: GallerySource, compare: _Comparison, sample: int) -> None:
    with TemporaryDirectory(prefix="migration-") as folder:
        theirs, ours = (
            _sorted_ids(Path(folder), each, name) for each, name in ((source, "source"), (target, "target"))
        )
        _require_same_ids(theirs, ours)
        ids = read_records(theirs)["id"]
        chosen = np.array(ids[:: max(1, len(ids) // sample)])
        wanted = dict(_rows_of(source, chosen))
        for key, (vector, item_id) in _rows_of(target, chosen):
            compare.add(*wanted[key], vector, None)
            if not wanted[key][1].equals(item_id):
                raise ValueError("an id of the migrated gallery is not the source's; migrate again")


def _rows_of(gallery: GallerySource, chosen: np.ndarray) -> Iterator[tuple[int, tuple[np.ndarray, pl.Series]]]:
    """Rows whose id has one of the hashes, uint64: the hash, the vector [1, d], the id [1]."""
    with closing(ahead(gallery.scan(_SCAN_ROWS))) as batches:
        for batch in batches:
            hashes = id_hashes(batch.items["item_id"])
            for row in np.flatnonzero(np.isin(hashes, chosen)).tolist():
                yield int(hashes[row]), (np.array(batch.vectors[row : row + 1]), batch.items["item_id"][row : row + 1])


def _sorted_ids(folder: Path, gallery: GallerySource, name: str) -> Path:
    file = RecordFile(folder / f"{name}.unsorted")
    try:
        with closing(ahead(gallery.scan(_SCAN_ROWS))) as batches:
            for batch in batches:
                records = np.zeros(len(batch.vectors), RECORD)
                records["id"] = id_hashes(batch.items["item_id"])
                file.add(records)
    finally:
        file.close()
    sort_records(file.path, folder / name)
    return folder / name


def _require_same_ids(theirs: Path, ours: Path) -> None:
    rows, found = len(read_records(theirs)), len(read_records(ours))
    missing = extra = 0
    for each in differences(theirs, ours):
        missing, extra = missing + len(each.gone), extra + len(each.fresh)
    if missing or extra:
        raise ValueError(
            f"the migrated gallery has {found} rows, its source {rows}: {missing} ids are missing and {extra} are not "
            "the source's; migrate again"
        )
    if rows != found:
        raise ValueError(f"the migrated gallery has {found} rows, its source {rows}: ids occur twice; migrate again")


def engine_search(uri: str, similarity: Similarity) -> Search | None:
    """The search of the engine that a gallery is in, through whatever index it has; None where it has none."""
    scheme, location = locate(uri)
    engine = SEARCHES.get(scheme)
    if engine is None:
        return None

    def search(queries: np.ndarray, k: int) -> Sequence[Sequence[str | int]]:
        return engine.search(location, queries, k, similarity).item_ids

    return search


def verify_search(target: GallerySource, queries: np.ndarray, search: Search, *, k: int = 10) -> SearchCheck:
    """Compare what a gallery's own index finds with exact search, reading the gallery once, block by block.

    Args:
        target: The gallery.
        queries: As the gallery takes them, float32 [q, d].
        search: Searches it through its index.
        k: Neighbours wanted.

    Raises:
        ValueError: If the space is not known, or the dimension differs.
    """
    if target.space is None:
        raise ValueError("the gallery does not tell its space, and so not how its vectors are compared")
    k = min(k, len(target))
    best = BestRows(queries, target.dim, k, len(target), target.space.similarity)
    first = 0
    with closing(ahead(target.scan(_SCAN_ROWS))) as batches:
        for batch in batches:
            best.look(comparable_rows(batch.vectors, target.space.similarity), first)
            first += len(batch.vectors)
    rows = best.found()[1]
    names = _ids_at(target, np.unique(rows))
    found = search(queries, k)
    hits = sum(
        len({names[row] for row in wanted} & set(got[:k])) for wanted, got in zip(rows.tolist(), found, strict=True)
    )
    return SearchCheck(len(queries), k, hits / max(1, rows.size))


def _ids_at(gallery: GallerySource, rows: np.ndarray) -> dict[int, str | int]:
    names: dict[int, str | int] = {}
    first = 0
    with closing(ahead(gallery.scan(_SCAN_ROWS))) as batches:
        for batch in batches:
            inside = rows[(rows >= first) & (rows < first + len(batch.vectors))]
            names.update(zip(inside.tolist(), batch.items["item_id"].gather(inside - first).to_list(), strict=True))
            first += len(batch.vectors)
    return names
