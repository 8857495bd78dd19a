"""Open-set identification of every setting, as a section of a report."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from compat.evaluation.reached import DRAWS, Reached, identity_draws, reached_at
from compat.evaluation.searched import Searched, continued, mate_counts
from compat.metrics.openset import ProbeScores, search_probes, withheld_identities
from compat.metrics.score_histogram import OnPairs
from compat.metrics.verification import ErrorCurve

FPIRS = (1e-1, 1e-2, 1e-3)
WITHHELD = 0.25
"""Share of identities taken out of the gallery where every probe has a mate."""
_DRAWN_AT_ONCE = 4_000_000


@dataclass(frozen=True, eq=False)
class SettingOpenSet:
    """Open-set identification in one setting: the curve at a few hundred thresholds, TPIR at each FPIR asked for."""

    drawn: ErrorCurve
    tpir_at_fpir: tuple[Reached, ...]

    def to_dict(self) -> dict[str, Any]:
        """Plain values."""
        return {
            "fpir": self.drawn.far.tolist(),
            "tpir": self.drawn.tar.tolist(),
            "tpir_at_fpir": [reached.to_dict("fpir", "tpir") for reached in self.tpir_at_fpir],
        }


@dataclass(frozen=True)
class OpenSetSection:
    """Open-set identification side by side; without settings the reason says why.

    Attributes:
        unknown_probes: Queries without a mate in the gallery searched.
        mated_probes: Queries with one.
        withheld: Whether identities were taken out of the gallery to have unknown probes.
        settings: By name.
        reason: Why there are none.
    """

    unknown_probes: int
    mated_probes: int
    withheld: bool
    settings: Mapping[str, SettingOpenSet] = field(default_factory=dict)
    reason: str = ""

    def to_dict(self) -> dict[str, Any]:
        """Plain values."""
        return {
            "unknown_probes": self.unknown_probes,
            "mated_probes": self.mated_probes,
            "withheld": self.withheld,
            "settings": {name: setting.to_dict() for name, setting in self.settings.items()},
            "reason": self.reason,
        }


def open_set_section(
    settings: Mapping[str, Searched],
    query_labels: np.ndarray,
    gallery_labels: np.ndarray,
    own: np.ndarray,
    *,
    fpirs: Sequence[float] = FPIRS,
    rank: int = 1,
    withheld: float = WITHHELD,
    seed: int = 0,
    on_pairs: OnPairs | None = None,
) -> OpenSetSection:
    """Search for every query in each setting, where some have no mate in the gallery.

    Where each query has one, a share of identities is taken out of the gallery, the same in every setting.

    Args:
        settings: By name.
        query_labels: Integer codes [q].
        gallery_labels: Integer codes [g] of the common gallery.
        own: The common gallery's row that is the query's own item, or -1, int64 [q].
        fpirs: False positive identification rates to report.
        rank: A mate counts among so many first items.
        withheld: Share of identities to take out.
        seed: Of what is taken out, and of the intervals.
        on_pairs: Called with pairs scored and all pairs, over all settings.

    Raises:
        ValueError: If sizes do not fit, or a vector is not finite.
    """
    mated, enrolled = mate_counts(query_labels, gallery_labels, own) > 0, np.ones(len(gallery_labels), bool)
    take_out = bool(mated.all()) and len(np.intersect1d(query_labels, gallery_labels)) > 1
    if take_out:
        enrolled = withheld_identities(query_labels, gallery_labels, share=withheld, seed=seed)
        mated = np.isin(query_labels, gallery_labels[enrolled])
    counts = (int((~mated).sum()), int(mated.sum()))
    if not all(counts):
        return OpenSetSection(*counts, take_out, reason=f"found {counts[1]} mated and {counts[0]} unknown probes")
    identity = np.unique(query_labels, return_inverse=True)[1].reshape(-1)
    pairs = len(query_labels) * int(enrolled.sum())
    found: dict[str, SettingOpenSet] = {}
    for number, (name, searched) in enumerate(settings.items()):
        labels, mine = searched.moved(gallery_labels, own)
        probes = search_probes(
            searched.queries,
            searched.gallery,
            query_labels,
            labels,
            mine,
            enrolled=np.isin(labels, gallery_labels[enrolled]),
            similarity=searched.similarity,
            rank=rank,
            on_pairs=continued(on_pairs, number * pairs, len(settings) * pairs),
        )
        found[name] = _open_set(probes, identity, fpirs, seed)
    return OpenSetSection(*counts, take_out, found)


def _open_set(probes: ProbeScores, identity: np.ndarray, fpirs: Sequence[float], seed: int) -> SettingOpenSet:
    curve, generator, identities = probes.curve(), np.random.default_rng(seed), int(identity.max()) + 1
    step = max(1, _DRAWN_AT_ONCE // len(identity))
    parts = [identity_draws(generator, identities, min(step, DRAWS - start)) for start in range(0, DRAWS, step)]
    draws = np.concatenate([probes.resampled_tpir(part[:, identity], np.asarray(fpirs)) for part in parts])
    mated = len(np.unique(identity[~probes.unknown]))
    reached = (
        reached_at(curve, fpir, draws[:, i], mated, identities, "unknown probes") for i, fpir in enumerate(fpirs)
    )
    return SettingOpenSet(curve.thinned(), tuple(reached))
