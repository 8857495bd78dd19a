"""How a gallery lies in a table of LanceDB: `row`, `item_id`, further columns, `vector`, and its card.

The card is metadata of the column `vector`, so that it changes in the same atomic steps as the table and goes where the
table goes. Lance checks no sums, and a flipped bit would be read as it is; so the card of a local table has the SHA-256
of the data files, which Lance never changes, only adds and leaves.
"""

from __future__ import annotations

import json
import warnings
from dataclasses import dataclass, field, replace
from datetime import timedelta
from typing import Any

import numpy as np
import polars as pl

from stores.chunks import DamagedStore
from stores.durable import sha256_of
from stores.galleries.lance_location import LanceLocation, no_table, open_table
from stores.space import EmbeddingSpace
from stores.store import Batch

FORMAT_VERSION = 1
ROW = "row"
VECTOR = "vector"
ITEM_ID = "item_id"
RESERVED = (ROW, VECTOR)
_CARD = "embedding_gallery"
_LEAST_INDEXED = 5_000  # rows; below, an index is slower than none and has too little to be trained on


@dataclass(frozen=True)
class LanceCard:
    """What a table holds.

    Attributes:
        space: What the vectors are.
        provenance: JSON values that say where they come from.
        index: Index that is built when every row is in.
        complete: Whether every row is in.
        erasing: Whether rows are being taken out down to their bytes; true after an interruption of that.
        files: SHA-256 of data files by their names; of a table in a bucket empty.
    """

    space: EmbeddingSpace
    provenance: dict[str, Any]
    index: str = "none"
    complete: bool = False
    erasing: bool = False
    files: dict[str, str] = field(default_factory=dict)

    def to_json(self) -> str:
        """The card as it is kept."""
        return json.dumps(
            {
                "format_version": FORMAT_VERSION,
                "space": self.space.to_dict(),
                "provenance": self.provenance,
                "index": self.index,
                "complete": self.complete,
                "erasing": self.erasing,
                "files": self.files,
            }
        )


def read_card(location: LanceLocation, table: Any) -> LanceCard | None:
    """The card of a table; None of somebody else's.

    Raises:
        DamagedStore: If it cannot be read.
        ValueError: If a later version of the toolkit wrote it.
    """
    names = table.schema.names
    kept = (table.schema.field(VECTOR).metadata or {}).get(_CARD.encode()) if VECTOR in names else None
    if kept is None:
        return None
    try:
        body = json.loads(kept)
        version = body["format_version"]
        if version == FORMAT_VERSION:
            return LanceCard(
                EmbeddingSpace.from_dict(body["space"]),
                body["provenance"],
                body["index"],
                body["complete"],
                body["erasing"],
                body["files"],
            )
    except (ValueError, KeyError, TypeError):
        raise DamagedStore(f"{location} has a card that cannot be read; restore it from a copy") from None
    raise ValueError(
        f"{location} has format version {version}, this version reads {FORMAT_VERSION}; use the version of the toolkit "
        "that wrote it, or a later one"
    )


def update_card(location: LanceLocation, table: Any, card: LanceCard) -> None:
    """Put a card in the place of the one that is there, in one step, the digests of new data files added."""
    table.update_field_metadata(
        {"path": VECTOR, "metadata": {_CARD: replace(card, files=_digests(location, card)).to_json()}}
    )


def _digests(location: LanceLocation, card: LanceCard) -> dict[str, str]:
    if location.path is None or not card.complete:
        return {}
    files = sorted((location.path / "data").glob("*.lance"))
    return {file.name: card.files.get(file.name) or sha256_of(file) for file in files}


def verify_files(location: LanceLocation, card: LanceCard) -> None:
    """Compare the data files of a local table with their digests; Lance itself misses the ones that are gone.

    Raises:
        DamagedStore: If one was altered.
    """
    if location.path is None:
        return
    for name, digest in card.files.items():
        file = location.path / "data" / name
        if file.is_file() and sha256_of(file) != digest:
            raise DamagedStore(f"{file} does not match the digest in its card: it was altered; restore it from a copy")


def complete_table(location: LanceLocation) -> tuple[Any, LanceCard]:
    """A finished table of the toolkit's and its card.

    Raises:
        FileNotFoundError: If there is none.
        ValueError: If it is unfinished, or not the toolkit's.
    """
    table = open_table(location)
    if table is None:
        raise no_table(location)
    card = read_card(location, table)
    if card is None:
        raise ValueError(f"{location} was not written by this toolkit, which changes no rows of it; do it yourself")
    require_complete(location, card)
    return table, card


def require_complete(location: LanceLocation, card: LanceCard) -> None:
    """Refuse a table that lacks rows.

    Raises:
        ValueError: If it does.
    """
    if not card.complete:
        raise ValueError(f"{location} is unfinished; run the command that writes it again")


def table_schema(space: EmbeddingSpace, items: pl.DataFrame | None, dtype: str, card: LanceCard) -> Any:
    """The Arrow schema of a table, without item columns where none are known yet.

    Raises:
        ValueError: If a column is of a type that would come back as another.
    """
    import pyarrow as pa

    number = pa.float16() if dtype == "float16" else pa.float32()
    columns = [] if items is None else [_arrow_column(items, name) for name in items.columns]
    vector = pa.field(VECTOR, pa.list_(number, space.dim), metadata={_CARD: card.to_json()})
    return pa.schema([pa.field(ROW, pa.int64()), *columns, vector])


def _arrow_column(items: pl.DataFrame, name: str) -> Any:
    import pyarrow as pa

    column = back = None
    try:
        column = items.select(name).clear().to_arrow().schema.field(0)
        back = pl.from_arrow(pa.schema([column]).empty_table())
    except pa.ArrowException:  # a type that Arrow has not
        pass
    if not isinstance(back, pl.DataFrame) or back.schema[name] != items.schema[name]:
        raise ValueError(
            f"item column {name!r} of {items.schema[name]} would not come back from Lance as it is; cast it to text"
        )
    return column


def arrow_table(schema: Any, batch: Batch, first: int) -> Any:
    """Rows of a gallery as a table of the schema, numbered from `first`."""
    import pyarrow as pa

    vectors = pa.FixedSizeListArray.from_arrays(pa.array(batch.vectors.reshape(-1)), batch.vectors.shape[1])
    rows = pa.array(np.arange(first, first + len(batch.vectors)))
    return pa.Table.from_arrays([rows, *batch.items.to_arrow().columns, vectors], schema=schema)


def item_schema(schema: Any) -> pl.Schema | None:
    """The polars schema of a table's item columns; None where none are known yet."""
    import pyarrow as pa

    columns = [column for column in schema if column.name not in RESERVED]
    if not columns:
        return None
    table = pl.from_arrow(pa.schema(columns).empty_table())
    return table.schema if isinstance(table, pl.DataFrame) else None


def build_index(table: Any, card: LanceCard) -> None:
    """Index the vectors as the card says, by the space's similarity; few rows are left to exact search."""
    if card.index == "none" or table.count_rows() < _LEAST_INDEXED:
        return
    from lancedb.index import HnswSq, IvfPq

    metric = "cosine" if card.space.similarity == "cosine" else "dot"
    table.create_index(VECTOR, config={"ivf_pq": IvfPq, "hnsw": HnswSq}[card.index](distance_type=metric))


def forget_versions(table: Any) -> None:
    """Remove every version of a table but this one, and files that belong to none."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # that earlier versions cannot be read any more is the purpose
        table.optimize(cleanup_older_than=timedelta(0), delete_unverified=True)
