"""The same items embedded by two models: what a transformer is fitted to."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import polars as pl

from compat.options import Direction
from stores.space import EmbeddingSpace
from stores.store import EmbeddingStore
from stores.stream import shuffled_rows

BLOCK_ROWS = 8192


class Vectors(Protocol):
    """Vectors of one space, read by row number: an open `EmbeddingStore`, or an array in memory (`ArrayVectors`)."""

    @property
    def space(self) -> EmbeddingSpace:
        """What the vectors are."""
        ...

    @property
    def chunk_rows(self) -> int:
        """Rows that lie together."""
        ...

    def __len__(self) -> int: ...

    def take(self, rows: np.ndarray) -> np.ndarray:
        """The vectors of row numbers [b], a new float32 [b, d] array."""
        ...


@dataclass(frozen=True)
class ArrayVectors:
    """An array [n, d] seen as `Vectors`.

    Raises:
        ValueError: If the array does not have the space's dimension.
    """

    array: np.ndarray
    space: EmbeddingSpace
    chunk_rows: int = 4096

    def __post_init__(self) -> None:
        if self.array.ndim != 2 or self.array.shape[1] != self.space.dim:
            raise ValueError(f"the array has shape {list(self.array.shape)}, expected [n, {self.space.dim}]")

    def __len__(self) -> int:
        return len(self.array)

    def take(self, rows: np.ndarray) -> np.ndarray:
        """The vectors of row numbers [b], a new float32 [b, d] array."""
        return self.array[rows].astype(np.float32)


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
    """

    old: Vectors
    new: Vectors
    old_rows: np.ndarray
    new_rows: np.ndarray
    labels: np.ndarray | None = None
    originals: np.ndarray | None = None

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

        Raises:
            ValueError: If the arrays do not have equally many rows.
        """
        if old.ndim != 2 or new.ndim != 2 or len(old) != len(new):
            raise ValueError(f"pairs need two arrays of equally many rows, found {old.shape} and {new.shape}")
        rows = np.arange(len(old))
        codes = None if labels is None else np.unique(np.asarray(labels), return_inverse=True)[1]
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
        labels = None if self.labels is None else self.labels[pairs]
        originals = None if self.originals is None else self.originals[pairs]
        return Pairs(self.old, self.new, self.old_rows[pairs], self.new_rows[pairs], labels, originals)

    def spaces(self, direction: Direction) -> tuple[EmbeddingSpace, EmbeddingSpace]:
        """Source and target space of a map in this direction."""
        new, old = self.new.space, self.old.space
        return (new, old) if direction == "new-to-old" else (old, new)

    def take(self, pairs: np.ndarray, direction: Direction) -> tuple[np.ndarray, np.ndarray]:
        """Source and target vectors, float32 [m, d_source] and [m, d_target], of pair numbers [m]."""
        new, old = self.new.take(self.new_rows[pairs]), self.old.take(self.old_rows[pairs])
        return (new, old) if direction == "new-to-old" else (old, new)

    def blocks(self, direction: Direction, size: int = BLOCK_ROWS) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        """All pairs in order as (source, target) blocks of at most `size` rows."""
        for start in range(0, len(self), size):
            yield self.take(np.arange(start, min(start + size, len(self))), direction)

    def shuffled(self, size: int, *, seed: int) -> Iterator[np.ndarray]:
        """Pair numbers in batches of `size`, each once, mixed within a buffer of neighbouring rows."""
        return shuffled_rows(len(self), size, chunk_rows=self.old.chunk_rows, seed=seed)

    def fingerprint(self) -> str:
        """Digest over both spaces, every paired vector and the labels, hexadecimal."""
        digest = hashlib.blake2b(digest_size=16)
        for space in (self.old.space, self.new.space):
            digest.update(json.dumps(space.to_dict(), sort_keys=True).encode())
        for new, old in self.blocks("new-to-old"):
            digest.update(new.data)
            digest.update(old.data)
        if self.labels is not None:
            digest.update(np.ascontiguousarray(self.labels).data)
        return digest.hexdigest()


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
        .sort("old_row")
    )
    if not len(joined):
        raise ValueError(
            f"{old.path} and {new.path} have no item_id in common (for example {old_ids[0]!r} and {new_ids[0]!r}); "
            "pairs are the same items embedded by both models"
        )
    old_rows = joined["old_row"].to_numpy().astype(np.int64)
    new_rows = joined["new_row"].to_numpy().astype(np.int64)
    codes = {}
    for name in ("label", "source_item"):
        sides = ((old.items, old_rows), (new.items, new_rows))
        columns = [items[name].gather(rows) for items, rows in sides if name in items.columns]
        known = [column for column in columns if column.null_count() < len(column)]
        codes[name] = label_codes(known[0]) if known else None
    return Pairs(old, new, old_rows, new_rows, codes["label"], codes["source_item"])


def of_one_type(a: pl.Series, b: pl.Series) -> tuple[pl.Series, pl.Series]:
    """Two columns of ids or labels, both as text where one is text and the other integers, as CSV files may have it."""
    return (a, b) if a.dtype == b.dtype else (a.cast(pl.String), b.cast(pl.String))


def label_codes(labels: pl.Series) -> np.ndarray:
    """Labels as int64 codes [n]; equal labels get equal codes, in sorted order, and each null one of its own."""
    codes = labels.rank("dense").cast(pl.Int64).fill_null(0).to_numpy(writable=True) - 1
    missing = np.flatnonzero(labels.is_null().to_numpy())
    codes[missing] = codes.max(initial=-1) + 1 + np.arange(len(missing))
    return codes
