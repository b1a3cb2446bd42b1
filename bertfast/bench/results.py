"""What a benchmark run keeps: raw samples; every figure that a table shows is computed from them.

A phase is a part of the way from text to answer: `tokenize`, `upload` (host to device), `compute`, `download`, `decode`
(outputs to answers), and `other`, which is what a system does not take apart.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from bertfast.config import Config

RESULTS_SCHEMA_VERSION = 2
OUR_SYSTEM = "bertfast"


class OfflineRun(Config):
    """The whole file once, all requests there from the beginning.

    Attributes:
        phases_s: seconds by phase; they add up to `elapsed_s`.
        elapsed_s: from the first text to the last answer.
        energy_j: joules by meter (`cpu`, `gpu`), where the machine tells.
    """

    phases_s: dict[str, float]
    elapsed_s: float
    energy_j: dict[str, float] = {}


class ServerRun(Config):
    """Requests that arrive at random (Poisson) for a while, answered as they come.

    Attributes:
        rate_per_s: requests that arrive in a second, in the mean.
        latency_ms: of each request, from its arrival to its answer, in the order of arrival.
    """

    rate_per_s: float
    latency_ms: tuple[float, ...]


class GridCell(Config):
    """Batches of one shape, without text: `compute_s` holds the seconds of a batch, one value a repeat."""

    batch_size: int
    length: int
    compute_s: tuple[float, ...]


class Measured(Config):
    """One candidate: an artefact in a backend of ours, or in a peer.

    Attributes:
        name: what the tables call it.
        system: `bertfast`, or the peer's name.
        precision: what the matrix products execute in, as read back from the runtime; a peer's own word for it.
        emulated: whether that precision's numbers are computed in fp32, so that the speed is not its own.
        batch_size: the most sequences in a batch.
        libraries: versions in the candidate's environment.
        error: why there is nothing more to report, where it failed.
        metrics: the task's metrics on the labelled rows, as fractions.
        flips: rows that are decided otherwise than by the reference; None for the reference itself, and for tasks that
            decide nothing.
        lost: rows that the reference gets right and this one wrong; None where rows are not simply right or wrong.
        gained: the other way round.
        drop_interval: 95% interval of the reference's metric minus this one's, as fractions, by resampling rows.
        largest_score_drift: the largest change against the reference of a row's score for a label or of its only
            score; of its vector 1 - the cosine with the reference's; None where answers hold none of these.
        not_finite: answers that hold a number that is none, or infinite.
        offline: one run a repeat; batches of sequences of similar length.
        offline_given: the same with batches in the order of the file.
        latency_ms: single-stream latencies, text to answer, of a request with all its sequences; one list a repeat.
        server: the rates that were tried, in the order of trial.
        sequences: in the whole file; a request may have several.
        real_tokens: tokens of the whole file, as computed on by `offline`; padding left out.
        padded_tokens: the same with padding, by scenario (`offline`, `offline-given`).
        truncated: requests that were cut.
        warnings: what makes these figures doubtful, such as a machine under load.
    """

    name: str
    system: str = OUR_SYSTEM
    artefact: str
    artefact_sha256: str
    artefact_bytes: int
    backend: str
    precision: str | None = None
    emulated: bool = False
    batch_size: int | None = None
    libraries: dict[str, str] = {}
    error: str | None = None
    metrics: dict[str, float] = {}
    flips: int | None = None
    lost: int | None = None
    gained: int | None = None
    drop_interval: tuple[float, float] | None = None
    largest_score_drift: float | None = None
    not_finite: int = 0
    load_s: float | None = None
    build_s: float | None = None
    peak_memory_bytes: int | None = None
    peak_device_memory_bytes: int | None = None
    sequences: int | None = None
    real_tokens: int | None = None
    padded_tokens: dict[str, int] = {}
    truncated: int = 0
    offline: tuple[OfflineRun, ...] = ()
    offline_given: tuple[OfflineRun, ...] = ()
    latency_ms: tuple[tuple[float, ...], ...] = ()
    server: tuple[ServerRun, ...] = ()
    grid: tuple[GridCell, ...] = ()
    warnings: tuple[str, ...] = ()

    @property
    def is_ours(self) -> bool:
        return self.system == OUR_SYSTEM


class Verdict(Config):
    """What the gate says.

    Attributes:
        ship: whether any candidate passes.
        choice: the best one that does.
        summary: the verdict in one line.
        refused: why each of the others does not pass, by its name.
    """

    ship: bool
    choice: str | None
    summary: str
    refused: dict[str, str]


class Results(Config):
    """A benchmark run; `report.json` holds just this.

    Attributes:
        commit: of the source that was measured, where whoever asked for the run told it.
        data_sha256: of the file.
        reference: the candidate that the others are compared with: the first in fp32 that answers.
        bound_p99_ms: what p99 the server scenario had to hold, where it ran.
        lengths: how many sequences have each number of tokens, from 0 on.
        labelled: whether the file has the right answers; without them there is speed only.
        verdict: the gate's, where one was asked for.
    """

    schema_version: int = RESULTS_SCHEMA_VERSION
    command: str
    commit: str | None = None
    data: str
    data_sha256: str
    rows: int
    labelled: bool
    task: str
    metric: str | None
    reference: str
    repeats: int
    threads: int | None
    bound_p99_ms: float | None = None
    lengths: tuple[int, ...]
    libraries: dict[str, str]
    hardware: dict[str, Any]
    candidates: tuple[Measured, ...]
    verdict: Verdict | None = None

    def write(self, directory: Path) -> None:
        (directory / "report.json").write_text(self.model_dump_json(indent=1) + "\n", encoding="utf-8")
