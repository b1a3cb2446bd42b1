"""The scenarios, in MLPerf's words, and what is decided between measurements. child.py does the measuring."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from enum import StrEnum

import numpy as np

from bertfast.bench.results import ServerRun

SPREAD_LIMIT = 0.1
PROBES = 7


class Scenario(StrEnum):
    """All are end to end, from the text to the answer.

    offline: all requests are there at once. offline-given: the same, and batches are cut in the order of the file.
    single-stream: one at a time, each when the last is answered. server: at random times, at the highest rate that
    keeps p99 under a bound.
    """

    OFFLINE = "offline"
    OFFLINE_GIVEN = "offline-given"
    SINGLE_STREAM = "single-stream"
    SERVER = "server"


USUAL = (Scenario.OFFLINE, Scenario.SINGLE_STREAM)


def relative_spread(samples: Sequence[float]) -> float:
    """How wide the middle half of the samples is, by their median; 0 for fewer than two."""
    if len(samples) < 2:
        return 0.0
    low, middle, high = np.percentile(samples, (25, 50, 75))
    return float((high - low) / middle)


def holds(run: ServerRun, bound_p99_ms: float) -> bool:
    """Whether 99% of the requests were answered within the bound."""
    return p99_ms(run) <= bound_p99_ms


def p99_ms(run: ServerRun) -> float:
    """The time within which 99% of the requests were answered, from their arrival on."""
    return float(np.percentile(run.latency_ms, 99))


def highest_rate(
    probe: Callable[[float], ServerRun], start_per_s: float, bound_p99_ms: float, probes: int = PROBES
) -> list[ServerRun]:
    """Try rates, by halves of the gap on a logarithmic scale, for the highest whose p99 stays within the bound.

    Args:
        probe: measures at a rate.
        start_per_s: the first rate; from there it is doubled or halved until one holds and one does not.
    Returns:
        All that was tried. It ends early where even a request that waited for nothing took longer than the bound.
    """
    runs: list[ServerRun] = []
    holding: float | None = None
    failing: float | None = None
    while len(runs) < probes:
        rate = _next_rate(holding, failing) or start_per_s
        runs.append(probe(rate))
        if holds(runs[-1], bound_p99_ms):
            holding = rate
        elif min(runs[-1].latency_ms) > bound_p99_ms:
            break
        else:
            failing = rate
    return runs


def _next_rate(holding: float | None, failing: float | None) -> float | None:
    if holding is None:
        return None if failing is None else failing / 2
    return holding * 2 if failing is None else math.sqrt(holding * failing)
