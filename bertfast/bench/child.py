"""A candidate's end of the benchmark: load it, ask it, and time it, the same way for our backends and for peers.

    PYTHON -P child.py CANDIDATE.py

This file needs nothing but Python's own library, and is run by its path, so that any environment can run it. Requests
come as JSON lines on standard input and are answered on standard output, in turn: `{"do": NAME, ...}` by
`{"ok": true, "answer": ...}` or `{"ok": false, "kind": "memory" | "error", "error": MESSAGE}`. What a candidate
prints goes to standard error.

CANDIDATE.py defines `load(job)`, where `job` holds `model` (a path), `backend`, `options` (of a peer's variant),
`task`, `labels`, `max_length`, `threads` and `settings` (of the task). It returns what `Candidate` describes.
"""

from __future__ import annotations

import importlib.util
import json
import os
import queue
import random
import signal
import sys
import threading
import time
import traceback
from bisect import bisect_right
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from statistics import median
from typing import Any, Protocol, TextIO

Clock = Callable[[], float]
GRID_BATCHES = 5
Request = dict[str, Any]
Answer = dict[str, Any]


class Watch:
    """Adds up the seconds of each phase: `with watch("compute"): ...`. What is inside another phase is not in that."""

    def __init__(self, clock: Clock) -> None:
        self.clock = clock
        self.phases_s: dict[str, float] = {}
        self.padded_tokens = 0
        self._inside_s = 0.0

    @contextmanager
    def __call__(self, phase: str) -> Iterator[None]:
        start_s, before_s, self._inside_s = self.clock(), self._inside_s, 0.0
        yield
        elapsed_s = self.clock() - start_s
        self.phases_s[phase] = self.phases_s.get(phase, 0.0) + elapsed_s - self._inside_s
        self._inside_s = before_s + elapsed_s

    def count(self, padded_tokens: int) -> None:
        """Tell of a batch how many tokens it has, padding included. A candidate that cannot know leaves it out."""
        self.padded_tokens += padded_tokens


class Candidate(Protocol):
    """What `load(job)` returns. It may leave out all but `facts` and `answer`.

    Attributes:
        facts: `precision` and `libraries`; `build_s` where an engine was built.
    """

    facts: dict[str, Any]

    def answer(
        self, requests: Sequence[Request], watch: Watch, *, in_order: bool, batch_size: int | None
    ) -> list[Answer]:
        """The answers in the order of the requests, in bertfast's form for the task.

        Args:
            watch: times `tokenize`, `upload`, `compute`, `download` and `decode`; the rest is `other`.
            in_order: batches are cut in the order given; else the candidate may sort by length.
            batch_size: the most sequences of a batch; None for the candidate's own rule.
        """

    def lengths(self, requests: Sequence[Request]) -> list[list[int]]:
        """Tokens of each sequence of each request."""

    def grid(self, batch_size: int, length: int) -> Callable[[], object]:
        """A function that computes one batch of this shape and waits until that is done."""

    def synchronize(self) -> None:
        """Wait until everything that was asked for is done."""


