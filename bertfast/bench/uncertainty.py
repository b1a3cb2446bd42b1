"""Uncertainty: intervals by the bootstrap (Efron 1979), and the exact test of paired rights and wrongs.

All resampling begins with one seed, so that a report tells the same each time it is written.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from bertfast.errors import DataError

Score = Callable[[Sequence[Any], Sequence[Any]], Mapping[str, float]]
RESAMPLES = 400
SCORED_RESAMPLES = 100
NORMAL_975 = 1.96


class Estimate(NamedTuple):
    """A figure and its 95% interval."""

    value: float
    low: float
    high: float

    def overlaps(self, other: Estimate) -> bool:
        return self.low <= other.high and other.low <= self.high


def median(samples: Sequence[float]) -> Estimate:
    """The median; of five samples or fewer the interval goes from the least to the greatest."""
    values = np.asarray(samples, float)
    rows = np.random.default_rng(0).integers(0, len(values), (RESAMPLES, len(values)))
    return _estimate(float(np.median(values)), np.median(values[rows], axis=1))


def percentile(repeats: Sequence[Sequence[float]], percent: float) -> Estimate:
    """A percentile over all samples; repeats are resampled, and in each of them the samples.

    Args:
        repeats: [R, N], the same requests in each.
    """
    values = np.asarray(repeats, float)
    source = np.random.default_rng(0)
    rows = source.integers(0, values.shape[0], (RESAMPLES, values.shape[0], 1))
    columns = source.integers(0, values.shape[1], (RESAMPLES, *values.shape))
    resampled = values[rows, columns].reshape(RESAMPLES, -1)
    return _estimate(float(np.percentile(values, percent)), np.percentile(resampled, percent, axis=1))


def paired_ratio(numerators: Sequence[float], denominators: Sequence[float]) -> Estimate:
    """The median of the ratios within a repeat, which both sides measured under the same conditions.

    Where one side has more repeats than the other, those that both have count.
    """
    return median([a / b for a, b in zip(numerators, denominators, strict=False)])


def mcnemar_p(lost: int, gained: int) -> float:
    """How probable a difference at least this large is where lost and gained are equally likely (McNemar 1947, exact).

    Args:
        lost: rows that the first gets right and the second wrong.
        gained: the other way round.
    """
    from scipy.stats import binomtest

    return float(binomtest(lost, lost + gained).pvalue) if lost + gained else 1.0


def proportions_p(right: tuple[int, int], rows: tuple[int, int]) -> float:
    """How probable a difference at least this large is between two samples of one source (Fisher 1922, exact)."""
    from scipy.stats import fisher_exact

    table = [[count, total - count] for count, total in zip(right, rows, strict=True)]
    return float(fisher_exact(table).pvalue)


def resampled(score: Score, metric: str, answers: Sequence[Any], golds: Sequence[Any]) -> list[float] | None:
    """The metric on resamples of the rows, which are the same for all answers; None where one cannot be scored.

    Scoring may be slow, so there are few resamples: they tell a standard error.
    """
    source = np.random.default_rng(0)
    draws = (source.integers(0, len(golds), len(golds)).tolist() for _ in range(SCORED_RESAMPLES))
    try:
        return [score([answers[i] for i in rows], [golds[i] for i in rows])[metric] for rows in draws]
    except DataError:
        return None


def drop_interval(
    drop: float, before: Sequence[float] | None, after: Sequence[float] | None
) -> tuple[float, float] | None:
    """95% interval of the reference's metric minus another's; it is normal.

    Args:
        drop: that of all rows, in the middle of the interval.
        before: the reference's metric, `resampled`.
        after: the other's.
    """
    if before is None or after is None:
        return None
    reach = NORMAL_975 * float(np.std(np.subtract(before, after), ddof=1))
    return drop - reach, drop + reach


def _estimate(value: float, resampled: np.ndarray[Any, Any]) -> Estimate:
    low, high = np.percentile(resampled, (2.5, 97.5))
    return Estimate(value, float(low), float(high))
