"""Options of fitting a transformer and of judging it. Standard library only: a command line lists them at once."""

import math
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal, get_args

Direction = Literal["new-to-old", "old-to-new"]
Pairing = Literal["none", "linear", "sorted", "proximity"]
Schedule = Literal["full", "pretrain"]
Inputs = Literal["raw", "centred", "centred_unit"]
Wanted = Literal["auto", "yes", "no"]
MixingWeight = Literal["mean", "random"]
Precision = Literal["auto", "fp32", "bf16"]


@dataclass(frozen=True, kw_only=True)
class LossWeights:
    """Weights of the terms that a network learns from.

    Attributes:
        cosine_weight: Weight of 1 - cosine, a term between 0 and 2.
        mse_weight: Weight of the squared distance, summed over dimensions. Raw embeddings are long (a norm of 25 is
            common), so a weight near that of the cosine lets this term swamp it.
        compactness_weight: Weight of 1 - cosine to the mean target of the pair's identity, which draws an identity's
            mapped embeddings together for the sake of a gallery of means. It needs labels.
    """

    cosine_weight: float = 10.0
    mse_weight: float = 0.002
    compactness_weight: float = 0.0

    def __post_init__(self) -> None:
        weights = (self.cosine_weight, self.mse_weight, self.compactness_weight)
        if min(weights) < 0 or self.cosine_weight + self.mse_weight == 0:
            raise ValueError(
                f"loss weights must not be negative, nor cosine_weight and mse_weight both zero, found cosine_weight="
                f"{self.cosine_weight}, mse_weight={self.mse_weight}, compactness_weight={self.compactness_weight}"
            )


@dataclass(frozen=True, kw_only=True)
class InterpolationOptions:
    """Synthetic identities, each the samples of two real ones mixed one by one, in both spaces at once.

    Attributes:
        pairing: Which identities are mixed: `linear` 0 with 1, 2 with 3; `sorted` neighbours by number of samples;
            `proximity` those whose centroids are near each other in both spaces, or, without labels, samples that are
            near each other; `none` of them.
        rate: Wanted number of synthetic samples for each real one.
        minimum: A `sorted` or `proximity` pair of identities that gives fewer samples is skipped.
        cap: A `sorted` or `proximity` pair of identities gives no more samples than this.
        weight: Share of each of the two samples in the synthetic one: `mean` half and half, `random` drawn anew for
            each.
        approximate_from: From so many identities (without labels: samples) on, `proximity` finds neighbours with
            pynndescent (extra `neighbors`), which is quicker there than exact search.
    """

    pairing: Pairing = "none"
    rate: float = 0.25
    minimum: int = 20
    cap: int = 30
    weight: MixingWeight = "mean"
    approximate_from: int = 90_000

    def __post_init__(self) -> None:
        for name, choices in {"pairing": Pairing, "weight": MixingWeight}.items():
            if getattr(self, name) not in get_args(choices):
                raise ValueError(
                    f"interpolation.{name} must be one of {', '.join(get_args(choices))}, found {getattr(self, name)!r}"
                )
        if not 0 < self.rate <= 10:
            raise ValueError(f"interpolation.rate must be above 0 and at most 10, found {self.rate}")
        if not 1 <= self.minimum <= self.cap:
            raise ValueError(
                f"interpolation.minimum must be between 1 and interpolation.cap, found {self.minimum} and {self.cap}"
            )
        if self.approximate_from < 2:
            raise ValueError(f"interpolation.approximate_from must be at least 2, found {self.approximate_from}")


