"""Do synthetic identities help a map, and should they be made of identities that lie near each other?

The table of the report that proposed them (identity, msresnet, and mlp with synthetic identities paired in several
ways, at several rates, on two schedules), on characters of font_identities: balanced and long-tailed, on few pairs and
on all, over seeds; with controls, and with what beats it. A cell that is there is not measured again; a run that was
killed goes on. `--only` takes patterns of cell names, so that processes of one thread each can share the work
(OMP_NUM_THREADS=1).
"""

from __future__ import annotations

import argparse
import fnmatch
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from synthetic_cells import Runs
    from synthetic_plan import Cell, Epochs, Setting

FONTS = Path("runs") / "font_identities"
OUT = Path("runs") / "bench_synthetic"
STAGES = ("epochs", "cells", "tables")
OLD, NEW = "iresnet18-1000", "iresnet50-1000"
CHANGES = (("seeds", None), ("small_pairs", None), ("mlp_rows", None), ("msresnet_rows", None))
"""Options that change `Sizes`."""
SMOKE_IDENTITIES = 30


def say(line: str) -> None:
    print(f"{time.strftime('%H:%M:%S')} {line}", file=sys.stderr, flush=True)


def run(options: argparse.Namespace) -> None:
    from synthetic_cells import Runs  # torch, as the others below
    from synthetic_data import arrays_source, fonts_source, reduced
    from synthetic_plan import SIZES, Setting, Sizes, all_cells, group, smoke_sizes
    from synthetic_results import Results
    from synthetic_tables import report
    from table import publish

    sizes = smoke_sizes() if options.smoke else Sizes()
    given = {name: getattr(options, name) for name, _ in CHANGES}
    sizes = replace(sizes, **{name: value for name, value in given.items() if value is not None})
    folder = options.out / "smoke" if options.smoke else options.out
    if options.data:
        source = arrays_source(options.data)
    else:
        source = fonts_source(options.fonts, options.old_network, options.new_network, options.out / "vectors", say)
    if options.smoke:
        source = reduced(source, SMOKE_IDENTITIES)
    runs = Runs(folder, source, sizes, say)
    settings = [Setting(counts, size) for counts in source.fitted for size in SIZES]
    wanted = [cell for cell in all_cells(source.fitted, sizes) if matches(cell.name, options.only)]
    if not wanted:
        raise ValueError(f"--only {' '.join(options.only)} names no cell; {settings[0].counts}-small-0-mlp is one")
    needed = list(dict.fromkeys((cell.setting, group(cell.map.family)) for cell in wanted))
    epochs = {
        setting: epochs_in(runs, setting, [g for s, g in needed if s == setting], options) for setting in settings
    }
    if "epochs" in options.stage:
        for setting, each in epochs.items():
            for name, number in each.chosen.items():
                tried = ", ".join(f"{n}: {rank:.4f}" for n, rank in each.tried.get(name, {}).items())
                say(f"{setting}, {name}: {number} epochs" + (f" (held-out reciprocal rank {tried})" if tried else ""))
    if "cells" in options.stage:
        measure(runs, wanted, epochs)
    if "tables" in options.stage and not options.only:
        results = Results(runs.load, settings, sizes.seeds, source.queries.identities)
        packages = ["numpy", "torch", "scipy"]
        publish(
            "synthetic", command(options), report(results, epochs, sizes, source.about), packages, save=options.save
        )


def epochs_in(runs: Runs, setting: Setting, groups: Sequence[str], options: argparse.Namespace) -> Epochs:
    """The epochs of a setting: given, or chosen by fits that are there or made now, unless tables alone are wanted."""
    from synthetic_plan import Epochs

    given = {"mlp": options.epochs, "msresnet": options.msresnet_epochs or options.epochs}
    chosen, tried = {}, {}
    for name in groups:
        if given[name] is not None:
            chosen[name] = given[name]
        elif options.stage != ["tables"] or runs.has_chosen(setting, name):
            chosen[name], tried[name] = runs.chosen_epochs(setting, name)
    return Epochs(chosen, tried)


