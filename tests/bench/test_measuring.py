from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from bertfast.bench.candidates import Candidate
from bertfast.bench.gate import Limits
from bertfast.bench.measuring import BATCH_SIZES, SERVER_BOUNDS, Running, measure
from bertfast.bench.plan import BenchPlan
from bertfast.bench.run import _warnings
from bertfast.bench.scenarios import Scenario
from bertfast.bench.worker import RefusedError
from bertfast.errors import BackendError

OFFLINE = Scenario.OFFLINE
MODEL = SimpleNamespace(
    path=Path("m"), task=SimpleNamespace(name="classify"), context=SimpleNamespace(labels=("a", "b"), max_length=8)
)


class FakeWorker:
    """Answers each request by a function of the arguments and of how often it was asked; notes who was asked what."""

    def __init__(self, name: str, journal: list[tuple[str, str]], **answers: Callable[..., Any]) -> None:
        self.name, self.journal, self.answers = name, journal, answers
        self.asked: list[tuple[str, dict[str, Any]]] = []
        self.stopped = False

    def ask(self, do: str, timeout_s: float, **arguments: Any) -> Any:
        times = sum(done == do for done, _ in self.asked)
        self.asked.append((do, arguments))
        self.journal.append((self.name, do))
        usual = {"offline": steady, "single-stream": lambda times, indices, **_: [1.0 for _ in indices]}
        return {**usual, **self.answers}.get(do, lambda times, **_: None)(times, **arguments)

    def stop(self) -> None:
        self.stopped = True


def run_of(elapsed_s: float) -> dict[str, Any]:
    return {"phases_s": {"other": elapsed_s}, "elapsed_s": elapsed_s, "energy_j": {}, "padded_tokens": 9}


def steady(times: int, **_: Any) -> dict[str, Any]:
    return run_of(2.0)


def noisy(times: int, **_: Any) -> dict[str, Any]:
    return run_of(2.0 if times % 2 else 3.0)


def running_with(plan: BenchPlan, python: Path | None = None, **workers: dict[str, Any]) -> list[Running]:
    journal: list[tuple[str, str]] = []
    return [
        Running(
            Candidate(name, "bertfast", "torch", MODEL, Path("m.py"), python, answers.pop("options", {}), {}),  # type: ignore[arg-type]
            FakeWorker(name, journal, **answers),  # type: ignore[arg-type]
            plan,
            [{"text": str(i)} for i in range(100)],
        )
        for name, answers in workers.items()
    ]


def plan_for(**changes: Any) -> BenchPlan:
    return BenchPlan((), Path("dev.tsv"), "bertfast bench", **{"repeats": 3, "scenarios": (OFFLINE,), **changes})


def quietly(what: str) -> None: ...


def test_candidates_take_turns_and_each_begins_once() -> None:
    plan = plan_for(scenarios=(OFFLINE, Scenario.SINGLE_STREAM))
    running = running_with(plan, a={}, b={}, c={})
    measure(plan, running, quietly)
    asked = [name for name, do in running[0].worker.journal if do == "offline"]  # type: ignore[attr-defined]
    assert asked == [*"abc", *"bca", *"cab"]
    assert [len(item.offline[OFFLINE]) for item in running] == [3, 3, 3]
    assert [len(item.latency_ms) for item in running] == [3, 3, 3]


def test_where_repeats_differ_all_candidates_repeat_until_twice_the_number() -> None:
    plan = plan_for(scenarios=(OFFLINE, Scenario.SINGLE_STREAM))
    running = running_with(plan, a={}, b={"offline": noisy})
    measure(plan, running, quietly)
    assert [len(item.offline[OFFLINE]) for item in running] == [6, 6]
    assert [len(item.latency_ms) for item in running] == [3, 3]
    assert running[0].noise() is None
    assert "6 repeats is wider than 10% of their median (offline 40%)" in str(running[1].noise())


