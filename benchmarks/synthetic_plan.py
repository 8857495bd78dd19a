"""The cells of bench_synthetic: which maps are fitted to what, for how long, and about how many minutes that takes."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from synthetic_data import BALANCED, LONG_TAILED

from compat.options import FitOptions, InterpolationOptions, Pairing, Schedule

SMALL, ALL = "small", "all"
SIZES = (SMALL, ALL)
RATES = (0.12, 0.25, 0.5)
NEAR_OR_SORTED: tuple[Pairing, ...] = ("sorted", "proximity")
NETWORKS = ("mlp", "residual_mlp", "msresnet")
CORRECTION = 0.5
CAP = 30
FOLDS = 5
CHOICE_SEED = 1000
"""Of the fits that the number of epochs is chosen by; no cell has it."""
CHOSEN_BY = {"mlp": ("mlp", "residual_mlp"), "msresnet": ("msresnet",)}
"""The number of epochs is one for all maps of the left, and chosen by those of the right, without synthetic samples."""

TRAINED_PER_SECOND = {"mlp": 60_000.0, "residual_mlp": 13_000.0, "msresnet": 700.0}
"""Rows of 512 dimensions on one thread; for the estimate alone."""
JUDGED_SECONDS = {SMALL: 0.1, ALL: 0.25}
"""Judging one epoch by the fold held out."""
FITTED_SECONDS = {SMALL: 3.0, ALL: 6.0}
"""What any fit costs beside its epochs, judging by the test included."""
AUTO_SECONDS = {SMALL: 30.0, ALL: 200.0}


@dataclass(frozen=True)
class Map:
    """What is fitted.

    Attributes:
        family: Of `compat.transformers`.
        pairing: Of synthetic identities.
        rate: Synthetic samples wanted for each real one.
        schedule: `full` or `pretrain`.
        permuted: Put the source's dimensions in another order first, one that is the same everywhere.
        fold_out: Fit on the pairs that networks train on, without the fold that they stop by.
        corrected: Also search with a hubness correction.
    """

    family: str
    pairing: Pairing = "none"
    rate: float = 0.0
    schedule: Schedule = "full"
    permuted: bool = False
    fold_out: bool = False
    corrected: bool = False

    @property
    def name(self) -> str:
        """Unique, for files, rows and `--only`."""
        parts = [self.family]
        parts += [f"{self.pairing}-{self.rate:.0%}".removesuffix("%")] if self.pairing != "none" else []
        parts += [self.schedule] if self.schedule != "full" else []
        parts += ["permuted"] if self.permuted else []
        return "-".join(parts + (["fold-out"] if self.fold_out else []))

    @property
    def without(self) -> Map:
        """The same family and schedule on real samples alone."""
        return Map(self.family, schedule=self.schedule, permuted=self.permuted, corrected=self.family == "mlp")

    @property
    def title(self) -> str:
        """For people."""
        pairing = f" + {self.pairing} {self.rate:.0%}" if self.pairing != "none" else ""
        rest = {
            ", pretrain": self.schedule == "pretrain",
            ", dimensions permuted": self.permuted,
            ", four fifths of the pairs": self.fold_out,
        }
        return self.family + pairing + "".join(text for text, said in rest.items() if said)


IDENTITY = Map("identity")
MSRESNET = Map("msresnet")
MSRESNET_LINEAR = Map("msresnet", "linear", 0.12)
MSRESNET_PERMUTED = Map("msresnet", permuted=True)
MLP = Map("mlp", corrected=True)
RIDGE = Map("ridge", corrected=True)
RIDGE_FOLD_OUT = Map("ridge", fold_out=True)
AUTO = Map("auto", corrected=True)
SCHEDULES: tuple[Schedule, ...] = ("full", "pretrain")


def mlp_maps() -> list[Map]:
    """The table's main rows: none and linear, then sorted and proximity at each rate, on both schedules."""
    choices: list[tuple[Pairing, float]] = [("linear", 0.12)]
    choices.extend((pairing, rate) for pairing in NEAR_OR_SORTED for rate in RATES)
    synthetic = [Map("mlp", pairing, rate, schedule) for pairing, rate in choices for schedule in SCHEDULES]
    return [MLP, Map("mlp", schedule="pretrain"), *synthetic]


def residual_maps() -> list[Map]:
    """Maps that start at the affine solution."""
    choices: list[tuple[Pairing, float]] = [("none", 0.0), ("linear", 0.12), ("proximity", 0.25)]
    return [Map("residual_mlp", pairing, rate, schedule) for pairing, rate in choices for schedule in SCHEDULES]


