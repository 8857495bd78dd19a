"""Fit a map to pairs: `python -m compat.train_transformer --old STORE --new STORE --out DIR`.

The pairs are the items that both stores hold. By default the best map for them is chosen, by retrieval of pairs held
out. An interrupted training goes on when the same command is run again.
"""

import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

from compat.options import FitOptions
from stores.command_line import run_command

if TYPE_CHECKING:
    from compat.transformers.artefact import Transformer

OnEpoch = Callable[[dict[str, Any]], None]
OnCandidate = Callable[[str], None]


@dataclass(frozen=True, kw_only=True)
class MorePairs:
    """A further source of pairs.

    Attributes:
        old: Store of the old model's embeddings.
        new: Store of the new model's embeddings of the same items.
        weight: How much each of these pairs counts, where one of --old and --new counts 1.
        query_like: Whether they look like queries. 50 or more are what maps are judged by, and 500 or more alone show
            where hubs are.
    """

    old: Path
    new: Path
    weight: float = 1.0
    query_like: bool = True

    def __post_init__(self) -> None:
        if not 0 < self.weight < float("inf"):
            raise ValueError(f"the weight of further pairs must be positive, found {self.weight}")


@dataclass(frozen=True, kw_only=True)
class TrainTransformerOptions(FitOptions):
    """Where the pairs are, and how a transformer is fitted to them.

    Attributes:
        old: Store of the old model's embeddings.
        new: Store of the new model's embeddings of the same items.
        out: Folder for the transformer; run again to go on with it.
        gallery: Store of the old gallery. Held-out pairs must be found among its items too, which tells maps apart
            better, and a hubness correction is computed for it.
        more: Further pairs, such as a few hundred that look like queries where the others are documents; for example
            '[{old: queries-old, new: queries-new, weight: 1}]'.
    """

    old: Path
    new: Path
    out: Path
    gallery: Path | None = None
    more: list[MorePairs] = field(default_factory=list)


def train_transformer(
    options: TrainTransformerOptions, *, on_epoch: OnEpoch | None = None, on_candidate: OnCandidate | None = None
) -> "Transformer":
    """Fit a transformer to two stores and save it; one that is already there, of the same options and pairs, is loaded.

    `on_epoch` is called with each epoch's record when a network is trained, `on_candidate` with a line for each family
    that `auto` has searched.

    Raises:
        FileNotFoundError: If a store is missing.
        FileExistsError: If `out` holds another transformer.
        ValueError: If the stores do not pair up, or an option is wrong.
    """
    from contextlib import ExitStack
    from dataclasses import asdict

    from compat.pairs import Source, join_pairs, merge_pairs
    from compat.training.fit import fit_transformer, with_gallery
    from compat.training.selection import distractors_of
    from compat.transformers import CHOICES, known_family
    from compat.transformers.artefact import load_transformer
    from stores.galleries.zarr_store import open_complete

    known_family(options.transformer, CHOICES)
    fit = FitOptions(**{field.name: getattr(options, field.name) for field in fields(FitOptions)})
    with ExitStack() as stores:
        old, new = (stores.enter_context(open_complete(path)) for path in (options.old, options.new))
        sources = [Source(join_pairs(old, new))]
        for more in options.more:
            further = [stores.enter_context(open_complete(path)) for path in (more.old, more.new)]
            sources.append(Source(join_pairs(*further), more.weight, more.query_like))
        pairs = merge_pairs(sources)
        gallery = None if options.gallery is None else stores.enter_context(open_complete(options.gallery))
        digest = None if gallery is None else gallery.digest()
        distractors = None if gallery is None else distractors_of(gallery, pairs, seed=options.seed)
        if (options.out / "card.json").exists():
            found = load_transformer(options.out)
            made_of = {"options": asdict(fit), "pairs_fingerprint": pairs.fingerprint(), "gallery": digest}
            other = [name.split("_")[0] for name, value in made_of.items() if found.training.get(name) != value]
            if other:
                raise FileExistsError(
                    f"{options.out} holds a transformer of other {' and '.join(other)}; name another --out or remove it"
                )
            return found
        options.out.mkdir(parents=True, exist_ok=True)
        checkpoint = options.out / "checkpoint.safetensors"
        transformer = fit_transformer(
            pairs, fit, gallery=distractors, checkpoint=checkpoint, on_epoch=on_epoch, on_candidate=on_candidate
        )
        transformer.training["gallery"] = digest
        if gallery is not None:
            transformer = with_gallery(transformer, gallery)
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


def _say_ladder(training: dict[str, Any]) -> None:
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


def _train_and_tell(options: TrainTransformerOptions) -> None:
    transformer = train_transformer(
        options, on_epoch=_say_epoch, on_candidate=lambda line: print(line, file=sys.stderr, flush=True)
    )
    training = transformer.training
    _say_ladder(training)
    for note in training["notes"]:
        print(f"warning: {note}", file=sys.stderr)
    held_out = training["held_out"]
    judged = (
        f"; on held-out pairs recall@1 {held_out['recall_at_1']:.3f} by {held_out['relevance']}, "
        f"reciprocal rank {held_out['mean_reciprocal_rank']:.3f}"
        if held_out
        else ""
    )
    corrected = f" with hubness correction {transformer.correction.strength:g}" if transformer.correction else ""
    print(
        f"{transformer.family}{corrected} from {transformer.source} to {transformer.target} ({transformer.direction}), "
        f"fitted to {training['pairs']} pairs{judged}: {options.out}"
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