def measure(runs: Runs, cells: Sequence[Cell], epochs: Mapping[Setting, Epochs]) -> None:
    """Measure the cells that are missing, after saying how long that may take."""
    from synthetic_plan import estimated_seconds, within_rows

    pairs = {setting: len(runs.pairs(setting, 0)) for setting in epochs}

    def own(cell: Cell) -> int:
        family, fitted = cell.map.family, len(runs.pairs(cell.setting, cell.seed))
        return within_rows(family, epochs[cell.setting].of(family), fitted, runs.sizes)

    left = [cell for cell in cells if runs.load(cell.name) is None]
    seconds = [estimated_seconds(cell, pairs[cell.setting], own(cell)) for cell in left]
    say(
        f"{len(left)} of {len(cells)} cells to measure: about {sum(seconds) / 60:.0f} minutes of one thread, "
        "fewer where networks stop early"
    )
    by_family: dict[str, float] = {}
    for cell, each in zip(left, seconds, strict=True):
        name = f"{cell.setting}, {cell.map.family}"
        by_family[name] = by_family.get(name, 0.0) + each / 60
    for name, minutes in by_family.items():
        say(f"  {name}: {minutes:.1f} min")
    runs.references()
    for cell in cells:
        runs.cell(cell, own(cell))


def matches(name: str, patterns: Sequence[str]) -> bool:
    """Whether a cell is asked for; a pattern that begins with ! leaves out what it matches."""
    wanted = [pattern for pattern in patterns if not pattern.startswith("!")]
    unwanted = [pattern[1:] for pattern in patterns if pattern.startswith("!")]
    if any(fnmatch.fnmatchcase(name, pattern) for pattern in unwanted):
        return False
    return not wanted or any(fnmatch.fnmatchcase(name, pattern) for pattern in wanted)


def command(options: argparse.Namespace) -> str:
    """What makes the same tables."""
    parts = ["python benchmarks/bench_synthetic.py", "--data DIR" if options.data else "--fonts DIR"]
    for name, usual in (
        ("old_network", OLD),
        ("new_network", NEW),
        ("epochs", None),
        ("msresnet_epochs", None),
        *CHANGES,
    ):
        if (value := getattr(options, name)) != usual and not (options.data and name.endswith("network")):
            parts.append(f"--{name.replace('_', '-')} {value}")
    return " ".join(parts)


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--stage", choices=STAGES, nargs="+", default=list(STAGES), help="all, unless given")
    parser.add_argument("--fonts", type=Path, help=f"a finished run of font_identities; {FONTS} by default")
    parser.add_argument("--old-network", default=OLD, help="network of the run that embeds the gallery")
    parser.add_argument("--new-network", default=NEW, help="network of the run that embeds queries")
    parser.add_argument("--data", type=Path, help="instead: a folder that holds font_identities/, as for bench_maps")
    parser.add_argument("--out", type=Path, default=OUT, help="embeddings and results")
    parser.add_argument("--epochs", type=int, help="of all networks, instead of choosing by identities held out")
    parser.add_argument("--msresnet-epochs", type=int, help="of msresnet, where they are others")
    parser.add_argument(
        "--mlp-rows",
        type=int,
        help="most training rows that an mlp or residual_mlp is shown (1,000,000), which limits its epochs",
    )
    parser.add_argument(
        "--msresnet-rows",
        type=int,
        help="most training rows that a msresnet is shown (200,000), which limits its epochs",
    )
    parser.add_argument("--seeds", type=int, help="seeds 0, 1, ... below this (3)")
    parser.add_argument("--small-pairs", type=int, help="about how many pairs the small size has (2,000)")
    parser.add_argument(
        "--only",
        nargs="+",
        default=[],
        metavar="PATTERN",
        help="cells of these names, as in a shell; !PATTERN leaves out",
    )
    parser.add_argument("--smoke", action="store_true", help="tiny sizes, in OUT/smoke: to see it run")
    parser.add_argument("--save", action="store_true", help="write results/synthetic.md")
    options = parser.parse_args(argv)
    if options.save and options.smoke:
        parser.error("--smoke measures nothing worth saving; leave out one of the two")
    if options.data is None and options.fonts is None:
        if not FONTS.is_dir():
            say(f"nothing to measure: {FONTS} is not there; run font_identities.py first, or give --fonts or --data")
            return 0
        options.fonts = FONTS
    try:
        run(options)
    except (ValueError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
