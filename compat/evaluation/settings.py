"""The ways of searching that the given stores can form: by name, and for those they cannot, why."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from compat.evaluation.record import NAIVE, NEW, OLD, OLD_CORRECTED, SERVED, SETTINGS, UNCORRECTED
from compat.evaluation.searched import Searched
from compat.evaluation.study import Study, require_space
from compat.transformers.artefact import Transformer, WrongSpace
from compat.transformers.serving import is_lifted, is_migrated, query_form
from stores.store import EmbeddingStore

_NEEDS_OLD_GALLERY = (
    "the old gallery was not given, so old queries have nothing to search; evaluate it, with the transformer, to "
    "compare"
)
_NEEDS_OLD_QUERIES = "needs --old-queries, the same queries through the old model"


@dataclass(frozen=True)
class Settings:
    """What can be searched, and how.

    Attributes:
        searches: By name: those of compat.evaluation.record's `SETTINGS` that could be formed, and compared
            transformers by theirs.
        bridges: The transformers among them, by the names of their searches.
        reasons: Why others of `SETTINGS` could not be formed.
    """

    searches: Mapping[str, Searched]
    bridges: Mapping[str, Transformer]
    reasons: Mapping[str, str]


def form_settings(
    study: Study,
    *,
    transformer: Transformer | None = None,
    old_queries: EmbeddingStore | None = None,
    new_gallery: EmbeddingStore | None = None,
    comparisons: Mapping[str, Transformer] | None = None,
) -> Settings:
    """Form every setting that the stores allow; arguments as in `compat.evaluation.compatibility.evaluate`.

    Raises:
        WrongSpace: If a store or transformer does not fit the others.
        ValueError: If nothing can be formed.
    """
    gallery, queries = study.gallery, study.queries
    bridges = {**({SERVED: transformer} if transformer else {}), **(comparisons or {})}
    if taken := [name for name in comparisons or {} if name in SETTINGS]:
        raise ValueError(f"a compared transformer cannot be called {taken[0]!r}, which is a setting; rename it")
    corrected = transformer is not None and transformer.correction is not None
    uncorrected = "the transformer carries no hubness correction" if transformer else "there is no hubness correction"
    reasons = {UNCORRECTED: uncorrected, OLD_CORRECTED: uncorrected, SERVED: "no transformer was given"}
    searches: dict[str, Searched] = {}
    if is_lifted(gallery):
        searches |= _migrated_with_correction(study, transformer, comparisons)
        reasons |= {NAIVE: "the gallery was migrated", OLD: _NEEDS_OLD_GALLERY, OLD_CORRECTED: _NEEDS_OLD_GALLERY}
    elif gallery.space == queries.space:
        if bridges:
            raise WrongSpace(f"gallery and queries are both in {queries.space}: there is nothing to bridge")
        searches[SERVED if is_migrated(gallery.provenance) else NEW] = study.plain(queries)
        reasons |= {
            NAIVE: "gallery and queries are in one space",
            OLD: _NEEDS_OLD_GALLERY,
            SERVED: "the gallery is native to the queries' space",
        }
    else:
        for bridge in bridges.values():
            sides = (queries.space, gallery.space)
            bridge.require(bridge.direction, *(sides if bridge.direction == "new-to-old" else sides[::-1]))
        reasons |= {
            NAIVE: f"{queries.space.dim}-D queries cannot search a {gallery.space.dim}-D gallery",
            OLD: _NEEDS_OLD_QUERIES,
        }
        if gallery.space.dim == queries.space.dim:
            searches[NAIVE] = study.plain(queries)
        if corrected:
            reasons[OLD_CORRECTED] = _NEEDS_OLD_QUERIES
        if old_queries is not None:
            require_space("--old-queries", old_queries, gallery)
            searches[OLD] = study.plain(old_queries)
            if transformer and corrected:
                searches[OLD_CORRECTED] = study.corrected(old_queries, transformer)
    reasons[NEW] = "needs --new-gallery, the gallery re-embedded by the new model"
    if new_gallery is not None:
        require_space("--new-gallery", new_gallery, queries)
        searches[NEW] = study.elsewhere(new_gallery)
    searches |= {name: study.bridged(bridge) for name, bridge in bridges.items() if name not in searches}
    if transformer and corrected and UNCORRECTED not in searches:
        searches[UNCORRECTED] = study.bridged(transformer.without_correction())
    if not searches:
        raise ValueError(f"there is nothing to measure ({reasons[NAIVE]}); pass --transformer or --old-queries")
    return Settings(searches, bridges, reasons)


def _migrated_with_correction(
    study: Study, transformer: Transformer | None, comparisons: Mapping[str, Transformer] | None
) -> dict[str, Searched]:
    gallery, queries = study.gallery, study.queries
    if comparisons:
        raise WrongSpace(f"{gallery.path} was migrated for one transformer; compare others on the old gallery")
    expected = query_form(gallery, transformer).space
    if queries.space != expected:
        raise WrongSpace(f"queries {queries.path} are in {queries.space}, those of {gallery.path} are in {expected}")
    return {SERVED: study.migrated(transformer), UNCORRECTED: study.migrated(transformer, corrected=False)}
