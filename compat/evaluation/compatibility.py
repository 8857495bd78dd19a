"""The settings side by side: old to old, new to new, naive, and through transformers; on the same queries."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl

from compat.evaluation.verdict import Evidence, Verdict, decide
from compat.metrics.intervals import Interval, bootstrap_means, interval, proportion_interval
from compat.metrics.retrieval import Relevance, Rows, relevant_ranks, retrieval_scores
from compat.pairs import label_codes
from compat.transformers.artefact import Transformer, WrongSpace
from stores.item_tables import read_item_table
from stores.store import EmbeddingStore

REPORT_VERSION = 1
MEASURES = ("recall_at_1", "recall_at_5", "recall_at_10", "mean_average_precision", "mean_reciprocal_rank")
SETTINGS = ("old_to_old", "new_to_new", "naive", "transformed", "transformed_uncorrected")

OnSetting = Callable[[str], None]


@dataclass(frozen=True)
class Setting:
    """Measures of one setting with 95% intervals, by name; `reason` says why there are none."""

    measures: Mapping[str, Interval] | None
    reason: str = ""

    def to_dict(self) -> dict[str, Any] | None:
        """Measures as plain values, or None."""
        return None if self.measures is None else {name: value.to_dict() for name, value in self.measures.items()}


@dataclass(frozen=True)
class Bridge:
    """One transformer's results against the same native settings."""

    name: str
    family: str
    direction: str
    setting: Setting
    retention: Interval | None
    update_gain: Interval | None
    training: Mapping[str, Any] = field(default_factory=dict)

    def to_dict(self) -> dict[str, Any]:
        """All but the training curves, as plain values."""
        return {
            "name": self.name,
            "family": self.family,
            "direction": self.direction,
            "measures": self.setting.to_dict(),
            "retention": _plain(self.retention),
            "update_gain": _plain(self.update_gain),
            "pairs": self.training.get("pairs"),
            "held_out": self.training.get("held_out"),
            "notes": list(self.training.get("notes", [])),
        }


@dataclass(frozen=True)
class CompatibilityReport:
    """What `evaluate` found. `to_dict` is report.json."""

    gallery: Mapping[str, Any]
    queries: Mapping[str, Any]
    relevance: str
    evaluated: int
    excluded: int
    groups: int
    grouped_by: str
    settings: Mapping[str, Setting]
    retention: Interval | None
    retention_reason: str
    update_gain: Interval | None
    update_gain_reason: str
    verdict: Verdict
    transformer: Bridge | None
    comparisons: tuple[Bridge, ...]
    notes: tuple[str, ...]

    def to_dict(self) -> dict[str, Any]:
        """The report as plain JSON values."""
        return {
            "format_version": REPORT_VERSION,
            "verdict": self.verdict.to_dict(),
            "settings": {name: self.settings[name].to_dict() for name in SETTINGS},
            "reasons": {name: self.settings[name].reason for name in SETTINGS if self.settings[name].reason},
            "retention": _plain(self.retention),
            "retention_reason": self.retention_reason,
            "update_gain": _plain(self.update_gain),
            "update_gain_reason": self.update_gain_reason,
            "relevance": self.relevance,
            "queries_evaluated": self.evaluated,
            "queries_excluded": self.excluded,
            "groups": self.groups,
            "grouped_by": self.grouped_by,
            "gallery": dict(self.gallery),
            "queries": dict(self.queries),
            "transformer": self.transformer.to_dict() if self.transformer else None,
            "comparisons": [bridge.to_dict() for bridge in self.comparisons],
            "notes": list(self.notes),
        }


def _plain(value: Interval | None) -> dict[str, float] | None:
    return value.to_dict() if value is not None else None


