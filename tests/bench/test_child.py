from __future__ import annotations

import ast
import math
import sys
from collections.abc import Callable, Sequence
from itertools import accumulate, pairwise
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bertfast.bench import child
from bertfast.bench.child import Bench, Rapl, Watch, poisson, rapl, reply, serve


class FakeClock:
    """Time passes only when somebody lets it."""

    def __init__(self) -> None:
        self.now_s = 100.0

    def __call__(self) -> float:
        return self.now_s

    def wait(self, seconds: float) -> None:
        self.now_s += seconds


class Device:
    """A candidate that takes known times: 1 s to tokenise a request, 2 s to compute a batch of them at once, and 0.5 s
    for nothing in particular; what it computes goes on after `answer` has returned, until it is waited for."""

    def __init__(self, clock: FakeClock, late_s: float = 0.0) -> None:
        self.clock, self.late_s, self.asked = clock, late_s, []
        self.busy_until_s = clock.now_s + 5  # with the work of before
        self.facts = {"precision": "fp32"}

    def answer(self, requests: Sequence[Any], watch: Watch, *, in_order: bool, batch_size: int | None) -> list[Any]:
        self.asked.append((len(requests), in_order, batch_size))
        self.clock.wait(0.5)
        with watch("tokenize"):
            self.clock.wait(len(requests))
        for _ in range(math.ceil(len(requests) / (batch_size or 10))):
            with watch("compute"):
                self.clock.wait(2)
            watch.count(64)
        self.busy_until_s = self.clock.now_s + self.late_s
        return [{"label": "a"} for _ in requests]

    def synchronize(self) -> None:
        self.clock.now_s = max(self.clock.now_s, self.busy_until_s)


def bench_of(device: Callable[[FakeClock], Any], rows: int = 4, **options: Any) -> tuple[Bench, Any]:
    clock = FakeClock()
    candidate = device(clock)
    bench = Bench(lambda job: candidate, clock, clock.wait, **options)
    bench.load({})
    bench.data([{"text": str(i)} for i in range(rows)])
    return bench, candidate


def test_a_phase_inside_another_is_not_in_that_one() -> None:
    clock = FakeClock()
    watch = Watch(clock)
    with watch("compute"):
        clock.wait(1)
        with watch("tokenize"):
            clock.wait(2)
            with watch("decode"):
                clock.wait(4)
        clock.wait(8)
    with watch("compute"):
        clock.wait(16)
    assert watch.phases_s == {"compute": 25, "tokenize": 2, "decode": 4}


def test_a_known_time_is_measured_exactly_and_phase_by_phase() -> None:
    bench, _ = bench_of(Device)
    run = bench.offline(in_order=False, batch_size=2)
    assert run["phases_s"] == {"tokenize": 4.0, "compute": 4.0, "other": 0.5}
    assert run["elapsed_s"] == 8.5
    assert run["padded_tokens"] == 128
    assert bench.single_stream([0, 3, 1], None) == [3500.0, 3500.0, 3500.0]


def test_a_time_begins_when_what_was_before_is_done_and_ends_when_the_work_is() -> None:
    bench, _ = bench_of(lambda clock: Device(clock, late_s=10))
    assert bench.single_stream([0, 1], None) == [13500.0, 13500.0]
    run = bench.offline(in_order=False, batch_size=None)
    assert run["elapsed_s"] == 16.5
    assert run["phases_s"]["other"] == 10.5


def test_loading_is_timed_from_the_first_import() -> None:
    clock = FakeClock()

    def load(job: dict[str, Any]) -> Device:
        clock.wait(3)
        return Device(clock)

    assert Bench(load, clock, clock.wait).load({}) == {"precision": "fp32", "load_s": 3.0 + 5.0}


def test_the_order_and_the_batch_size_reach_the_candidate() -> None:
    bench, candidate = bench_of(Device)
    bench.offline(in_order=True, batch_size=7)
    bench.predict(batch_size=None)
    bench.server(rate_per_s=1000.0, indices=[0] * 6, seed=1, most=4, batch_size=3)
    assert candidate.asked == [(4, True, 7), (4, False, None), (1, False, 3), (4, False, 3), (1, False, 3)]


def test_answers_must_be_as_many_as_requests() -> None:
    bench, candidate = bench_of(Device)
    candidate.answer = lambda *_, **__: [{}]
    with pytest.raises(ValueError, match="1 answers to 4 requests"):
        bench.predict(None)


class Picky(Device):
    """16 sequences at once suit it best, and 64 are too many for its memory."""

    def answer(self, requests: Sequence[Any], watch: Watch, *, in_order: bool, batch_size: int | None) -> list[Any]:
        assert batch_size is not None
        self.asked.append(batch_size)
        if batch_size >= 64:
            raise RuntimeError("CUDA out of memory.")
        self.clock.wait(abs(batch_size - 16) + (100 if self.asked.count(16) == 1 else 0))  # compiles at the first time
        return [{} for _ in requests]


def test_the_batch_size_that_suits_is_found_and_one_that_does_not_fit_ends_the_search() -> None:
    bench, candidate = bench_of(Picky)
    assert bench.tune([8, 16, 32, 64, 128], [0, 1]) == 16
    assert 128 not in candidate.asked
    with pytest.raises(RuntimeError, match="out of memory"):
        bench.tune([64], [0])


