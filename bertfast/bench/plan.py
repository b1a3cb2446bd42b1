"""What a benchmark measures."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from bertfast.bench.gate import Limits
from bertfast.bench.scenarios import USUAL, Scenario
from bertfast.text.labelled import Columns


@dataclass(frozen=True)
class BenchPlan:
    """What to measure.

    Attributes:
        data: requests in a form that the artefacts' task reads; without golds there is speed only.
        commit: of the source that is measured, for the report; where it is known.
        limit: how many of them, spread over the file; all where it is None.
        backends: names to measure; all that are installed where it is empty.
        peers: DIR or DIR:VARIANT; each answers with the first checkpoint among the artefacts.
        repeats: of each scenario but `server`; twice as many at the most where they differ too much.
        single_stream_rows: how many requests the single-stream scenario sends one at a time in a repeat.
        threads: of every candidate; as many as there are cores where it is None.
        settings: the task's settings that are to be others than the artefacts'.
        limits: what the gate demands, where anything; the bound of p99 is also what the server scenario has to hold.
        server_requests: how many arrive at the least at each rate that is tried; at high rates there are more, so that
            they arrive for 20 times the bound.
        grid: (sequences, tokens) of batches to be timed without text.
        timeout_s: a candidate that has not answered a request of the benchmark by then is given up.
    """

    artefacts: Sequence[Path]
    data: Path
    command: str
    commit: str | None = None
    columns: Columns = field(default_factory=Columns)
    limit: int | None = None
    backends: Sequence[str] = ()
    peers: Sequence[str] = ()
    scenarios: Sequence[Scenario] = USUAL
    repeats: int = 5
    threads: int | None = None
    single_stream_rows: int = 100
    settings: Mapping[str, Any] = field(default_factory=dict)
    limits: Limits = field(default_factory=Limits)
    server_requests: int = 200
    grid: Sequence[tuple[int, int]] = ()
    timeout_s: float = 1800.0
