"""A candidate in a process of its own: its memory is its own, and when it dies the others go on."""

from __future__ import annotations

import multiprocessing
import signal
import sys
import time
import traceback
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

from bertfast.backends.predictor import Predictor
from bertfast.backends.registry import open_backend
from bertfast.backends.served import open_served
from bertfast.bench.scenarios import Scenario, time_turns, workload
from bertfast.errors import BackendError, BertfastError
from bertfast.text.labelled import Request


@dataclass(frozen=True)
class Candidate:
    """An artefact in a backend, and the requests that it is measured on."""

    artefact: Path
    backend: str
    requests: Sequence[Request]
    threads: int | None
    single_stream_rows: int
    settings: Mapping[str, Any]


@dataclass(frozen=True)
class Loaded:
    """What a worker says once its model is loaded; times in seconds, `truncated` in requests."""

    precision: str
    load_s: float
    tokenize_s: float
    truncated: int
    sequences: dict[str, int]
    real_tokens: dict[str, int]
    padded_tokens: dict[str, int]


class Worker:
    """The parent's end: starts the process, asks, waits for the answer."""

    def __init__(self, candidate: Candidate) -> None:
        context = multiprocessing.get_context("spawn")
        self._pipe, theirs = context.Pipe()
        self._process = context.Process(target=_serve, args=(candidate, theirs), daemon=True)
        self._process.start()
        theirs.close()

    def ask(self, request: str, *arguments: Any) -> Any:
        """Send a request and return its answer.

        Raises:
            BackendError: the worker reports an error, or has died.
        """
        try:
            self._pipe.send((request, *arguments))
            ok, answer = self._pipe.recv()
        except (EOFError, OSError):
            self._process.join(timeout=5)
            raise BackendError(f"the process died (exit code {self._process.exitcode}) during '{request}'.") from None
        if not ok:
            raise BackendError(answer)
        return answer

    def stop(self) -> None:
        self._pipe.close()
        self._process.join(timeout=5)
        if self._process.is_alive():
            self._process.terminate()


class _Bench:
    """The child's end: answers each request by the method of that name."""

    def __init__(self, candidate: Candidate) -> None:
        self.candidate = candidate

    def load(self) -> Loaded:
        start_s = time.perf_counter()
        model = open_served(self.candidate.artefact, self.candidate.settings)
        backend = open_backend(model, self.candidate.backend, threads=self.candidate.threads)
        loaded_s = time.perf_counter()
        self.predictor = Predictor(model, backend)
        self.encoded = self.predictor.encode(self.candidate.requests)
        tokenized_s = time.perf_counter()
        pad_id, rows = model.context.tokenizer.pad_id, self.candidate.single_stream_rows
        self.loads = {scenario: workload(scenario, self.encoded, pad_id, rows) for scenario in Scenario}
        return Loaded(
            backend.precision.value,
            loaded_s - start_s,
            tokenized_s - loaded_s,
            sum(any(sequence.truncated for sequence in sequences) for sequences in self.encoded),
            {scenario.value: load.sequences for scenario, load in self.loads.items()},
            {scenario.value: load.real_tokens for scenario, load in self.loads.items()},
            {scenario.value: load.padded_tokens for scenario, load in self.loads.items()},
        )

    def predict(self) -> list[dict[str, Any]]:
        """The answers; on the way every shape of every scenario is seen once, and its time is thrown away."""
        for load in self.loads.values():
            time_turns(self.predictor.backend, load)
        return self.predictor.answer(self.candidate.requests, self.encoded)

    def measure(self, scenario: str) -> list[float]:
        """Seconds of each turn: offline of all requests, single-stream of each."""
        return time_turns(self.predictor.backend, self.loads[Scenario(scenario)])

    def peak_memory(self) -> int:
        """The most bytes of main memory that this process has held."""
        status = Path("/proc/self/status")
        if status.exists():
            line = next(line for line in status.read_text().splitlines() if line.startswith("VmHWM"))
            return int(line.split()[1]) * 1024
        import resource

        unit = 1 if sys.platform == "darwin" else 1024
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


def _serve(candidate: Candidate, pipe: Connection) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent ends its workers
    bench = _Bench(candidate)
    while True:
        try:
            request, *arguments = pipe.recv()
        except EOFError:
            return
        try:
            pipe.send((True, getattr(bench, request)(*arguments)))
        except BertfastError as error:
            pipe.send((False, str(error)))
        except Exception:  # whatever a runtime raises becomes this candidate's row in the report
            pipe.send((False, traceback.format_exc(limit=-3)))
