"""The settings side by side: old to old, new to new, naive, and through transformers; on the same queries."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from compat.evaluation.analyses import Analyses, analyse, left_out, read_tables
from compat.evaluation.comparison import Comparison, constant_answer
from compat.evaluation.record import NEW, OLD, SERVED, SETTINGS, Bridge, CompatibilityReport, Setting
from compat.evaluation.rows import readable_setting
from compat.evaluation.settings import Settings, form_settings
from compat.evaluation.sheets import MEASURES as MEASURE_NAMES
from compat.evaluation.study import OnSetting, Study
from compat.evaluation.verdict import BackfillStages, Evidence, WorstGroup, decide
from compat.metrics.intervals import Interval
from compat.options import AnalysisOptions, VerdictLimits
from compat.transformers.artefact import Transformer
from compat.transformers.hubness import item_hashes
from compat.transformers.serving import is_lifted
from stores.commit import COMPLETE
from stores.store import EmbeddingStore

MOVED = 0.01
"""Share of genuine pairs more refused at the old threshold that is worth a word."""
FEW_GROUPS = 100
"""Below so many identities (or queries) a report warns that its intervals are wide."""


def evaluate(
    gallery: EmbeddingStore,
    queries: EmbeddingStore,
    *,
    transformer: Transformer | None = None,
    old_queries: EmbeddingStore | None = None,
    new_gallery: EmbeddingStore | None = None,
    relevance: str = "auto",
    comparisons: Mapping[str, Transformer] | None = None,
    analyses: AnalysisOptions | None = None,
    limits: VerdictLimits | None = None,
    seed: int = 0,
    on_setting: OnSetting | None = None,
) -> CompatibilityReport:
    """Measure retrieval in every setting that the given stores can form, on the same queries, and judge the bridge.

    Args:
        gallery: The old model's gallery, or one migrated for these queries or re-embedded into their space.
        queries: The new model's queries.
        transformer: The map under judgement; `new-to-old` maps the queries, `old-to-new` the gallery. It is measured as
            it is served, its hubness correction included. For a gallery migrated with a correction it must be the one
            it was migrated with, and may be left out where that mapped the gallery.
        old_queries: The same queries through the old model; makes old-to-old, retention and a verdict possible.
        new_gallery: The same gallery re-embedded by the new model; makes new-to-new and update gain possible.
        relevance: `label` (same label, the query's own item excluded), `item` (same item id), `auto` (label where
            both tables have one, else item), or the path of a table with columns query_id, item_id and perhaps grade
            (0 is irrelevant).
        comparisons: Further transformers, measured against the same native settings, by any name but a setting's.
        analyses: What to look at beside retrieval.
        limits: What the verdict judges by.
        seed: Of the bootstrap and of every sample.
        on_setting: Called with a line before each setting is measured.

    Raises:
        WrongSpace: If a store or transformer does not fit the others.
        ValueError: If the relevance cannot be formed, or leaves no query.
    """
    options = analyses or AnalysisOptions()
    study = Study(queries, gallery, relevance, on_setting or (lambda _: None))
    tables = read_tables(study, options, new_gallery=new_gallery)
    settings = form_settings(
        study, transformer=transformer, old_queries=old_queries, new_gallery=new_gallery, comparisons=comparisons
    )
    measured: dict[str, np.ndarray] = {}
    for name, searched in settings.searches.items():
        study.say(_described(name, settings.bridges.get(name)))
        measured[name] = study.measure(searched)
    found = analyse(study, settings, measured, options, tables, new_gallery=new_gallery, seed=seed)
    comparison = Comparison(measured, study.clusters, seed=seed).subset(study.asked)
    return _report(study, settings, comparison, found, options, limits or VerdictLimits())


def _described(name: str, bridge: Transformer | None) -> str:
    if bridge is None or name in SETTINGS:
        name = readable_setting(name)
    return f"{name} ({bridge.family}, {bridge.direction})" if bridge else name


def _report(
    study: Study,
    formed: Settings,
    comparison: Comparison,
    analyses: Analyses,
    options: AnalysisOptions,
    limits: VerdictLimits,
) -> CompatibilityReport:
    settings = {name: comparison.setting(name, formed.reasons.get(name, "")) for name in SETTINGS}
    model_gain = comparison.gain(NEW, over=OLD)
    retention, served = comparison.retention(SERVED), formed.bridges.get(SERVED)
    records = {
        name: Bridge(
            name=bridge.family if name == SERVED else name,
            family=bridge.family,
            direction=bridge.direction,
            setting=comparison.setting(name),
            retention=comparison.retention(name),
            update_gain=comparison.update_gain(name),
            gain_over_best=None if name == SERVED else comparison.gain(name, over=SERVED),
            correction=bridge.correction.to_dict() if bridge.correction else None,
            training=bridge.training,
        )
        for name, bridge in formed.bridges.items()
    }
    evidence = Evidence(
        direction=served.direction if served else None,
        old_to_old=_recall(settings[OLD]),
        new_to_new=_recall(settings[NEW]),
        transformed=_recall(settings[SERVED]),
        retention=retention,
        bridge_gain=comparison.gain(SERVED, over=OLD),
        model_gain=model_gain,
        groups=comparison.groups,
        unit=comparison.unit,
        constant_answer=constant_answer(study.relevance),
        gallery_rows=len(study.gallery),
        worst_group=_worst_group(analyses),
        backfill=_best_order(analyses),
    )
    gallery, queries = study.gallery, study.queries
    return CompatibilityReport(
        gallery={"path": str(gallery.path), "space": gallery.space.to_dict(), "rows": len(gallery)},
        queries={"path": str(queries.path), "space": queries.space.to_dict(), "rows": len(queries)},
        relevance=study.kind,
        evaluated=comparison.queries,
        excluded=len(queries) - comparison.queries,
        groups=comparison.groups,
        grouped_by="query" if study.clusters is None else "label",
        settings=settings,
        retention=retention,
        retention_reason="" if retention else _retention_reason(settings),
        update_gain=comparison.update_gain(SERVED),
        update_gain_reason=_gain_reason(settings, model_gain),
        verdict=decide(evidence, limits),
        transformer=records.pop(SERVED, None),
        comparisons=tuple(records.values()),
        notes=(*_findings(comparison, analyses), *_notes(study, comparison.groups, served), *left_out(study, options)),
        analyses=analyses.to_dict(),
    )


def _worst_group(analyses: Analyses) -> WorstGroup | None:
    section = analyses.by_group
    row = next((row for row in section.rows if row.group == section.worst), None) if section else None
    return WorstGroup(f"{section.column} {row.group}", row.retention) if section and row and row.retention else None


def _best_order(analyses: Analyses) -> BackfillStages | None:
    if not analyses.backfill or not analyses.backfill.curves:
        return None
    curves = analyses.backfill.curves
    order = "given" if "given" in curves else max(curves, key=lambda name: curves[name].area)
    curve = curves[order]
    drawn, target = curve.to_dict(), analyses.backfill.targets.get(OLD)
    return BackfillStages(
        tuple(drawn["fraction"]), tuple(drawn["recall_at_1"]), target, f"{order.replace('_', ' ')} order"
    )


def _recall(setting: Setting) -> Interval | None:
    return setting.measures["recall_at_1"] if setting.measures else None


def _retention_reason(settings: Mapping[str, Setting]) -> str:
    missing = [name for name in (SERVED, OLD) if settings[name].measures is None]
    return f"needs {' and '.join(missing)}" if missing else "old-to-old finds nothing, so there is nothing to retain"


def _gain_reason(settings: Mapping[str, Setting], model_gain: Interval | None) -> str:
    missing = [name for name in (SERVED, OLD, NEW) if settings[name].measures is None]
    if missing:
        return f"needs {' and '.join(missing)}"
    if model_gain is not None and model_gain.value <= 0:
        return "new-to-new does not exceed old-to-old, so there is no gain to share"
    if model_gain is not None and model_gain.low <= 0:
        return f"it is not sure that new-to-new exceeds old-to-old ({model_gain}), so a share of it means nothing"
    return ""


def _findings(comparison: Comparison, analyses: Analyses) -> list[str]:
    """What the verdict, which looks at recall@1 alone, does not say."""
    found = []
    beyond = comparison.gain(SERVED, over=NEW)
    if beyond and beyond.low > 0:
        found.append(
            f"the bridge finds more than a re-embedded gallery would (recall@1 {beyond} above new to new): "
            "re-embedding would lose that"
        )
    recall = comparison.gain(SERVED, over=OLD)
    for measure in ("mean_average_precision", "ndcg_at_10"):
        change = comparison.difference(SERVED, OLD, measure)
        if recall and recall.high >= 0 and change and change.high < 0:
            found.append(f"{MEASURE_NAMES[measure]} surely falls, by {-change.value:.3f}, though recall@1 may not")
    kept = analyses.verification.old_threshold if analyses.verification else None
    moved = kept.settings.get(SERVED) if kept else None
    if kept and moved and (moved.kept.frr > kept.old.frr + MOVED or moved.kept.far > 2 * kept.old.far):
        anew = moved.recalibrated.threshold
        found.append(
            f"set the threshold anew: the old one, {kept.old.threshold:.3f}, refuses {moved.kept.frr:.1%} of genuine "
            f"pairs and accepts {moved.kept.far:.3%} of impostors after the bridge ({kept.old.frr:.1%} and "
            f"{kept.old.far:.3%} before)"
            + (f"; {anew:.3f} holds the old rate on these very pairs" if np.isfinite(anew) else "")
        )
    return found


def _notes(study: Study, groups: int, transformer: Transformer | None) -> tuple[str, ...]:
    notes = list(transformer.training.get("notes", [])) if transformer else []
    if (
        transformer
        and transformer.correction
        and transformer.direction == "new-to-old"
        and not is_lifted(study.gallery)
    ):
        notes.append(
            "the correction is served by a copy of the old gallery with one dimension more: python -m compat.migrate, "
            "or BridgedGallery from Python"
        )
    if transformer and transformer.correction:
        known = np.isin(item_hashes(study.queries.items["item_id"]), transformer.correction.items)
        if known.any():
            notes.append(
                f"{int(known.sum())} of the queries are among the pairs that the map was fitted to, and in its "
                "correction's bank: their figures flatter; ask others"
            )
    for store in (study.gallery, study.queries):
        if store.provenance.get(COMPLETE) is False:
            notes.append(f"{store.path} is unfinished, {len(store)} rows so far; run the command that writes it again")
    unknown = [store.items["label"].null_count() for store in (study.queries, study.gallery) if study.labels]
    if any(unknown):
        notes.append(
            f"{unknown[0]} queries and {unknown[1]} gallery items have no label: such an item counts as wrong for "
            "every query, and verification and open-set figures leave both out"
        )
    if study.note:
        notes.append(study.note)
    left_out = int((~study.asked).sum())
    if left_out:
        example = study.queries.items["item_id"][int(np.flatnonzero(~study.asked)[0])]
        notes.append(
            f"{left_out} of {len(study.asked)} queries are left out, for example {example!r}: nothing in the gallery "
            "is relevant to them"
        )
    if study.kind == "item":
        notes.append(
            "each query's answer is the gallery's own embedding of the same item, which flatters every map: "
            "judge with real queries where you can (labels, or --relevance TABLE)"
        )
    if groups < FEW_GROUPS:
        unit = "queries" if study.clusters is None else "identities"
        notes.append(f"intervals rest on {groups} {unit} only and are wide; differences inside them mean nothing")
    return tuple(notes)
