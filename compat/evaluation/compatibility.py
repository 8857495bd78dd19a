"""The settings side by side: old to old, new to new, naive, and through transformers; on the same queries."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from compat.evaluation.record import MEASURES, SETTINGS, Bridge, CompatibilityReport, Setting
from compat.evaluation.settings import OnSetting, Study, require_space
from compat.evaluation.verdict import Evidence, decide
from compat.metrics.intervals import Interval, bootstrap_means, interval, paired_slack, proportion_interval
from compat.transformers.artefact import Transformer, WrongSpace
from compat.transformers.hubness import item_hashes
from compat.transformers.serving import is_lifted, is_migrated, query_form
from stores.galleries.zarr_store import COMPLETE
from stores.store import EmbeddingStore

SERVED = "transformed"
"""The setting of the transformer under judgement, with its hubness correction where it carries one."""
UNCORRECTED = "transformed_uncorrected"
OLD_CORRECTED = "old_to_old_corrected"
NEEDS_OLD_GALLERY = "the old gallery was not given; evaluate it, with the transformer, to compare"
NEEDS_OLD_QUERIES = "needs --old-queries, the same queries through the old model"
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
    seed: int = 0,
    on_setting: OnSetting | None = None,
) -> CompatibilityReport:
    """Measure retrieval in every setting that the given stores can form, on the same queries.

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
        seed: Of the bootstrap.
        on_setting: Called with a line before each setting is measured.

    Raises:
        WrongSpace: If a store or transformer does not fit the others.
        ValueError: If the relevance cannot be formed, or leaves no query.
    """
    study = Study(queries, gallery, relevance, on_setting or (lambda _: None))
    bridges = {**({SERVED: transformer} if transformer else {}), **(comparisons or {})}
    uncorrected = "the transformer carries no hubness correction" if transformer else "there is no hubness correction"
    reasons = {UNCORRECTED: uncorrected, OLD_CORRECTED: uncorrected}
    measured: dict[str, np.ndarray] = {}
    if is_lifted(gallery):
        measured |= _migrated_with_correction(study, transformer, comparisons)
        reasons |= {"naive": "the gallery was migrated", "old_to_old": NEEDS_OLD_GALLERY}
        reasons[OLD_CORRECTED] = NEEDS_OLD_GALLERY
    elif gallery.space == queries.space:
        if bridges:
            raise WrongSpace(f"gallery and queries are both in {queries.space}: there is nothing to bridge")
        migrated = is_migrated(gallery.provenance)
        measured[SERVED if migrated else "new_to_new"] = study.search("search", queries)
        reasons["naive"] = "gallery and queries are in one space"
        reasons["old_to_old"] = NEEDS_OLD_GALLERY
        reasons[SERVED] = "the gallery is native to the queries' space"
    else:
        for bridge in bridges.values():
            sides = (queries.space, gallery.space)
            bridge.require(bridge.direction, *(sides if bridge.direction == "new-to-old" else sides[::-1]))
        if gallery.space.dim == queries.space.dim:
            measured["naive"] = study.search("naive", queries)
        reasons["naive"] = f"{queries.space.dim}-D queries cannot search a {gallery.space.dim}-D gallery"
        reasons["old_to_old"] = NEEDS_OLD_QUERIES
        reasons[SERVED] = "no transformer was given"
        if transformer and transformer.correction:
            reasons[OLD_CORRECTED] = NEEDS_OLD_QUERIES
        if old_queries is not None:
            require_space("--old-queries", old_queries, gallery)
            measured["old_to_old"] = study.search("old to old", old_queries)
            if transformer and transformer.correction:
                measured[OLD_CORRECTED] = study.search_corrected("old to old, corrected", old_queries, transformer)
    reasons["new_to_new"] = "needs --new-gallery, the gallery re-embedded by the new model"
    if new_gallery is not None:
        require_space("--new-gallery", new_gallery, queries)
        measured["new_to_new"] = study.search_elsewhere("new to new", new_gallery)
    for name, bridge in bridges.items():
        if name not in measured:
            measured[name] = study.bridge("the transformer" if name == SERVED else name, bridge)
    if transformer and transformer.correction and UNCORRECTED not in measured:
        measured[UNCORRECTED] = study.bridge("the transformer, uncorrected", transformer.without_correction())
    if not measured:
        raise ValueError(f"there is nothing to measure ({reasons['naive']}); pass --transformer or --old-queries")
    return _report(study, bridges, _Comparison(study, measured, seed), reasons)


def _migrated_with_correction(
    study: Study, transformer: Transformer | None, comparisons: Mapping[str, Transformer] | None
) -> dict[str, np.ndarray]:
    gallery, queries = study.gallery, study.queries
    if comparisons:
        raise WrongSpace(f"{gallery.path} was migrated for one transformer; compare others on the old gallery")
    expected = query_form(gallery, transformer).space
    if queries.space != expected:
        raise WrongSpace(f"queries {queries.path} are in {queries.space}, those of {gallery.path} are in {expected}")
    return {
        SERVED: study.migrated("search", transformer),
        UNCORRECTED: study.migrated("search, uncorrected", transformer, corrected=False),
    }


class _Comparison:
    """Means of every setting with intervals, and paired comparisons between settings: all from the same draws."""

    def __init__(self, study: Study, measured: Mapping[str, np.ndarray], seed: int) -> None:
        asked = study.asked
        clusters = None if study.clusters is None else study.clusters[asked]
        self.queries = int(asked.sum())
        self.codes = np.arange(self.queries) if clusters is None else np.unique(clusters, return_inverse=True)[1]
        self.groups = int(self.codes.max()) + 1
        self._values = {name: values[asked] for name, values in measured.items()}
        joined = np.concatenate(list(self._values.values()), axis=1)
        self._means = joined.mean(axis=0)
        self._draws = bootstrap_means(joined, clusters, seed=seed)
        self._column = {name: i * len(MEASURES) for i, name in enumerate(measured)}  # of recall@1, the first measure

    def setting(self, name: str, reason: str = "") -> Setting:
        """A setting's measures, or the reason why there are none."""
        if name not in self._column:
            return Setting(None, reason)
        columns = range(self._column[name], self._column[name] + len(MEASURES))
        intervals = (proportion_interval(self._means[c], self._draws[:, c], self.groups, self.queries) for c in columns)
        return Setting(dict(zip(MEASURES, intervals, strict=True)))

    def gain(self, name: str, over: str) -> Interval | None:
        """Difference in recall@1 between two settings."""
        return self._paired(name, over, lambda a, b: a - b)

    def retention(self, name: str) -> Interval | None:
        """Share of old-to-old recall@1 that a setting keeps; None where old-to-old finds nothing."""
        return self._paired(name, "old_to_old", lambda a, b: a / b)

    def update_gain(self, name: str) -> Interval | None:
        """Share of the new model's gain in recall@1 that a setting reaches; None where there is no gain."""
        gain = self.gain("new_to_new", over="old_to_old")
        if gain is None or gain.value <= 0 or name not in self._column:
            return None
        return self._interval(lambda b, old, new: (b - old) / (new - old), name, "old_to_old", "new_to_new")

    def _paired(self, name: str, other: str, formula: Callable[..., Any]) -> Interval | None:
        if name not in self._column or other not in self._column:
            return None
        found = self._interval(formula, name, other)
        if found is None:
            return None
        difference = self._values[name][:, 0] - self._values[other][:, 0]
        below, above = paired_slack(difference, self.codes)
        low, high = (
            formula(self._means[self._column[name]] + slack, self._means[self._column[other]])
            for slack in (-below, above)
        )
        return Interval(found.value, min(found.low, float(low)), max(found.high, float(high)))

    def _interval(self, formula: Callable[..., Any], *names: str) -> Interval | None:
        columns = [self._column[name] for name in names]
        with np.errstate(divide="ignore", invalid="ignore"):
            value, drawn = formula(*self._means[columns]), formula(*self._draws[:, columns].T)
        if not np.isfinite(value):  # a share of nothing
            return None
        return interval(value, np.where(np.isfinite(drawn), drawn, np.nan))