class Bench:
    """Answers each request of the benchmark by the method of that name.

    Args:
        open_candidate: the `load` of the candidate's module, imported only now.
        clock: seconds since whenever.
        wait: lets that many seconds pass.
        meters: energy counters.
    """

    def __init__(
        self,
        open_candidate: Callable[[dict[str, Any]], Candidate],
        clock: Clock = time.perf_counter,
        wait: Callable[[float], object] = time.sleep,
        meters: Sequence[Meter] = (),
    ) -> None:
        self.open_candidate, self.clock, self.wait, self.meters = open_candidate, clock, wait, meters
        self.requests: list[Request] = []
        self.cells: dict[tuple[int, int], Callable[[], object]] = {}

    def load(self, job: dict[str, Any]) -> dict[str, Any]:
        """The candidate's facts and `load_s`: from the first import until it can be asked."""
        start_s = self.clock()
        self.candidate = self.open_candidate(job)
        self._synchronize()
        return {**self.candidate.facts, "load_s": self.clock() - start_s}

    def data(self, requests: list[Request]) -> None:
        """Take the requests that everything is measured on."""
        self.requests = requests

    def predict(self, batch_size: int | None) -> list[Answer]:
        """The answers to all requests."""
        answers = self.candidate.answer(self.requests, Watch(self.clock), in_order=False, batch_size=batch_size)
        if len(answers) != len(self.requests):
            raise ValueError(f"{len(answers)} answers to {len(self.requests)} requests")
        return answers

    def lengths(self) -> list[list[int]] | None:
        """Tokens of each sequence of each request; None where the candidate cannot tell."""
        return self.candidate.lengths(self.requests) if hasattr(self.candidate, "lengths") else None

    def tune(self, batch_sizes: list[int], indices: list[int]) -> int:
        """The batch size that answers these requests fastest, at the second try; what needs too much memory is out."""
        found: dict[int, float] = {}
        for batch_size in sorted(batch_sizes):
            try:
                self._timed(indices, False, batch_size)
                found[batch_size], _ = self._timed(indices, False, batch_size)
            except Exception as error:
                if not found or not is_out_of_memory(error):
                    raise
                break
        return min(found, key=lambda size: found[size])

    def offline(self, in_order: bool, batch_size: int | None) -> dict[str, Any]:
        """All requests at once.

        Returns:
            `phases_s` (with `other` they add up to `elapsed_s`), `energy_j` by meter, and `padded_tokens`, which are 0
            where the candidate does not count them.
        """
        before = [meter.read() for meter in self.meters]
        elapsed_s, watch = self._timed(range(len(self.requests)), in_order, batch_size)
        energy_j = {meter.name: meter.joules(since) for meter, since in zip(self.meters, before, strict=True)}
        phases_s = {**watch.phases_s, "other": elapsed_s - sum(watch.phases_s.values())}
        measured = {"phases_s": phases_s, "elapsed_s": elapsed_s, "energy_j": energy_j}
        return measured | {"padded_tokens": watch.padded_tokens}

    def single_stream(self, indices: list[int], batch_size: int | None) -> list[float]:
        """Milliseconds of each of these requests, sent when the one before is answered."""
        return [1e3 * self._timed([i], False, batch_size)[0] for i in indices]

    def server(
        self, rate_per_s: float, indices: list[int], seed: int, most: int, batch_size: int | None
    ) -> list[float]:
        """Milliseconds from arrival to answer of each of these requests, which arrive at random.

        Args:
            most: requests that are answered together.
        """
        arrivals_s = poisson(rate_per_s, len(indices), seed)

        def answer(first: int, last: int) -> None:
            self._timed(indices[first:last], False, batch_size)

        return [1e3 * latency_s for latency_s in serve(answer, arrivals_s, most, self.clock, self.wait)]

    def grid(self, batch_size: int, length: int) -> float | None:
        """The median of the seconds of a few batches of this shape; None where the candidate has no such thing.

        One goes before that does not count: since the turns of others its threads sleep and its caches are cold.
        """
        if not hasattr(self.candidate, "grid"):
            return None
        shape = (batch_size, length)
        if shape not in self.cells:
            self.cells[shape] = self.candidate.grid(*shape)
        compute = self.cells[shape]
        times_s = []
        for _ in range(1 + GRID_BATCHES):
            start_s = self.clock()
            compute()
            times_s.append(self.clock() - start_s)
        return median(times_s[1:])

    def memory(self) -> dict[str, int | None]:
        """The most bytes that this process has held, of main memory (`host`) and of a GPU's (`device`)."""
        return {"host": peak_host_bytes(), "device": peak_device_bytes(self.meters)}

    def _timed(self, indices: Sequence[int], in_order: bool, batch_size: int | None) -> tuple[float, Watch]:
        """Seconds from the texts of these requests to the last of their answers, and those of each phase."""
        requests, watch = [self.requests[i] for i in indices], Watch(self.clock)
        self._synchronize()
        start_s = self.clock()
        self.candidate.answer(requests, watch, in_order=in_order, batch_size=batch_size)
        self._synchronize()
        return self.clock() - start_s, watch

    def _synchronize(self) -> None:
        if hasattr(self.candidate, "synchronize"):
            self.candidate.synchronize()


def poisson(rate_per_s: float, count: int, seed: int) -> list[float]:
    """Seconds at which requests arrive when each may arrive at any time: gaps are exponentially distributed."""
    source, now_s, arrivals_s = random.Random(seed), 0.0, []
    for _ in range(count):
        now_s += source.expovariate(rate_per_s)
        arrivals_s.append(now_s)
    return arrivals_s


def serve(
    answer: Callable[[int, int], object],
    arrivals_s: Sequence[float],
    most: int,
    clock: Clock,
    wait: Callable[[float], object],
) -> list[float]:
    """Seconds from arrival to answer of each request: whenever the server is free it answers all that have arrived.

    Args:
        answer: answers the requests from a first one up to, not including, a last one.
        arrivals_s: ascending, from now on.
        most: requests that are answered together.
    """
    begun_s = clock()
    due_s = [begun_s + arrival_s for arrival_s in arrivals_s]
    latencies_s: list[float] = []
    while (first := len(latencies_s)) < len(due_s):
        now_s = clock()
        if due_s[first] > now_s:
            wait(due_s[first] - now_s)
            continue
        last = min(bisect_right(due_s, now_s), first + most)
        answer(first, last)
        done_s = clock()
        latencies_s += [done_s - arrival_s for arrival_s in due_s[first:last]]
    return latencies_s


class Meter(Protocol):
    """An energy counter of the machine."""

    name: str

    def read(self) -> list[int]: ...

    def joules(self, since: list[int]) -> float: ...


class Rapl:
    """The processors' counters, in microjoules, which begin anew at the end of their range."""

    name = "cpu"

    def __init__(self, zones: Sequence[Path]) -> None:
        self.zones = zones
        self.ranges = [int((zone / "max_energy_range_uj").read_text()) for zone in zones]

    def read(self) -> list[int]:
        return [int((zone / "energy_uj").read_text()) for zone in self.zones]

    def joules(self, since: list[int]) -> float:
        """What was used since a reading, if the counters began anew once at the most."""
        now = self.read()
        return sum((b - a) % wrap for a, b, wrap in zip(since, now, self.ranges, strict=True)) / 1e6