class Graph(Device):
    made = 0
    warm: tuple[int, int] | None = None

    def grid(self, batch_size: int, length: int) -> Callable[[], None]:
        self.made += 1
        shape = (batch_size, length)

        def compute() -> None:
            self.clock.wait(batch_size * length * (1 if self.warm == shape else 50))
            self.warm = shape

        return compute


def test_a_shape_is_made_once_and_timed_when_it_is_warm() -> None:
    bench, candidate = bench_of(Graph)
    assert [bench.grid(2, 8), bench.grid(4, 8), bench.grid(2, 8)] == [16.0, 32.0, 16.0]
    assert candidate.made == 2
    without, _ = bench_of(Device)
    assert without.grid(2, 8) is None
    assert without.lengths() is None


def brute_force(arrivals: Sequence[int], most: int, fixed: int, each: int) -> list[int]:
    """A queue, tick by tick."""
    left = list(enumerate(arrivals))
    waiting: list[tuple[int, int]] = []
    served: list[tuple[int, int]] = []
    latencies = [0] * len(arrivals)
    done_at = -1
    for tick in range(max(arrivals) + len(arrivals) * (fixed + each * most) + 2):
        if tick == done_at:
            for place, arrived in served:
                latencies[place] = tick - arrived
            served = []
        waiting += [item for item in left if item[1] <= tick]
        left = [item for item in left if item[1] > tick]
        if not served and waiting:
            served, waiting = waiting[:most], waiting[most:]
            done_at = tick + fixed + each * len(served)
    return latencies


@given(
    gaps=st.lists(st.integers(0, 12), min_size=1, max_size=30),
    most=st.integers(1, 5),
    fixed=st.integers(1, 9),
    each=st.integers(0, 4),
)
def test_the_server_is_a_queue(gaps: list[int], most: int, fixed: int, each: int) -> None:
    arrivals = list(accumulate(gaps))
    clock = FakeClock()
    taken: list[int] = []

    def answer(first: int, last: int) -> None:
        taken.extend(range(first, last))
        clock.wait(fixed + each * (last - first))

    assert serve(answer, arrivals, most, clock, clock.wait) == brute_force(arrivals, most, fixed, each)
    assert taken == list(range(len(arrivals)))


def test_a_wait_that_ends_early_is_waited_on() -> None:
    clock = FakeClock()
    assert serve(lambda *_: clock.wait(1), [8.0], 4, clock, lambda s: clock.wait(max(s / 2, 0.5))) == [1.0]


def test_arrivals_come_at_the_rate_and_at_random() -> None:
    arrivals_s = poisson(50.0, 4000, seed=3)
    gaps_s = [b - a for a, b in pairwise(arrivals_s)]
    mean = sum(gaps_s) / len(gaps_s)
    deviation = (sum((gap - mean) ** 2 for gap in gaps_s) / len(gaps_s)) ** 0.5
    assert mean == pytest.approx(1 / 50, rel=0.05)
    assert deviation == pytest.approx(mean, rel=0.1)  # as of an exponential distribution
    assert poisson(100.0, 4000, seed=3) == pytest.approx([at / 2 for at in arrivals_s])


def powercap(folder: Path, **energy_uj: int) -> Path:
    for zone, value in energy_uj.items():
        path = folder / zone.replace("_", ":").replace("rapl:", "intel-rapl:")
        path.mkdir(exist_ok=True)
        (path / "energy_uj").write_text(f"{value}\n")
        (path / "max_energy_range_uj").write_text("1000000\n")
    return folder


def test_energy_is_that_of_whole_processors_and_counters_begin_anew(tmp_path: Path) -> None:
    (meter,) = rapl(powercap(tmp_path, rapl_0=900_000, rapl_0_0=5, rapl_1=100_000))
    assert isinstance(meter, Rapl)
    assert len(meter.zones) == 2
    bench, candidate = bench_of(Device, meters=[meter])
    real = candidate.answer

    def using(*arguments: Any, **named: Any) -> Any:
        powercap(tmp_path, rapl_0=200_000, rapl_0_0=77, rapl_1=150_000)
        return real(*arguments, **named)

    candidate.answer = using
    assert bench.offline(False, None)["energy_j"] == {"cpu": pytest.approx(0.35)}
    assert rapl(tmp_path / "none") == []


def test_what_is_raised_becomes_an_answer() -> None:
    bench, candidate = bench_of(Device)
    for error, kind in (
        (MemoryError(), "memory"),
        (RuntimeError("HIP out of memory"), "memory"),
        (KeyError(1), "error"),
    ):

        def fail(*_: Any, error: Exception = error, **__: Any) -> None:
            raise error

        candidate.answer = fail
        line = reply(bench, "predict", batch_size=None)
        assert f'"kind": "{kind}"' in line
        assert type(error).__name__ in line
    assert '"kind": "error"' in reply(bench, "juggle")


def test_any_environment_can_run_it() -> None:
    """What is imported when the file is run is Python's own."""
    tree = ast.parse(Path(child.__file__).read_text())
    names = {alias.name for node in tree.body if isinstance(node, ast.Import) for alias in node.names}
    names |= {node.module or "" for node in tree.body if isinstance(node, ast.ImportFrom)}
    assert {name.partition(".")[0] for name in names} <= sys.stdlib_module_names
