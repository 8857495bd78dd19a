"""Train a backbone: `python -m backbones.train --data DIR --out DIR`.

The work is in `backbones.training.fit`, which needs torch; this module answers `--help` without it.
"""

import sys
from collections.abc import Callable, Sequence
from dataclasses import fields
from typing import TYPE_CHECKING, Any

from backbones.command_line import run_command
from backbones.options import AugmentOptions, TrainOptions

if TYPE_CHECKING:
    from backbones.training.fit import TrainResult

__all__ = ["AugmentOptions", "TrainOptions", "main", "train"]


def train(options: TrainOptions, *, on_epoch: Callable[[dict[str, Any]], object] | None = None) -> "TrainResult":
    """Train, or go on where an interrupted run stopped; see `backbones.training.fit.fit`."""
    from backbones.training.fit import fit

    return fit(options, on_epoch=on_epoch)


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line and return its exit code."""
    return run_command(
        TrainOptions,
        _train_and_tell,
        argv,
        prog="python -m backbones.train",
        description=str(__doc__),
        switches=[field.name for field in fields(TrainOptions) if field.type is bool],
    )


def _train_and_tell(options: TrainOptions) -> None:
    result = train(options, on_epoch=lambda metrics: print(_line(metrics), file=sys.stderr, flush=True))
    state = "already finished" if result.already_finished else "finished"
    skipped = result.card["data"]["skipped"]
    print(f"{state}: {result.weights}" + (f", {len(skipped)} unreadable images skipped" if skipped else ""))


def _line(metrics: dict[str, Any]) -> str:
    shown = [name for name in metrics if name not in ("epoch", "learning_rate", "seconds", "images_per_second")]
    values = "  ".join(f"{name.replace('_', ' ')} {metrics[name]:.3f}" for name in shown)
    return f"epoch {metrics['epoch']}  {values}  {metrics['images_per_second']:.0f} images/s"


if __name__ == "__main__":
    sys.exit(main())