def test_repeats_end_once_they_agree() -> None:
    plan = plan_for(repeats=4)
    running = running_with(plan, a={"offline": lambda times, **_: run_of(2.0 if times else 3.0)})
    measure(plan, running, quietly)
    assert [run.elapsed_s for run in running[0].offline[OFFLINE]] == [3.0, 2.0, 2.0, 2.0, 2.0]
    assert not running[0].is_noisy(OFFLINE)


def test_a_shape_that_a_candidate_cannot_compute_costs_that_shape_alone() -> None:
    def grid(times: int, batch_size: int, length: int) -> float:
        if batch_size == 64:
            raise RefusedError("out of memory during 'grid': no more")
        return 0.5

    running = running_with(plan_for(grid=((64, 128), (1, 8))), a={"grid": grid})
    measure(running[0].plan, running, quietly)
    assert running[0].error is None
    assert len(running[0].offline[OFFLINE]) == 3
    assert running[0].grid == {(1, 8): [0.5] * 3}
    assert _warnings(running[0]) == ["64 x 128 tokens were not computed: out of memory during 'grid': no more"]
    assert [shape["batch_size"] for do, shape in running[0].worker.asked if do == "grid"].count(64) == 1  # type: ignore[attr-defined]


def test_a_candidate_that_has_failed_is_asked_nothing_more_and_the_others_go_on() -> None:
    def fail(times: int, **_: Any) -> Any:
        if times == 1:
            raise BackendError("it fell over")
        return run_of(2.0)

    plan = plan_for()
    running = running_with(plan, a={"offline": fail}, b={})
    measure(plan, running, quietly)
    assert [item.error for item in running] == ["it fell over", None]
    assert [do for do, _ in running[0].worker.asked] == ["offline", "offline"]  # type: ignore[attr-defined]
    assert running[0].worker.stopped  # type: ignore[attr-defined]
    assert len(running[1].offline[OFFLINE]) == 3


@pytest.mark.parametrize(
    ("python", "options", "expected"),
    [(None, {}, None), (Path("python"), {}, 32), (Path("python"), {"batch_size": 5}, 5)],
)
def test_a_peer_has_the_batch_size_that_suits_it_or_that_its_variant_names(
    python: Path | None, options: dict[str, int], expected: int | None
) -> None:
    def tune(times: int, batch_sizes: list[int], indices: list[int]) -> int:
        assert tuple(batch_sizes) == BATCH_SIZES
        return 32

    plan = plan_for(scenarios=(OFFLINE, Scenario.OFFLINE_GIVEN))
    (item,) = running_with(plan, python, a={"tune": tune, "options": options})
    item.prepare()
    item.repeat(OFFLINE)
    sizes = [arguments["batch_size"] for do, arguments in item.worker.asked if do in ("predict", "offline")]  # type: ignore[attr-defined]
    assert sizes == [expected] * 3


def test_the_server_is_probed_from_the_offline_rate_and_long_enough_for_a_queue() -> None:
    plan = plan_for(scenarios=(OFFLINE, Scenario.SERVER), limits=Limits(max_p99_ms=1000.0), server_requests=200)

    def serve(times: int, rate_per_s: float, indices: list[int], **_: Any) -> list[float]:
        return [2000.0 if rate_per_s > 30 else 10.0 for _ in indices[1:]] + [10.0]

    (item,) = running_with(plan, a={"server": serve})
    measure(plan, [item], quietly)
    assert item.server[0].rate_per_s == 100 / 2.0
    assert max(run.rate_per_s for run in item.server if max(run.latency_ms) < 1000) == pytest.approx(30, rel=0.1)
    assert [len(run.latency_ms) for run in item.server[:2]] == [50 * SERVER_BOUNDS, 25 * SERVER_BOUNDS]
    (rare,) = running_with(plan_for(scenarios=(Scenario.SERVER,), limits=Limits(max_p99_ms=1.0)), a={"server": serve})
    rare.serve(1.0)
    assert len(rare.server[0].latency_ms) == 200
    assert rare.offline == {}
