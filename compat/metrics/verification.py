"""One-to-one comparison: what a threshold accepts of pairs of one identity (genuine) and of two (impostor).

A pair is accepted when its score is at least the threshold, so pairs that tie are accepted together or not at all.
FAR (false accept rate, FMR) is the share of impostor pairs accepted, TAR (true accept rate, TPR) that of genuine pairs;
FRR = 1 - TAR (FNMR). Every figure here is read off one `ErrorCurve`: what each threshold accepts. It comes from scores
exactly (`ErrorCurve.of_scores`), or from counts in bins where pairs are too many (`ScoreHistogram.curve`).

Source: ISO/IEC 19795-1:2021, "Biometric performance testing and reporting"; Fawcett, "An introduction to ROC analysis",
Pattern Recognition Letters 27 (2006).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class OperatingPoint:
    """One threshold with the share of impostor pairs it accepts and of genuine pairs it rejects.

    Attributes:
        threshold: Lowest score accepted; infinite where nothing may be accepted.
        far: False accept rate at the threshold, in [0, 1].
        frr: False reject rate at the threshold, in [0, 1].
    """

    threshold: float
    far: float
    frr: float

    @property
    def tar(self) -> float:
        """True accept rate."""
        return 1.0 - self.frr

    def to_dict(self) -> dict[str, float | None]:
        """The three numbers by name; no threshold where it is infinite."""
        threshold = self.threshold if np.isfinite(self.threshold) else None
        return {"threshold": threshold, "far": self.far, "frr": self.frr}


def unsupported(rate: float, impostors: int, noun: str = "impostor pairs") -> str:
    """Why so many impostors cannot show a false accept rate, or an empty string where they can.

    Below one in `impostors` a rate of nothing accepted at all would be reported, which no data stands behind.
    """
    if rate * impostors >= 1 - 1e-9:  # 1e-3 of 1,000 is one
        return ""
    return f"a rate of {rate:g} needs at least {int(np.ceil(1 / rate - 1e-6)):,} {noun}, found {impostors:,}"


@dataclass(frozen=True, eq=False)
class ErrorCurve:
    """What each threshold accepts, from the strictest.

    Attributes:
        thresholds: Falling, float64 [n]; the first is infinite and accepts nothing.
        genuine_accepted: Genuine pairs that score at least the threshold, rising, int64 [n].
        impostor_accepted: Impostor pairs that do, rising, int64 [n].
        genuine_pairs: All genuine pairs.
        impostor_pairs: All impostor pairs.

    Raises:
        ValueError: If there are no genuine or no impostor pairs.
    """

    thresholds: np.ndarray
    genuine_accepted: np.ndarray
    impostor_accepted: np.ndarray
    genuine_pairs: int
    impostor_pairs: int

    def __post_init__(self) -> None:
        if self.genuine_pairs < 1 or self.impostor_pairs < 1:
            raise ValueError(
                f"found {self.genuine_pairs} genuine and {self.impostor_pairs} impostor pairs, expected both; "
                "give two items of one identity and items of two"
            )

    @classmethod
    def of_scores(cls, scores: np.ndarray, same: np.ndarray) -> ErrorCurve:
        """The exact curve, with every score that occurs as a threshold.

        Args:
            scores: Higher is more alike, floats [p].
            same: Whether a pair is of one identity, bool [p].

        Raises:
            ValueError: If lengths differ, a score is not a number, or either kind of pair is missing.
        """
        scores, same = np.asarray(scores), np.asarray(same, bool)
        if scores.ndim != 1 or scores.shape != same.shape:
            raise ValueError(f"scores have shape {list(scores.shape)}, flags {list(same.shape)}; expected one per pair")
        if np.isnan(scores).any():
            raise ValueError(f"{int(np.isnan(scores).sum())} of {len(scores)} scores are not numbers; leave them out")
        order = np.argsort(-scores, kind="stable")
        falling, genuine = scores[order], same[order]
        last = np.flatnonzero(np.append(falling[1:] != falling[:-1], True)) if len(falling) else np.empty(0, np.int64)
        accepted = np.cumsum(genuine)[last]
        return cls(
            thresholds=np.concatenate([[np.inf], falling[last].astype(np.float64)]),
            genuine_accepted=np.concatenate([[0], accepted]),
            impostor_accepted=np.concatenate([[0], last + 1 - accepted]),
            genuine_pairs=int(same.sum()),
            impostor_pairs=int(len(same) - same.sum()),
        )

    @property
    def far(self) -> np.ndarray:
        """False accept rate (FMR) at each threshold, float64 [n], rising; with `tar` the ROC, with `frr` the DET."""
        return self.impostor_accepted / self.impostor_pairs

    @property
    def tar(self) -> np.ndarray:
        """True accept rate at each threshold, float64 [n], rising; also the recall of a precision-recall curve."""
        return self.genuine_accepted / self.genuine_pairs

    @property
    def frr(self) -> np.ndarray:
        """False reject rate (FNMR) at each threshold, float64 [n], falling."""
        return (self.genuine_pairs - self.genuine_accepted) / self.genuine_pairs

    @property
    def precision(self) -> np.ndarray:
        """Share of genuine pairs among those accepted, float64 [n]; 1 where nothing is accepted."""
        accepted = self.genuine_accepted + self.impostor_accepted
        return np.where(accepted > 0, self.genuine_accepted / np.maximum(accepted, 1), 1.0)

    def at_far(self, far: float) -> OperatingPoint:
        """The lowest threshold whose false accept rate is at most `far`: TAR@FAR, and FNMR@FMR.

        Raises:
            ValueError: If there are fewer than 1 / far impostor pairs; see `unsupported`.
        """
        if not 0 < far <= 1:
            raise ValueError(f"a false accept rate is above 0 and at most 1, found {far}")
        if reason := unsupported(far, self.impostor_pairs):
            raise ValueError(reason)
        return self._point(int(np.searchsorted(self.far, far, "right")) - 1)

    def at_threshold(self, threshold: float) -> OperatingPoint:
        """What a given threshold does to these pairs.

        On a curve of bins a threshold inside a bin counts as the bin's upper edge.
        """
        accepted = int(np.searchsorted(-self.thresholds, -threshold, "right")) - 1
        point = self._point(max(accepted, 0))
        return OperatingPoint(float(threshold), point.far, point.frr)

    def equal_error_rate(self) -> float:
        """Where FAR and FRR are equal, on the straight line between the two thresholds at which they cross."""
        gap = self.far - self.frr  # from -1, nothing accepted, to 1 or so
        after = int(np.argmax(gap >= 0)) if (gap >= 0).any() else len(gap) - 1
        before = max(after - 1, 0)
        rise = gap[after] - gap[before]
        part = -gap[before] / rise if rise > 0 else 0.0
        return float(self.far[before] + part * (self.far[after] - self.far[before]))

    def thinned(self, points: int = 200) -> ErrorCurve:
        """At most `points` thresholds for drawing, spaced evenly in the logarithm of FAR and in that of FRR."""
        if len(self.thresholds) <= points:
            return self
        each = (points - 2) // 2
        far = np.geomspace(1 / self.impostor_pairs, 1, each)
        frr = np.geomspace(1 / self.genuine_pairs, 1, each)
        by_far = np.searchsorted(self.far, far, "right") - 1
        by_frr = np.searchsorted(-self.frr, -frr, "left")
        last = len(self.thresholds) - 1
        kept = np.unique(np.concatenate([[0, last], by_far, np.minimum(by_frr, last)]))
        return ErrorCurve(
            self.thresholds[kept],
            self.genuine_accepted[kept],
            self.impostor_accepted[kept],
            self.genuine_pairs,
            self.impostor_pairs,
        )

    def _point(self, i: int) -> OperatingPoint:
        return OperatingPoint(float(self.thresholds[i]), float(self.far[i]), float(self.frr[i]))


@dataclass(frozen=True)
class KeptThreshold:
    """What becomes of other scores when the threshold of the old ones is kept, and when it is set anew.

    Attributes:
        kept: The old threshold on these scores.
        recalibrated: The threshold that holds the target FAR on these scores.
    """

    kept: OperatingPoint
    recalibrated: OperatingPoint

    def to_dict(self) -> dict[str, object]:
        """FAR and FRR at the old threshold, and the recalibrated point."""
        return {"far": self.kept.far, "frr": self.kept.frr, "recalibrated": self.recalibrated.to_dict()}


def keep_threshold(old: OperatingPoint, curve: ErrorCurve, far: float) -> KeptThreshold:
    """What an operating point of the old system does to another one's pairs.

    Args:
        old: Chosen on old-to-old scores at the target FAR.
        curve: Of the other scores, after the bridge for example.
        far: The target FAR.

    Raises:
        ValueError: If the other pairs are too few for that FAR.
    """
    return KeptThreshold(curve.at_threshold(old.threshold), curve.at_far(far))
