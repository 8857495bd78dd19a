"""Take items out of a store for good: `python -m stores.forget STORE --id ID`, or `--ids TABLE`, or `--label LABEL`.

The items vanish at once; then the store is written anew without them, so that no file of it holds the bytes of their
vectors. What the disk's free space, snapshots and backups still hold is for you to see to. An interrupted command
finishes when it is run again.
"""

import sys
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Literal

from stores.command_line import run_command

if TYPE_CHECKING:
    import polars as pl

    from stores.store import EmbeddingStore


@dataclass(frozen=True, kw_only=True)
class ForgetOptions:
    """What to take out.

    Attributes:
        store: Folder of the store.
        id: Ids of items, one or several.
        ids: Table (CSV, Parquet, JSON, NDJSON, Arrow) with a column item_id.
        label: Labels, one or several; every item that has one of them is taken out.
        compact: Whether to write the store anew now. Without it the bytes stay until somebody does.
        missing_ok: Whether ids and labels that the store does not have are passed over.
    """

    store: str = field(kw_only=False)
    id: list[str] = field(default_factory=list)
    ids: str | None = None
    label: list[str] = field(default_factory=list)
    compact: Literal["yes", "no"] = "yes"
    missing_ok: Literal["yes", "no"] = "no"


def forget(options: ForgetOptions) -> str:
    """Forget items and the augmented views of them; the answer says how many, and names none.

    Raises:
        FileNotFoundError: If there is no such store or table.
        ValueError: If an id or label is not in the store, or the store is damaged.
        StoreLocked: If another process is writing to it.
    """
    from stores.item_tables import read_item_table
    from stores.store import EmbeddingStore

    with EmbeddingStore.open(options.store) as store:
        wanted = [*options.id, *(read_item_table(options.ids, "item_id")["item_id"] if options.ids else ())]
        if not wanted and not options.label and not len(store.forgotten_items):
            raise ValueError("nothing to forget; name items by --id, --ids or --label")
        if store.clean():  # an earlier run got as far as removing files: whom it took out is unknown now
            options = replace(options, missing_ok="yes")
        rows = _rows_of_items(store, wanted, options) | _rows_of_labels(store, options)
        count = store.forget(store.items["item_id"].filter(rows)) if rows.any() else 0
        done = f"forgot {count} items of {options.store}, {len(store)} are left"
        if options.compact == "no":
            return f"{done}; their bytes are there until the store is compacted"
        store.compact()
    return f"{done}; no file of the store holds their bytes"


def _rows_of_items(store: "EmbeddingStore", wanted: list[str | int], options: ForgetOptions) -> "pl.Series":
    import polars as pl

    names = pl.Series([str(each) for each in wanted], dtype=pl.String).unique()
    ids = store.items["item_id"].cast(pl.String)
    _require_known(names, [ids, store.forgotten_items["item_id"]], options, "items")
    rows = ids.is_in(names.implode())
    if "source_item" in store.items.columns:  # views of an item go with it
        rows |= store.items["source_item"].cast(pl.String).is_in(names.implode()).fill_null(False)
    return rows


def _rows_of_labels(store: "EmbeddingStore", options: ForgetOptions) -> "pl.Series":
    import polars as pl

    names = pl.Series(options.label, dtype=pl.String).unique()
    if "label" not in store.items.columns:
        if len(names):
            raise ValueError(f"{options.store} has no column label; name items by --id or --ids")
        return pl.repeat(False, len(store), eager=True)
    labels = store.items["label"].cast(pl.String)
    _require_known(names, [labels, store.forgotten_items["label"]], options, "labels")
    return labels.is_in(names.implode()).fill_null(False)


def _require_known(names: "pl.Series", known: "list[pl.Series]", options: ForgetOptions, what: str) -> None:
    import polars as pl

    # What an interrupted run of the same command forgot is known too.
    there = pl.concat([column.cast(pl.String) for column in known])
    unknown = len(names) - int(names.is_in(there.implode()).sum())
    if unknown and options.missing_ok == "no":
        raise ValueError(
            f"{unknown} of {len(names)} {what} are not in {options.store}; check them, or pass over them by "
            "--missing-ok yes"
        )


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line and return its exit code."""
    return run_command(
        ForgetOptions,
        lambda options: print(forget(options)),
        argv,
        prog="python -m stores.forget",
        description=str(__doc__),
    )


if __name__ == "__main__":
    sys.exit(main())
