"""Re-embed a gallery bit by bit behind its bridge: `python -m compat.backfill --gallery URI --out MIXED --new STORE`.

`--next N --write FILE` names the items to embed with the new model next. Embed them with compat.extract, and give the
store to `--new`: its items leave the bridged part of the gallery and join the native one, a batch at a time. Run again
after an interruption it goes on. The folder MIXED is searched by `compat.migration.backfill.open_mixed`.
"""

import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from stores.command_line import run_command

ENDINGS = (".csv", ".parquet", ".txt")


@dataclass(frozen=True, kw_only=True)
class BackfillOptions:
    """What to move where, or what to embed next.

    Attributes:
        gallery: URI of the old gallery, or of a migrated one.
        out: Folder of the mixed gallery; made where it is not there.
        transformer: Folder of the transformer that bridges the gallery, or that it was migrated by.
        new: Stores of items embedded by the new model.
        next: How many items to list for re-embedding, of those that are not native yet.
        write: Where to list them: .csv or .parquet (item_id and label), or .txt (`item_id label` a line, as lists of
            images are).
        order: Which come first: random, per_identity, uncertainty (the mapped vectors farthest from what the map was
            fitted to), auto (uncertainty where it is known), a report.json of compat.evaluate (the order it found
            best), or a table with item_id.
        space_name: What the gallery's vectors are, where it cannot tell: the name of the transformer's gallery space.
        drop_old: Whether items that moved are removed from the old gallery too.
        batch_rows: Items that move in one step.
        seed: Of random orders.
    """

    gallery: str
    out: Path
    transformer: Path | None = None
    new: list[Path] = field(default_factory=list)
    next: int | None = None
    write: Path | None = None
    order: str = "auto"
    space_name: str | None = None
    drop_old: Literal["yes", "no"] = "no"
    batch_rows: int = 4096
    seed: int = 0

    def __post_init__(self) -> None:
        if not self.new and self.next is None:
            raise ValueError("nothing to do: give --new STORE to move items, or --next N --write FILE to list some")
        if (self.next is None) != (self.write is None):
            raise ValueError("--next and --write go together: how many items, and the file to list them in")
        if self.write is not None and self.write.suffix not in ENDINGS:
            raise ValueError(f"--write must end in {', '.join(ENDINGS)}, found {self.write.name}")
        if self.next is not None and self.next < 1:
            raise ValueError(f"next must be at least 1, found {self.next}")
        if self.batch_rows < 1:
            raise ValueError(f"batch_rows must be at least 1, found {self.batch_rows}")
        if self.seed < 0:
            raise ValueError(f"seed must not be negative, found {self.seed}")


def run_backfill(options: BackfillOptions) -> None:
    """Move items, then list the next ones; see `compat.migration.backfill`.

    Raises:
        FileNotFoundError: If the gallery, a store or the transformer is missing.
        ValueError: If they do not fit each other.
    """
    from compat.migration.backfill import backfill
    from compat.migration.backfill_order import next_items
    from compat.migration.progress import ProgressLines
    from compat.transformers.artefact import WrongSpace, load_transformer
    from stores.galleries import open_source

    transformer = load_transformer(options.transformer) if options.transformer else None
    space = None
    if options.space_name is not None:
        known = [transformer.gallery_space, transformer.target, transformer.served_space] if transformer else []
        space = next((each for each in known if each.name == options.space_name), None)
        if space is None:
            raise WrongSpace(f"no space of the transformer is called {options.space_name!r}; correct --space-name")
    bridge = transformer
    if transformer and transformer.direction == "old-to-new" and not transformer.correction:
        found = space or open_source(options.gallery).space
        bridge = None if found == transformer.target else transformer  # migrated by it, so it needs no bridge
    if options.new:
        moved = backfill(
            options.gallery,
            bridge,
            options.new,
            options.out,
            space=space,
            batch_rows=options.batch_rows,
            drop_old=options.drop_old == "yes",
            on_items=ProgressLines("moved"),
        )
        print(moved)
    if options.next is not None and options.write is not None:
        listed = next_items(
            options.gallery,
            transformer,
            options.out,
            options.next,
            order=options.order,
            space=space,
            seed=options.seed,
        )
        _write(listed, options.write)
        print(f"{len(listed)} items to re-embed next: {options.write}")


def _write(table: Any, path: Path) -> None:
    temporary = path.with_name(f".{path.name}.partial")
    temporary.parent.mkdir(parents=True, exist_ok=True)
    if path.suffix == ".csv":
        table.write_csv(temporary)
    elif path.suffix == ".parquet":
        table.write_parquet(temporary)
    else:
        if "label" not in table.columns:
            raise ValueError(f"{path.name}: the gallery has no labels, which a list of images needs; list to a .csv")
        lines = (f"{item} {label}\n" for item, label in table.select("item_id", "label").iter_rows())
        temporary.write_text("".join(lines), encoding="utf-8")
    temporary.replace(path)


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line and return its exit code."""
    return run_command(BackfillOptions, run_backfill, argv, prog="python -m compat.backfill", description=str(__doc__))


if __name__ == "__main__":
    sys.exit(main())
