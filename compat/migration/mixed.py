"""Searching a gallery of which a part is re-embedded by the new model, and the rest bridged from the old one."""

from __future__ import annotations

import numpy as np
import polars as pl

from compat.metrics.sides import Calibration, Side
from compat.migration.bridged import BridgedGallery, SearchResult
from compat.migration.calibration import LEAST_ITEMS, MOST_ITEMS, shift_between
from compat.migration.engines import among, read_rows
from compat.neighbors import ArrayRows
from compat.transformers.artefact import Transformer, WrongSpace
from stores.galleries.found import neighbours
from stores.space import EmbeddingSpace


class MixedGallery:
    """Two parts of one gallery, searched as one: an old part through a bridge, a new part as it is.

    An item that is in both parts is found in the new one alone, whether that ranks it higher or not: so items move from
    part to part by being added to the new one, and whether the old one still has them makes no difference. Which these
    are is looked up when this object is made.

    Args:
        old_part: The old model's gallery, or a migrated one; in any form that `BridgedGallery` takes.
        new_part: Items embedded by the new model, in any such form; may be empty where it is a store.
        transformer: What bridges the old part; see `BridgedGallery`.
        calibration: What becomes of a bridged score before it is merged with native ones. None: nothing, or where the
            bridge corrects hubs the shift that `learn_calibration` finds from items that both parts hold.
        old_space: What the old part's vectors are, where it cannot tell.
        new_space: The same of the new part.
        native_ids: Ids of the new part; None reads them from it.

    Raises:
        WrongSpace: If the two parts take queries of different spaces, or one does not fit the transformer.
        TypeError: If a part cannot tell what it was not told.
    """

    def __init__(
        self,
        old_part: object,
        new_part: object,
        transformer: Transformer | None = None,
        calibration: Calibration | None = None,
        *,
        old_space: EmbeddingSpace | None = None,
        new_space: EmbeddingSpace | None = None,
        native_ids: pl.Series | None = None,
    ) -> None:
        if native_ids is None:
            native_ids = read_rows(new_part, space=new_space).item_table()["item_id"]
        self.old = BridgedGallery(old_part, transformer, space=old_space, leave_out=native_ids)
        self.new = BridgedGallery(new_part, space=new_space)
        if self.old.query_space != self.new.query_space:
            raise WrongSpace(
                f"the old part is searched by queries in {self.old.query_space}, the new one in {self.new.query_space};"
                " both need those of the new model"
            )
        self.native_items = len(native_ids)
        if calibration is None:
            calibration = Calibration()
            if self.old.corrected and self.native_items:
                calibration = learn_calibration(
                    old_part, new_part, transformer, old_space=old_space, new_space=new_space
                )
        self.calibration = calibration

    @property
    def query_space(self) -> EmbeddingSpace:
        """The space that queries must be in: the new model's."""
        return self.new.query_space

    def search(self, queries: np.ndarray, k: int = 10, *, space: EmbeddingSpace | None = None) -> SearchResult:
        """The k nearest items of each query in both parts; a score is a native cosine, or comparable with one.

        Of equal scores the native item comes first.

        Args:
            queries: The new model's raw vectors, floats [q, d].
            k: Neighbours wanted.
            space: Space of the queries, where it is known; None takes them for vectors of `query_space`.

        Raises:
            WrongSpace: If the queries are in another space than `query_space`.
            ValueError: If their dimension is wrong.
        """
        bridged = self.old.search(queries, k, space=space)
        if not self.native_items:
            return bridged
        native = self.new.search(queries, k, space=space)
        moved = bridged.scores * np.float32(self.calibration.scale) + np.float32(self.calibration.shift)
        merged = []
        for ids, scores, old_ids, old_scores in zip(*native, bridged.item_ids, moved, strict=True):
            both = [*zip(ids, scores, strict=False), *zip(old_ids, old_scores, strict=False)]
            merged.append(sorted(both, key=lambda hit: -hit[1])[:k])
        return SearchResult(*neighbours(merged, k))


def learn_calibration(
    old_part: object,
    new_part: object,
    transformer: Transformer | None = None,
    *,
    old_space: EmbeddingSpace | None = None,
    new_space: EmbeddingSpace | None = None,
    seed: int = 0,
) -> Calibration:
    """The shift of bridged scores that makes them comparable with native ones, from items that both parts hold.

    It is for a bridge with a hubness correction; without one, scores as they are were measured to be as good or better.
    Up to 1,000 of the items are drawn at random; the old part's rows are read once.

    Args:
        old_part: As in `MixedGallery`; one whose rows can be read.
        new_part: The same.
        transformer: What bridges the old part.
        old_space: What the old part's vectors are, where it cannot tell.
        new_space: The same of the new part.
        seed: Of the draw.

    Raises:
        ValueError: If both parts hold fewer than 20 items.
        TypeError: If the rows of a part cannot be read.
    """
    old, new = read_rows(old_part, space=old_space), read_rows(new_part, space=new_space)
    bridge = BridgedGallery(old_part, transformer, space=old_space)
    ids, old_ids = new.item_table()["item_id"], old.item_table()["item_id"]
    shared = ids.filter(pl.Series(among(ids, old_ids)))
    if len(shared) < LEAST_ITEMS:
        raise ValueError(
            f"{len(shared)} items are in both parts, too few to calibrate by, expected {LEAST_ITEMS}; give calibration="
        )
    if len(shared) > MOST_ITEMS:
        shared = shared.sample(MOST_ITEMS, seed=seed)
    native_ids, native = new.vectors_of(shared)
    bridged_ids, bridged = old.vectors_of(shared)
    place = {str(item): row for row, item in enumerate(bridged_ids)}
    rows = np.array([place[str(item)] for item in native_ids])
    bridged_ids, bridged = bridged_ids.gather(rows), bridged[rows]
    space = old.described.space
    if transformer is not None and not bridge.ready:
        bridged, space = transformer.serve_gallery(bridged, bridged_ids), transformer.served_space
    asked = bridge.form_of(native)
    return shift_between(Side(asked, ArrayRows(bridged), space.similarity), Side(native, ArrayRows(native)))
