"""What a training tells on the way, to whom, and what a command line prints of it. Nothing heavy is imported here."""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from compat.transformers.artefact import Transformer

OnEpoch = Callable[[dict[str, Any]], None]
"""Called with each epoch's record."""
OnLine = Callable[[str], None]
"""Called with a line for the user."""

_FIGURES = {
    "loss": ("loss", 4),
    "cosine_loss": ("cosine", 4),
    "squared_distance": ("squared distance", 3),
    "compactness_loss": ("compactness", 4),
    "similarity_loss": ("similarity", 4),
    "classification_loss": ("classification", 4),
    "kl_loss": ("kl", 4),
    "contrast_loss": ("contrast", 4),
    "held_out_recall_at_1": ("held-out recall@1", 3),
}
"""What an epoch's record may hold, in words, and the digits shown of it."""


def say(line: str) -> None:
    """A line on standard error, at once."""
    print(line, file=sys.stderr, flush=True)


def say_epoch(record: Mapping[str, Any]) -> None:
    """An epoch's figures on one line of standard error."""
    figures = [f"{words} {record[key]:.{digits}f}" for key, (words, digits) in _FIGURES.items() if key in record]
    say("  ".join([f"epoch {record['epoch']}", *figures, f"{record['pairs_per_second']:.0f} pairs/s"]))


def tell_transformer(transformer: Transformer, out: Path) -> None:
    """How a transformer came about and how good it is: what was asked for on standard output, warnings beside it."""
    training = transformer.training
    _print_ladder(training)
    _say_training(training)
    _warn(training)
    corrected = f" with hubness correction {transformer.correction.strength:g}" if transformer.correction else ""
    print(
        f"{transformer.family}{corrected} from {transformer.source} to {transformer.target} ({transformer.direction}), "
        f"fitted to {training['pairs']} pairs{_judged(training)}: {out}"
    )


def tell_unified(old: Transformer, new: Transformer, out: Path) -> None:
    """How the halves of a unified transformer came about and how good they are together."""
    training = new.training
    print(f"held-out retrieval by {training['held_out']['relevance']}, {training['held_out']['queries']} queries:")
    start = {"unified, as it started": training["start"]}
    rows = {"unified": training["held_out"], **start, **training["single_direction"]}
    width = max(map(len, rows))
    print(f"  {'map':{width}}  recall@1  reciprocal rank")
    for name, score in rows.items():
        print(f"  {name:{width}}  {score['recall_at_1']:8.3f}  {score['mean_reciprocal_rank']:15.3f}")
    print(f"  ({flattery(len(training['epochs']))})")
    _say_training(training)
    _warn(training)
    print(
        f"unified from {old.source} and {new.source} to {new.target}, fitted to {training['pairs']} pairs"
        f"{_judged(training)}: {out / 'old'} maps the gallery, {out / 'new'} queries and new items"
    )


def flattery(epochs: int) -> str:
    """What choices on held-out pairs do to the figures of a unified transformer and of the maps it is compared with."""
    return (
        f"each the best of its settings on these pairs, unified the best of {epochs} epochs too, which flatters it: "
        "compare on other items with compat.evaluate"
    )


def _say_training(training: Mapping[str, Any]) -> None:
    """What a network was trained in and on, where the card says so."""
    said = [f"trained in {training['precision']}"] if training.get("precision") else []
    if synthetic := training.get("synthetic"):
        said.append(f"{synthetic['samples']} synthetic samples, {synthetic['rate']:.3f} for each real one")
    if said:
        say("; ".join(said))


def _print_ladder(training: Mapping[str, Any]) -> None:
    if "ladder" not in training:
        return
    print(f"held-out retrieval by {training['held_out']['relevance']}, {training['held_out']['queries']} queries:")
    width = max(len(rung["name"]) for rung in training["ladder"])
    print(f"  {'map':{width}}  recall@1  reciprocal rank        behind the best")
    for rung in training["ladder"]:
        rank, behind = rung["mean_reciprocal_rank"], rung["behind_the_best"]
        mark = "*" if rung["name"] == training["chosen"] else " "
        print(
            f"{mark} {rung['name']:{width}}  {rung['recall_at_1']:8.3f}  "
            f"{rank['value']:.3f} [{rank['low']:.3f}, {rank['high']:.3f}]  "
            f"{behind['value']:.3f} [{behind['low']:.3f}, {behind['high']:.3f}]"
        )
    print(f"chosen: {training['chosen']}, because {training['why']}")


def _warn(training: Mapping[str, Any]) -> None:
    for note in training["notes"]:
        say(f"warning: {note}")


def _judged(training: Mapping[str, Any]) -> str:
    held_out = training["held_out"]
    if not held_out:
        return ""
    return (
        f"; on held-out pairs recall@1 {held_out['recall_at_1']:.3f} by {held_out['relevance']}, "
        f"reciprocal rank {held_out['mean_reciprocal_rank']:.3f}"
    )
