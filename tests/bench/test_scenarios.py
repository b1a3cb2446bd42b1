from __future__ import annotations

import math
from collections.abc import Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bertfast.bench.results import ServerRun
from bertfast.bench.scenarios import PROBES, highest_rate, holds, relative_spread


def queue_of(capacity_per_s: float, service_ms: float = 10.0) -> Callable[[float], ServerRun]:
    """Latencies that grow without bound towards the capacity, as of an M/M/1 queue."""

    def probe(rate_per_s: float) -> ServerRun:
        free = max(1 - rate_per_s / capacity_per_s, 1e-6)
        slow = service_ms / free
        return ServerRun(rate_per_s=rate_per_s, latency_ms=(service_ms, *(slow for _ in range(199))))

    return probe


@given(
    capacity_per_s=st.floats(1, 1e5),
    start=st.floats(0.3, 3),
    slack=st.floats(2, 20),
)
def test_the_highest_rate_is_bracketed_on_a_logarithmic_scale(
    capacity_per_s: float, start: float, slack: float
) -> None:
    probe = queue_of(capacity_per_s)
    best_per_s = capacity_per_s * (1 - 1 / slack)
    runs = highest_rate(probe, start * capacity_per_s, bound_p99_ms=10 * slack)
    assert len(runs) == PROBES
    holding = max((run.rate_per_s for run in runs if holds(run, 10 * slack)), default=0.0)
    failing = min((run.rate_per_s for run in runs if not holds(run, 10 * slack)), default=math.inf)
    assert holding <= best_per_s * (1 + 1e-9)
    assert failing >= best_per_s * (1 - 1e-9)
    assert failing / holding <= 2 ** (1 / 2**2)  # four of seven halve the gap at the least twice


def test_the_search_ends_where_no_rate_could_hold() -> None:
    runs = highest_rate(queue_of(100.0, service_ms=30.0), 100.0, bound_p99_ms=20.0)
    assert [run.rate_per_s for run in runs] == [100.0]


def test_the_ninety_ninth_percentile_decides() -> None:
    run = ServerRun(rate_per_s=1.0, latency_ms=(*(1.0 for _ in range(99)), 50.0, *(1.0 for _ in range(101))))
    assert holds(run, 2.0)
    assert not holds(ServerRun(rate_per_s=1.0, latency_ms=(1.0, 50.0)), 2.0)


def test_the_spread_is_that_of_the_middle_half() -> None:
    assert relative_spread([1.0, 2.0, 3.0, 4.0, 5.0]) == pytest.approx(2 / 3)
    assert relative_spread([10.0, 10.0, 10.0, 10.0, 99.0]) == 0.0
    assert relative_spread([7.0]) == relative_spread([]) == 0.0