@dataclass(frozen=True)
class MappedRows:
    """A gallery seen through a transformer, mapped block by block."""

    gallery: EmbeddingStore
    transformer: Transformer

    def __len__(self) -> int:
        return len(self.gallery)

    def rows(self, start: int, stop: int) -> np.ndarray:
        """Mapped vectors start..stop-1."""
        return self.transformer.transform(self.gallery.rows(start, stop))


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
        gallery: The old model's gallery, or one migrated or re-embedded into the queries' space.
        queries: The new model's queries.
        transformer: The map under judgement; `new-to-old` maps the queries, `old-to-new` the gallery.
        old_queries: The same queries through the old model; makes old-to-old, retention and a verdict possible.
        new_gallery: The same gallery re-embedded by the new model; makes new-to-new and update gain possible.
        relevance: `label` (same label, the query's own item excluded), `item` (same item id), `auto` (label where
            both tables have one, else item), or the path of a table with columns query_id, item_id and perhaps grade
            (0 is irrelevant).
        comparisons: Further transformers by name, measured against the same native settings.
        seed: Of the bootstrap.
        on_setting: Called with a line before each setting is measured.

    Raises:
        WrongSpace: If a store or transformer does not fit the others.
        ValueError: If the relevance cannot be formed, or leaves no query.
    """
    study = _Study(queries, gallery, relevance, seed, on_setting or (lambda _: None))
    study.relevance_in(gallery)  # a mistake in it is told before anything is measured
    bridges = {"the transformer": transformer} if transformer else {}
    bridges |= comparisons or {}
    per_query: dict[str, np.ndarray] = {}
    reasons: dict[str, str] = dict.fromkeys(SETTINGS, "")
    migrated = gallery.space == queries.space and _is_migrated(gallery.provenance)
    if gallery.space == queries.space:
        if bridges:
            raise WrongSpace(f"gallery and queries are both in {queries.space}: there is nothing to bridge")
        per_query["transformed" if migrated else "new_to_new"] = study.measure("search", queries, gallery, gallery)
        reasons["naive"] = "gallery and queries are in one space"
        if not migrated:
            reasons["transformed"] = "the gallery is native to the queries' space"
    else:
        for bridge in bridges.values():
            sides = (queries.space, gallery.space)
            bridge.require(bridge.direction, *(sides if bridge.direction == "new-to-old" else sides[::-1]))
        if gallery.space.dim == queries.space.dim:
            per_query["naive"] = study.measure("naive", queries, gallery, gallery)
        else:
            reasons["naive"] = f"{queries.space.dim}-D queries cannot search a {gallery.space.dim}-D gallery"
        if not transformer:
            reasons["transformed"] = "no transformer was given"
    reasons["transformed_uncorrected"] = "the transformer carries no hubness correction"
    if old_queries is not None and (migrated or gallery.space != queries.space):
        if migrated:
            reasons["old_to_old"] = "the old gallery was not given, only the migrated one"
        else:
            _require_space("--old-queries", old_queries, gallery)
            per_query["old_to_old"] = study.measure("old to old", old_queries, gallery, gallery)
    else:
        reasons["old_to_old"] = "needs --old-queries, the same queries through the old model"
    if new_gallery is not None:
        _require_space("--new-gallery", new_gallery, queries)
        _require_same_items(new_gallery, gallery)
        per_query["new_to_new"] = study.measure("new to new", queries, new_gallery, new_gallery)
    elif "new_to_new" not in per_query:
        reasons["new_to_new"] = "needs --new-gallery, the gallery re-embedded by the new model"
    bridged = {name: study.bridge(name, bridge, gallery) for name, bridge in bridges.items()}
    if transformer:
        per_query["transformed"] = bridged["the transformer"]
    if not per_query and not bridged:
        raise ValueError(f"there is nothing to measure ({reasons['naive']}); pass --transformer or --old-queries")
    return _summarise(study, gallery, queries, transformer, comparisons or {}, per_query, bridged, reasons)


class _Study:
    """The queries, what is relevant to them, and which of them can be evaluated."""

    def __init__(
        self, queries: EmbeddingStore, gallery: EmbeddingStore, relevance: str, seed: int, say: OnSetting
    ) -> None:
        if not len(queries):
            raise ValueError(f"the query store {queries.path} is empty; extract or convert embeddings into it first")
        self.queries, self.seed, self.say = queries, seed, say
        labelled = all("label" in store.items.columns for store in (queries, gallery))
        self.relevance = relevance if relevance != "auto" else ("label" if labelled else "item")
        self.counts: np.ndarray | None = None
        self.query_vectors: dict[str, np.ndarray] = {}

    def measure(self, name: str, queries: EmbeddingStore, items: EmbeddingStore, gallery: Rows) -> np.ndarray:
        """Per-query measures, floats [q, 5], of queries against a gallery whose item table is that of `items`."""
        self.say(name)
        return self._scores(self._vectors(queries), items, gallery)

    def bridge(self, name: str, bridge: Transformer, gallery: EmbeddingStore) -> np.ndarray:
        """Per-query measures through a transformer."""
        self.say(f"through {name} ({bridge.family}, {bridge.direction})")
        vectors = self._vectors(self.queries)
        if bridge.direction == "new-to-old":
            return self._scores(bridge.transform(vectors), gallery, gallery)
        return self._scores(vectors, gallery, MappedRows(gallery, bridge))

    def _vectors(self, store: EmbeddingStore) -> np.ndarray:
        key = str(store.path)
        if key not in self.query_vectors:
            rows = _rows_of(self.queries.items["item_id"], store.items["item_id"])
            if (rows < 0).any():
                raise ValueError(
                    f"{int((rows < 0).sum())} of {len(rows)} queries are not in {store.path}; "
                    "--old-queries must hold the same items as --queries"
                )
            self.query_vectors[key] = store.take(rows)
        return self.query_vectors[key]

    def _scores(self, vectors: np.ndarray, items: EmbeddingStore, gallery: Rows) -> np.ndarray:
        relevance = self.relevance_in(items)
        scores = retrieval_scores(relevant_ranks(vectors, gallery, relevance), relevance)
        columns = (scores.recall_at_1, scores.recall_at_5, scores.recall_at_10)
        return np.stack([*columns, scores.average_precision, scores.reciprocal_rank], axis=1)

    def relevance_in(self, gallery: EmbeddingStore) -> Relevance:
        """What is relevant to each query among a gallery's items."""
        relevance = self._relevance(gallery)
        self.counts = relevance.counts
        if not (self.counts > 0).any():
            raise ValueError(
                f"no query has a relevant item in {gallery.path} under relevance {self.relevance!r}; "
                "check the labels or ids, or choose another --relevance"
            )
        return relevance

    def _relevance(self, gallery: EmbeddingStore) -> Relevance:
        if not len(gallery):
            raise ValueError(f"the gallery {gallery.path} is empty; extract or convert embeddings into it first")
        own = _rows_of(self.queries.items["item_id"], gallery.items["item_id"])
        if self.relevance == "item":
            return Relevance.by_item(own)
        if self.relevance == "label":
            codes = label_codes(pl.concat(_labels(self.queries, gallery)))
            asked, held = codes[: len(own)], codes[len(own) :]
            return Relevance.by_label(np.where(asked < 0, -2, asked), held, own)  # an unknown label matches none
        return _judged(Path(self.relevance), self.queries, gallery)

    @property
    def groups(self) -> tuple[np.ndarray | None, str]:
        """Codes by which queries are drawn together in the bootstrap, or None, and what they are."""
        if "label" not in self.queries.items.columns:
            return None, "query"
        codes = label_codes(self.queries.items["label"])
        alone = np.flatnonzero(codes < 0)  # a query of unknown label is a group of its own
        codes[alone] = len(codes) + alone
        return codes, "label"


