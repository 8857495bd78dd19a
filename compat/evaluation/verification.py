"""One-to-one comparison of every setting, as a section of a report, and what the old system's threshold does in each.

Scores are counted by up to `GROUPS` random groups of the queries' identities, and intervals draw those groups; with no
more identities than that, each is its own group.

Source: random groups after Wolter, "Introduction to Variance Estimation", 2007.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from compat.evaluation.reached import DRAWS, Reached, identity_draws, reached_at
from compat.evaluation.record import OLD
from compat.evaluation.searched import Searched, continued, mate_counts
from compat.metrics.score_histogram import OnPairs, ScoreHistogram, cross_histogram
from compat.metrics.verification import ErrorCurve, KeptThreshold, OperatingPoint, keep_threshold, unsupported

FARS = (1e-2, 1e-3, 1e-4, 1e-6)
KEPT_FAR = 1e-3
"""Where the old system's threshold is set, if its pairs allow."""
GROUPS = 50


@dataclass(frozen=True, eq=False)
class SettingVerification:
    """One-to-one comparison in one setting.

    Attributes:
        genuine_pairs: Pairs of one identity, a query's own item left out.
        impostor_pairs: Pairs of two identities.
        equal_error_rate: Where FAR and FRR are equal.
        tar_at_far: TAR at each FAR asked for.
        drawn: The curve at a few hundred thresholds.
        bars: Edges [b + 1] and shares of genuine and of impostor pairs [b].
    """

    genuine_pairs: int
    impostor_pairs: int
    equal_error_rate: float
    tar_at_far: tuple[Reached, ...]
    drawn: ErrorCurve
    bars: tuple[np.ndarray, np.ndarray, np.ndarray]

    def to_dict(self) -> dict[str, Any]:
        """Plain values."""
        edges, genuine, impostor = (values.tolist() for values in self.bars)
        far, tar, frr = (values.tolist() for values in (self.drawn.far, self.drawn.tar, self.drawn.frr))
        return {
            "genuine_pairs": self.genuine_pairs,
            "impostor_pairs": self.impostor_pairs,
            "equal_error_rate": self.equal_error_rate,
            "tar_at_far": [reached.to_dict("far", "tar") for reached in self.tar_at_far],
            "roc": {"far": far, "tar": tar},
            "det": {"fmr": far, "fnmr": frr},
            "precision_recall": {"recall": tar, "precision": self.drawn.precision.tolist()},
            "histogram": {"edges": edges, "genuine": genuine, "impostor": impostor},
        }


@dataclass(frozen=True)
class OldThreshold:
    """The old system's operating point, and what becomes of it in each setting.

    Attributes:
        far: Target false accept rate.
        old: The threshold that holds it on old-to-old scores.
        settings: What keeping it, and setting it anew, does.
    """

    far: float
    old: OperatingPoint
    settings: Mapping[str, KeptThreshold]

    def to_dict(self) -> dict[str, Any]:
        """Plain values."""
        settings = {name: kept.to_dict() for name, kept in self.settings.items()}
        return {"far": self.far, "threshold": self.old.threshold, "settings": settings}


@dataclass(frozen=True)
class VerificationSection:
    """One-to-one comparison side by side; without settings the reason says why."""

    settings: Mapping[str, SettingVerification] = field(default_factory=dict)
    old_threshold: OldThreshold | None = None
    reason: str = ""

    def to_dict(self) -> dict[str, Any]:
        """Plain values."""
        return {
            "settings": {name: setting.to_dict() for name, setting in self.settings.items()},
            "old_threshold": self.old_threshold.to_dict() if self.old_threshold else None,
            "reason": self.reason,
        }


def verification_section(
    settings: Mapping[str, Searched],
    query_labels: np.ndarray,
    gallery_labels: np.ndarray,
    own: np.ndarray,
    *,
    fars: Sequence[float] = FARS,
    kept_far: float = KEPT_FAR,
    seed: int = 0,
    on_pairs: OnPairs | None = None,
) -> VerificationSection:
    """Compare every query with every gallery item in each setting.

    Args:
        settings: By name, `old_to_old` among them where the old threshold is to be judged.
        query_labels: Integer codes [q].
        gallery_labels: Integer codes [g] of the common gallery.
        own: The common gallery's row that is the query's own item, or -1, int64 [q].
        fars: False accept rates to report.
        kept_far: Where the old threshold is set; the next higher of `fars` where impostor pairs are too few.
        seed: Of the intervals.
        on_pairs: Called with pairs scored and all pairs, over all settings.

    Raises:
        ValueError: If sizes do not fit, or a vector is not finite.
    """
    mates = mate_counts(query_labels, gallery_labels, own)
    genuine = int(mates.sum())
    impostor = len(query_labels) * len(gallery_labels) - int((own >= 0).sum()) - genuine
    if not genuine or not impostor:
        return VerificationSection(reason=f"found {genuine} genuine and {impostor} impostor pairs, expected both")
    generator = np.random.default_rng(seed)
    identity = np.unique(query_labels, return_inverse=True)[1].reshape(-1)
    identities = int(identity.max()) + 1
    groups = (generator.permutation(identities) % GROUPS)[identity]
    weights = identity_draws(generator, int(groups.max()) + 1, DRAWS)
    mated_identities = len(np.unique(identity[mates > 0]))
    measured: dict[str, SettingVerification] = {}
    curves: dict[str, ErrorCurve] = {}
    pairs = len(query_labels) * len(gallery_labels)
    for number, (name, searched) in enumerate(settings.items()):
        labels, mine = searched.moved(gallery_labels, own)
        histogram = cross_histogram(
            searched.queries,
            searched.gallery,
            query_labels,
            labels,
            mine,
            similarity=searched.similarity,
            groups=groups,
            on_pairs=continued(on_pairs, number * pairs, len(settings) * pairs),
        )
        curves[name] = histogram.curve()
        measured[name] = _verification(histogram, curves[name], weights, fars, mated_identities)
    return VerificationSection(measured, *_old_threshold(curves, [kept_far, *fars], kept_far))


def _verification(
    histogram: ScoreHistogram, curve: ErrorCurve, weights: np.ndarray, fars: Sequence[float], identities: int
) -> SettingVerification:
    draws = histogram.resampled_tar(weights, np.asarray(fars))
    return SettingVerification(
        genuine_pairs=curve.genuine_pairs,
        impostor_pairs=curve.impostor_pairs,
        equal_error_rate=curve.equal_error_rate(),
        tar_at_far=tuple(
            reached_at(curve, far, draws[:, i], identities, weights.shape[1], "impostor pairs")
            for i, far in enumerate(fars)
        ),
        drawn=curve.thinned(),
        bars=histogram.shares(),
    )


def _old_threshold(
    curves: Mapping[str, ErrorCurve], fars: Sequence[float], least: float
) -> tuple[OldThreshold | None, str]:
    if OLD not in curves:
        return None, "the old threshold needs old-to-old scores; give the queries through the old model too"
    allowed = [far for far in fars if far >= least and not unsupported(far, curves[OLD].impostor_pairs)]
    if not allowed:
        return None, f"the old threshold: {unsupported(least, curves[OLD].impostor_pairs)}"
    far = min(allowed)
    old = curves[OLD].at_far(far)
    if not np.isfinite(old.threshold):
        return None, f"the old threshold: more than {far:g} of the impostor pairs tie at the highest score"
    return OldThreshold(far, old, {name: keep_threshold(old, curve, far) for name, curve in curves.items()}), ""
