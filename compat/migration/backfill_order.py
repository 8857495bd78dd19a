"""Which items of a bridged gallery are re-embedded next."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl

from compat.metrics.backfill import identity_order, random_order, uncertainty_order
from compat.migration.backfill import NEW
from compat.migration.engines import Rows, among, read_rows
from compat.transformers.artefact import Transformer
from stores.galleries.zarr_store import open_complete
from stores.item_tables import read_item_table
from stores.space import EmbeddingSpace

ORDERS = ("auto", "random", "per_identity", "uncertainty")


def next_items(
    gallery: str,
    transformer: Transformer | None,
    out: str | Path,
    count: int,
    *,
    order: str = "auto",
    space: EmbeddingSpace | None = None,
    seed: int = 0,
) -> pl.DataFrame:
    """The next items to re-embed: item_id, and label where the gallery has labels, at most `count` rows, in order.

    Args:
        gallery: URI of the old gallery, or of a migrated one.
        transformer: What bridges it, or what it was migrated by.
        out: The folder of `backfill`; what is native in it is passed over. It need not be there yet.
        count: How many.
        order: `random`; `per_identity`, whole identities; `uncertainty`, the items first whose bridged vector is
            farthest from what the map was fitted to; `auto`, uncertainty where it is known and random elsewhere; a
            report.json of `compat.evaluate`, for the order of its that had the largest area under its curve; or a
            table with item_id in the order wanted.
        space: What the gallery's vectors are, where it cannot tell.
        seed: Of the random ones.

    Raises:
        ValueError: If the order cannot be formed.
    """
    rows = read_rows(gallery, space=space)
    items = rows.item_table()
    store = Path(out) / NEW
    done = open_complete(store).items["item_id"] if (store / "store.json").is_file() else items["item_id"].clear()
    ordered = items[_order(order, rows, items, transformer, seed)]
    return ordered.filter(pl.Series(~among(ordered["item_id"], done))).head(count)


def _order(order: str, rows: Rows, items: pl.DataFrame, transformer: Transformer | None, seed: int) -> np.ndarray:
    path = Path(order)
    if path.suffix.lower() == ".json" and path.is_file():
        order = _recommended(path)
    elif order not in ORDERS:
        wanted = read_item_table(path, "item_id")["item_id"].cast(pl.String)
        places = dict(zip(items["item_id"].cast(pl.String), range(len(items)), strict=True))
        found = [places[item] for item in wanted if item in places]
        if not found:
            raise ValueError(f"{order} names none of the {len(items)} items of {rows.described.path}; correct --order")
        return np.array(found, np.int64)
    if order == "per_identity":
        if "label" not in items:
            raise ValueError(f"{rows.described.path} has no labels, so no order per identity; take --order random")
        return identity_order(items["label"].rank("dense").fill_null(0).to_numpy(), seed=seed)
    if order == "uncertainty" or (order == "auto" and _knows(transformer, rows)):
        if transformer is None or not _knows(transformer, rows):
            raise ValueError(
                "uncertainty is known of a gallery that an old-to-new transformer maps, uncorrected, and that knows "
                "what it was fitted to; take --order random"
            )
        return uncertainty_order(_novelty(rows, transformer))
    return random_order(len(items), seed=seed)


def _recommended(report: Path) -> str:
    body: Any = json.loads(report.read_text())
    orders: Mapping[str, Any] = (body.get("backfill") or {}).get("orders") or {} if isinstance(body, dict) else {}
    if not orders:
        raise ValueError(
            f"{report} compares no orders of a backfill; evaluate with --new-gallery, or take --order random"
        )
    best = max(orders, key=lambda name: orders[name]["area"])
    if best not in ORDERS:
        raise ValueError(f"in {report} the order {best!r} was best, which was a table; give that table as --order")
    return best


def _knows(transformer: Transformer | None, rows: Rows) -> bool:
    return (
        transformer is not None
        and transformer.familiarity is not None
        and transformer.direction == "old-to-new"
        and rows.described.space in (transformer.source, transformer.target)
    )


def _novelty(rows: Rows, transformer: Transformer) -> np.ndarray:
    familiarity, old = transformer.familiarity, rows.described.space == transformer.source
    assert familiarity is not None
    plain = transformer.without_correction()
    return np.concatenate([familiarity.novelty(vectors) for _, vectors in rows.batches(plain if old else None)])
