"""The report: what was measured, kept raw, and what follows from it."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console
from rich.table import Table

from bertfast.config import Config

REPORT_SCHEMA_VERSION = 1


class Measured(Config):
    """One candidate: an artefact in a backend. Raw samples stay in; everything else is computed from them.

    Attributes:
        name: what the tables call it.
        error: why there is nothing to report, where it failed.
        metrics: the task's metrics on the labelled rows, as fractions.
        flips: rows that are decided otherwise than by the reference; None for the reference itself, and for tasks that
            decide nothing.
        largest_score_drift: the largest change against the reference of a row's score for a label or of its only
            score; of its vector 1 - the cosine with the reference's; None where answers hold none of these.
        offline_s: seconds for the whole file, one value a repeat.
        latency_ms: single-stream latencies of a request with all its sequences, one list a repeat.
        sequences: by scenario, as are the tokens; a request may have several.
        truncated: requests that were cut.
    """

    name: str
    artefact: str
    artefact_sha256: str
    artefact_bytes: int
    backend: str
    precision: str | None = None
    error: str | None = None
    metrics: dict[str, float] = {}
    flips: int | None = None
    largest_score_drift: float | None = None
    load_s: float | None = None
    tokenize_s: float | None = None
    peak_memory_bytes: int | None = None
    sequences: dict[str, int] = {}
    real_tokens: dict[str, int] = {}
    padded_tokens: dict[str, int] = {}
    truncated: int = 0
    offline_s: tuple[float, ...] = ()
    latency_ms: tuple[tuple[float, ...], ...] = ()

    @property
    def sequences_per_s(self) -> tuple[float, ...]:
        """Offline throughput, one value a repeat."""
        return tuple(self.sequences["offline"] / elapsed for elapsed in self.offline_s)

    @property
    def real_tokens_per_s(self) -> tuple[float, ...]:
        return tuple(self.real_tokens["offline"] / elapsed for elapsed in self.offline_s)

    def latency_percentile(self, percent: float) -> float | None:
        """A percentile over the single-stream latencies of all repeats, in milliseconds."""
        samples = [value for repeat in self.latency_ms for value in repeat]
        return float(np.percentile(samples, percent)) if samples else None


class Report(Config):
    """A benchmark run; `report.json` holds just this."""

    schema_version: int = REPORT_SCHEMA_VERSION
    command: str
    data: str
    data_sha256: str
    rows: int
    task: str
    metric: str | None
    reference: str
    repeats: int
    threads: int | None
    length_percentiles: dict[str, int]
    libraries: dict[str, str]
    hardware: dict[str, Any]
    candidates: tuple[Measured, ...]

    def write(self, directory: Path) -> None:
        (directory / "report.json").write_text(self.model_dump_json(indent=1) + "\n", encoding="utf-8")
        (directory / "report.md").write_text(markdown(self), encoding="utf-8")


COLUMNS = (
    "backend",
    "precision",
    "accuracy",
    "flips",
    "sequences/s",
    "x ref",
    "real tokens/s",
    "p50 ms",
    "p95 ms",
    "p99 ms",
    "peak MB",
)


def table(report: Report) -> list[tuple[str, ...]]:
    """The rows of the result table as text, in the order of COLUMNS; a failed candidate says why."""
    reference = next((item for item in report.candidates if item.name == report.reference), None)
    return [_row(item, reference, report.metric) for item in report.candidates]


def _row(item: Measured, reference: Measured | None, metric: str | None) -> tuple[str, ...]:
    if item.error is not None:
        return (item.name, "failed: " + item.error.strip().splitlines()[-1], *("" for _ in COLUMNS[2:]))
    score = f"{100 * item.metrics[metric]:.2f}" if metric in item.metrics else "-"
    is_reference = reference is not None and item.name == reference.name
    flips = "reference" if is_reference else "-" if item.flips is None else str(item.flips)
    ratio = "-"
    if reference is not None and item.offline_s and reference.offline_s:
        ratio = f"{paired_ratio(reference.offline_s, item.offline_s):.2f}"
    percentiles = [_number(item.latency_percentile(percent), 2) for percent in (50, 95, 99)]
    speeds = (_number(_median(item.sequences_per_s), 1), ratio, _number(_median(item.real_tokens_per_s), 0))
    memory = "-" if item.peak_memory_bytes is None else f"{item.peak_memory_bytes / 1e6:,.0f}"
    return (item.name, item.precision or "-", score, flips, *speeds, *percentiles, memory)


def paired_ratio(reference: Sequence[float], other: Sequence[float]) -> float:
    """How many times faster than the reference: the median over repeats of the ratio within a repeat."""
    return float(np.median([a / b for a, b in zip(reference, other, strict=False)]))


def print_table(report: Report) -> None:
    """The result table on standard output; wide enough for a file where that is no terminal."""
    view = Table(caption=hardware_line(report))
    for number, name in enumerate(_heading(report)):
        view.add_column(name, justify="left" if number < 2 else "right")
    for row in table(report):
        view.add_row(*row)
    Console(width=None if sys.stdout.isatty() else 140).print(view)


def markdown(report: Report) -> str:
    """The report as a Markdown page."""
    lines = [
        "# Benchmark",
        "",
        f"`{report.data}`, {report.rows} rows, task {report.task}. {hardware_line(report)}.",
        "",
        f"Repeats: {report.repeats}, interleaved. Throughput is the median over repeats, `x ref` the median of the "
        "ratios to the reference within a repeat. Tokenisation is not in these times; memory is a process's peak.",
        "",
        "| " + " | ".join(_heading(report)) + " |",
        "|" + "---|" * len(COLUMNS),
        *("| " + " | ".join(cell.replace("|", "\\|") for cell in row) + " |" for row in table(report)),
        "",
        "Token lengths: " + ", ".join(f"{name} {value}" for name, value in report.length_percentiles.items()) + "; "
        f"{truncated(report)} rows were cut.",
        "",
        f"Command: `{report.command}`",
        "",
        "Libraries: " + ", ".join(f"{name} {number}" for name, number in sorted(report.libraries.items())) + ".",
        "",
    ]
    return "\n".join(lines)


def _heading(report: Report) -> Iterable[str]:
    return (f"{report.metric} %" if name == "accuracy" and report.metric else name for name in COLUMNS)


def truncated(report: Report) -> int:
    """Rows that were cut to the model's length or a task's limit."""
    return max((item.truncated for item in report.candidates), default=0)


def hardware_line(report: Report) -> str:
    """One line that says on what it was measured."""
    memory = report.hardware.get("memory_bytes")
    size = f", {memory / 2**30:.0f} GiB" if memory else ""
    threads = f", {report.threads} threads" if report.threads else ""
    return f"{report.hardware.get('cpu')}, {report.hardware.get('cores')} cores{size}{threads}"


def _median(values: Sequence[float]) -> float | None:
    return float(np.median(values)) if values else None


def _number(value: float | None, digits: int) -> str:
    return "-" if value is None else f"{value:,.{digits}f}"
