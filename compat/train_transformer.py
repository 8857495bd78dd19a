"""Fit a map to pairs: `python -m compat.train_transformer --old STORE --new STORE --out DIR`.

The pairs are the items that both stores hold. By default the best map for them is chosen, by retrieval of pairs held
out. `--transformer unified` trains two maps into one new space instead and writes DIR/old and DIR/new. An interrupted
training goes on when the same command is run again.
"""

import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

from compat.options import FitOptions, InterpolationOptions, UnifiedOptions
from stores.command_line import run_command

if TYPE_CHECKING:
    from compat.pairs import Pairs
    from compat.training.told import OnEpoch, OnLine
    from compat.training.unified import UnifiedTransformers
    from compat.transformers.artefact import Transformer
    from stores.store import EmbeddingStore

UNIFIED = "unified"
HALVES = ("old", "new")
CHECKPOINT = "checkpoint.safetensors"


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
        out: Folder for the transformer, or for the folders old and new of a unified one; run again to go on with it.
        gallery: Store of the old gallery. Held-out pairs must be found among its items too, which tells maps apart
            better, and a hubness correction is computed for it.
        more: Further pairs, such as a few hundred that look like queries where the others are documents; for example
            '[{old: queries-old, new: queries-new, weight: 1}]'.
        unified: The space and the losses of `--transformer unified`: two maps that are trained together, of the old
            gallery and of new queries and items, into one new space.
    """

    old: Path
    new: Path
    out: Path
    gallery: Path | None = None
    more: list[MorePairs] = field(default_factory=list)
    unified: UnifiedOptions = field(default_factory=UnifiedOptions)

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.transformer != UNIFIED and self.unified != UnifiedOptions():
            raise ValueError(f"--unified.* is for --transformer unified, found {self.transformer}; leave it out")
        if self.interpolation.pairing == "none" and self.interpolation != InterpolationOptions():
            raise ValueError(
                "--interpolation.* does nothing while --interpolation.pairing is none; give a pairing, for example "
                "proximity, or leave them out"
            )


def train_transformer(
    options: TrainTransformerOptions,
    *,
    on_epoch: "OnEpoch | None" = None,
    on_candidate: "OnLine | None" = None,
    on_note: "OnLine | None" = None,
) -> "Transformer":
    """Fit a transformer to two stores and save it; one that is already there, of the same options and pairs, is loaded.

    `on_epoch` is called with each epoch's record when a network is trained, `on_candidate` with a line for each family
    that `auto` has searched, `on_note` with a line before something that takes long.

    Raises:
        FileNotFoundError: If a store is missing.
        FileExistsError: If `out` holds another transformer.
        NotADirectoryError: If `out` is a file, or lies beneath one.
        ValueError: If the stores do not pair up, or an option is wrong or does nothing.
    """
    from compat.training.applicable import require_applicable
    from compat.training.fit import fit_transformer, with_gallery
    from compat.training.selection import distractors_of
    from compat.transformers import CHOICES, known_family
    from compat.transformers.artefact import load_transformer

    known_family(options.transformer, CHOICES)
    _require_folder(options.out)
    fit = _fit_options(options)
    if taken := [half for half in HALVES if (options.out / half / "card.json").exists()]:
        raise FileExistsError(
            f"{options.out} holds a unified transformer ({taken[0]}); name another --out or remove it"
        )
    with _opened(options) as (pairs, gallery):
        digest = None if gallery is None else gallery.digest()
        if (options.out / "card.json").exists():
            found = load_transformer(options.out)
            _require_made_of(options.out, found, {"options": fit}, pairs=pairs, gallery=digest)
            return found
        require_applicable(pairs, fit)
        options.out.mkdir(parents=True, exist_ok=True)
        checkpoint = options.out / CHECKPOINT
        transformer = fit_transformer(
            pairs,
            fit,
            gallery=None if gallery is None else distractors_of(gallery, pairs, seed=options.seed),
            checkpoint=checkpoint,
            on_epoch=on_epoch,
            on_candidate=on_candidate,
            on_note=on_note,
        )
        transformer.training["gallery"] = digest
        if gallery is not None:
            transformer = with_gallery(transformer, gallery)
        transformer.save(options.out)
        checkpoint.unlink(missing_ok=True)
        return transformer


def train_unified(options: TrainTransformerOptions, *, on_epoch: "OnEpoch | None" = None) -> "UnifiedTransformers":
    """Fit a unified transformer to two stores and save its halves as `out`/old and `out`/new.

    Halves that are there, of the same options and pairs, are loaded; where one is missing, both are trained again, or
    to the end of an interrupted training, and the missing one is saved.

    Raises:
        FileNotFoundError: If a store is missing.
        FileExistsError: If `out` holds another transformer, or a half that this training does not give.
        NotADirectoryError: If `out` is a file, or lies beneath one.
        ValueError: If the stores do not pair up, or an option is wrong or does nothing.
    """
    from compat.training.selection import distractors_of
    from compat.training.unified import UnifiedTransformers, fit_unified, require_unified_options
    from compat.transformers.artefact import load_transformer

    _require_folder(options.out)
    fit = _fit_options(options)
    if (options.out / "card.json").exists():
        raise FileExistsError(f"{options.out} holds another transformer; name another --out or remove it")
    with _opened(options) as (pairs, gallery):
        digest = None if gallery is None else gallery.digest()
        there: dict[str, Transformer] = {}
        for half in HALVES:
            if (options.out / half / "card.json").exists():
                there[half] = load_transformer(options.out / half)
                wanted = {"options": fit, "unified": options.unified}
                _require_made_of(options.out / half, there[half], wanted, pairs=pairs, gallery=digest)
        if len(there) < len(HALVES):
            require_unified_options(fit)
            options.out.mkdir(parents=True, exist_ok=True)
            checkpoint = options.out / CHECKPOINT
            fitted = fit_unified(
                pairs,
                fit,
                options.unified,
                gallery=None if gallery is None else distractors_of(gallery, pairs, seed=options.seed),
                checkpoint=checkpoint,
                on_epoch=on_epoch,
            )
            for half, transformer in zip(HALVES, fitted, strict=True):
                transformer.training["gallery"] = digest
                if half not in there:
                    _require_one_space(options.out, [transformer, *there.values()])
                    transformer.save(options.out / half)
                    there[half] = transformer
            checkpoint.unlink(missing_ok=True)
        _require_one_space(options.out, there.values())
        return UnifiedTransformers(*(there[half] for half in HALVES))


def _require_folder(out: Path) -> None:
    for path in (out, *out.parents):
        if path.exists():
            if not path.is_dir():
                raise NotADirectoryError(f"--out is the folder of a transformer, but {path} is a file; name another")
            return


def _require_one_space(out: Path, halves: Iterable["Transformer"]) -> None:
    spaces = {half.target for half in halves}
    if len(spaces) > 1:
        raise FileExistsError(
            f"the halves in {out} are of different trainings and do not meet in one space; remove both and run again"
        )


def _fit_options(options: TrainTransformerOptions) -> FitOptions:
    return FitOptions(**{each.name: getattr(options, each.name) for each in fields(FitOptions)})


@contextmanager
def _opened(options: TrainTransformerOptions) -> Iterator[tuple["Pairs", "EmbeddingStore | None"]]:
    """The pairs of all sources, and the gallery's store if one is named."""
    from contextlib import ExitStack

    from compat.pairs import Source, join_pairs, merge_pairs
    from stores.galleries.zarr_store import open_complete

    with ExitStack() as stores:
        old, new = (stores.enter_context(open_complete(path)) for path in (options.old, options.new))
        sources = [Source(join_pairs(old, new))]
        for more in options.more:
            further = [stores.enter_context(open_complete(path)) for path in (more.old, more.new)]
            sources.append(Source(join_pairs(*further), more.weight, more.query_like))
        yield (
            merge_pairs(sources),
            None if options.gallery is None else stores.enter_context(open_complete(options.gallery)),
        )


