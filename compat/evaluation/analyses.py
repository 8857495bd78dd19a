"""What an evaluation says beside the table of settings: groups, verification, backfill, confidence and more."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import numpy as np

from compat.evaluation.approximate import ApproximateRow, search_approximately
from compat.evaluation.backfill import BackfillSection, ReorderedRows, backfill_orders, backfill_section
from compat.evaluation.confidence import ConfidenceSection, confidence_section
from compat.evaluation.gallery_means import GalleryMeans, gallery_means
from compat.evaluation.groups import FlipsSection, GroupsSection, flips_section, groups_section
from compat.evaluation.judgements import rows_of
from compat.evaluation.openset import OpenSetSection, open_set_section
from compat.evaluation.pair_list import PairList, PairListSection, pair_list_section
from compat.evaluation.record import MEASURES, NAIVE, NEW, OLD, SERVED
from compat.evaluation.searched import Searched
from compat.evaluation.settings import Settings
from compat.evaluation.study import Study
from compat.evaluation.verification import VerificationSection, verification_section
from compat.metrics.sides import Side
from compat.options import AnalysisOptions, Wanted
from compat.transformers.artefact import Transformer
from compat.transformers.serving import MappedRows, corrected_new_rows
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


def analyse(
    study: Study,
    settings: Settings,
    measured: Mapping[str, np.ndarray],
    options: AnalysisOptions,
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
        new_gallery: The gallery re-embedded, for a backfill.
        seed: Of every random draw.

    Raises:
        ValueError: If something was asked for (`yes`) that the stores do not allow.
    """
    recalls = {name: values[:, _RECALL] for name, values in measured.items()}
    clusters, transformer = study.clusters, settings.bridges.get(SERVED)
    compared = {name: settings.searches[name] for name in COMPARED if name in settings.searches}
    by_group = confidence = None
    if options.group_by is not None:
        values = _column(study.queries, options.group_by)
        by_group = groups_section(options.group_by, values, recalls, clusters, seed=seed)
    if transformer and transformer.familiarity:
        study.say("confidence")
        strangeness = transformer.strangeness(study.vectors_of(study.queries))[study.asked]
        kin = None if clusters is None else clusters[study.asked]
        score = transformer.familiarity.score
        confidence = confidence_section(strangeness, recalls[SERVED][study.asked], kin, score=score, seed=seed)
    return Analyses(
        by_group=by_group,
        flips=flips_section(study.queries.items["item_id"].to_list(), recalls, clusters, seed=seed)
        if {OLD, SERVED} <= recalls.keys()
        else None,
        cmc=_cmc(measured, len(study.gallery)),
        means=_means(study, compared, options, seed),
        verification=_verification(study, compared, options.verification, seed),
        pair_list=_pair_list(study, compared, options.pair_list),
        open_set=_open_set(study, compared, options.open_set, seed),
        backfill=_backfill(study, settings, options, new_gallery, seed),
        confidence=confidence,
        approximate=tuple(
            row
            for factory in options.index
            for name in (OLD, SERVED)
            if name in compared
            for row in [_approximate(study, name, compared[name], factory, recalls[name], seed)]
        ),
    )


def _wanted(wanted: Wanted, possible: bool, reason: str, study: Study) -> bool:
    """Whether to do what takes every pair of a query and an item."""
    if wanted == "no" or (wanted == "auto" and not possible):
        return False
    if not possible:
        raise ValueError(reason)
    return wanted == "yes" or len(study.queries) * len(study.gallery) <= MOST_PAIRS


def _verification(
    study: Study, compared: Mapping[str, Searched], wanted: Wanted, seed: int
) -> VerificationSection | None:
    labels, needs = study.labels, "verification needs a column label in the queries and in the gallery"
    if not _wanted(wanted, labels is not None, needs, study) or labels is None:
        return None
    study.say("verification, every query with every item")
    return verification_section(compared, *labels, study.own, seed=seed)


def _open_set(study: Study, compared: Mapping[str, Searched], wanted: Wanted, seed: int) -> OpenSetSection | None:
    labels, needs = study.labels, "open-set identification needs a column label in the queries and in the gallery"
    if not _wanted(wanted, labels is not None, needs, study) or labels is None:
        return None
    study.say("open-set identification")
    return open_set_section(compared, *labels, study.own, seed=seed)


