"""What an evaluation says beside the table of settings: groups, verification, backfill, confidence and more."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any

import numpy as np

from compat.evaluation.approximate import ApproximateRow, made_index, search_approximately
from compat.evaluation.backfill import BackfillSection, ReorderedRows, backfill_orders, backfill_section
from compat.evaluation.confidence import ConfidenceSection, confidence_section
from compat.evaluation.gallery_means import GalleryMeans, gallery_means
from compat.evaluation.groups import FlipsSection, GroupsSection, flips_section, groups_section
from compat.evaluation.judgements import rows_of
from compat.evaluation.labelled import Labelled, labelled
from compat.evaluation.openset import OpenSetSection, open_set_section
from compat.evaluation.pair_list import PairList, PairListSection, pair_list_section
from compat.evaluation.record import MEASURES, NAIVE, NEW, OLD, SERVED, UNCORRECTED
from compat.evaluation.searched import Searched
from compat.evaluation.settings import Settings
from compat.evaluation.study import Study
from compat.evaluation.verification import VerificationSection, verification_section
from compat.metrics.retrieval import cmc
from compat.metrics.sides import Side
from compat.options import AnalysisOptions, Wanted
from compat.transformers.artefact import Transformer
from compat.transformers.serving import MappedRows, corrected_new_rows, is_lifted
from stores.item_tables import read_item_table
from stores.store import EmbeddingStore

COMPARED = (OLD, NEW, NAIVE, SERVED)
"""Settings that analyses look at."""
MOST_PAIRS = 300_000_000
"""Queries by gallery items; with more, what takes minutes waits until it is asked for."""
CMC_DEPTH = 100
_RECALL, _RECIPROCAL = MEASURES.index("recall_at_1"), MEASURES.index("mean_reciprocal_rank")
_BLOCK_ROWS = 4096


@dataclass(frozen=True)
class CmcSection:
    """Share of queries with a right item at rank 1, 2, ..., `depth`, for each setting."""

    depth: int
    settings: Mapping[str, np.ndarray]

    def to_dict(self) -> dict[str, Any]:
        """Plain values."""
        return {
            "depth": list(range(1, self.depth + 1)),
            "settings": {name: curve.tolist() for name, curve in self.settings.items()},
        }


@dataclass(frozen=True)
class Analyses:
    """What was looked at; None where it was not asked for, or cannot be known."""

    by_group: GroupsSection | None = None
    flips: FlipsSection | None = None
    cmc: CmcSection | None = None
    means: GalleryMeans | None = None
    verification: VerificationSection | None = None
    pair_list: PairListSection | None = None
    open_set: OpenSetSection | None = None
    backfill: BackfillSection | None = None
    confidence: ConfidenceSection | None = None
    approximate: tuple[ApproximateRow, ...] = ()

    def to_dict(self) -> dict[str, Any]:
        """Plain values of what there is."""
        found: dict[str, Any] = {}
        for field in fields(self):
            value = getattr(self, field.name)
            if value:
                found[field.name] = [row.to_dict() for row in value] if isinstance(value, tuple) else value.to_dict()
        return found


@dataclass(frozen=True)
class Tables:
    """What the options name, read and understood before anything long begins.

    Attributes:
        groups: Value of the column to group by, for each query.
        order: Gallery rows in the order in which they would be re-embedded, int64 [g].
        pairs: Pairs to verify.
    """

    groups: list[object] | None = None
    order: np.ndarray | None = None
    pairs: PairList | None = None


def read_tables(study: Study, options: AnalysisOptions, *, new_gallery: EmbeddingStore | None = None) -> Tables:
    """Everything that the options name; a mistake in them is found here, and not after an hour.

    Raises:
        ValueError: If something is asked for that the stores do not allow, or a table does not fit.
    """
    for name in ("verification", "open_set", "means"):
        if getattr(options, name) in ("yes", True) and study.labels is None:
            raise ValueError(f"{name.replace('_', '-')} needs a column label in the queries and in the gallery")
    if new_gallery is None and (options.backfill == "yes" or options.backfill_order):
        raise ValueError("a backfill needs --new-gallery, the gallery re-embedded by the new model")
    for factory in options.index:
        made_index(study.gallery.space.dim, factory, study.gallery.space.similarity)
    groups = order = pairs = None
    if options.group_by is not None:
        if options.group_by not in study.queries.items.columns:
            columns = ", ".join(study.queries.items.columns)
            raise ValueError(f"{study.queries.path} has no column {options.group_by!r}; it has {columns}")
        groups = study.queries.items[options.group_by].to_list()
    if options.backfill_order is not None:
        order = rows_of(read_item_table(options.backfill_order, "item_id")["item_id"], study.gallery.items["item_id"])
        if len(order) != len(study.gallery) or (order < 0).any():
            raise ValueError(
                f"--backfill-order {options.backfill_order} must name every item of {study.gallery.path} once: found "
                f"{len(order)} items, {int((order >= 0).sum())} of the gallery's {len(study.gallery)}"
            )
    if options.pair_list is not None:
        ids = (study.queries.items["item_id"], study.gallery.items["item_id"])
        pairs = PairList.of_table(read_item_table(options.pair_list, "item_id_a"), *ids)
    return Tables(groups, order, pairs)


def analyse(
    study: Study,
    settings: Settings,
    measured: Mapping[str, np.ndarray],
    options: AnalysisOptions,
    tables: Tables,
    *,
    new_gallery: EmbeddingStore | None = None,
    seed: int = 0,
) -> Analyses:
    """Everything that the options ask for and the stores allow.

    Args:
        study: Queries, gallery and what is right.
        settings: The ways of searching.
        measured: Measures of each query in each setting, floats [q, m], NaN where nothing is right.
        options: What to look at.
        tables: What they name.
        new_gallery: The gallery re-embedded, for a backfill.
        seed: Of every random draw.

    Raises:
        ValueError: If a gallery is too small for an index that was asked for.
    """
    recalls = {name: values[:, _RECALL] for name, values in measured.items()}
    clusters, transformer = study.clusters, settings.bridges.get(SERVED)
    compared = {name: settings.searches[name] for name in COMPARED if name in settings.searches}
    known = labelled(study, compared)
    by_group = confidence = means = verification = open_set = None
    if options.group_by is not None and tables.groups is not None:
        by_group = groups_section(options.group_by, tables.groups, recalls, clusters, seed=seed)
    if transformer and transformer.familiarity:
        study.say("confidence")
        strangeness = transformer.strangeness(study.vectors_of(study.queries))[study.asked]
        kin = None if clusters is None else clusters[study.asked]
        score = transformer.familiarity.score
        confidence = confidence_section(strangeness, recalls[SERVED][study.asked], kin, score=score, seed=seed)
    if known and options.means:
        study.say("the gallery of means")
        means = gallery_means(*_with_plain_map(study, settings, known), seed=seed)
    if known and _every_pair(options.verification, study):
        study.say("verification, every query with every item")
        verification = verification_section(*known, seed=seed)
    if known and _every_pair(options.open_set, study):
        study.say("open-set identification")
        open_set = open_set_section(*known, seed=seed)
    return Analyses(
        by_group=by_group,
        flips=flips_section(study.queries.items["item_id"].to_list(), recalls, clusters, seed=seed)
        if {OLD, SERVED} <= recalls.keys()
        else None,
        cmc=_cmc(measured, len(study.gallery)),
        means=means,
        verification=verification,
        pair_list=pair_list_section(tables.pairs, compared) if tables.pairs else None,
        open_set=open_set,
        backfill=_backfill(study, settings, options, tables.order, new_gallery, seed),
        confidence=confidence,
        approximate=tuple(
            row
            for factory in options.index
            for name in (OLD, SERVED)
            if name in compared
            for row in [_approximate(study, name, compared[name], factory, seed)]
        ),
    )


def _with_plain_map(study: Study, settings: Settings, known: Labelled) -> Labelled:
    """The map without its correction, which is made for single items and not for means of them."""
    if UNCORRECTED not in settings.searches:
        return known
    names = [UNCORRECTED if name == SERVED else name for name in known.settings]
    plain = labelled(study, {name: settings.searches[name] for name in names})
    return plain or known


def _every_pair(wanted: Wanted, study: Study) -> bool:
    """Whether to do what takes every pair of a query and an item."""
    return wanted == "yes" or (wanted == "auto" and len(study.queries) * len(study.gallery) <= MOST_PAIRS)


def left_out(study: Study, options: AnalysisOptions) -> list[str]:
    """What was not looked at because it takes long, in a line each."""
    pairs = len(study.queries) * len(study.gallery)
    if study.labels is None or pairs <= MOST_PAIRS:
        return []
    names = [name.replace("_", "-") for name in ("verification", "open_set") if getattr(options, name) == "auto"]
    return [f"{name} takes {pairs:,} pairs and is left out; ask for it with --{name} yes" for name in names]


def _approximate(study: Study, name: str, searched: Searched, factory: str, seed: int) -> ApproximateRow:
    study.say(f"{name.replace('_', ' ')} through {factory}")
    return search_approximately(name, searched, factory, study.relevance, study.clusters, seed=seed)


def _backfill(
    study: Study,
    settings: Settings,
    options: AnalysisOptions,
    given: np.ndarray | None,
    new_gallery: EmbeddingStore | None,
    seed: int,
) -> BackfillSection | None:
    if options.backfill == "no" or new_gallery is None or not {NEW, SERVED} <= settings.searches.keys():
        return None
    study.say("backfill")
    new, served = settings.searches[NEW], settings.searches[SERVED]
    assert new.rows is not None  # as Study.elsewhere forms it
    native = Side(new.queries, ReorderedRows(new_gallery, new.rows), new.similarity)
    ranker = None
    bridge = settings.bridges.get(SERVED)
    if is_lifted(study.gallery) and not bridge:
        needs = "the gallery was migrated with a correction; pass its --transformer, which corrects new items alike"
        return BackfillSection(len(study.gallery), reason=needs)
    if bridge and bridge.correction and bridge.direction == "old-to-new":  # one index, so new items are corrected too
        lifted = corrected_new_rows(native.gallery, study.gallery.items["item_id"], bridge)
        native, ranker = Side(served.queries, lifted, served.similarity), native
    old = settings.searches.get(OLD)
    return backfill_section(
        native,
        Side(served.queries, served.gallery, served.similarity),
        study.relevance,
        backfill_orders(
            len(study.gallery),
            labels=None if study.labels is None else study.labels[1],
            uncertainty=_uncertainty(study.gallery, bridge),
            given=given,
            seed=seed,
        ),
        old=Side(old.queries, old.gallery, old.similarity) if old else None,
        ranker=ranker,
        clusters=study.clusters,
        seed=seed,
    )


def _uncertainty(gallery: EmbeddingStore, transformer: Transformer | None) -> np.ndarray | None:
    """How far each mapped item lies from what the map was fitted to; None where that is not known."""
    if transformer is None or transformer.familiarity is None or transformer.direction == "new-to-old":
        return None
    if is_lifted(gallery):
        return None
    mapped = MappedRows(gallery, transformer)
    starts = range(0, len(gallery), _BLOCK_ROWS)
    blocks = (mapped.rows(start, min(start + _BLOCK_ROWS, len(gallery))) for start in starts)
    return np.concatenate([transformer.familiarity.novelty(block) for block in blocks])


def _cmc(measured: Mapping[str, np.ndarray], gallery_rows: int) -> CmcSection:
    depth = min(CMC_DEPTH, gallery_rows)
    curves = {}
    for name in COMPARED:
        if name in measured:
            # The reciprocal of a reciprocal may miss its whole number by a rounding.
            curves[name] = cmc(np.round(1.0 / measured[name][:, _RECIPROCAL]), depth)
    return CmcSection(depth, curves)
