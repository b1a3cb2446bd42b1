"""Measuring in turn: all candidates are alive at once, and each scenario goes round them, again and again."""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from statistics import median
from typing import Any

from bertfast.bench.candidates import Candidate
from bertfast.bench.plan import BenchPlan
from bertfast.bench.results import OfflineRun, ServerRun
from bertfast.bench.scenarios import SPREAD_LIMIT, Scenario, highest_rate, relative_spread
from bertfast.bench.worker import RefusedError, Worker
from bertfast.errors import BackendError
from bertfast.tasks import Answer
from bertfast.text.labelled import Request, evenly_spread

Say = Callable[[str], object]
BATCH_SIZES = (8, 16, 32, 64, 128)
TUNING_REQUESTS = 256
SERVER_REQUESTS_TOGETHER = 64
SERVER_BOUNDS = 20
SERVER_SEED = 1


@dataclass
class Running:
    """A candidate while it is measured; once it has failed it is asked nothing more, and its process is gone.

    Attributes:
        batch_size: the most sequences of a batch; None for the candidate's own rule.
        lengths: tokens of each sequence of each request, where the candidate can tell.
        padded_tokens: of the whole file by scenario, padding included; 0 where the candidate does not count them.
        grid: seconds of the batches of each shape.
        refused_shapes: why there are none of a shape.
    """

    candidate: Candidate
    worker: Worker
    plan: BenchPlan
    requests: Sequence[Request]
    batch_size: int | None = None
    facts: dict[str, Any] = field(default_factory=dict)
    answers: list[Answer] = field(default_factory=list)
    lengths: list[list[int]] | None = None
    offline: dict[Scenario, list[OfflineRun]] = field(default_factory=dict)
    padded_tokens: dict[Scenario, int] = field(default_factory=dict)
    latency_ms: list[tuple[float, ...]] = field(default_factory=list)
    server: list[ServerRun] = field(default_factory=list)
    grid: dict[tuple[int, int], list[float]] = field(default_factory=dict)
    refused_shapes: dict[tuple[int, int], str] = field(default_factory=dict)
    memory: Mapping[str, int | None] = field(default_factory=dict)
    metrics: dict[str, float] = field(default_factory=dict)
    error: str | None = None

    def ask(self, do: str, **arguments: Any) -> Any:
        """What the candidate answers; None once it has failed, and a refusal is a failure."""
        try:
            return self._asked(do, **arguments)
        except RefusedError as error:
            self.fail(str(error))
            return None

    def _asked(self, do: str, **arguments: Any) -> Any:
        """The same, with refusals left to the caller."""
        if self.error is not None:
            return None
        try:
            return self.worker.ask(do, self.plan.timeout_s, **arguments)
        except RefusedError:
            raise
        except BackendError as error:
            self.fail(str(error))
            return None

    def fail(self, why: str) -> None:
        self.error = why
        self.worker.stop()

    def prepare(self) -> None:
        """Load, choose the batch size of a peer, answer all requests, and see what each scenario will bring once."""
        self.facts = self.ask("load", job=self.candidate.job(self.plan.threads)) or {}
        self.ask("data", requests=self.requests)
        self.batch_size = self._best_batch_size()
        self.answers = self.ask("predict", batch_size=self.batch_size) or []
        self.lengths = self.ask("lengths")
        for scenario in self.plan.scenarios:
            if scenario in (Scenario.OFFLINE_GIVEN, Scenario.SINGLE_STREAM):
                self._sample(scenario)

    def repeat(self, scenario: Scenario) -> None:
        """Measure a scenario once more."""
        sample = self._sample(scenario)
        if self.error is not None:
            return
        if scenario is Scenario.SINGLE_STREAM:
            self.latency_ms.append(tuple(sample))
        else:
            self.padded_tokens[scenario] = sample.pop("padded_tokens")
            self.offline.setdefault(scenario, []).append(OfflineRun(**sample))

    def serve(self, bound_p99_ms: float) -> None:
        """Search the highest rate that holds the bound, from the rate at which everything is answered offline."""
        elapsed_s = self.levels(Scenario.OFFLINE)
        if not elapsed_s and (sample := self._sample(Scenario.OFFLINE)):
            elapsed_s = [sample["elapsed_s"]]
        if self.error is not None:
            return
        start_per_s = len(self.requests) / median(elapsed_s)
        try:
            self._probe(bound_p99_ms, start_per_s)  # batches of these shapes may be new
            self.server = highest_rate(partial(self._probe, bound_p99_ms), start_per_s, bound_p99_ms)
        except BackendError as error:
            self.fail(str(error))

    def compute(self, shape: tuple[int, int]) -> None:
        """Time a batch of so many sequences and tokens, where the candidate has such a thing and can."""
        if shape in self.refused_shapes:
            return
        try:
            elapsed_s = self._asked("grid", batch_size=shape[0], length=shape[1])
        except RefusedError as error:
            self.refused_shapes[shape] = str(error)
            return
        if elapsed_s is not None:
            self.grid.setdefault(shape, []).append(elapsed_s)

    def levels(self, scenario: Scenario) -> list[float]:
        """A number for each repeat: seconds of the whole file, or the median latency in milliseconds."""
        if scenario is Scenario.SINGLE_STREAM:
            return [median(repeat) for repeat in self.latency_ms]
        return [run.elapsed_s for run in self.offline.get(scenario, ())]

    def is_noisy(self, scenario: Scenario) -> bool:
        return self.error is None and relative_spread(self.levels(scenario)) > SPREAD_LIMIT

    def noise(self) -> str | None:
        """By how much repeats of each scenario differ, in words; None where they agree."""
        spreads = {each.value: self.levels(each) for each in Scenario if self.is_noisy(each)}
        if not spreads:
            return None
        said = ", ".join(f"{name} {relative_spread(samples):.0%}" for name, samples in spreads.items())
        return (
            f"the middle half of {max(map(len, spreads.values()))} repeats is wider than {SPREAD_LIMIT:.0%} of their "
            f"median ({said}). Was the machine busy with other work?"
        )

    def _best_batch_size(self) -> int | None:
        """Ours have a rule of their own; a peer has what its variant says, or the one that suits it best."""
        if self.candidate.python is None or "batch_size" in self.candidate.options:
            return self.candidate.options.get("batch_size")
        indices = evenly_spread(len(self.requests), TUNING_REQUESTS)
        batch_size: int | None = self.ask("tune", batch_sizes=BATCH_SIZES, indices=indices)
        return batch_size

    def _sample(self, scenario: Scenario) -> Any:
        if scenario is Scenario.SINGLE_STREAM:
            indices = evenly_spread(len(self.requests), self.plan.single_stream_rows)
            return self.ask("single-stream", indices=indices, batch_size=self.batch_size)
        return self.ask("offline", in_order=scenario is Scenario.OFFLINE_GIVEN, batch_size=self.batch_size)

    def _probe(self, bound_p99_ms: float, rate_per_s: float) -> ServerRun:
        """Requests arrive for many times the bound: while all that has come is answered within it, no queue shows."""
        count = max(self.plan.server_requests, math.ceil(SERVER_BOUNDS * rate_per_s * bound_p99_ms / 1e3))
        source = random.Random(SERVER_SEED)
        latency_ms = self.worker.ask(
            "server",
            self.plan.timeout_s,
            rate_per_s=rate_per_s,
            indices=source.choices(range(len(self.requests)), k=count),
            seed=SERVER_SEED,
            most=self.batch_size or SERVER_REQUESTS_TOGETHER,
            batch_size=self.batch_size,
        )
        return ServerRun(rate_per_s=rate_per_s, latency_ms=tuple(latency_ms))


