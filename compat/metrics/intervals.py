"""How far a measured mean may be from the true one: intervals from a bootstrap over whole identities, or over queries.

The bootstrap gives standard errors. Percentiles of its draws are not used for what is reported: near 0 and 1 they are
too narrow, and where every query agrees they shrink to a point. A mean of values between 0 and 1 gets a Wilson interval
for as many independent queries as its standard error is worth; a difference is what queries gained less what they lost,
two such means; and a ratio gets the Fieller interval of that difference.

Legend: q queries, g groups (identities, or single queries), m measures, r resamples.
"""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from statistics import NormalDist

import numpy as np

RESAMPLES = 2000
LEVEL = 0.95
UNSEEN_WEIGHT = 0.15
"""Failing groups' worth of prior belief that a group fails as one: nothing beside data, everything at a recall of 1."""


@dataclass(frozen=True)
class Interval:
    """A value and the ends of its 95% interval."""

    value: float
    low: float
    high: float

    def to_dict(self) -> dict[str, float]:
        """The three numbers by name."""
        return asdict(self)

    def __str__(self) -> str:
        return f"{self.value:.3f} [{self.low:.3f}, {self.high:.3f}]"


class Bootstrap:
    """Measures between 0 and 1 of the same queries, resampled together: intervals of their means and comparisons.

    Args:
        values: One measure a column, floats [q, m] between 0 and 1.
        clusters: Integer codes [q]; queries of one code (an identity) are drawn together, because they are not
            independent of each other. None draws single queries.
        resamples: Number of draws.
        seed: The same seed gives the same draws.

    Raises:
        ValueError: If there is no query, or a value is not between 0 and 1.
    """

    def __init__(
        self, values: np.ndarray, clusters: np.ndarray | None = None, *, resamples: int = RESAMPLES, seed: int = 0
    ) -> None:
        values = np.asarray(values, np.float64)
        if not len(values):
            raise ValueError("there is no query to resample; at least one is needed")
        if not ((values >= 0) & (values <= 1)).all():
            raise ValueError("measures must lie between 0 and 1, found others or NaN; leave out queries without answer")
        self._codes = np.arange(len(values)) if clusters is None else np.unique(clusters, return_inverse=True)[1]
        self._sizes = np.bincount(self._codes).astype(np.float64)
        self.queries, self.groups = len(values), len(self._sizes)
        self._mates = float((self._sizes**2).sum() / self.queries)  # size of the group that a query is in, on average
        self.effective_groups = self.queries / self._mates
        self._values = np.ascontiguousarray(values.T)
        self.means = values.mean(axis=0)
        draws = np.ascontiguousarray(bootstrap_means(values, clusters, resamples=resamples, seed=seed).T)
        self._drawn = draws - draws.mean(axis=1, keepdims=True)  # [m, r]

    def proportion(self, column: int) -> Interval:
        """The mean of a measure: Wilson's interval for the effective number of independent queries.

        That number is p (1 - p) / s^2 with the bootstrap's standard error s. The fewer groups failed (or succeeded),
        the less s says, and the more the number is drawn to that of the groups: as if each had one answer.

        Sources: Wilson, J. Am. Stat. Assoc. 22 (1927); Korn and Graubard, Survey Methodology 24 (1998), for the
        effective sample; Kish, "Survey Sampling", 1965, for groups of unequal size.
        """
        p = float(self.means[column])
        if self.groups < 2:
            return Interval(p, 0.0, 1.0)
        variance = self._covariance(self._drawn[[column]])[0, 0]
        low, high = self._wilson(p, self._inverse_size(p * (1 - p), variance, 1 / self.effective_groups))
        return Interval(p, min(low, p), max(high, p))

    def difference(self, column: int, over: int) -> Interval:
        """One measure less another of the same queries: the interval of gains less that of losses.

        Gains and losses each get an interval like `proportion`, so that two systems that were never seen to differ are
        not taken for equal; how much queries of one group go together is, until changes show it, taken from the two
        measures themselves. Source: Newcombe, Statistics in Medicine 17 (1998), squaring and adding the arms.
        """
        value = float(self.means[column] - self.means[over])
        if self.groups < 2:
            return Interval(value, -1.0, 1.0)
        below, above = self._arms(column, over)
        return Interval(value, max(-1.0, value - below), min(1.0, value + above))

    def ratio(self, column: int, over: int) -> Interval | None:
        """One measure as a share of another of the same queries; None where the other's mean is 0.

        Where the other may be as good as 0, all that bounds the share is that no mean exceeds 1. Source: Fieller,
        J. R. Stat. Soc. B 16 (1954): the ratios r at which the mean of a - r b may be 0.
        """
        above, below = float(self.means[column]), float(self.means[over])
        if below == 0:
            return None
        most = max(1 / (self.proportion(over).low or 1 / self.queries), above / below)
        low, high = self._fieller(self._drawn[[column, over]], (above, below), (column, over)) or (0.0, most)
        return Interval(above / below, max(0.0, low), min(high, most))

    def share(self, column: int, start: int, end: int) -> Interval | None:
        """How much of the way from `start` to `end` a measure comes; None where that way is not surely above 0."""
        draws = self._drawn[[column, end]] - self._drawn[start]
        above, below = (float(self.means[c] - self.means[start]) for c in (column, end))
        found = self._fieller(draws, (above, below), (column, end)) if below > 0 else None
        return Interval(above / below, *found) if found else None

    def _covariance(self, drawn: np.ndarray) -> np.ndarray:
        """Of means, [k, k], from their centred draws [k, r]; those of few groups vary too little by that share."""
        return drawn @ drawn.T / (drawn.shape[1] - 1) * self._few

    @property
    def _few(self) -> float:
        return self.effective_groups / max(self.effective_groups - 1, 0.5)

    def _inverse_size(self, spread: float, variance: float, expected: float) -> float:
        """1 / the effective number of queries, from p (1 - p) and the mean's variance; `expected` where both are 0."""
        seen = self.effective_groups * spread
        return float((self.effective_groups * variance + UNSEEN_WEIGHT * expected) / (seen + UNSEEN_WEIGHT))

    def _wilson(self, p: float, inverse: float) -> tuple[float, float]:
        """The ends for 1 / inverse independent queries."""
        return wilson_ends(p, student_quantile(self._degrees(self.queries * inverse)), 1 / inverse)

    def _changed(self, p: float, inverse: float) -> tuple[float, float]:
        """The ends for a share of queries that changed; where none did, only the upper can err, with all the doubt."""
        return self._wilson(p, inverse) if p > 0 else (0.0, 1 - (1 - LEVEL) ** inverse)

    def _degrees(self, design: float) -> float:
        """Degrees of freedom of a variance of groups of unequal size (Satterthwaite), the design effect being known."""
        alike = min(max((design - 1) / (self._mates - 1), 0.0), 1.0) if self._mates > 1 else 0.0
        shares = self._sizes * (1 + (self._sizes - 1) * alike)
        return float(shares.sum() ** 2 / (shares**2).sum()) - 1

    def _arms(self, column: int, over: int) -> tuple[float, float]:
        """How far a difference may lie below and above its measured value."""
        pair = self.means[[column, over]]
        spread = float((pair * (1 - pair)).sum())
        variance = float(np.trace(self._covariance(self._drawn[[column, over]])))
        expected = self._inverse_size(spread, variance, 1 / self.effective_groups)
        change = self._values[column] - self._values[over]
        gained, lost = np.maximum(change, 0), np.maximum(-change, 0)
        means = float(gained.mean()), float(lost.mean())
        # What a bootstrap's covariance of these two comes to, without drawing again.
        residuals = np.stack(
            [np.bincount(self._codes, x - mean) for x, mean in zip((gained, lost), means, strict=True)]
        )
        covariance = residuals @ residuals.T / self.queries**2 * self._few
        (gain_low, gain_high), (loss_low, loss_high) = (
            self._changed(p, self._inverse_size(p * (1 - p), covariance[i, i], expected)) for i, p in enumerate(means)
        )
        scale = math.sqrt(covariance[0, 0] * covariance[1, 1])
        together = float(covariance[0, 1]) / scale if scale > 0 else 0.0

        def arm(of_gains: float, of_losses: float) -> float:
            return math.sqrt(max(of_gains**2 + of_losses**2 - 2 * together * of_gains * of_losses, 0.0))

        return arm(means[0] - gain_low, loss_high - means[1]), arm(gain_high - means[0], means[1] - loss_low)

    def _fieller(
        self, draws: np.ndarray, means: tuple[float, float], pair: tuple[int, int]
    ) -> tuple[float, float] | None:
        """Ends of means[0] / means[1], whose centred draws are [2, r]; None where no ratio can be ruled out on a side.

        Their difference is that of the measures `pair`, and may vary by more than its draws do (see `difference`).
        """
        if self.groups < 2:
            return None
        above, below = means
        square = student_quantile(self.effective_groups - 1) ** 2
        covariance = self._covariance(draws)
        drawn = covariance[0, 0] + covariance[1, 1] - 2 * covariance[0, 1]
        ends = []
        for sign, arm in zip((-1, 1), self._arms(*pair), strict=True):
            unseen = max(arm**2 / square - drawn, 0.0)
            a = below**2 - square * covariance[1, 1]
            b = above * below - square * covariance[0, 1]
            c = above**2 - square * (covariance[0, 0] + unseen)
            if a <= 0 or b * b < a * c:
                return None
            ends.append(float((b + sign * math.sqrt(b * b - a * c)) / a))
        return ends[0], ends[1]


