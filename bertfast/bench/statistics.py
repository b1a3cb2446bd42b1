"""Uncertainty."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from bertfast.errors import DataError

Score = Callable[[Sequence[Any], Sequence[Any]], Mapping[str, float]]


def drop_interval(
    score: Score, metric: str, reference: Sequence[Any], answers: Sequence[Any], golds: Sequence[Any]
) -> tuple[float, float] | None:
    """95% interval of the reference's metric minus that of the answers, by resampling rows, both alike."""
    source, drops = np.random.default_rng(0), []
    for _ in range(100):
        rows = source.integers(0, len(golds), len(golds))
        chosen = [golds[i] for i in rows]
        try:
            before, after = (score([found[i] for i in rows], chosen)[metric] for found in (reference, answers))
        except DataError:
            return None
        drops.append(before - after)
    low, high = np.percentile(drops, (2.5, 97.5))
    return float(low), float(high)
