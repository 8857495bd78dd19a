"""The same items embedded by two models: what a transformer is fitted to."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import polars as pl

from compat.options import Direction
from compat.vectors import BLOCK_ROWS, ArrayVectors, JoinedVectors, Vectors
from stores.space import EmbeddingSpace
from stores.store import EmbeddingStore
from stores.stream import shuffled_batches, shuffled_rows


@dataclass(frozen=True)
class Pairs:
    """Rows of two sets of vectors that embed the same items. Nothing is copied; vectors are read when asked for.

    Attributes:
        old: Vectors of the old model.
        new: Vectors of the new model.
        old_rows: int64 [n], the row of pair i in `old`.
        new_rows: int64 [n], the row of pair i in `new`.
        labels: int64 [n] identity codes, or None where the items have no labels.
        originals: int64 [n], equal for pairs that are views of one original item, or None where each is its own.
        weights: float64 [n], how much each pair counts in a fit, or None where all count alike.
        query_like: bool [n], the pairs that look like queries where the others are gallery items, or None where no
            such difference is made. A map is judged, and hubs are found, by them.
        item_ids: Ids [n] of the items, of a view those of its original, or None where they have none.
        label_names: What the labels [n] were before they were codes, or None.
    """

    old: Vectors
    new: Vectors
    old_rows: np.ndarray
    new_rows: np.ndarray
    labels: np.ndarray | None = None
    originals: np.ndarray | None = None
    weights: np.ndarray | None = None
    query_like: np.ndarray | None = None
    item_ids: pl.Series | None = None
    label_names: pl.Series | None = None

    @classmethod
    def from_arrays(
        cls,
        old: np.ndarray,
        new: np.ndarray,
        labels: np.ndarray | None = None,
        *,
        old_space: EmbeddingSpace | None = None,
        new_space: EmbeddingSpace | None = None,
    ) -> Pairs:
        """Pairs from arrays [n, d_old] and [n, d_new] whose row i is the same item.

        Integer labels [n] are codes already and stay as they are; others are numbered in sorted order.

        Raises:
            ValueError: If the arrays do not have equally many rows.
        """
        if old.ndim != 2 or new.ndim != 2 or len(old) != len(new):
            raise ValueError(f"pairs need two arrays of equally many rows, found {old.shape} and {new.shape}")
        if labels is not None and len(labels) != len(old):
            raise ValueError(f"pairs need a label each, found {len(labels)} labels for {len(old)} pairs")
        rows = np.arange(len(old))
        codes = None if labels is None else np.asarray(labels)
        if codes is not None and not np.issubdtype(codes.dtype, np.integer):
            codes = np.unique(codes, return_inverse=True)[1]
        return cls(
            ArrayVectors(old, old_space or EmbeddingSpace("old", None, old.shape[1], False)),
            ArrayVectors(new, new_space or EmbeddingSpace("new", None, new.shape[1], False)),
            rows,
            rows,
            codes,
        )

    def __len__(self) -> int:
        return len(self.old_rows)

    def select(self, pairs: np.ndarray) -> Pairs:
        """The pairs of the given numbers, integers [m]."""

        def chosen(column: np.ndarray | None) -> np.ndarray | None:
            return None if column is None else column[pairs]

        return Pairs(
            self.old,
            self.new,
            self.old_rows[pairs],
            self.new_rows[pairs],
            chosen(self.labels),
            chosen(self.originals),
            chosen(self.weights),
            chosen(self.query_like),
            None if self.item_ids is None else self.item_ids.gather(pairs),
            None if self.label_names is None else self.label_names.gather(pairs),
        )

    def codes_of(self, names: pl.Series) -> np.ndarray | None:
        """The codes of labels [m] among these pairs, -1 for one that they do not know; None without label names."""
        if self.labels is None or self.label_names is None:
            return None
        ours, theirs = of_one_type(self.label_names, names)
        known = pl.DataFrame({"name": ours, "code": self.labels}).drop_nulls("name").unique("name")
        found = pl.DataFrame({"name": theirs}).join(known, on="name", how="left", maintain_order="left")["code"]
        return found.fill_null(-1).to_numpy()

    def spaces(self, direction: Direction) -> tuple[EmbeddingSpace, EmbeddingSpace]:
        """Source and target space of a map in this direction."""
        new, old = self.new.space, self.old.space
        return (new, old) if direction == "new-to-old" else (old, new)

    def take(self, pairs: np.ndarray, direction: Direction) -> tuple[np.ndarray, np.ndarray]:
        """Source and target vectors, float32 [m, d_source] and [m, d_target], of pair numbers [m]."""
        new, old = self.new.take(self.new_rows[pairs]), self.old.take(self.old_rows[pairs])
        return (new, old) if direction == "new-to-old" else (old, new)

    def blocks(self, direction: Direction, size: int = BLOCK_ROWS) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        """All pairs in order as (source, target) blocks of at most `size` rows, perhaps read-only."""
        for start in range(0, len(self), size):
            here = slice(start, start + size)
            new, old = _rows_of(self.new, self.new_rows[here]), _rows_of(self.old, self.old_rows[here])
            yield (new, old) if direction == "new-to-old" else (old, new)

    def shuffled(self, size: int, *, seed: int) -> Iterator[np.ndarray]:
        """Pair numbers in batches of `size`, each once, mixed within a buffer of neighbouring rows."""
        return shuffled_rows(len(self), size, chunk_rows=self.old.chunk_rows, seed=seed)

    def batches(self, size: int, direction: Direction, *, seed: int) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        """All pairs as (source, target) batches of `size`, each pair once, mixed as `shuffled` mixes them.

        The rows of a batch come in an order that is quick to gather, so this is the way to stream what is on disk.
        """

        def numbers(start: int, stop: int) -> tuple[np.ndarray]:
            return (np.arange(start, stop),)

        chunk_rows = self.old.chunk_rows
        for (pairs,) in shuffled_batches(numbers, len(self), size, chunk_rows=chunk_rows, seed=seed, by_chunk=True):
            yield self.take(pairs, direction)

    def fingerprint(self) -> str:
        """Digest over both spaces, all vectors of both sides, which are paired, labels and weights, hexadecimal."""
        digest = hashlib.blake2b(digest_size=16)
        for space in (self.old.space, self.new.space):
            digest.update(json.dumps(space.to_dict(), sort_keys=True).encode())
        for vectors in (self.old, self.new):
            digest.update(vectors.digest().encode())
        for column in (self.old_rows, self.new_rows, self.labels, self.weights, self.query_like):
            digest.update(b"-" if column is None else np.ascontiguousarray(column).data)
        return digest.hexdigest()


def _rows_of(vectors: Vectors, rows: np.ndarray) -> np.ndarray:
    first, last = int(rows[0]), int(rows[-1])
    if last - first == len(rows) - 1 and (np.diff(rows) == 1).all():  # they lie together: no need to gather
        return vectors.rows(first, last + 1)
    return vectors.take(rows)


class Source(NamedTuple):
    """Some pairs, how much each of them counts, and whether they look like queries."""

    pairs: Pairs
    weight: float = 1.0
    query_like: bool = False


def merge_pairs(sources: Sequence[Source]) -> Pairs:
    """The pairs of several sources as one, in their order.

    Labels of one name are one identity in every source; where a source has no labels, each of its items is an identity
    of its own. Pairs of one item id are one original, whichever source they are from.

    Raises:
        ValueError: If a weight is not positive and finite, or the sources are of different spaces.
    """
    for source in sources:
        if not 0 < source.weight < np.inf:
            raise ValueError(f"the weight of a source of pairs must be positive and finite, found {source.weight}")
    if len(sources) == 1:
        return sources[0].pairs
    parts = [source.pairs for source in sources]
    lengths = [len(part) for part in parts]
    rows = []
    for side in ("old", "new"):
        starts = np.cumsum([0, *(len(getattr(part, side)) for part in parts)])
        rows.append(
            np.concatenate([getattr(p, f"{side}_rows") + start for p, start in zip(parts, starts, strict=False)])
        )
    names, ids = _joined([_names(part) for part in parts]), _joined([_ids(part) for part in parts])
    originals = _joined([_originals(part) for part in parts])
    return Pairs(
        JoinedVectors(tuple(part.old for part in parts)),
        JoinedVectors(tuple(part.new for part in parts)),
        *rows,
        labels=None if names is None else label_codes(names),
        originals=None if originals is None else label_codes(originals),
        weights=np.repeat([float(source.weight) for source in sources], lengths),
        query_like=np.repeat([source.query_like for source in sources], lengths),
        item_ids=None if ids is None or ids.null_count() else ids,
        label_names=names,
    )


def _joined(columns: Sequence[pl.Series]) -> pl.Series | None:
    joined = pl.concat([column.cast(pl.String) for column in columns])
    return None if joined.null_count() == len(joined) else joined


def _names(pairs: Pairs) -> pl.Series:
    if pairs.label_names is not None:
        return pairs.label_names
    return pl.Series(pairs.labels) if pairs.labels is not None else _nothing(pairs)


def _ids(pairs: Pairs) -> pl.Series:
    return pairs.item_ids if pairs.item_ids is not None else _nothing(pairs)


def _originals(pairs: Pairs) -> pl.Series:
    return pl.Series(pairs.originals) if pairs.item_ids is None and pairs.originals is not None else _ids(pairs)


def _nothing(pairs: Pairs) -> pl.Series:
    return pl.repeat(None, len(pairs), dtype=pl.String, eager=True)


def join_pairs(old: EmbeddingStore, new: EmbeddingStore) -> Pairs:
    """Pair two stores' rows by `item_id`, in the old store's order; text and integer ids are compared as text.

    Labels (column `label`) are taken from the old store, or from the new one where the old has none; a null label is
    an identity of its own. So is the column `source_item`, which `compat.extract` writes for augmented views.

    Raises:
        ValueError: If a store is empty, both are in one space, or no item is in both.
    """
    for name, store in (("old", old), ("new", new)):
        if not len(store):
            raise ValueError(f"the {name} store {store.path} is empty; extract or convert embeddings into it first")
    if old.space == new.space:
        raise ValueError(
            f"both stores are in the space {old.space}: there is nothing to map; pass one store of each model"
        )
    old_ids, new_ids = of_one_type(old.items["item_id"], new.items["item_id"])
    joined = (
        pl.DataFrame({"item_id": old_ids})
        .with_row_index("old_row")
        .join(pl.DataFrame({"item_id": new_ids}).with_row_index("new_row"), on="item_id", how="inner")
        .select("old_row", "new_row")  # the ids need not be sorted along
        .sort("old_row")
    )
    if not len(joined):
        raise ValueError(
            f"{old.path} and {new.path} have no item_id in common (for example {old_ids[0]!r} and {new_ids[0]!r}); "
            "pairs are the same items embedded by both models"
        )
    old_rows = joined["old_row"].to_numpy().astype(np.int64)
    new_rows = joined["new_row"].to_numpy().astype(np.int64)
    ids = old_ids.gather(old_rows)
    codes, names = {}, {}
    for name in ("label", "source_item"):
        sides = ((old.items, old_rows), (new.items, new_rows))
        columns = [items[name].gather(rows) for items, rows in sides if name in items.columns]
        known = [column for column in columns if column.null_count() < len(column)]
        codes[name], names[name] = (label_codes(known[0]), known[0]) if known else (None, None)
    if names["source_item"] is not None:
        of_view, ids = of_one_type(names["source_item"], ids)
        ids = pl.DataFrame({"of": of_view, "own": ids}).select(pl.coalesce("of", "own"))["of"]
    return Pairs(old, new, old_rows, new_rows, codes["label"], codes["source_item"], None, None, ids, names["label"])


def of_one_type(a: pl.Series, b: pl.Series) -> tuple[pl.Series, pl.Series]:
    """Two columns of ids or labels, both as text where one is text and the other integers, as CSV files may have it."""
    return (a, b) if a.dtype == b.dtype else (a.cast(pl.String), b.cast(pl.String))


def label_codes(labels: pl.Series) -> np.ndarray:
    """Labels as int64 codes [n]; equal labels get equal codes, in sorted order, and each null one of its own."""
    codes = labels.rank("dense").cast(pl.Int64).fill_null(0).to_numpy(writable=True) - 1
    missing = np.flatnonzero(labels.is_null().to_numpy())
    codes[missing] = codes.max(initial=-1) + 1 + np.arange(len(missing))
    return codes