def bootstrap_means(
    values: np.ndarray, clusters: np.ndarray | None = None, *, resamples: int = RESAMPLES, seed: int = 0
) -> np.ndarray:
    """Means of resampled queries, float64 [r, m]; columns share the draws, so they compare in pairs.

    Args:
        values: One measure a column, floats [q, m].
        clusters: Integer codes [q] of queries that are drawn together. None draws single queries.
        resamples: Number of draws.
        seed: The same seed gives the same draws.

    Source: Efron and Tibshirani, "An Introduction to the Bootstrap", 1993; the cluster form draws whole groups.
    """
    generator = np.random.default_rng(seed)
    if clusters is None:
        sums, counts = values, np.ones(len(values))
    else:
        codes = np.unique(clusters, return_inverse=True)[1]
        counts = np.bincount(codes).astype(float)
        sums = np.zeros((len(counts), values.shape[1]))
        np.add.at(sums, codes, values)
    groups = len(counts)
    means = np.empty((resamples, values.shape[1]))
    step = max(1, 2_000_000 // groups)
    for start in range(0, resamples, step):
        size = min(step, resamples - start)
        drawn = generator.integers(groups, size=(size, groups)) + np.arange(size)[:, None] * groups
        weights = np.bincount(drawn.ravel(), minlength=size * groups).reshape(size, groups).astype(np.float64)
        means[start : start + size] = (weights @ sums) / (weights @ counts)[:, None]
    return means


def interval(value: float, means: np.ndarray) -> Interval:
    """The percentile interval of a measured value from its bootstrap means [r]; NaN draws are left out.

    For any statistic, of any range. It has nothing to say where no draw differs, and is narrow for few groups: means
    between 0 and 1 are better served by `Bootstrap`.
    """
    tail = 100 * (1 - LEVEL) / 2
    low, high = np.nanpercentile(means, [tail, 100 - tail])
    return Interval(float(value), float(low), float(high))


def wilson_ends(share: float, quantile: float, trials: float) -> tuple[float, float]:
    """Ends of Wilson's interval, which does not shrink to a point at shares of 0 and 1.

    Args:
        share: Measured, in 0..1.
        quantile: How many standard errors the interval reaches to either side.
        trials: Independent trials it was measured on, perhaps an effective number.

    Source: Wilson, J. Am. Stat. Assoc. 22 (1927).
    """
    square = quantile**2 / trials
    centre, half = share + square / 2, math.sqrt(square * (share * (1 - share) + square / 4))
    return max(0.0, (centre - half) / (1 + square)), min(1.0, (centre + half) / (1 + square))


def student_quantile(degrees: float) -> float:
    """The t by which a two-sided interval of `LEVEL` reaches out; below 2 degrees of freedom that of 2.

    Within 0.2% from 3 degrees up, 4% too small at 2. Source: the expansion in Abramowitz and Stegun, 26.7.5.
    """
    z = NormalDist().inv_cdf((1 + LEVEL) / 2)
    terms = (
        (z**3 + z) / 4,
        (5 * z**5 + 16 * z**3 + 3 * z) / 96,
        (3 * z**7 + 19 * z**5 + 17 * z**3 - 15 * z) / 384,
        (79 * z**9 + 776 * z**7 + 1482 * z**5 - 1920 * z**3 - 945 * z) / 92160,
    )
    return z + sum(term / max(degrees, 2.0) ** power for power, term in enumerate(terms, start=1))
