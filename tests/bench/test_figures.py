from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bertfast.bench.figures import figures, pareto_front, times_faster
from bertfast.bench.results import OfflineRun
from tests.bench.made import UNLABELLED, failed, measured, results, served

POINTS = st.lists(st.tuples(st.integers(0, 9), st.integers(0, 9)), min_size=1, max_size=20)


@given(points=POINTS)
def test_nothing_beats_the_front_and_all_else_is_beaten_or_equalled(points: list[tuple[int, int]]) -> None:
    front = [points[i] for i in pareto_front(points)]
    assert front == sorted(set(front))
    for x, y in points:
        beaten = any(a >= x and b >= y for a, b in front if (a, b) != (x, y))
        assert beaten != ((x, y) in front)


def test_figures_follow_from_the_samples() -> None:
    other = measured(
        "b", [200.0, 210.0, 220.0], lost=12, gained=2, offline_given=(OfflineRun(phases_s={}, elapsed_s=8),)
    )
    reference, row = figures(results(measured("a", [100.0, 105.0, 110.0]), other))
    assert (reference.score, reference.drop, reference.drop_interval) == (90.0, None, None)
    assert row.score == pytest.approx(89.0)
    assert row.drop == pytest.approx(1.0)
    assert row.drop_interval == pytest.approx((1 - 0.1960 * 14**0.5, 1 + 0.1960 * 14**0.5))
    assert row.mcnemar == pytest.approx(2 * (1 + 14 + 91) / 2**14)
    assert row.sequences_per_s == pytest.approx((210, 200, 220))
    assert row.given_sequences_per_s == pytest.approx((125, 125, 125))
    assert row.real_tokens_per_s == pytest.approx(4200)
    assert row.speedup == pytest.approx((2, 2, 2))
    assert (row.p50_ms or (0,))[0] == 4.0
    assert reference.us_per_sequence == pytest.approx({"tokenize": 2386, "compute": 7157}, rel=1e-3)
    assert row.padding == {"offline": pytest.approx(0.2)}


def test_what_was_not_measured_is_none() -> None:
    bare = measured("b", metrics={}, offline=(), latency_ms=(), real_tokens=None, padded_tokens={}, sequences=None)
    row = figures(results(measured("a"), bare, failed("c"), **UNLABELLED))[1]
    assert (row.score, row.drop, row.sequences_per_s, row.speedup, row.p99_ms, row.server_per_s) == (None,) * 6
    assert row.us_per_sequence == row.padding == row.joules == {}


def test_energy_is_told_where_every_repeat_has_it() -> None:
    runs = tuple(OfflineRun(phases_s={}, elapsed_s=1, energy_j={"cpu": joules}) for joules in (40, 50, 90))
    (row,) = figures(results(measured("a", offline=runs)))
    assert row.joules == {"cpu": 50.0}
    (row,) = figures(results(measured("a", offline=(*runs, OfflineRun(phases_s={}, elapsed_s=1)))))
    assert row.joules == {}


def test_the_highest_rate_is_one_that_holds() -> None:
    runs = (served(100, 9), served(200, 30), served(140, 11), served(120, 10))
    within, none = figures(results(measured("a", server=runs), measured("b", server=(served(1, 11),)), bound_p99_ms=10))
    assert (within.server_per_s, none.server_per_s) == (120, 0)


def test_without_throughput_latencies_are_compared() -> None:
    slow, fast = (measured(name, offline=(), latency_ms=((ms,) * 5,) * 3) for name, ms in (("a", 8.0), ("b", 2.0)))
    assert times_faster(fast, slow) == (4, 4, 4)
    assert times_faster(fast, measured("c", latency_ms=())) is None
