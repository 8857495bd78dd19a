"""Rewrite a gallery for new queries: `python -m compat.migrate --transformer DIR --source URI --target URI`.

A URI is a path (a Zarr store, or by its ending .npy, .parquet, .faiss or .index) or scheme:path. The source is left
alone. An interrupted migration goes on when the same command is run again, and brings over what changed in the source
meanwhile. A hubness correction is written as one dimension more, which unit queries with a 1 appended search by inner
product.

Steps: `plan` tells what would be done, `run` (the default) copies and checks, `verify` checks again, `switch` lets the
name `--serve-as` lead to the new gallery, `switch-back` lets it lead where it did before, `finalise` ends the
migration, `discard` deletes the new gallery before the switch, `status` tells how far it is.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from stores.command_line import run_command

Step = Literal["plan", "run", "verify", "switch", "switch-back", "finalise", "discard", "status"]


@dataclass(frozen=True, kw_only=True)
class MigrateOptions:
    """What to migrate where.

    Attributes:
        transformer: Folder of a transformer of direction old-to-new, or new-to-old with a hubness correction; or of
            either half of a unified one, which also brings queries and newly enrolled items into the unified space.
            Needed to plan, run and verify.
        source: URI of the old gallery.
        target: URI of the gallery to write.
        step: What to do.
        correction: Whether to write the transformer's hubness correction, if it carries one; `no` writes plain vectors.
        batch_rows: Rows in memory at a time.
        source_space: Name of the model that made the source's vectors, where the source cannot tell, as a table of your
            own database; it must be the transformer's.
        most_passes: How often to read the source again for what changed in it meanwhile, at most.
        settled_below: A pass that finds fewer changes than this is the last one.
        sample_seconds: How long a plan tries the migration; 0 tries nothing.
        queries: Store of queries in the new model's space, to search the copy with when it is verified; without it
            vectors of the copy itself search.
        serve_as: The view, alias or link to switch: a name beside the target, or a URI.
        discard_old: Whether finalise deletes the old gallery.
        workers: Processes that copy, each a part of the rows; the source must be a store or a file, and stay as it is.
        scheduler: Address of a dask scheduler, such as tcp://host:8786, whose workers copy instead; they need this
            package, and source and target under the same names.
        state: Folder of what the migration remembers; TARGET.migration, or one in ./migrations, unless given.
    """

    source: str
    target: str
    transformer: Path | None = None
    step: Step = "run"
    correction: Literal["yes", "no"] = "yes"
    batch_rows: int = 4096
    source_space: str | None = None
    most_passes: int = 5
    settled_below: int = 1
    sample_seconds: float = 2.0
    queries: Path | None = None
    serve_as: str | None = None
    discard_old: Literal["yes", "no"] = "no"
    workers: int = 1
    scheduler: str | None = None
    state: Path | None = None

    def __post_init__(self) -> None:
        for name in ("batch_rows", "most_passes", "settled_below", "workers"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, found {getattr(self, name)}")
        if self.step in ("plan", "run", "verify") and self.transformer is None:
            raise ValueError(f"--step {self.step} needs the map; give --transformer DIR")
        if self.step == "switch" and not self.serve_as:
            raise ValueError("--step switch needs the name that is to lead to the new gallery; give --serve-as NAME")


def migrate(options: MigrateOptions) -> None:
    """Do one step of a migration and print what came of it."""
    if options.step in ("plan", "run", "verify"):
        print(_mapped_step(options))
        return
    from compat.migration import switch
    from compat.migration.state import tells_contents
    from stores.galleries import locate

    source, target, state = options.source, options.target, options.state
    if options.step == "switch":
        back = switch.way_back(source, target, options.serve_as, state=state)
        found = switch.switch(source, target, options.serve_as or "", state=state)
        print(f"{found.name} leads to {found.target}; before: {found.before or 'nowhere'}; {back}")
        if not tells_contents(locate(source)[0]):
            print(f"rows written to {found.source} since it was last read are not in it: --step run brings them over")
    elif options.step == "switch-back":
        print(f"the name leads back; {switch.switch_back(source, target, state=state)}")
    elif options.step == "finalise":
        from compat.migration.progress import ProgressLines

        old, look = options.discard_old == "yes", ProgressLines("looked at")
        print(switch.finalise(source, target, discard_old=old, state=state, on_look=look))
    elif options.step == "discard":
        print(switch.discard(source, target, state=state))
    else:
        print(switch.status(source, target, state=state))


def _mapped_step(options: MigrateOptions) -> object:
    from compat.migration.early import require_locations, require_possible

    source, target = options.source, options.target
    if options.step == "verify":
        require_locations(source, target)
    else:
        require_possible(source, target, state=options.state, workers=options.workers, scheduler=options.scheduler)
    from compat.migration.plan import plan_migration
    from compat.migration.progress import ProgressLines
    from compat.migration.run import migrate_gallery, verify_migrated
    from compat.transformers.artefact import load_transformer

    transformer = load_transformer(options.transformer or Path())
    correction = options.correction == "yes"
    if options.step == "verify":
        return verify_migrated(
            options.source,
            transformer,
            options.target,
            correction=correction,
            source_space=options.source_space,
            state=options.state,
            queries=options.queries,
            on_look=ProgressLines("looked at"),
        )
    plan = plan_migration(
        options.source,
        transformer,
        options.target,
        correction=correction,
        batch_rows=options.batch_rows,
        sample_seconds=options.sample_seconds if options.step == "plan" else 0.0,
        source_space=options.source_space,
        state=options.state,
    )
    if options.step == "plan":
        return plan
    failed = [f"{check.name}: {check.found}" for check in plan.checks if not check.passed]
    if failed:
        raise ValueError(f"nothing was written: {'; '.join(failed)}")
    with _pausing() as pause:
        return migrate_gallery(
            options.source,
            transformer,
            options.target,
            correction=correction,
            batch_rows=options.batch_rows,
            on_rows=ProgressLines("migrated"),
            on_look=ProgressLines("looked at"),
            source_space=options.source_space,
            state=options.state,
            most_passes=options.most_passes,
            settled_below=options.settled_below,
            pause=pause,
            workers=options.workers,
            scheduler=options.scheduler,
        )


@contextmanager
def _pausing() -> Iterator[Any]:
    """A `Pause` that SIGINT and SIGTERM ask for once; the second signal ends the process at once."""
    import signal

    from compat.migration.copying import Pause

    pause = Pause()

    def ask(_number: int, _frame: object) -> None:
        if pause.asked:
            raise KeyboardInterrupt
        pause.ask()
        print("pausing: what was copied is being committed; once more ends at once", file=sys.stderr, flush=True)

    former = {number: signal.signal(number, ask) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield pause
    finally:
        for number, handler in former.items():
            signal.signal(number, handler)


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line and return its exit code."""
    return run_command(MigrateOptions, migrate, argv, prog="python -m compat.migrate", description=str(__doc__))


if __name__ == "__main__":
    sys.exit(main())
