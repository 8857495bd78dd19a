"""Thousands of real identities on a CPU: kanji drawn by dozens of type designs, and networks that learn to tell them.

`--stage build` draws the images, `--stage train` trains and judges networks, `--stage tables` prints what is there; all
three by default. Run it again to go on where it was stopped. `--only` trains some of the networks, so that processes
of one thread each can share the work (OMP_NUM_THREADS=1), which suits a busy machine.
"""

from __future__ import annotations

import argparse
import sys
import time
from pathlib import Path
from typing import Any

from font_packages import FONTS, apt_command, font_files, missing_packages
from font_set import MANIFEST, BuildOptions, build

STAGES = ("build", "train", "tables")
OUT = Path("runs") / "font_identities"


def say(line: str) -> None:
    print(f"{time.strftime('%H:%M:%S')} {line}", file=sys.stderr, flush=True)


def build_stage(options: BuildOptions, folder: Path) -> dict[str, Any]:
    """Draw the images, or find them drawn; say what there is and which packages are missing."""
    if not (folder / MANIFEST).is_file() and (missing := missing_packages(font_files(options.fonts))):
        say(missing)
    started = time.monotonic()
    manifest = build(options, folder)
    say(
        f"{len(manifest['designs'])} designs share {manifest['shared_characters']:,} characters; images are in "
        f"{folder} ({time.monotonic() - started:.0f} s)"
    )
    return manifest


def run(options: argparse.Namespace) -> None:
    from font_plan import Sizes, all_cells, estimated_minutes, smoke_sizes

    wanted = BuildOptions(
        fonts=options.fonts,
        side=options.size,
        seed=options.seed,
        folders=options.folders,
        most_samples=options.most_samples,
    )
    sizes = smoke_sizes(wanted) if options.smoke else Sizes(build=wanted)
    folder = options.out / "smoke" if options.smoke else options.out
    if "build" not in options.stage and not (folder / "set" / MANIFEST).is_file():
        raise FileNotFoundError(f"no images in {folder / 'set'}; run --stage build first")
    manifest = build_stage(sizes.build, folder / "set")
    if options.stage == ["build"]:
        return
    from font_runs import Runs  # torch
    from font_tables import report
    from table import publish

    runs = Runs(folder, sizes, manifest, say)
    if "train" in options.stage:
        cells = all_cells(sizes)
        minutes = estimated_minutes(cells, sizes)
        left = {name: value for name, value in minutes.items() if runs.load(name) is None}
        say(f"{len(left)} of {len(cells)} networks to train: about {sum(left.values()):.0f} minutes of two quiet cores")
        for name, value in left.items():
            say(f"  {name}: {value:.1f} min")
        runs.train_all(cells, options.only)
    if "tables" in options.stage and not options.only:
        text = report(runs.load, sizes, manifest, runs.test_labels("queries"))
        command = "python benchmarks/font_identities.py" + ("" if options.size == 32 else f" --size {options.size}")
        publish("font_identities", command, text, ["numpy", "torch", "pillow"], save=options.save)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--stage", choices=STAGES, nargs="+", default=list(STAGES))
    parser.add_argument("--packages", action="store_true", help="print the command that installs the fonts, and stop")
    parser.add_argument("--fonts", type=Path, default=FONTS, help="folder of fonts")
    parser.add_argument("--out", type=Path, default=OUT, help="images, networks and results")
    parser.add_argument("--size", type=int, default=32, help="side of an image in pixels; 32 to 36 are usual")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--most-samples", type=int, default=200, help="of the commonest identity of the long tail")
    parser.add_argument("--folders", action="store_true", help="write plain folders of images beside the tar files")
    parser.add_argument(
        "--only", nargs="+", default=[], metavar="NETWORK", help="train these; for several processes beside each other"
    )
    parser.add_argument("--smoke", action="store_true", help="tiny sizes, in OUT/smoke: to see it run")
    parser.add_argument("--save", action="store_true", help="write results/font_identities.md")
    options = parser.parse_args()
    if options.packages:
        print(apt_command())
        return 0
    if options.save and options.smoke:
        parser.error("--smoke measures nothing worth saving; leave out one of the two")
    try:
        run(options)
    except (ValueError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