class Nvml:
    """The counters of all NVIDIA GPUs, in millijoules."""

    name = "gpu"

    def __init__(self, library: Any) -> None:
        self.library = library
        self.devices = [library.nvmlDeviceGetHandleByIndex(i) for i in range(library.nvmlDeviceGetCount())]
        self.read()

    def read(self) -> list[int]:
        return [self.library.nvmlDeviceGetTotalEnergyConsumption(device) for device in self.devices]

    def joules(self, since: list[int]) -> float:
        return sum(b - a for a, b in zip(since, self.read(), strict=True)) / 1e3


def all_meters() -> list[Meter]:
    """The energy counters of this machine that this process may read."""
    return [*rapl(Path("/sys/class/powercap")), *_nvml()]


def rapl(powercap: Path) -> list[Meter]:
    """The counters of whole processors (`intel-rapl:0`); those of their parts (`intel-rapl:0:0`) are in them."""
    zones = [zone for zone in sorted(powercap.glob("intel-rapl:*")) if zone.name.count(":") == 1]
    zones = [zone for zone in zones if os.access(zone / "energy_uj", os.R_OK)]
    return [Rapl(zones)] if zones else []


def _nvml() -> list[Meter]:
    try:
        import pynvml

        pynvml.nvmlInit()
        meter = Nvml(pynvml)
    except Exception:  # no package, no driver, or a GPU that does not count
        return []
    return [meter] if meter.devices else []


def peak_host_bytes() -> int:
    """The most main memory that this process has held."""
    status = Path("/proc/self/status")
    if status.exists():
        line = next(line for line in status.read_text().splitlines() if line.startswith("VmHWM"))
        return int(line.split()[1]) * 1024
    import resource

    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


def peak_device_bytes(meters: Sequence[Meter]) -> int | None:
    """The most GPU memory that torch has held here, or what NVML says that this process holds; None without either."""
    torch = sys.modules.get("torch")
    if torch is not None and torch.cuda.is_available() and torch.cuda.is_initialized():
        return int(torch.cuda.max_memory_reserved())
    for meter in meters:
        if isinstance(meter, Nvml):
            running = [run for d in meter.devices for run in meter.library.nvmlDeviceGetComputeRunningProcesses(d)]
            return next((run.usedGpuMemory for run in running if run.pid == os.getpid()), None)
    return None


def is_out_of_memory(error: Exception) -> bool:
    """Whether there was not enough memory, of the machine or of a GPU."""
    said = str(error).lower()
    return isinstance(error, MemoryError) or "out of memory" in said or "allocate memory" in said


def import_file(path: Path) -> Any:
    """A module by its path."""
    spec = importlib.util.spec_from_file_location(path.stem, path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[path.stem] = module
    spec.loader.exec_module(module)
    return module


def reply(bench: Bench, do: str, **arguments: Any) -> str:
    """The line that answers a request; whatever a runtime raises becomes an answer too."""
    try:
        answer = getattr(bench, do.replace("-", "_"))(**arguments)
        return json.dumps({"ok": True, "answer": answer}, default=lambda array: array.tolist())
    except Exception as error:
        kind = "memory" if is_out_of_memory(error) else "error"
        print(traceback.format_exc(), file=sys.stderr, flush=True)
        return json.dumps({"ok": False, "kind": kind, "error": message(error)})


def message(error: Exception) -> str:
    """What was raised and where, without the paths of this machine."""
    where = traceback.extract_tb(error.__traceback__)[-1]
    said = "".join(traceback.format_exception_only(error)).strip()
    return f"{said} ({Path(where.filename).name}, line {where.lineno})"


def main(path: Path) -> None:
    """Answer requests until there are no more."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent ends its children
    requests: queue.SimpleQueue[str | None] = queue.SimpleQueue()
    answers = os.fdopen(_moved(1, 2), "w", encoding="utf-8")
    lines = os.fdopen(_moved(0, os.open(os.devnull, os.O_RDONLY)), encoding="utf-8")
    threading.Thread(target=_read, args=(lines, requests), daemon=True).start()
    bench = Bench(lambda job: import_file(path).load(job), meters=all_meters())
    while (line := requests.get()) is not None:
        answers.write(reply(bench, **json.loads(line)) + "\n")
        answers.flush()


def _moved(descriptor: int, replacement: int) -> int:
    """Where a standard stream goes on; whoever knows it by its old number finds another in its place."""
    kept = os.dup(descriptor)
    os.dup2(replacement, descriptor)
    return kept


def _read(lines: TextIO, requests: queue.SimpleQueue[str | None]) -> None:
    """Requests as they come, until the parent closes the pipe or is killed; then even a busy process ends soon."""
    for line in lines:
        requests.put(line)
    requests.put(None)
    time.sleep(5)
    os._exit(1)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