def _report(
    study: Study, bridges: Mapping[str, Transformer], comparison: _Comparison, reasons: Mapping[str, str]
) -> CompatibilityReport:
    settings = {name: comparison.setting(name, reasons.get(name, "")) for name in SETTINGS}
    model_gain = comparison.gain("new_to_new", over="old_to_old")
    retention, served = comparison.retention(SERVED), bridges.get(SERVED)
    records = {
        name: Bridge(
            name=bridge.family if name == SERVED else name,
            family=bridge.family,
            direction=bridge.direction,
            setting=comparison.setting(name),
            retention=comparison.retention(name),
            update_gain=comparison.update_gain(name),
            correction=bridge.correction.to_dict() if bridge.correction else None,
            training=bridge.training,
        )
        for name, bridge in bridges.items()
    }
    evidence = Evidence(
        direction=served.direction if served else None,
        old_to_old=_recall(settings["old_to_old"]),
        new_to_new=_recall(settings["new_to_new"]),
        transformed=_recall(settings[SERVED]),
        retention=retention,
        bridge_gain=comparison.gain(SERVED, over="old_to_old"),
        model_gain=model_gain,
        groups=comparison.groups,
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
        verdict=decide(evidence),
        transformer=records.pop(SERVED, None),
        comparisons=tuple(records.values()),
        notes=_notes(study, comparison.groups, served),
    )


def _recall(setting: Setting) -> Interval | None:
    return setting.measures["recall_at_1"] if setting.measures else None


def _retention_reason(settings: Mapping[str, Setting]) -> str:
    missing = [name for name in (SERVED, "old_to_old") if settings[name].measures is None]
    return f"needs {' and '.join(missing)}" if missing else "old-to-old finds nothing, so there is nothing to retain"


def _gain_reason(settings: Mapping[str, Setting], model_gain: Interval | None) -> str:
    missing = [name for name in (SERVED, "old_to_old", "new_to_new") if settings[name].measures is None]
    if missing:
        return f"needs {' and '.join(missing)}"
    if model_gain is not None and model_gain.value <= 0:
        return "new-to-new does not exceed old-to-old, so there is no gain to share"
    return ""


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