def all_maps() -> list[Map]:
    """In the order of the tables."""
    controls = [MSRESNET_PERMUTED, *residual_maps()]
    return [IDENTITY, MSRESNET, MSRESNET_LINEAR, *mlp_maps(), *controls, RIDGE_FOLD_OUT, RIDGE, AUTO]


@dataclass(frozen=True)
class Setting:
    """How many samples identities have, and how many pairs are fitted to."""

    counts: str
    size: str

    def __str__(self) -> str:
        return f"{self.counts}, {self.size}"


@dataclass(frozen=True)
class Cell:
    """One fit, judged."""

    setting: Setting
    seed: int
    map: Map

    @property
    def name(self) -> str:
        """Of its file."""
        return f"{self.setting.counts}-{self.setting.size}-{self.seed}-{self.map.name}"


@dataclass(frozen=True, kw_only=True)
class Sizes:
    """How much is fitted.

    Attributes:
        small_pairs: About how many pairs the small size has.
        seeds: 0, 1, ... below this.
        epoch_choices: Numbers of epochs to choose from.
        mlp_rows: Most training rows that an mlp or residual_mlp is shown.
        msresnet_rows: Most training rows that a msresnet is shown, a hundred times dearer each than an mlp's.
        minimum: Samples that both identities of a synthetic one must have, by counts.
    """

    small_pairs: int = 2000
    seeds: int = 3
    epoch_choices: tuple[int, ...] = (10, 30, 100)
    mlp_rows: int = 1_000_000
    msresnet_rows: int = 200_000
    minimum: dict[str, int] = field(default_factory=lambda: {BALANCED: 8, LONG_TAILED: 20})

    def pairs_wanted(self, size: str) -> int | None:
        """What to ask of `draw`."""
        return self.small_pairs if size == SMALL else None


def smoke_sizes() -> Sizes:
    """Enough to see everything run, and nothing to learn from."""
    minimum = {BALANCED: 2, LONG_TAILED: 2}
    return Sizes(small_pairs=150, seeds=2, epoch_choices=(1, 2), msresnet_rows=400, minimum=minimum)


def all_cells(counts: Iterable[str], sizes: Sizes) -> list[Cell]:
    """Setting by setting, seed by seed."""
    settings = [Setting(each, size) for each in counts for size in SIZES]
    return [Cell(s, seed, each) for s in settings for seed in range(sizes.seeds) for each in all_maps()]


@dataclass(frozen=True)
class Epochs:
    """How long networks train in a setting.

    Attributes:
        chosen: By group of networks, a key of `CHOSEN_BY`.
        tried: By group, the retrieval of held-out identities after each number of epochs; empty where none was tried.
    """

    chosen: Mapping[str, int]
    tried: Mapping[str, Mapping[int, float]] = field(default_factory=dict)

    def of(self, family: str) -> int:
        """Of a map; 1 for what has no epochs."""
        return self.chosen.get(group(family), 1)


def group(family: str) -> str:
    """Whose number of epochs a network shares: a msresnet is dear and learns slowly, so it has its own."""
    return "msresnet" if family == "msresnet" else "mlp"


def within_rows(family: str, epochs: int, pairs: int, sizes: Sizes) -> int:
    """A number of epochs, cut to the real rows that a network may see."""
    rows = sizes.msresnet_rows if group(family) == "msresnet" else sizes.mlp_rows
    shown = max(1, pairs * (FOLDS - 1) // FOLDS)
    return max(1, min(epochs, rows // shown))


def fit_options(cell: Cell, epochs: int, sizes: Sizes) -> FitOptions:
    """The options of a cell's fit; a correction is made afterwards, so that the same fit shows both."""
    of = cell.map
    rate: dict[str, Any] = {"rate": of.rate} if of.pairing != "none" else {}
    minimum = min(sizes.minimum[cell.setting.counts], CAP)
    return FitOptions(
        transformer=of.family,
        direction="new-to-old",
        schedule=of.schedule,
        interpolation=InterpolationOptions(pairing=of.pairing, minimum=minimum, cap=CAP, **rate),
        epochs=epochs,
        folds=FOLDS,
        seed=cell.seed,
    )


def estimated_seconds(cell: Cell, pairs: int, own: int) -> float:
    """Of a cell of `own` epochs on one thread that has a core to itself; networks that stop early take less."""
    size, family = cell.setting.size, cell.map.family
    if family == "auto":
        return AUTO_SECONDS[size]
    if family not in NETWORKS:
        return FITTED_SECONDS[size]
    rows = pairs * (FOLDS - 1) / FOLDS * (1 + cell.map.rate) * own
    return FITTED_SECONDS[size] + rows / TRAINED_PER_SECOND[family] + own * JUDGED_SECONDS[size]
