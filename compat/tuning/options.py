"""Options of a study. Standard library only: a command line lists them at once."""

import math
from dataclasses import dataclass, field, fields
from pathlib import Path

from compat.options import FitOptions, Pairing, Schedule

RANGES = ("cosine_weight", "mse_weight", "compactness_weight", "rate", "learning_rate")
"""Parameters between two ends; the others take one of several values."""


@dataclass(frozen=True, kw_only=True)
class SearchSpace:
    """What a study looks through. One value holds a parameter at it; two ends are a range, on a logarithmic scale.

    Attributes:
        cosine_weight: Ends of loss.cosine_weight. Adam sees no more than the ratio of the weights to each other, so
            one value here loses little.
        mse_weight: Ends of loss.mse_weight.
        compactness_weight: Ends of loss.compactness_weight, which needs labels. Its lower end is as good as none.
        pairing: Values of interpolation.pairing.
        rate: Ends of interpolation.rate.
        schedule: Values of schedule. It and the rate are asked for where there is a pairing.
        learning_rate: Ends of learning_rate.
        width: Values of width, for families that have one.
        batch_size: Values of batch_size.
    """

    cosine_weight: list[float] = field(default_factory=lambda: [1.0, 100.0])
    mse_weight: list[float] = field(default_factory=lambda: [1e-4, 1e-1])
    compactness_weight: list[float] = field(default_factory=lambda: [1e-2, 10.0])
    pairing: list[Pairing] = field(default_factory=lambda: ["none", "linear", "sorted", "proximity"])
    rate: list[float] = field(default_factory=lambda: [0.1, 0.5])
    schedule: list[Schedule] = field(default_factory=lambda: ["full", "pretrain"])
    learning_rate: list[float] = field(default_factory=lambda: [1e-4, 1e-2])
    width: list[int] = field(default_factory=lambda: [128, 256, 512, 1024])
    batch_size: list[int] = field(default_factory=lambda: [64, 128, 256, 512])

    def __post_init__(self) -> None:
        for name in RANGES:
            ends = getattr(self, name)
            lowest_is_zero = len(ends) == 1 and ends[0] == 0 and name.endswith("weight")
            rising = len(ends) in (1, 2) and ends[0] <= ends[-1]
            if not rising or not (ends[0] > 0 or lowest_is_zero) or not math.isfinite(ends[-1]):
                raise ValueError(
                    f"space.{name} must be one value or two rising ends above 0, such as [1e-4,1e-2], found {ends}"
                )
        for name in ("pairing", "schedule", "width", "batch_size"):
            values = getattr(self, name)
            if not values or len(set(values)) < len(values):
                raise ValueError(f"space.{name} must be one value or several different ones, found {values}")
        for name in ("width", "batch_size"):
            if min(getattr(self, name)) < 1:
                raise ValueError(f"space.{name} must hold numbers of at least 1, found {getattr(self, name)}")


@dataclass(frozen=True, kw_only=True)
class TuneOptions(FitOptions):
    """Which pairs to tune a family of maps on, where the study is kept, and by how much work.

    Options of training that are no part of the space (epochs, folds, precision, interpolation.minimum, ...) hold for
    every trial as they are given.

    Attributes:
        old: Store of the old model's embeddings.
        new: Store of the new model's embeddings of the same items.
        out: Folder for best.yaml, trials.csv, study.json and study.html; run again to go on.
        trials: The study goes on until so many trials are complete; pruned ones do not count.
        transformer: Family to tune: mlp, residual_mlp or msresnet.
        space: What is looked through.
        gallery: Store of the old gallery, among whose items held-out pairs must be found too.
        storage: Where the study is kept: sqlite:///FILE, or postgresql://USER@HOST/DATABASE for workers on several
            machines (leave the password to ~/.pgpass or PGPASSWORD: arguments are seen by everyone on a machine). By
            default a journal in the out folder.
        name: Of the study in its storage.
        workers: Processes on this machine, each with its share of the cores.
        finalists: So many of the best trials are judged again, on other folds and from other seeds, before the best is
            named.
        judgings: How many other folds and seeds that are.
        reports: The best is then trained so many times more, without pairs that nothing was chosen by, and compared on
            them with ridge.
        test_gallery: Store of an old gallery, none of it among the pairs. With test_queries, the best map is scored on
            it, once, after the study.
        test_queries: Store of the new model's queries for it.
        test_relevance: What is right for them: label, item, a table with columns query_id, item_id and perhaps grade
            (0 is irrelevant), or auto, which is label where both stores have one, else item.
    """

    old: Path
    new: Path
    out: Path
    trials: int
    transformer: str = "residual_mlp"
    space: SearchSpace = field(default_factory=SearchSpace)
    gallery: Path | None = None
    storage: str | None = None
    name: str = "compat-tune"
    workers: int = 1
    finalists: int = 3
    judgings: int = 2
    reports: int = 3
    test_gallery: Path | None = None
    test_queries: Path | None = None
    test_relevance: str = "auto"

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("trials", "workers", "finalists", "judgings", "reports"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, found {getattr(self, name)}")
        if (self.test_gallery is None) != (self.test_queries is None):
            raise ValueError("a test split is --test-gallery and --test-queries together; only one of them was given")
        if self.test_gallery is None and self.test_relevance != "auto":
            raise ValueError("--test-relevance is of a test split; give --test-gallery and --test-queries with it")
        if not self.name:
            raise ValueError("name must not be empty")

    @property
    def fit(self) -> FitOptions:
        """What holds for every trial."""
        return FitOptions(**{each.name: getattr(self, each.name) for each in fields(FitOptions)})