def _summarise(
    study: _Study,
    gallery: EmbeddingStore,
    queries: EmbeddingStore,
    transformer: Transformer | None,
    comparisons: Mapping[str, Transformer],
    per_query: Mapping[str, np.ndarray],
    bridged: Mapping[str, np.ndarray],
    reasons: Mapping[str, str],
) -> CompatibilityReport:
    assert study.counts is not None
    asked = study.counts > 0
    codes, grouped_by = study.groups
    clusters = codes[asked] if codes is not None else None
    groups = len(np.unique(clusters)) if clusters is not None else int(asked.sum())
    tables = {**per_query, **{f"bridge:{name}": values for name, values in bridged.items()}}
    joined = np.concatenate([values[asked] for values in tables.values()], axis=1)
    draws = bootstrap_means(joined, clusters, seed=study.seed)
    means = joined.mean(axis=0)
    column = {name: i * len(MEASURES) for i, name in enumerate(tables)}  # recall@1 comes first

    def setting(name: str) -> Setting:
        if name not in tables:
            return Setting(None, reasons.get(name, ""))
        found = {
            measure: proportion_interval(means[column[name] + i], draws[:, column[name] + i], groups)
            for i, measure in enumerate(MEASURES)
        }
        return Setting(found)

    def compare(name: str, formula: Callable[..., Any], *others: str) -> Interval | None:
        # The same draws on both sides: what the queries have in common cancels.
        if any(other not in tables for other in (name, *others)):
            return None
        indices = [column[other] for other in (name, *others)]
        with np.errstate(divide="ignore", invalid="ignore"):
            value, drawn = formula(*means[indices]), formula(*draws[:, indices].T)
        if not np.isfinite(value):  # a share of nothing
            return None
        return interval(value, np.where(np.isfinite(drawn), drawn, np.nan))

    model_gain = compare("new_to_new", lambda new, old: new - old, "old_to_old")
    gainful = model_gain is not None and model_gain.value > 0

    def retention(name: str) -> Interval | None:
        return compare(name, lambda bridge, old: bridge / old, "old_to_old")

    def update_gain(name: str) -> Interval | None:
        if not gainful:
            return None
        return compare(name, lambda b, old, new: (b - old) / (new - old), "old_to_old", "new_to_new")

    def bridge(name: str, fitted: Transformer) -> Bridge:
        key = f"bridge:{name}"
        shown = fitted.family if name == "the transformer" else name
        return Bridge(
            shown, fitted.family, fitted.direction, setting(key), retention(key), update_gain(key), fitted.training
        )

    settings = {name: setting(name) for name in SETTINGS}
    old_zero = "old_to_old" in tables and means[column["old_to_old"]] == 0
    kept = None if old_zero else retention("transformed")
    evidence = Evidence(
        direction=transformer.direction if transformer else None,
        old_to_old=_recall(settings["old_to_old"]),
        new_to_new=_recall(settings["new_to_new"]),
        transformed=_recall(settings["transformed"]),
        retention=kept,
        bridge_gain=compare("transformed", lambda b, old: b - old, "old_to_old"),
        model_gain=model_gain,
        groups=groups,
    )
    return CompatibilityReport(
        gallery={"path": str(gallery.path), "space": gallery.space.to_dict(), "rows": len(gallery)},
        queries={"path": str(queries.path), "space": queries.space.to_dict(), "rows": len(queries)},
        relevance=study.relevance,
        evaluated=int(asked.sum()),
        excluded=int((~asked).sum()),
        groups=groups,
        grouped_by=grouped_by,
        settings=settings,
        retention=kept,
        retention_reason="" if kept else _retention_reason(settings, old_zero=bool(old_zero)),
        update_gain=update_gain("transformed"),
        update_gain_reason=_gain_reason(settings, model_gain),
        verdict=decide(evidence),
        transformer=bridge("the transformer", transformer) if transformer else None,
        comparisons=tuple(bridge(name, fitted) for name, fitted in comparisons.items()),
        notes=_notes(study, gallery, groups, transformer),
    )