def _means(study: Study, compared: Mapping[str, Searched], options: AnalysisOptions, seed: int) -> GalleryMeans | None:
    if not options.means:
        return None
    if study.labels is None:
        raise ValueError("a gallery of means needs a column label in the queries and in the gallery")
    study.say("the gallery of means")
    return gallery_means(compared, *study.labels, study.own, seed=seed)


def _pair_list(study: Study, compared: Mapping[str, Searched], path: Path | None) -> PairListSection | None:
    if path is None:
        return None
    table = read_item_table(path, "item_id_a")
    ids = (study.queries.items["item_id"], study.gallery.items["item_id"])
    return pair_list_section(PairList.of_table(table, *ids), compared)


def _approximate(
    study: Study, name: str, searched: Searched, factory: str, recall: np.ndarray, seed: int
) -> ApproximateRow:
    study.say(f"{name.replace('_', ' ')} through {factory}")
    return search_approximately(name, searched, factory, study.relevance, recall, study.clusters, seed=seed)


def _backfill(
    study: Study, settings: Settings, options: AnalysisOptions, new_gallery: EmbeddingStore | None, seed: int
) -> BackfillSection | None:
    needed = {NEW, SERVED} <= settings.searches.keys() and new_gallery is not None
    if options.backfill == "no" or (options.backfill == "auto" and not needed):
        return None
    if not needed or new_gallery is None:
        raise ValueError("a backfill needs --new-gallery and --transformer, with the old gallery")
    study.say("backfill")
    new, served = settings.searches[NEW], settings.searches[SERVED]
    order = np.arange(len(study.gallery)) if new.rows is None else new.rows
    native = Side(new.queries, ReorderedRows(new_gallery, order), new.similarity)
    bridge = settings.bridges.get(SERVED)
    if bridge and bridge.correction and bridge.direction == "old-to-new":  # one index, so new items are corrected too
        lifted = corrected_new_rows(native.gallery, study.gallery.items["item_id"], bridge)
        native = Side(served.queries, lifted, served.similarity)
    given = None if options.backfill_order is None else _given_order(options.backfill_order, study.gallery)
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
        clusters=study.clusters,
        seed=seed,
    )


def _uncertainty(gallery: EmbeddingStore, transformer: Transformer | None) -> np.ndarray | None:
    """How far each mapped item lies from what the map was fitted to; None where items are not mapped."""
    if transformer is None or transformer.familiarity is None or transformer.direction == "new-to-old":
        return None
    mapped = MappedRows(gallery, transformer)
    starts = range(0, len(gallery), _BLOCK_ROWS)
    blocks = (mapped.rows(start, min(start + _BLOCK_ROWS, len(gallery))) for start in starts)
    return np.concatenate([transformer.familiarity.novelty(block) for block in blocks])


def _given_order(path: Path, gallery: EmbeddingStore) -> np.ndarray:
    rows = rows_of(read_item_table(path, "item_id")["item_id"], gallery.items["item_id"])
    if len(rows) != len(gallery) or (rows < 0).any():
        raise ValueError(
            f"--backfill-order {path} must name every item of {gallery.path} once: found {len(rows)} items, "
            f"{int((rows >= 0).sum())} of the gallery's {len(gallery)}"
        )
    return rows


def _cmc(measured: Mapping[str, np.ndarray], gallery_rows: int) -> CmcSection:
    depth = min(CMC_DEPTH, gallery_rows)
    curves = {}
    for name in COMPARED:
        if name in measured:
            first = 1.0 / measured[name][:, _RECIPROCAL]
            first = np.sort(first[~np.isnan(first)])
            # The reciprocal of a reciprocal may miss its whole number by a rounding.
            curves[name] = np.searchsorted(first, np.arange(1, depth + 1) + 0.5) / len(first)
    return CmcSection(depth, curves)


def _column(queries: EmbeddingStore, column: str) -> list[object]:
    if column not in queries.items.columns:
        raise ValueError(f"{queries.path} has no column {column!r}; it has {', '.join(queries.items.columns)}")
    return queries.items[column].to_list()
