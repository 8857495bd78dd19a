"""Differences between cells of bench_synthetic, and how far chance may have moved them.

Legend: q queries, k settings (counts and size), s seeds.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from scipy import stats

from compat.metrics.intervals import Bootstrap, student_quantile

RESAMPLES = 1000
LEVEL = 0.95

Hits = Mapping[str, Mapping[int, np.ndarray]]
"""By setting and seed: whether each query found its character, or the share of several cells that did, [q]."""


@dataclass(frozen=True)
class Estimate:
    """A share or a difference of shares, with its interval over characters and seeds.

    Attributes:
        value: Mean over queries, seeds and settings.
        low: End of the interval.
        high: End of the interval.
        units: Settings times seeds that it rests on.
    """

    value: float
    low: float
    high: float
    units: int

    @property
    def sign(self) -> int:
        """1 or -1 where the interval leaves no doubt, else 0."""
        return 1 if self.low > 0 else -1 if self.high < 0 else 0

    def __str__(self) -> str:
        return f"{self.value:.3f} [{self.low:.3f}, {self.high:.3f}]"

    @property
    def signed(self) -> str:
        """As a difference."""
        return f"{self.value:+.3f} [{self.low:+.3f}, {self.high:+.3f}]"


def parse(digits: str) -> np.ndarray:
    """Digits 0 and 1 as float64 [q]."""
    return np.frombuffer(digits.encode(), np.uint8).astype(np.float64) - ord("0")


def share(hits: Hits, labels: np.ndarray) -> Estimate:
    """How many queries found their character.

    Args:
        hits: Of a cell.
        labels: The character of each query, integer codes [q].
    """
    mean, seeds = _mean(hits), _of_seeds({k: [float(v.mean()) for v in of.values()] for k, of in hits.items()})
    found = Bootstrap(mean[:, None], labels, resamples=RESAMPLES).proportion(0)
    return _combined(found.value, (found.value - found.low, found.high - found.value), labels, seeds, hits, (0.0, 1.0))


def difference(one: Hits, other: Hits, labels: np.ndarray, *, comparisons: int = 1) -> Estimate | None:
    """One less the other, paired by setting, seed and query; None where no seed has both.

    Characters and seeds are two sources of chance, and their variances are added: that of characters by a bootstrap
    which draws characters with all their queries, from hits averaged over seeds and settings; that of seeds from how
    the difference varies from seed to seed within a setting. The reach is Student's t for the degrees of freedom of the
    sum. What a character does with one seed alone is in both, which makes the interval a little wide. With one seed
    there is no variance between seeds, and the interval is over characters alone.

    Args:
        one: Hits.
        other: Hits of the same queries.
        labels: The character of each query, integer codes [q].
        comparisons: How many differences a reader picks from: the interval then holds for all of them at once.

    Sources: Newcombe, Statistics in Medicine 17 (1998), for the ends over characters; Satterthwaite, Biometrics
    Bulletin 2 (1946), for the degrees of freedom; Bonferroni for several comparisons.
    """
    shared = {k: sorted(set(one[k]) & set(other[k])) for k in one if k in other}
    shared = {k: seeds for k, seeds in shared.items() if seeds}
    if not shared:
        return None
    a, b = ({k: {s: side[k][s] for s in seeds} for k, seeds in shared.items()} for side in (one, other))
    changes = {k: [float((a[k][s] - b[k][s]).mean()) for s in seeds] for k, seeds in shared.items()}
    values = np.stack([_mean(a), _mean(b)], axis=1)
    found = Bootstrap(np.clip(values, 0.0, 1.0), labels, resamples=RESAMPLES).difference(0, 1)
    arms = (found.value - found.low, found.high - found.value)
    return _combined(found.value, arms, labels, _of_seeds(changes), a, (-1.0, 1.0), comparisons)


def _mean(hits: Hits) -> np.ndarray:
    """Over seeds, then over settings, each setting counting alike."""
    return np.mean([np.mean([*of.values()], axis=0) for of in hits.values()], axis=0)


def _of_seeds(values: Mapping[str, Sequence[float]]) -> tuple[float, float]:
    """Variance of the mean that is due to seeds, and its degrees of freedom; 0 of them where no setting has two.

    A setting of one seed is taken to vary as those of several do on average.
    """
    known = [float(np.var(of, ddof=1)) for of in values.values() if len(of) > 1]
    if not known:
        return 0.0, 0.0
    each = [float(np.var(of, ddof=1)) if len(of) > 1 else float(np.mean(known)) for of in values.values()]
    parts = [variance / len(of) for variance, of in zip(each, values.values(), strict=True)]
    spread = sum(part**2 / max(len(of) - 1, 1) for part, of in zip(parts, values.values(), strict=True))
    degrees = sum(parts) ** 2 / spread if spread > 0 else sum(len(of) - 1 for of in values.values())
    return sum(parts) / len(values) ** 2, float(degrees)


def _combined(
    value: float,
    arms: tuple[float, float],
    labels: np.ndarray,
    of_seeds: tuple[float, float],
    hits: Hits,
    limits: tuple[float, float],
    comparisons: int = 1,
) -> Estimate:
    of_characters = max(len(np.unique(labels)) - 1.0, 1.0)
    variance, degrees_of_seeds = of_seeds
    reaches = []
    for arm in arms:
        own = (arm / student_quantile(of_characters)) ** 2  # the ends are as far as if this were the variance
        total, degrees = own + variance, of_characters
        if variance > 0:
            degrees = total**2 / (own**2 / of_characters + variance**2 / degrees_of_seeds)
        quantile = float(stats.t.ppf(1 - (1 - LEVEL) / 2 / comparisons, degrees))
        reaches.append(quantile * math.sqrt(total))
    low, high = max(limits[0], value - reaches[0]), min(limits[1], value + reaches[1])
    return Estimate(value, low, high, sum(len(of) for of in hits.values()))
