"""Judge a gallery and a map: `python -m compat.evaluate --gallery STORE --queries STORE --out DIR`.

Writes report.json and report.html and prints the table and the verdict.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

from stores.command_line import run_command


@dataclass(frozen=True, kw_only=True)
class EvaluateOptions:
    """What to compare.

    Attributes:
        gallery: Store of the old model's gallery, or one migrated for these queries or re-embedded into their space.
        queries: Store of the new model's queries.
        out: Folder for report.json and report.html.
        transformer: Folder of a transformer; new-to-old maps the queries, old-to-new the gallery. It is judged as it
            is served: with its hubness correction, if it carries one.
        old_queries: Store of the same queries through the old model; needed for old-to-old, retention and a verdict.
        new_gallery: Store of the same gallery through the new model; needed for new-to-new and update gain.
        relevance: `label` (same label, the query's own item left out), `item` (same item id), a CSV or Parquet table
            with columns query_id, item_id and perhaps grade (0 is irrelevant), or `auto`: label where both stores have
            one, else item.
        seed: Of the bootstrap.
    """

    gallery: Path
    queries: Path
    out: Path
    transformer: Path | None = None
    old_queries: Path | None = None
    new_gallery: Path | None = None
    relevance: str = "auto"
    seed: int = 0

    def __post_init__(self) -> None:
        if self.seed < 0:
            raise ValueError(f"seed must not be negative, found {self.seed}")


def evaluate_and_report(options: EvaluateOptions) -> Path:
    """Evaluate, write both reports, print the table, and return the path of report.html.

    Raises:
        FileNotFoundError: If a store, transformer or table is missing.
        ValueError: If they do not fit each other.
    """
    from compat.evaluation.compatibility import evaluate
    from compat.evaluation.report import print_table, write_report
    from compat.transformers.artefact import load_transformer
    from stores.galleries.zarr_store import open_complete
    from stores.store import EmbeddingStore

    with ExitStack() as stack:

        def opened(path: Path | None) -> EmbeddingStore | None:
            return stack.enter_context(open_complete(path)) if path else None

        report = evaluate(
            stack.enter_context(open_complete(options.gallery)),
            stack.enter_context(open_complete(options.queries)),
            transformer=load_transformer(options.transformer) if options.transformer else None,
            old_queries=opened(options.old_queries),
            new_gallery=opened(options.new_gallery),
            relevance=options.relevance,
            seed=options.seed,
            on_setting=lambda line: print(f"measuring {line}", file=sys.stderr, flush=True),
        ).to_dict()
    print_table(report)
    page = write_report(report, options.out)
    print(f"report: {page}")
    return page


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line and return its exit code."""
    return run_command(
        EvaluateOptions, evaluate_and_report, argv, prog="python -m compat.evaluate", description=str(__doc__)
    )


if __name__ == "__main__":
    sys.exit(main())
