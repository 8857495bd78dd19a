"""Hubness correction: gallery vectors that are near to every query are set back, inside an ordinary index.

In high dimensions some gallery vectors are among the nearest of far too many queries. From each one's score is taken a
share of its mean similarity to its nearest queries of a bank, which is known beforehand. That number belongs to the
gallery vector alone, so it fits in one extra dimension: a gallery row becomes (unit vector, -share * mean), a query
(unit vector, 1), and their inner product is the corrected score. Any engine that ranks by inner product serves it.

Source: cross-domain similarity local scaling, Conneau et al., "Word translation without parallel data", ICLR 2018,
where the share is one half.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import NamedTuple

import numpy as np
import torch

from compat.neighbors import unit_rows
from stores.space import EmbeddingSpace

NEIGHBOURS = 10
MOST_BANK = 10_000
_BLOCK_ROWS = 2048
_GALLERY = "gallery."


class Own(NamedTuple):
    """Codes of gallery rows [g] and bank rows [m], equal where they are of one item: that is no sign of a hub."""

    gallery: np.ndarray
    bank: np.ndarray


def nearest_mean(
    gallery: np.ndarray, bank: np.ndarray, *, own: Own | None = None, neighbours: int = NEIGHBOURS
) -> np.ndarray:
    """Mean cosine of each gallery vector to its nearest vectors of a bank, float32 [g].

    Args:
        gallery: Unit rows, float32 [g, d].
        bank: Unit rows, float32 [m, d].
        own: Leaves out, for each gallery row, the bank rows of the same item or identity, near on any gallery.
        neighbours: How many are averaged; fewer where the bank is smaller, and 0 where nothing is left of it.
    """
    columns = torch.from_numpy(np.ascontiguousarray(bank)).T
    # Compared as signed numbers: torch has no full unsigned ones.
    mine, theirs = (torch.from_numpy(np.array(code).view(np.int64)) for code in own) if own else (None, None)
    means = np.empty(len(gallery), np.float32)
    for start in range(0, len(gallery), _BLOCK_ROWS):
        block = torch.from_numpy(np.ascontiguousarray(gallery[start : start + _BLOCK_ROWS]))
        scores = block @ columns
        if mine is not None and theirs is not None:
            scores.masked_fill_(mine[start : start + len(block), None] == theirs[None, :], -torch.inf)
        values = torch.topk(scores, min(neighbours, len(bank)), dim=1).values
        kept = values > -torch.inf
        summed = torch.where(kept, values, 0.0).sum(dim=1)
        means[start : start + len(block)] = (summed / kept.sum(dim=1).clamp_min(1)).numpy()
    return means


@dataclass(frozen=True, eq=False)
class HubnessCorrection:
    """What is taken from a gallery vector's score, found from a bank of queries.

    The bank holds training pairs as queries look when they search: the new model's vectors, mapped where the map takes
    queries to the gallery. It holds embeddings, so it is personal data where the gallery is.

    Attributes:
        strength: Share of the mean similarity that is taken off; one half in the paper.
        bank: float32 [m, d] unit rows in the space that is searched.
        old_bank: float32 [m, d_old] unit rows: the same items' old vectors, to correct old-to-old search alike.
        items: uint64 [m], `item_hashes` of the bank's items, or empty where they have no ids. A gallery item's own
            query in the bank is no sign of a hub.
        neighbours: How many nearest queries are averaged.
        galleries: Offsets float32 [g] computed beforehand, by the digest of the old gallery's store.
    """

    strength: float
    bank: np.ndarray
    old_bank: np.ndarray
    items: np.ndarray
    neighbours: int = NEIGHBOURS
    galleries: Mapping[str, np.ndarray] = field(default_factory=dict)

    def to_dict(self) -> dict[str, float | int]:
        """What is not in `tensors`, as plain values."""
        return {"strength": self.strength, "neighbours": self.neighbours, "bank": len(self.bank)}

    def tensors(self) -> dict[str, torch.Tensor]:
        """What is saved in a file: the banks at half precision, which moves an offset by less than 1e-4."""
        items = {"items": torch.from_numpy(self.items.view(np.int64).copy())} if len(self.items) else {}
        return {
            "bank": torch.from_numpy(self.bank).half(),
            "old_bank": torch.from_numpy(self.old_bank).half(),
            **items,
            **{_GALLERY + digest: torch.from_numpy(offsets) for digest, offsets in self.galleries.items()},
        }

    def without_galleries(self) -> HubnessCorrection:
        """The correction without offsets computed beforehand."""
        return replace(self, galleries={})

    @classmethod
    def from_tensors(cls, fields: Mapping[str, float | int], tensors: Mapping[str, torch.Tensor]) -> HubnessCorrection:
        """The inverse of `to_dict` and `tensors`.

        Raises:
            ValueError: If the tensors are not two banks of one length and its item hashes.
        """
        bank, old_bank = (tensors[name].float().numpy() for name in ("bank", "old_bank"))
        items = tensors["items"].numpy().view(np.uint64) if "items" in tensors else np.empty(0, np.uint64)
        if bank.ndim != 2 or old_bank.ndim != 2 or len(bank) != len(old_bank) or len(items) not in (0, len(bank)):
            raise ValueError(f"the hubness bank is damaged: {bank.shape}, {old_bank.shape} and {items.shape}")
        galleries = {n.removeprefix(_GALLERY): t.numpy() for n, t in tensors.items() if n.startswith(_GALLERY)}
        return cls(float(fields["strength"]), bank, old_bank, items, int(fields["neighbours"]), galleries)

    def offsets(self, gallery: np.ndarray, item_ids: Iterable[str | int] | None = None) -> np.ndarray:
        """What to add to each gallery vector's cosine, float32 [g], for vectors [g, d] in the space searched."""
        return self._offsets(gallery, self.bank, item_ids)

    def old_offsets(self, gallery: np.ndarray, item_ids: Iterable[str | int] | None = None) -> np.ndarray:
        """The same for old-to-old search, float32 [g], for old vectors [g, d_old]."""
        return self._offsets(gallery, self.old_bank, item_ids)

    def _offsets(self, gallery: np.ndarray, bank: np.ndarray, item_ids: Iterable[str | int] | None) -> np.ndarray:
        own = Own(item_hashes(item_ids), self.items) if item_ids is not None and len(self.items) else None
        return -self.strength * nearest_mean(unit_rows(gallery), bank, own=own, neighbours=self.neighbours)


def item_hashes(item_ids: Iterable[str | int]) -> np.ndarray:
    """64-bit hashes of item ids, uint64 [n]; a text and an integer that read alike are one item."""
    digests = (hashlib.blake2b(str(item).encode(), digest_size=8).digest() for item in item_ids)
    return np.frombuffer(b"".join(digests), dtype="<u8")


def lift_queries(queries: np.ndarray) -> np.ndarray:
    """Queries [q, d] as an index with the extra dimension takes them: unit vectors and a 1, float32 [q, d + 1]."""
    return np.concatenate([unit_rows(queries), np.ones((len(queries), 1), np.float32)], axis=1)


def lift_gallery(gallery: np.ndarray, offsets: np.ndarray) -> np.ndarray:
    """Gallery vectors [g, d] with their offsets [g] in one extra dimension, float32 [g, d + 1]."""
    return np.concatenate([unit_rows(gallery), offsets.astype(np.float32)[:, None]], axis=1)


def lifted_space(space: EmbeddingSpace, fingerprint: str) -> EmbeddingSpace:
    """The space of lifted vectors: one dimension more, compared by inner product."""
    return EmbeddingSpace(f"{space.name}+hubness", fingerprint, space.dim + 1, False, similarity="inner_product")