def _require_made_of(
    folder: Path, found: "Transformer", wanted: Mapping[str, Any], *, pairs: "Pairs", gallery: str | None
) -> None:
    """Make sure that a transformer is of these options, pairs and gallery.

    An option that is newer than the transformer counts as having been at its default then.
    """
    made_of = {"pairs_fingerprint": pairs.fingerprint(), "gallery": gallery}
    other = [name.split("_")[0] for name, value in made_of.items() if found.training.get(name) != value]
    for name, options in wanted.items():
        if _filled(found.training.get(name), asdict(type(options)())) != asdict(options):
            other.insert(0, name)
    if other:
        raise FileExistsError(
            f"{folder} holds a transformer of other {' and '.join(other)}; name another --out or remove it"
        )


def _filled(found: Any, defaults: Any) -> Any:
    """What a card says of options, those that it does not know at their defaults."""
    if not isinstance(found, Mapping) or not isinstance(defaults, Mapping):
        return found
    return {**defaults, **{name: _filled(value, defaults.get(name)) for name, value in found.items()}}


def _train_and_tell(options: TrainTransformerOptions) -> None:
    from compat.training import told
    from compat.transformers import CHOICES, PAIRED, known_family

    known_family(options.transformer, (*CHOICES, *PAIRED))
    if options.transformer == UNIFIED:
        old, new = train_unified(options, on_epoch=told.say_epoch)
        told.tell_unified(old, new, options.out)
        return
    transformer = train_transformer(options, on_epoch=told.say_epoch, on_candidate=told.say, on_note=told.say)
    told.tell_transformer(transformer, options.out)


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