def _recall(setting: Setting) -> Interval | None:
    return setting.measures["recall_at_1"] if setting.measures else None


def _retention_reason(settings: Mapping[str, Setting], *, old_zero: bool) -> str:
    if old_zero:
        return "old-to-old finds nothing, so there is nothing to retain"
    missing = [name for name in ("transformed", "old_to_old") if settings[name].measures is None]
    return f"needs {' and '.join(missing)}"


def _gain_reason(settings: Mapping[str, Setting], model_gain: Interval | None) -> str:
    missing = [name for name in ("transformed", "old_to_old", "new_to_new") if settings[name].measures is None]
    if missing:
        return f"needs {' and '.join(missing)}"
    if model_gain is not None and model_gain.value <= 0:
        return "new-to-new does not exceed old-to-old, so there is no gain to share"
    return ""


def _notes(study: _Study, gallery: EmbeddingStore, groups: int, transformer: Transformer | None) -> tuple[str, ...]:
    notes = list(transformer.training.get("notes", [])) if transformer else []
    for store in (gallery, study.queries):
        if store.provenance.get("complete") is False:
            notes.append(f"{store.path} is unfinished, {len(store)} rows so far; run the command that writes it again")
    if study.relevance == "item":
        notes.append(
            "each query's answer is the gallery's own embedding of the same item, which flatters every map: "
            "judge with real queries where you can (labels, or --relevance TABLE)"
        )
    if groups < 100:
        unit = "identities" if study.groups[1] == "label" else "queries"
        notes.append(
            f"intervals rest on {groups} {unit} only and are wide; differences inside them mean nothing, and at "
            f"exactly 0 or 1 they are the binomial bound for {groups} {unit} that all agree"
        )
    return tuple(notes)