@dataclass(frozen=True, kw_only=True)
class FitOptions:
    """How a transformer is fitted to pairs of embeddings.

    Attributes:
        transformer: Family of the map: identity, procrustes, ridge, shrunk (ridge towards procrustes), whitened,
            reduced_rank, blend (of procrustes and ridge), mlp, residual_mlp, msresnet; unified, two maps into one new
            space; or auto, the best of the others by retrieval of held-out pairs.
        direction: `new-to-old` maps queries into the old gallery's space, `old-to-new` maps the gallery.
        correction: Share of each gallery vector's nearness to queries that is taken off its score (hubness correction;
            0.5 is usual). Not given: auto chooses, other families have none.
        inputs: How linear families read a vector: `raw` its direction, in a regression through the origin; `centred`
            its direction, with an intercept; `centred_unit` its direction seen from the mean.
        strength: Penalty of ridge and its kin in units of the mean variance along a dimension. Not given: chosen by
            retrieval of held-out pairs, as the other settings of a family are; given, those are at their middle.
        loss: Weights of the loss of networks (mlp, residual_mlp, msresnet).
        interpolation: Synthetic identities, for networks.
        schedule: `full` trains on real and synthetic samples to the end, `pretrain` drops the synthetic ones half way.
        epochs: Most passes of a network over the pairs.
        batch_size: Pairs in a step of a network.
        learning_rate: Largest step size of Adam, reached after a warm-up and lowered along a cosine.
        width: Hidden units of residual_mlp, and of each block of unified; by default as many as the larger dimension,
            at most 1,024.
        precision: What a network is trained in: `fp32`, `bf16` (weights, loss and judging stay fp32), or `auto`, which
            is bf16 for msresnet where the processor multiplies it and fp32 for all others.
        folds: The pairs are divided into this many parts, identities kept together; choices are made by
            cross-validation over them, networks stop early by one of them.
        seed: The same seed gives the same transformer on the same machine.
    """

    transformer: str = "auto"
    direction: Direction = "new-to-old"
    correction: float | None = None
    inputs: Inputs = "centred_unit"
    strength: float | None = None
    loss: LossWeights = field(default_factory=LossWeights)
    interpolation: InterpolationOptions = field(default_factory=InterpolationOptions)
    schedule: Schedule = "full"
    epochs: int = 30
    batch_size: int = 256
    learning_rate: float = 1e-3
    width: int | None = None
    precision: Precision = "auto"
    folds: int = 5
    seed: int = 0

    def __post_init__(self) -> None:
        choices_of = {"direction": Direction, "schedule": Schedule, "inputs": Inputs, "precision": Precision}
        for name, choices in choices_of.items():
            if getattr(self, name) not in get_args(choices):
                raise ValueError(f"{name} must be one of {', '.join(get_args(choices))}, found {getattr(self, name)!r}")
        for name in ("epochs", "batch_size"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, found {getattr(self, name)}")
        if not 2 <= self.folds <= 20:
            raise ValueError(f"folds must be between 2 and 20, found {self.folds}")
        if self.correction is not None and not 0 <= self.correction <= 2:
            raise ValueError(f"correction must be between 0 and 2, found {self.correction}")
        if self.transformer == "auto" and self.strength is not None:
            raise ValueError("auto chooses the strength itself; name a family with --transformer, for example ridge")
        if self.strength is not None and not 0 < self.strength < math.inf:
            raise ValueError(f"strength must be positive, found {self.strength}")
        if self.width is not None and self.width < 1:
            raise ValueError(f"width must be at least 1, found {self.width}")
        if self.seed < 0:
            raise ValueError(f"seed must not be negative, found {self.seed}")
        if not self.learning_rate > 0:
            raise ValueError(f"learning_rate must be positive, found {self.learning_rate}")


@dataclass(frozen=True, kw_only=True)
class UnifiedOptions:
    """The pair of maps into one new space (`--transformer unified`).

    Attributes:
        dim: Dimension of the new space; by default the new model's.
        similarity_weight: Weight of 1 - cosine between the two mapped embeddings of one item.
        classification_weight: Weight of recognising the training identities, by a cosine softmax that both maps share.
            It needs labels that repeat.
        kl_weight: Weight of the divergence between what that softmax says of the two mapped embeddings of one item.
        contrast_weight: Weight of telling an item from the others of its batch, whichever map they come through, which
            keeps the space from collapsing where there are no labels.
    """

    dim: int | None = None
    similarity_weight: float = 1.0
    classification_weight: float = 1.0
    kl_weight: float = 1.0
    contrast_weight: float = 1.0

    def __post_init__(self) -> None:
        if self.dim is not None and self.dim < 1:
            raise ValueError(f"unified.dim must be at least 1, found {self.dim}")
        names = ("similarity_weight", "classification_weight", "kl_weight", "contrast_weight")
        for name in names:
            if not 0 <= getattr(self, name) < math.inf:
                raise ValueError(f"unified.{name} must not be negative nor infinite, found {getattr(self, name)}")
        if not any(getattr(self, name) for name in names):
            raise ValueError("unified needs a loss to learn from, found all its weights zero; give one of them")


@dataclass(frozen=True, kw_only=True)
class VerdictLimits:
    """What a verdict judges by. Costs are in any one currency; while both are 0, price decides nothing.

    Attributes:
        tolerated_loss: Recall@1 that a bridge may lose, at the interval's lower end, and still stand alone: about what
            an upgrade of either model moves anyway, one query in fifty.
        retention_floor: Share of the old recall@1 that a bridge must be measured to keep to be served at all, even
            while one re-embeds: users who lose one right answer in ten notice.
        retention_assured: Share that its interval must leave no doubt of, besides: lower than the floor, because a
            bridge is taken down in a minute, so that what must be ruled out is a bad loss and not any below the floor.
        worst_group_floor: Share of its old recall@1 that no group may surely fall below without being re-embedded
            first: lower than the overall floor, because the worst of many groups is partly worst by chance.
        fewest_groups: Independent identities (or queries, without labels) below which nothing is decided: with fewer, a
            standard error is itself uncertain by a quarter.
        cost_per_reembedded_item: Of fetching an original and embedding it: the bill of a backfill is this times items.
        value_per_recall_point: What 0.01 of recall@1 is worth over the gallery's remaining life, in the same currency.
    """

    tolerated_loss: float = 0.02
    retention_floor: float = 0.90
    retention_assured: float = 0.80
    worst_group_floor: float = 0.80
    fewest_groups: int = 10
    cost_per_reembedded_item: float = 0.0
    value_per_recall_point: float = 0.0

    def __post_init__(self) -> None:
        for name in ("tolerated_loss", "retention_floor", "retention_assured", "worst_group_floor"):
            if not 0 <= getattr(self, name) <= 1:
                raise ValueError(f"{name} must be between 0 and 1, found {getattr(self, name)}")
        if self.retention_assured > self.retention_floor:
            raise ValueError(
                f"retention_assured must not exceed retention_floor, found {self.retention_assured} and "
                f"{self.retention_floor}"
            )
        if self.fewest_groups < 2:
            raise ValueError(f"fewest_groups must be at least 2, found {self.fewest_groups}")
        for name in ("cost_per_reembedded_item", "value_per_recall_point"):
            if not 0 <= getattr(self, name) < math.inf:
                raise ValueError(f"{name} must not be negative nor infinite, found {getattr(self, name)}")

    @property
    def priced(self) -> bool:
        """Whether price decides anything."""
        return self.cost_per_reembedded_item > 0 or self.value_per_recall_point > 0

    def cost(self, items: float) -> float:
        """Of re-embedding so many items."""
        return self.cost_per_reembedded_item * items

    def worth(self, recall: float) -> float:
        """Of so much recall@1 (0.01 is a point)."""
        return self.value_per_recall_point * 100 * recall


@dataclass(frozen=True, kw_only=True)
class AnalysisOptions:
    """What an evaluation looks at beside retrieval. `auto` does what the stores allow and takes seconds or minutes.

    Attributes:
        group_by: Column of the queries' item table; recall is reported for each of its values, the worst first.
        verification: One-to-one comparison: ROC, DET, TAR at FAR, the old threshold kept after the bridge. Needs
            labels.
        open_set: Identification where some probes are unknown: TPIR at FPIR. Needs labels.
        means: Search also in a gallery of one mean vector for each label.
        backfill: Recall while the gallery is re-embedded, and with candidates re-ranked. Needs the new gallery.
        backfill_order: Table with the gallery's item_id in the order in which items would be re-embedded.
        index: Approximate indexes to search beside exact ones, in FAISS's words (`HNSW32`), perhaps with how hard to
            search (`IVF256,Flat;nprobe=16`; without, FAISS looks into one cell).
        pair_list: Table of pairs to verify, as published test sets have them: item_id_a of a query, item_id_b of a
            gallery item, same (0 or 1), perhaps fold.
    """

    group_by: str | None = None
    verification: Wanted = "auto"
    open_set: Wanted = "auto"
    means: bool = False
    backfill: Wanted = "auto"
    backfill_order: Path | None = None
    index: list[str] = field(default_factory=list)
    pair_list: Path | None = None
