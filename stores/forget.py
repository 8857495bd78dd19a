"""Take items out of galleries for good: `python -m stores.forget GALLERY [GALLERY ...] --id ID`, or by `--ids TABLE` or
`--label LABEL`.

GALLERY is a store, a file that the toolkit wrote (.npy, .npz, .parquet, .arrow, .csv, .h5, .faiss), or a gallery in
PostgreSQL, LanceDB or Qdrant. Name the old gallery and the migrated one together: what a label or an augmented view
stands for in one of them goes from all. Stores and files are written anew without the items, so that none of their
files holds the bytes of their vectors; of an engine, each line says what may. What the disk's free space, snapshots
and backups hold is for you to see to. An interrupted command finishes when it is run again.
"""

import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal

from stores.command_line import run_command

if TYPE_CHECKING:
    import polars as pl

    from stores.forgetting import Found


@dataclass(frozen=True, kw_only=True)
class ForgetOptions:
    """What to take out.

    Attributes:
        galleries: Galleries, one or several.
        id: Ids of items, one or several.
        ids: Table (CSV, Parquet, JSON, NDJSON, Arrow) with a column item_id.
        label: Labels, one or several; every item that has one of them is taken out.
        compact: Whether to write stores and tables anew now. Without it the bytes stay there until somebody does.
        missing_ok: Whether ids and labels that no gallery has are passed over.
    """

    galleries: list[str] = field(kw_only=False)
    id: list[str] = field(default_factory=list)
    ids: str | None = None
    label: list[str] = field(default_factory=list)
    compact: Literal["yes", "no"] = "yes"
    missing_ok: Literal["yes", "no"] = "no"

    def __post_init__(self) -> None:
        if not self.galleries:
            raise ValueError("no gallery is named; name one or several before the first option")


def forget(options: ForgetOptions) -> str:
    """Forget items and the augmented views of them; a line for each gallery says how many, and names none.

    Raises:
        FileNotFoundError: If there is no such gallery or table.
        ValueError: If no gallery has an id or label, one is unfinished or damaged, or work on some of several failed:
            it says in which they are forgotten and in which not, and the same command goes on.
        StoreLocked: If another process is writing to one.
    """
    import polars as pl

    from stores.forgetting import Wanted, look
    from stores.galleries import redact
    from stores.item_tables import read_item_table

    listed = read_item_table(options.ids, "item_id")["item_id"] if options.ids else ()
    names = pl.Series([*options.id, *(str(each) for each in listed)], dtype=pl.String).unique()
    wanted = Wanted(names, pl.Series(options.label, dtype=pl.String).unique())
    uris = list(dict.fromkeys(options.galleries))
    found = [look(uri, wanted) for uri in uris]
    if not len(wanted.names) and not len(wanted.labels) and not any(each.pending for each in found):
        raise ValueError("nothing to forget; name items by --id, --ids or --label")
    # An earlier run may have got as far as removing files: whom it took out is unknown then.
    if options.missing_ok == "no" and not any(each.interrupted for each in found):
        where = redact(uris[0]) if len(uris) == 1 else f"any of the {len(uris)} galleries"
        for what, named, known in (
            ("items", wanted.names, [each.names for each in found]),
            ("labels", wanted.labels, [each.labels for each in found]),
        ):
            _require_known(named, known, what, where)
    if len(wanted.labels) and not any(each.has_labels for each in found):
        raise ValueError(f"{redact(uris[0])} has no column label; name items by --id or --ids")
    while len(uris) > 1:  # whom a label or a view stands for in one gallery is looked for in all
        together = pl.concat([wanted.names, *(each.gone for each in found)]).unique()
        if len(together) == len(wanted.names):
            break
        wanted = Wanted(together, wanted.labels)
        found = [look(uri, wanted) for uri in uris]
    return _take_out_everywhere(found, compact=options.compact == "yes")


def _take_out_everywhere(found: "list[Found]", *, compact: bool) -> str:
    """Whoever tells what a label or a view stands for comes last, so that the command can be run again."""
    from stores.forgetting import take_out
    from stores.galleries import redact

    done: list[str] = []
    gone: list[str] = []
    failed: list[str] = []
    for each in sorted(found, key=lambda each: (each.has_labels, each.has_views)):
        uri = redact(each.uri)
        if failed and (each.has_labels or each.has_views):
            failed.append(f"{uri} (left for later, since it tells whom a label or a view stands for)")
            continue
        try:
            done.append(take_out(each, compact=compact))
            gone.append(uri)
        except (ValueError, OSError) as error:
            if len(found) == 1:
                raise
            failed.append(f"{uri} ({error})")
    if failed:
        raise ValueError(
            f"not forgotten in {', '.join(failed)}; forgotten in {', '.join(gone) or 'none'}; mend that, and run the "
            "same command again"
        )
    return "\n".join(done)


def _require_known(names: "pl.Series", known: "list[pl.Series]", what: str, where: str) -> None:
    import polars as pl

    unknown = len(names) - int(names.is_in(pl.concat(known).implode()).sum())
    if unknown:
        raise ValueError(
            f"{unknown} of {len(names)} {what} are not in {where}; check them, or pass over them by --missing-ok yes"
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
