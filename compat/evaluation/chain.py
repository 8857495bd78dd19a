"""A chain of models, each replacing the one before: every model's queries in every earlier model's gallery."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import pairwise

import numpy as np

from compat.evaluation.record import MEASURES
from compat.evaluation.searched import Searched
from compat.evaluation.study import OnSetting, Study
from compat.metrics.chain import ChainCompatibility, Ties, chain_compatibility
from compat.transformers.artefact import Transformer
from compat.transformers.serving import served_rows
from stores.store import EmbeddingStore

Bridges = Mapping[tuple[int, int], Transformer]


def evaluate_chain(
    galleries: Sequence[EmbeddingStore],
    queries: Sequence[EmbeddingStore],
    bridges: Bridges,
    *,
    relevance: str = "auto",
    measure: str = "recall_at_1",
    ties: Ties = "not_compatible",
    on_setting: OnSetting | None = None,
) -> tuple[np.ndarray, ChainCompatibility]:
    """Accuracy of each model's queries in its own gallery and in those before it, and what the chain keeps.

    Where no transformer leads straight from a model to an earlier one, queries go through the models between.

    Args:
        galleries: The same items as each model embedded them, the oldest model first, n >= 2.
        queries: The same queries, likewise.
        bridges: `bridges[later, earlier]` maps queries of a later model (counted from 0) into an earlier one's gallery;
            those between neighbours at least.
        relevance: As in `compat.evaluation.compatibility.evaluate`.
        measure: One of `compat.evaluation.record.MEASURES`.
        ties: Whether an equal accuracy counts as compatible.
        on_setting: Called with a line before each search.

    Returns:
        Accuracies, float64 [n, n], NaN above the diagonal, and their summary.

    Raises:
        WrongSpace: If a transformer does not fit the stores it stands between.
        ValueError: If a bridge is missing or maps a gallery, or relevance cannot be formed.
    """
    if len(galleries) != len(queries) or len(galleries) < 2:
        raise ValueError(f"a chain needs a gallery and queries of each model, found {len(galleries)}, {len(queries)}")
    say, column = on_setting or (lambda _: None), MEASURES.index(measure)
    accuracy = np.full((len(galleries), len(galleries)), np.nan)
    for later, asking in enumerate(queries):
        for earlier, gallery in enumerate(galleries[: later + 1]):
            say(f"queries of model {later} in the gallery of model {earlier}")
            study = Study(asking, gallery, relevance, say)
            searched = study.plain(asking)
            if later > earlier:
                searched = _through(_path(bridges, later, earlier), study, galleries)
            accuracy[later, earlier] = np.nanmean(study.measure(searched)[:, column])
    return accuracy, chain_compatibility(accuracy, ties=ties)


def _path(bridges: Bridges, later: int, earlier: int) -> list[tuple[int, Transformer]]:
    """Transformers from a later model to an earlier one, each with the model that it leads to."""
    if (later, earlier) in bridges:
        return [(earlier, bridges[later, earlier])]
    if (later, later - 1) not in bridges:
        raise ValueError(f"no transformer leads from model {later} to model {earlier}, nor to {later - 1} on the way")
    return [(later - 1, bridges[later, later - 1]), *_path(bridges, later - 1, earlier)]


def _through(path: list[tuple[int, Transformer]], study: Study, galleries: Sequence[EmbeddingStore]) -> Searched:
    spaces = [study.queries.space, *(galleries[model].space for model, _ in path)]
    for (_, bridge), (source, target) in zip(path, pairwise(spaces), strict=True):
        bridge.require("new-to-old", source, target)
    vectors = study.vectors_of(study.queries)
    for _, bridge in path[:-1]:
        vectors = bridge.transform(vectors)
    last = path[-1][1]
    return Searched(last.serve_queries(vectors), served_rows(study.gallery, last), last.served_space.similarity)
