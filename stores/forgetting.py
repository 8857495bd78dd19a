"""Looking for items in a gallery of any kind, and taking them out of it down to their bytes."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import cast

import polars as pl

from stores.galleries import GALLERIES, locate, open_source, redact
from stores.galleries.gallery import CompactingEngine, ErasingEngine, LiveEngine
from stores.galleries.rewriting import REWRITTEN, finish_rewriting, require_card, write_without
from stores.store import EmbeddingStore

_BATCH_ROWS = 8192


@dataclass(frozen=True)
class Wanted:
    """Whom to look for: `names`, item ids as text, and `labels`, each once."""

    names: pl.Series
    labels: pl.Series


@dataclass(frozen=True)
class Found:
    """What a gallery has of them.

    Attributes:
        uri: The gallery.
        names: Those of the names that it has, or had until an interrupted run took them out.
        labels: Those of the labels.
        gone: Ids of the rows to take out, as text: by name, by label, and views of items of such a name.
        has_labels: Whether it has labels.
        has_views: Whether it tells which item a view is of.
        interrupted: Whether an earlier run was cut short while bytes were removed.
        pending: Whether rows were taken out whose bytes are there.
    """

    uri: str
    names: pl.Series
    labels: pl.Series
    gone: pl.Series
    has_labels: bool
    has_views: bool
    interrupted: bool = False
    pending: bool = False


def look(uri: str, wanted: Wanted) -> Found:
    """Read a gallery's items and see whom of them is wanted; an interrupted rewriting of a file is finished first.

    Raises:
        FileNotFoundError: If there is no such gallery.
        ValueError: If it is unfinished or damaged, or of a kind that nothing can be taken out of.
        StoreLocked: If another process is writing to it.
    """
    scheme, location = locate(uri)
    if scheme == "zarr":
        return _look_in_store(uri, location, wanted)
    interrupted = False
    if scheme in REWRITTEN:
        interrupted = finish_rewriting(Path(location))
        require_card(Path(location))
    elif not _is_live(scheme):
        raise ValueError(f"nothing is taken out of a gallery of the kind {scheme}: {redact(uri)}; copy it to a store")
    elif isinstance(GALLERIES[scheme], ErasingEngine):
        interrupted = cast(ErasingEngine, GALLERIES[scheme]).erasing(location)
    elif isinstance(GALLERIES[scheme], CompactingEngine):
        interrupted = cast(CompactingEngine, GALLERIES[scheme]).uncompacted(location)
    tables = (batch.items for batch in open_source(uri).scan(_BATCH_ROWS))
    return _look_in_tables(uri, tables, wanted, interrupted=interrupted)


def take_out(found: Found, *, compact: bool) -> str:
    """Take out what was found in a gallery, and tell in one line, without a name, what became of it.

    Args:
        found: What `look` said.
        compact: Whether the bytes are to go from stores and tables now; from files they do in any case.

    Raises:
        ValueError: If the gallery is damaged, or the work fails.
        OSError: If the disk or the server refuses.
        StoreLocked: If another process is writing to it.
    """
    scheme, location = locate(found.uri)
    name, count = redact(found.uri), len(found.gone)
    if scheme == "zarr":
        return _forget_in_store(found, location, compact=compact)
    if scheme in REWRITTEN:
        left = write_without(scheme, Path(location), found.gone) if count else len(open_source(found.uri))
        return f"{_counted(count, name, left)}; no file of the gallery holds their bytes"
    engine = cast(LiveEngine, GALLERIES[scheme])
    if compact and isinstance(engine, ErasingEngine):
        count, residue = engine.erase(location, found.gone), engine.residue(location)
    else:
        count = engine.remove(location, found.gone)
        residue = "their bytes are there until the same command compacts it"
        if compact and isinstance(engine, CompactingEngine):
            residue = engine.compact(location)
    left = len(open_source(found.uri))
    return f"{_counted(count, name, left)}; {residue or 'no file of the gallery holds their bytes'}"


def _is_live(scheme: str) -> bool:
    return hasattr(cast(LiveEngine, GALLERIES[scheme]), "remove")


def _counted(count: int, name: str, left: int) -> str:
    return f"forgot {count} items of {name}, {left} are left"


def _look_in_store(uri: str, location: str, wanted: Wanted) -> Found:
    with EmbeddingStore.open(location) as store:
        interrupted = store.clean()
        found = _look_in_tables(uri, [store.items], wanted, interrupted=interrupted)
        # What an interrupted run of the same command forgot is known too.
        before = _look_in_tables(uri, [store.forgotten_items], wanted, interrupted=interrupted)
        pending = len(store.forgotten_items) > 0
    return Found(
        uri,
        pl.concat([found.names, before.names]),
        pl.concat([found.labels, before.labels]),
        found.gone,
        found.has_labels,
        found.has_views,
        interrupted,
        pending,
    )


def _forget_in_store(found: Found, location: str, *, compact: bool) -> str:
    with EmbeddingStore.open(location) as store:
        count = 0
        if len(found.gone):
            ids = store.items["item_id"]
            count = store.forget(ids.filter(ids.cast(pl.String).is_in(found.gone.implode())), missing_ok=True)
        done = _counted(count, redact(found.uri), len(store))
        if not compact:
            return f"{done}; their bytes are there until the store is compacted"
        store.compact()
    return f"{done}; no file of the store holds their bytes"


def _look_in_tables(uri: str, tables: Iterable[pl.DataFrame], wanted: Wanted, *, interrupted: bool) -> Found:
    names, labels, gone = _empty(), _empty(), _empty()
    has_labels = has_views = False
    for items in tables:
        ids = items["item_id"].cast(pl.String)
        rows = ids.is_in(wanted.names.implode())
        names.append(ids.filter(rows))
        if "source_item" in items.columns:  # views of an item go with it
            has_views = True
            rows |= items["source_item"].cast(pl.String).is_in(wanted.names.implode()).fill_null(False)
        if "label" in items.columns:
            has_labels = True
            kept = items["label"].cast(pl.String)
            chosen = kept.is_in(wanted.labels.implode()).fill_null(False)
            labels.append(kept.filter(chosen).unique())
            rows |= chosen
        gone.append(ids.filter(rows))
    return Found(uri, names, labels.unique(), gone, has_labels, has_views, interrupted, pending=interrupted)


def _empty() -> pl.Series:
    return pl.Series([], dtype=pl.String)