def _require_space(option: str, store: EmbeddingStore, like: EmbeddingStore) -> None:
    if store.space != like.space:
        raise WrongSpace(f"{option} {store.path} is in {store.space}, expected the space of {like.path}: {like.space}")


def _require_same_items(new_gallery: EmbeddingStore, gallery: EmbeddingStore) -> None:
    ours, theirs = new_gallery.items["item_id"], gallery.items["item_id"]
    rows = _rows_of(theirs, ours)
    if len(ours) != len(theirs) or (rows < 0).any():
        raise ValueError(
            f"--new-gallery {new_gallery.path} must hold the items of {gallery.path}, each once: found {len(ours)} "
            f"items, {int((rows >= 0).sum())} of the gallery's {len(theirs)}"
        )


def _rows_of(wanted: pl.Series, ids: pl.Series) -> np.ndarray:
    """The row in `ids` of each wanted id, or -1, int64 [len(wanted)]."""
    if wanted.dtype != ids.dtype:
        raise ValueError(f"item ids are {wanted.dtype} in one store and {ids.dtype} in another; use one type")
    table = pl.DataFrame({"item_id": ids}).with_row_index("row")
    rows = pl.DataFrame({"item_id": wanted}).join(table, on="item_id", how="left", maintain_order="left")["row"]
    return rows.cast(pl.Int64).fill_null(-1).to_numpy()


def _is_migrated(provenance: Mapping[str, Any]) -> bool:
    # A copy of a migrated gallery keeps the origin under source_provenance, however often it was copied.
    source = provenance.get("source_provenance")
    return "transformer" in provenance or (isinstance(source, Mapping) and _is_migrated(source))


def _labels(queries: EmbeddingStore, gallery: EmbeddingStore) -> tuple[pl.Series, pl.Series]:
    for store in (queries, gallery):
        if "label" not in store.items.columns:
            raise ValueError(f"relevance 'label' needs a column label, which {store.path} lacks; use 'item'")
    ours, theirs = queries.items["label"], gallery.items["label"]
    if ours.dtype != theirs.dtype:
        raise ValueError(
            f"labels are {ours.dtype} in {queries.path} and {theirs.dtype} in {gallery.path}; use one type"
        )
    return ours, theirs


def _judged(path: Path, queries: EmbeddingStore, gallery: EmbeddingStore) -> Relevance:
    if not path.is_file():
        raise FileNotFoundError(f"--relevance {path} is not 'label', 'item', 'auto' or an existing table")
    table = read_item_table(path, "query_id")
    if "item_id" not in table.columns:
        raise ValueError(f"{path} needs the columns query_id and item_id, found {', '.join(table.columns)}")
    if "grade" in table.columns:  # a grade of 0 was judged, and found irrelevant
        if not table["grade"].dtype.is_numeric():
            raise ValueError(f"grade in {path} must be a number, found {table['grade'].dtype}")
        table = table.filter(pl.col("grade") > 0)
    query, row = (
        _rows_of(table[name].cast(ids.dtype, strict=False), ids)
        for name, ids in (("query_id", queries.items["item_id"]), ("item_id", gallery.items["item_id"]))
    )
    known = (query >= 0) & (row >= 0)
    return Relevance.by_judgement(len(queries), query[known], row[known])
