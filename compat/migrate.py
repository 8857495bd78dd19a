"""Rewrite a gallery for new queries: `python -m compat.migrate --transformer DIR --source URI --target URI`.

A URI is a path (a Zarr store, or by its ending .npy, .parquet, .faiss or .index) or scheme:path. The source is left
alone. An interrupted migration goes on when the same command is run again. A hubness correction is written as one
dimension more, which unit queries with a 1 appended search by inner product.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from stores.command_line import run_command


@dataclass(frozen=True, kw_only=True)
class MigrateOptions:
    """What to migrate where.

    Attributes:
        transformer: Folder of a transformer of direction old-to-new, or new-to-old with a hubness correction; or of
            either half of a unified one, which also brings queries and newly enrolled items into the unified space.
        source: URI of the old gallery.
        target: URI of the gallery to write.
        correction: Whether to write the transformer's hubness correction, if it carries one; `no` writes plain vectors.
        batch_rows: Rows in memory at a time.
    """

    transformer: Path
    source: str
    target: str
    correction: Literal["yes", "no"] = "yes"
    batch_rows: int = 4096

    def __post_init__(self) -> None:
        if self.batch_rows < 1:
            raise ValueError(f"batch_rows must be at least 1, found {self.batch_rows}")


def migrate(options: MigrateOptions) -> None:
    """Migrate a gallery and print what came of it; see `compat.migration.run.migrate_gallery`."""
    import time

    from compat.migration.run import migrate_gallery
    from compat.transformers.artefact import load_transformer

    said = time.monotonic()

    def say(done: int, rows: int) -> None:
        nonlocal said
        if time.monotonic() - said > 5:
            said = time.monotonic()
            print(f"migrated {done}/{rows} rows", file=sys.stderr, flush=True)

    transformer = load_transformer(options.transformer)
    result = migrate_gallery(
        options.source,
        transformer,
        options.target,
        correction=options.correction == "yes",
        batch_rows=options.batch_rows,
        on_rows=say,
    )
    print(result)


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line and return its exit code."""
    return run_command(MigrateOptions, migrate, argv, prog="python -m compat.migrate", description=str(__doc__))


if __name__ == "__main__":
    sys.exit(main())
