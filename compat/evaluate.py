"""Judge a gallery and a map: `python -m compat.evaluate --gallery STORE --queries STORE --out DIR`.

Writes report.json and report.html and prints the table and the verdict.
"""

import sys
from collections.abc import Sequence
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

from compat.options import AnalysisOptions, VerdictLimits
from stores.command_line import run_command


@dataclass(frozen=True, kw_only=True)
class EvaluateOptions(AnalysisOptions):
    """What to compare.

    Attributes:
        gallery: Store of the old model's gallery, or one migrated for these queries or re-embedded into their space.
        queries: Store of the new model's queries.
        out: Folder for report.json, report.html and the tables as CSV, Markdown and LaTeX.
        transformer: Folder of a transformer; new-to-old maps the queries, old-to-new the gallery. It is judged as it
            is served: with its hubness correction, if it carries one.
        compare: Folders of further transformers, put beside it. Without --transformer the first is judged.
        old_queries: Store of the same queries through the old model; needed for old-to-old, retention and a verdict.
        new_gallery: Store of the same gallery through the new model; needed for new-to-new, update gain and backfill.
        relevance: `label` (same label, the query's own item left out), `item` (same item id), a CSV or Parquet table
            with columns query_id, item_id and perhaps grade (0 is irrelevant), or `auto`: label where both stores have
            one, else item.
        template_by: Column of the item tables: items of one value become one template, the mean of its media (column
            media, where there is one). Queries and gallery of one value count as the same template.
        drift: Store of today's new-model queries: whether they still look like what the transformer was fitted on.
        verdict: What the verdict judges by.
        seed: Of the bootstrap and of every sample.
    """

    gallery: Path
    queries: Path
    out: Path
    transformer: Path | None = None
    compare: list[Path] = field(default_factory=list)
    old_queries: Path | None = None
    new_gallery: Path | None = None
    relevance: str = "auto"
    template_by: str | None = None
    drift: Path | None = None
    verdict: VerdictLimits = field(default_factory=VerdictLimits)
    seed: int = 0

    def __post_init__(self) -> None:
        if self.seed < 0:
            raise ValueError(f"seed must not be negative, found {self.seed}")
        maps = [path.resolve() for path in (self.transformer, *self.compare) if path]
        if twice := [str(path) for path in maps if maps.count(path) > 1]:
            raise ValueError(f"{twice[0]} is named twice; name each transformer once, in --transformer or --compare")
        if self.drift and not (self.transformer or self.compare):
            raise ValueError("--drift needs --transformer: what today's queries are compared with")


def evaluate_and_report(options: EvaluateOptions) -> Path:
    """Evaluate, write both reports and the tables, print the table, and return the path of report.html.

    Raises:
        FileNotFoundError: If a store, transformer or table is missing.
        ValueError: If they do not fit each other.
    """
    from contextlib import ExitStack
    from tempfile import TemporaryDirectory

    from compat.evaluation.compatibility import evaluate
    from compat.evaluation.drift import drift_report
    from compat.evaluation.exports import write_tables
    from compat.evaluation.report import print_table, write_report
    from compat.evaluation.reproduce import how_to_reproduce
    from compat.evaluation.template_stores import template_store
    from compat.transformers.artefact import Transformer, load_transformer
    from stores.galleries.zarr_store import open_complete
    from stores.store import EmbeddingStore

    if options.out.exists() and not options.out.is_dir():
        raise NotADirectoryError(f"{options.out} is a file, expected a folder for the report; name another --out")
    maps = [*([options.transformer] if options.transformer else []), *options.compare]
    transformers: dict[Path, Transformer] = {path: load_transformer(path) for path in maps}
    judged = maps[0] if maps else None
    with ExitStack() as stack:

        def opened(path: Path | None) -> EmbeddingStore | None:
            return stack.enter_context(open_complete(path)) if path else None

        stores = {
            name: store
            for name in ("gallery", "queries", "old_queries", "new_gallery", "drift")
            if (store := opened(getattr(options, name))) is not None
        }
        drift = drift_report(transformers[judged], stores["drift"]) if judged and "drift" in stores else None
        compared = {name: store for name, store in stores.items() if name != "drift"}
        if options.template_by:
            folder = Path(stack.enter_context(TemporaryDirectory()))
            compared = {
                name: stack.enter_context(template_store(store, options.template_by, folder / name))
                for name, store in compared.items()
            }
        report: dict[str, Any] = evaluate(
            compared["gallery"],
            compared["queries"],
            transformer=transformers[judged] if judged else None,
            old_queries=compared.get("old_queries"),
            new_gallery=compared.get("new_gallery"),
            relevance=options.relevance,
            comparisons=_named({path: transformers[path] for path in maps[1:]}),
            analyses=AnalysisOptions(**{f.name: getattr(options, f.name) for f in fields(AnalysisOptions)}),
            limits=options.verdict,
            seed=options.seed,
            on_setting=lambda line: print(f"measuring {line}", file=sys.stderr, flush=True),
        ).to_dict()
        for name in ("gallery", "queries"):
            report[name]["path"] = str(stores[name].path)  # not that of its templates
        if drift:
            report["drift"] = drift.to_dict()
        report["reproduce"] = how_to_reproduce(options, stores, transformers)
    print_table(report)
    page = write_report(report, options.out)
    write_tables(report, options.out)
    print(f"report: {page}")
    return page


def _named(transformers: dict[Path, Any]) -> dict[str, Any]:
    """Transformers by the names of their folders, or by their whole paths where two folders are called alike."""
    names = [path.resolve().name for path in transformers]
    return {
        str(path) if names.count(name) > 1 else name: transformer
        for name, (path, transformer) in zip(names, transformers.items(), strict=True)
    }


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line and return its exit code."""
    return run_command(
        EvaluateOptions, evaluate_and_report, argv, prog="python -m compat.evaluate", description=str(__doc__)
    )


if __name__ == "__main__":
    sys.exit(main())