def measure(plan: BenchPlan, running: Sequence[Running], say: Say) -> None:
    """Measure all scenarios of candidates that are prepared."""
    _repeat_in_turn(plan, running, say)
    for shape in plan.grid:
        for repeat in range(plan.repeats):
            for item in _from(running, repeat):
                say(f"{item.candidate.name}: {shape[0]} x {shape[1]} tokens")
                item.compute(shape)
    for item in running:
        if plan.limits.max_p99_ms is not None and Scenario.SERVER in plan.scenarios:
            say(f"{item.candidate.name}: server")
            item.serve(plan.limits.max_p99_ms)
        item.memory = item.ask("memory") or {}


def _repeat_in_turn(plan: BenchPlan, running: Sequence[Running], say: Say) -> None:
    """Where the repeats of a scenario differ too much there are up to twice as many, and of all candidates, so that
    repeats can be compared pair by pair."""
    scenarios = [scenario for scenario in plan.scenarios if scenario is not Scenario.SERVER]
    for repeat in range(2 * plan.repeats):
        if repeat >= plan.repeats:
            scenarios = [scenario for scenario in scenarios if any(item.is_noisy(scenario) for item in running)]
        for scenario in scenarios:
            for item in _from(running, repeat):
                say(f"{item.candidate.name}: {scenario.value}, repeat {repeat + 1}")
                item.repeat(scenario)


def _from(running: Sequence[Running], repeat: int) -> list[Running]:
    """All of them, beginning with another one in each repeat."""
    first = repeat % len(running)
    return [*running[first:], *running[:first]]
