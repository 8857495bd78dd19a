"""Changing a gallery in LanceDB in place, and the link that leads to the one that is served."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import numpy as np
import polars as pl

from stores.galleries.fitting_rows import comparable_ids, fitting_rows
from stores.galleries.lance_location import LanceLocation, connect, only_writer, open_table, parse_location, reported
from stores.galleries.lance_table import (
    ITEM_ID,
    RESERVED,
    ROW,
    VECTOR,
    arrow_table,
    build_index,
    complete_table,
    forget_versions,
    item_schema,
    update_card,
)
from stores.galleries.links import discard_folder, lead, leads_to
from stores.known_ids import KnownIds
from stores.store import Batch

_IDS_AT_A_TIME = 10_000
_MARK = "_versions"  # every Lance table has this folder


def put(location: str, batch: Batch) -> None:
    """Add rows to a finished gallery in one version; a row whose id is there is replaced; see `LiveEngine`.

    Raises:
        FileNotFoundError: If there is no gallery.
        ValueError: If it is unfinished or not the toolkit's, or the batch does not fit it.
        StoreLocked: If another process is writing it.
    """
    place = parse_location(location)
    table, card = complete_table(place)
    half = str(table.schema.field(VECTOR).type.value_type) == "halffloat"
    rows = fitting_rows(
        batch,
        card.space,
        schema=item_schema(table.schema),
        known=KnownIds(pl.Series([], dtype=batch.items["item_id"].dtype)),
        number=np.dtype(np.float16 if half else np.float32),
        reserved=RESERVED,
    )
    with only_writer(place), reported(place, writing=True):
        table, card = complete_table(place)
        rows_there = table.search().select([ROW]).limit(table.count_rows()).to_batches(_IDS_AT_A_TIME)
        last = max((int(block.column(0).to_numpy().max(initial=-1)) for block in rows_there), default=-1)
        (
            table.merge_insert(ITEM_ID)
            .when_matched_update_all()
            .when_not_matched_insert_all()
            .execute(arrow_table(table.schema, rows, 1 + last))
        )
        update_card(place, table, card)


def remove(location: str, item_ids: pl.Series) -> int:
    """Take rows out of a finished gallery and return how many there were; see `LiveEngine`.

    Their bytes stay in the table's earlier versions; `erase` leaves none.

    Raises:
        FileNotFoundError: If there is no gallery.
        ValueError: If it is unfinished or not the toolkit's.
        StoreLocked: If another process is writing it.
    """
    place = parse_location(location)
    complete_table(place)
    with only_writer(place), reported(place, writing=True):
        table, _ = complete_table(place)
        ids = _comparable(table, item_ids)
        before = table.count_rows()
        for first in range(0, len(ids), _IDS_AT_A_TIME):
            table.delete(_among(ids[first : first + _IDS_AT_A_TIME]))
        return before - table.count_rows()


def erase(location: str, item_ids: pl.Series) -> int:
    """Take rows out and leave no byte of them: the table is written anew without them; see `ErasingEngine`.

    Raises:
        FileNotFoundError: If there is no gallery.
        ValueError: If it is unfinished or not the toolkit's.
        StoreLocked: If another process is writing it.
    """
    import pyarrow as pa

    place = parse_location(location)
    complete_table(place)
    with only_writer(place), reported(place, writing=True):
        table, card = complete_table(place)
        card = replace(card, erasing=True)
        update_card(place, table, card)
        before = table.count_rows()
        now = table.version
        gone = _comparable(table, item_ids)
        blocks = _others(open_table(place, version=now), gone)
        table = connect(place).create_table(
            place.table,
            data=pa.RecordBatchReader.from_batches(table.schema, blocks),
            schema=table.schema,
            mode="overwrite",
        )
        forget_versions(table)
        build_index(table, card)
        update_card(place, table, replace(card, erasing=False, files={}))
        forget_versions(table)
        return before - table.count_rows()


def erasing(location: str) -> bool:
    """Whether an `erase` was interrupted; see `ErasingEngine`.

    Raises:
        FileNotFoundError: If there is no gallery.
        ValueError: If it is unfinished or not the toolkit's.
    """
    return complete_table(parse_location(location))[1].erasing


def residue(location: str) -> str | None:
    """What may still hold the bytes of rows that were erased; see `ErasingEngine`."""
    if parse_location(location).path is not None:
        return None
    return "old versions that the bucket keeps by itself may hold their bytes"


def serve(name: str, location: str) -> None:
    """Let the table name `name` (FOLDER/NAME) lead to the table at `location`, by a link; see `LiveEngine`.

    Raises:
        FileNotFoundError: If there is no such gallery.
        FileExistsError: If there is a table of that name.
        ValueError: If the gallery is unfinished, or in a bucket, where there are no links.
    """
    place, link = parse_location(location), parse_location(name, follow=False)
    complete_table(place)
    lead(_folder(link), _folder(place))


def served(name: str) -> str | None:
    """The location of the table that the name FOLDER/NAME leads to; None where it leads to none."""
    link = parse_location(name, follow=False)
    folder = leads_to(_folder(link))
    return None if folder is None else str(folder.with_name(folder.name.removesuffix(".lance")))


def discard(location: str) -> None:
    """Delete a table that no link beside it leads to; see `LiveEngine`.

    Raises:
        ValueError: If a link leads to it, or it is one.
        StoreLocked: If another process is writing it.
    """
    place = parse_location(location, follow=False)
    if place.path is not None:
        discard_folder(place.path, _MARK)
    elif open_table(place) is not None:
        with reported(place, writing=True):
            connect(place).drop_table(place.table)


def _folder(place: LanceLocation) -> Any:
    if place.path is None:
        raise ValueError(f"{place} is in a bucket, where there are no links; name the new table to what searches it")
    return place.path


def _comparable(table: Any, item_ids: pl.Series) -> pl.Series:
    columns = item_schema(table.schema)
    return comparable_ids(item_ids, columns[ITEM_ID] if columns else pl.String())


def _among(ids: pl.Series) -> str:
    """A condition of SQL: the id is one of these."""
    if ids.dtype.is_integer():
        return f"{ITEM_ID} IN ({', '.join(map(str, ids))})"
    quoted = ("'" + each.replace("'", "''") + "'" for each in ids)
    return f"{ITEM_ID} IN ({', '.join(quoted)})"


def _others(table: Any, gone: pl.Series) -> Iterator[Any]:
    import pyarrow as pa

    if not table.count_rows():
        return
    for block in table.search().limit(table.count_rows()).to_batches(8192):
        ids = pl.from_arrow(block.column(block.schema.get_field_index(ITEM_ID)))
        assert isinstance(ids, pl.Series)
        yield block.filter(pa.array((~ids.is_in(gone.implode())).to_list()))
