"""Fit a map to pairs: `python -m compat.train_transformer --old STORE --new STORE --out DIR`.

The pairs are the items that both stores hold. An interrupted training goes on when the same command is run again.
"""

import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

from compat.options import FitOptions
from stores.command_line import run_command

if TYPE_CHECKING:
    from compat.transformers.artefact import Transformer

OnEpoch = Callable[[dict[str, Any]], None]


@dataclass(frozen=True, kw_only=True)
class TrainTransformerOptions(FitOptions):
    """Where the pairs are, and how a transformer is fitted to them.

    Attributes:
        old: Store of the old model's embeddings.
        new: Store of the new model's embeddings of the same items.
        out: Folder for the transformer; run again to go on with it.
    """

    old: Path
    new: Path
    out: Path


def train_transformer(options: TrainTransformerOptions, *, on_epoch: OnEpoch | None = None) -> "Transformer":
    """Fit a transformer to two stores and save it; one that is already there, of the same options and pairs, is loaded.

    `on_epoch` is called with each epoch's record when a network is trained.

    Raises:
        FileNotFoundError: If a store is missing.
        FileExistsError: If `out` holds another transformer.
        ValueError: If the stores do not pair up, or an option is wrong.
    """
    from dataclasses import asdict

    from compat.pairs import join_pairs
    from compat.training.fit import fit_transformer
    from compat.transformers import known_family
    from compat.transformers.artefact import load_transformer
    from stores.galleries.zarr_store import open_complete

    known_family(options.transformer)
    fit = FitOptions(**{field.name: getattr(options, field.name) for field in fields(FitOptions)})
    with open_complete(options.old) as old, open_complete(options.new) as new:
        pairs = join_pairs(old, new)
        if (options.out / "card.json").exists():
            found = load_transformer(options.out)
            if found.training["options"] != asdict(fit) or found.training["pairs_fingerprint"] != pairs.fingerprint():
                raise FileExistsError(
                    f"{options.out} holds a transformer of other options or pairs; name another --out or remove it"
                )
            return found
        options.out.mkdir(parents=True, exist_ok=True)
        checkpoint = options.out / "checkpoint.safetensors"
        transformer = fit_transformer(pairs, fit, checkpoint=checkpoint, on_epoch=on_epoch)
        transformer.save(options.out)
        checkpoint.unlink(missing_ok=True)
        return transformer


def _say_epoch(record: dict[str, Any]) -> None:
    print(
        f"epoch {record['epoch']}  loss {record['loss']:.4f}  cosine {record['cosine_loss']:.4f}  "
        f"squared distance {record['squared_distance']:.3f}  held-out recall@1 {record['held_out_recall_at_1']:.3f}  "
        f"{record['pairs_per_second']:.0f} pairs/s",
        file=sys.stderr,
        flush=True,
    )


def _train_and_tell(options: TrainTransformerOptions) -> None:
    transformer = train_transformer(options, on_epoch=_say_epoch)
    training = transformer.training
    for note in training["notes"]:
        print(f"warning: {note}", file=sys.stderr)
    held_out = training["held_out"]
    judged = (
        f"; on held-out pairs recall@1 {held_out['recall_at_1']:.3f} by {held_out['relevance']}, "
        f"reciprocal rank {held_out['mean_reciprocal_rank']:.3f}"
        if held_out
        else ""
    )
    print(
        f"{transformer.family} from {transformer.source} to {transformer.target} ({transformer.direction}), fitted to "
        f"{training['pairs']} pairs{judged}: {options.out}"
    )


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line and return its exit code."""
    return run_command(
        TrainTransformerOptions,
        _train_and_tell,
        argv,
        prog="python -m compat.train_transformer",
        description=str(__doc__),
    )


if __name__ == "__main__":
    sys.exit(main())
