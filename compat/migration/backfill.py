"""Re-embedding a gallery bit by bit behind its bridge: a folder that says what is bridged, and holds what is native.

Layout::

    MIXED/mixed.json     which gallery is bridged through which transformer, and the calibration of its scores; sealed
    MIXED/new/           an `EmbeddingStore` of the items that are re-embedded so far

An item has moved as soon as a commit of `new` holds it: the old gallery's copy is then never found again, so a batch
moves in one step, and whoever is killed goes on from the last commit. The old gallery is left alone, unless it is asked
for the moved items to be removed from it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import cast

import polars as pl

from compat.metrics.sides import Calibration
from compat.migration.bridged import BridgedGallery
from compat.migration.calibration import LEAST_ITEMS
from compat.migration.copying import OnRows
from compat.migration.engines import among, read_rows
from compat.migration.mixed import MixedGallery, learn_calibration
from compat.transformers.artefact import Transformer, WrongSpace
from stores.durable import sync_folder, write_atomically
from stores.galleries import GALLERIES, locate, redact
from stores.galleries.gallery import LiveEngine
from stores.galleries.zarr_store import open_complete
from stores.sealed import seal, unseal
from stores.space import EmbeddingSpace
from stores.store import EmbeddingStore

FORMAT_VERSION = 1
STATE, NEW = "mixed.json", "new"
BATCH_ROWS = 4096


@dataclass(frozen=True)
class MixedState:
    """What `mixed.json` says.

    Attributes:
        gallery: URI of the bridged gallery, without a password.
        gallery_space: What its vectors are.
        query_space: What queries are, and the native items.
        transformer: Digest of the transformer; None where the gallery was migrated and needs none.
        calibration: Of bridged scores; None until enough items are native to learn it.
    """

    gallery: str
    gallery_space: EmbeddingSpace
    query_space: EmbeddingSpace
    transformer: str | None
    calibration: Calibration | None = None

    def write(self, folder: Path) -> None:
        """Put it in the folder in one step."""
        body = {
            "format_version": FORMAT_VERSION,
            "gallery": self.gallery,
            "gallery_space": self.gallery_space.to_dict(),
            "query_space": self.query_space.to_dict(),
            "transformer": self.transformer,
            "calibration": asdict(self.calibration) if self.calibration else None,
        }
        write_atomically(folder / STATE, [seal(body)])
        sync_folder(folder)

    @classmethod
    def read(cls, folder: Path) -> MixedState | None:
        """The state of a folder, None of one without.

        Raises:
            DamagedStore: If it was altered.
        """
        if not (folder / STATE).is_file():
            return None
        body = unseal(folder / STATE, version=FORMAT_VERSION)
        old, new = (EmbeddingSpace.from_dict(body[name]) for name in ("gallery_space", "query_space"))
        found = body["calibration"]
        return cls(body["gallery"], old, new, body["transformer"], Calibration(**found) if found else None)


@dataclass(frozen=True)
class BackfillResult:
    """What a run moved.

    Attributes:
        out: The folder.
        moved: Items that are native since this run.
        before: Items of the new stores that were native already.
        strangers: Items of the new stores that the gallery has not; they were left out.
        native: Items that are native now.
        rows: Items of the gallery.
        removed: Items removed from the old gallery; None where that was not asked for.
    """

    out: Path
    moved: int
    before: int
    strangers: int
    native: int
    rows: int
    removed: int | None = None

    def __str__(self) -> str:
        parts = [f"{self.moved} items moved, {self.native} of {self.rows} are native in {self.out}"]
        if self.before:
            parts.append(f"{self.before} were native already")
        if self.strangers:
            parts.append(f"{self.strangers} are not in the gallery and were left out")
        if self.removed is not None:
            parts.append(f"{self.removed} removed from the old gallery")
        if self.native == self.rows:
            parts.append(f"nothing is bridged any more: {self.out / NEW} is the gallery")
        return "; ".join(parts)


def backfill(
    gallery: str,
    transformer: Transformer | None,
    new: Sequence[str | Path],
    out: str | Path,
    *,
    space: EmbeddingSpace | None = None,
    batch_rows: int = BATCH_ROWS,
    drop_old: bool = False,
    on_items: OnRows | None = None,
) -> BackfillResult:
    """Move newly embedded items from the bridged part of a gallery to the native one, a batch at a time.

    Called again after an interruption, or with further stores, it goes on. Items that are native already stay as they
    are.

    Args:
        gallery: URI of the old gallery, or of a migrated one.
        transformer: What bridges it; None for a gallery that was migrated by a map of direction old-to-new.
        new: Stores of the same items embedded by the new model, as `compat.extract` writes them.
        out: The folder to make, or to go on with.
        space: What the gallery's vectors are, where it cannot tell.
        batch_rows: Items that move in one step.
        drop_old: Whether items that moved are removed from the old gallery; its engine must be able to. Where the
            bridge corrects hubs, none are before scores are calibrated by 20 items that both parts hold.
        on_items: Called after each batch with (items of the new stores done, items in all).

    Raises:
        WrongSpace: If the transformer does not fit the gallery, or a new store is in another space than the queries.
        ValueError: If the folder is of another gallery or transformer, or the engine cannot remove items.
        StoreLocked: If another process moves items into the folder.
    """
    out = Path(out)
    live = _live(gallery) if drop_old else None
    old = read_rows(gallery, space=space)
    bridge = BridgedGallery(gallery, transformer, space=space)
    state = MixedState(
        redact(gallery), old.described.space, bridge.query_space, transformer.digest() if transformer else None
    )
    stores = [open_complete(path) for path in new]
    for store in stores:
        if store.space != state.query_space:
            raise WrongSpace(
                f"{store.path} is in {store.space}, expected {state.query_space} as the new model's queries are"
            )
    found = _begun(out, state)
    with _native_store(out, state.query_space) as native:
        items = old.item_table()
        ours = items.with_columns(pl.col("item_id").cast(pl.String).alias("text"))
        known = native.items["item_id"].cast(pl.String)
        moved = before = strangers = looked_at = 0
        for store in stores:
            for start in range(0, len(store), batch_rows):
                batch = store.batch(start, min(start + batch_rows, len(store)))
                offered = batch.items.select(pl.col("item_id").cast(pl.String).alias("text")).with_row_index("place")
                fresh = offered.filter(pl.Series(~among(offered["text"], known)))
                joined = fresh.join(ours, on="text", how="inner").sort("place")
                before += len(offered) - len(fresh)
                strangers += len(fresh) - len(joined)
                if len(joined):
                    native.append(joined.select(items.columns), batch.vectors[joined["place"].to_numpy()])
                    native.commit()
                    known = pl.concat([known, joined["text"]])
                    moved += len(joined)
                looked_at += len(offered)
                if on_items:
                    on_items(looked_at, sum(map(len, stores)))
        if found.calibration is None and bridge.corrected and len(native) >= LEAST_ITEMS:
            learned = learn_calibration(gallery, EmbeddingStore.open(out / NEW), transformer, old_space=space)
            found = replace(found, calibration=learned)
            found.write(out)
        ids = native.items["item_id"]
        rows = len(items) + int((~among(ids, items["item_id"])).sum())  # moved items may be removed already
        removed = None if live is None else 0
        if live and len(ids) and (found.calibration or not bridge.corrected):
            removed = live.remove(locate(gallery)[1], ids)
        return BackfillResult(out, moved, before, strangers, len(ids), rows, removed)


def open_mixed(
    folder: str | Path, transformer: Transformer | None = None, *, gallery: str | None = None
) -> MixedGallery:
    """The mixed gallery of a folder as its last commit has it; open it again to see what moved since.

    Where the bridge corrects hubs, all is searched through it until 20 items are native, which calibrate scores.

    Args:
        folder: What `backfill` made.
        transformer: The one it was made with.
        gallery: URI of the old gallery, where it is reached by another than before: with a password, or after a move.

    Raises:
        FileNotFoundError: If the folder is none of these.
        WrongSpace: If the transformer is another.
    """
    folder = Path(folder)
    state = MixedState.read(folder)
    if state is None:
        raise FileNotFoundError(
            f"no mixed gallery at {folder}: it has no {STATE}; make one with python -m compat.backfill"
        )
    digest = transformer.digest() if transformer else None
    if digest != state.transformer:
        raise WrongSpace(f"{folder} was made with another transformer, or with none where one is given; pass that one")
    with _native_store(folder, state.query_space, write=False) as native:
        old = gallery or state.gallery
        native_ids = native.items["item_id"]
        if state.calibration is None and len(native_ids) < LEAST_ITEMS:
            corrected = BridgedGallery(old, transformer, space=state.gallery_space).corrected
            native_ids = native_ids.clear() if corrected else native_ids
        spaces = {"old_space": state.gallery_space, "new_space": state.query_space}
        return MixedGallery(old, native, transformer, state.calibration, native_ids=native_ids, **spaces)


def _begun(out: Path, state: MixedState) -> MixedState:
    """The state of a folder, written where there is none yet.

    Raises:
        ValueError: If the folder is of another gallery or transformer.
    """
    found = MixedState.read(out)
    if found is None:
        if out.is_file() or (out.is_dir() and any(each.suffix != ".tmp" for each in out.iterdir())):
            raise FileExistsError(f"{out} already exists and is no mixed gallery; name another folder")
        out.mkdir(parents=True, exist_ok=True)
        state.write(out)
        return state
    for name in ("gallery", "gallery_space", "query_space", "transformer"):
        if getattr(found, name) != getattr(state, name):
            raise ValueError(
                f"{out} was begun with another {name.replace('_', ' ')} ({getattr(found, name)}); go on with that, or "
                "name another folder"
            )
    return found


def _native_store(out: Path, space: EmbeddingSpace, *, write: bool = True) -> EmbeddingStore:
    path = out / NEW
    if (path / "store.json").is_file():
        return EmbeddingStore.open(path)
    if not write:
        raise ValueError(f"nothing was moved into {out} yet; run python -m compat.backfill with --new")
    return EmbeddingStore.create(path, space, provenance={"backfilled_into": out.name})


def _live(gallery: str) -> LiveEngine:
    scheme = locate(gallery)[0]
    engine = GALLERIES[scheme]
    if not hasattr(engine, "remove"):
        raise ValueError(f"a gallery of the kind {scheme} takes no items out; leave --drop-old away")
    return cast(LiveEngine, engine)
