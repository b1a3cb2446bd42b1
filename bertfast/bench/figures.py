"""What tables, plots, the gate and comparisons show of a candidate, computed from its raw samples."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np

from bertfast.bench.results import Measured, OfflineRun, Results, ServerRun
from bertfast.bench.scenarios import holds
from bertfast.bench.uncertainty import Estimate, mcnemar_p, median, paired_ratio, percentile

PHASES = ("tokenize", "upload", "compute", "download", "decode", "other")
GRID_CAPTION = "Sequences/s of batches of one shape (sequences x tokens), computing alone, warm, without text."


@dataclass(frozen=True)
class Figures:
    """The figures of a candidate; None where they were not measured.

    Attributes:
        score: the metric of the results, in points (percent).
        drop: the reference's score minus this one's, in points.
        drop_interval: its 95% interval, where rows could be resampled.
        mcnemar: how probable a difference like that of `lost` and `gained` is by chance.
        speedup: offline throughput, by the reference's in the same repeat.
        server_per_s: the highest rate tried that held the bound; 0 where none did.
        us_per_sequence: offline microseconds of a sequence, by phase; means over repeats.
        padding: share of padding among the tokens computed on, by scenario.
        joules: for 1,000 sequences, offline, by meter.
    """

    measured: Measured
    is_reference: bool
    score: float | None
    drop: float | None
    drop_interval: tuple[float, float] | None
    mcnemar: float | None
    sequences_per_s: Estimate | None
    given_sequences_per_s: Estimate | None
    real_tokens_per_s: float | None
    speedup: Estimate | None
    p50_ms: Estimate | None
    p99_ms: Estimate | None
    server_per_s: float | None
    us_per_sequence: dict[str, float]
    padding: dict[str, float]
    joules: dict[str, float]

    @property
    def name(self) -> str:
        return self.measured.name


def figures(results: Results) -> list[Figures]:
    """Those of each candidate, in their order."""
    reference = next(item for item in results.candidates if item.name == results.reference)
    return [_figures(results, item, reference) for item in results.candidates]


def times_faster(item: Measured, other: Measured) -> Estimate | None:
    """By offline throughput or, where that was not measured of both, by the median latency."""
    if item.offline and other.offline:
        return _offline_ratio(item, other)
    if not item.latency_ms or not other.latency_ms:
        return None
    return paired_ratio(*([float(np.median(repeat)) for repeat in one.latency_ms] for one in (other, item)))


def hardware_line(results: Results) -> str:
    """One line that says on what it was measured."""
    memory = results.hardware.get("memory_bytes")
    size = f", {memory / 2**30:.0f} GiB" if memory else ""
    threads = f", {_counted(results.threads, 'thread')}" if results.threads else ""
    return f"{results.hardware.get('cpu')}, {results.hardware.get('cores')} cores{size}{threads}"


def run_line(results: Results) -> str:
    """One line that says what was measured, how often and on what."""
    made = [(item.offline, item.offline_given, item.latency_ms) for item in results.candidates]
    most = max((len(repeats) for scenarios in made for repeats in scenarios), default=results.repeats)
    more = f", up to {most} where they differed" if most > results.repeats else ""
    labels = "" if results.labelled else " The file has no labels: speed only."
    return (
        f"{_counted(results.rows, 'row')}; {hardware_line(results)}; {_counted(results.repeats, 'interleaved repeat')}"
        f"{more}, timed from the text to the answer.{labels}"
    )


def _counted(number: int, what: str) -> str:
    return f"{number:,} {what}{'' if number == 1 else 's'}"


def failure(row: Figures) -> str | None:
    """Why a candidate is neither compared nor shipped: its error, or answers that are not finite; None where sound."""
    return row.measured.error if row.measured.error is not None else not_finite_in_words(row.measured.not_finite)


def not_finite_in_words(count: int) -> str | None:
    """What is said of so many answers that hold a number that is none, or infinite; None of none."""
    return f"{count} of its answers hold numbers that are NaN or infinite" if count else None


def failures(rows: Iterable[Figures]) -> list[str]:
    return [f"{row.name} failed: {row.measured.error}" for row in rows if row.measured.error is not None]


def warnings(rows: Iterable[Figures]) -> list[str]:
    return [f"{row.name}: {warning}" for row in rows for warning in row.measured.warnings]


def truncated(rows: Iterable[Figures]) -> int:
    return max((row.measured.truncated for row in rows), default=0)


def pareto_front(points: Sequence[tuple[float, float]]) -> list[int]:
    """The points than which no other is better in one coordinate and as good in the other, by rising first one.

    Args:
        points: the more the better in both coordinates.
    """
    front: list[int] = []
    for i in sorted(range(len(points)), key=lambda i: points[i], reverse=True):
        if not front or points[i][1] > points[front[-1]][1]:
            front.append(i)
    return front[::-1]


def grid_of(rows: Sequence[Figures]) -> tuple[dict[tuple[int, int], str], dict[int, dict[tuple[int, int], float]]]:
    """(the heading of each shape that any candidate was timed on, sequences/s by place among the rows and by shape)."""
    speeds = {place: _grid_per_s(row.measured) for place, row in enumerate(rows) if row.measured.grid}
    shapes = sorted({shape for of_one in speeds.values() for shape in of_one})
    return {shape: f"{shape[0]} x {shape[1]}" for shape in shapes}, speeds


def server_caption(results: Results) -> str:
    """What the server scenario asked for."""
    return f"Random (Poisson) arrivals; p99 had to stay under {results.bound_p99_ms:g} ms"


def _grid_per_s(item: Measured) -> dict[tuple[int, int], float]:
    """Sequences/s of batches of one shape, by (sequences, tokens)."""
    cells = [cell for cell in item.grid if cell.compute_s]
    return {(cell.batch_size, cell.length): cell.batch_size / float(np.median(cell.compute_s)) for cell in cells}


def _figures(results: Results, item: Measured, reference: Measured) -> Figures:
    count, tokens = item.sequences or 0, item.real_tokens
    paired = item.lost is not None and item.gained is not None
    return Figures(
        measured=item,
        is_reference=item is reference,
        score=_score(results, item),
        drop=None if item is reference else _drop(_score(results, reference), _score(results, item)),
        drop_interval=(100 * item.drop_interval[0], 100 * item.drop_interval[1]) if item.drop_interval else None,
        mcnemar=mcnemar_p(item.lost or 0, item.gained or 0) if paired else None,
        sequences_per_s=_throughput(item.offline, count),
        given_sequences_per_s=_throughput(item.offline_given, count),
        real_tokens_per_s=tokens / float(np.median(_elapsed_s(item))) if tokens and item.offline else None,
        speedup=_offline_ratio(item, reference),
        p50_ms=_latency(item, 50),
        p99_ms=_latency(item, 99),
        server_per_s=_highest_rate(item.server, results.bound_p99_ms),
        us_per_sequence=_phases(item, count),
        padding={name: 1 - tokens / padded for name, padded in item.padded_tokens.items()} if tokens else {},
        joules=_joules(item, count),
    )


def _score(results: Results, item: Measured) -> float | None:
    return 100 * item.metrics[results.metric] if results.metric in item.metrics else None


def _drop(before: float | None, after: float | None) -> float | None:
    return None if before is None or after is None else before - after


def _elapsed_s(item: Measured) -> list[float]:
    return [run.elapsed_s for run in item.offline]


def _throughput(runs: Sequence[OfflineRun], sequences: int) -> Estimate | None:
    return median([sequences / run.elapsed_s for run in runs]) if runs and sequences else None


def _offline_ratio(item: Measured, other: Measured) -> Estimate | None:
    return paired_ratio(_elapsed_s(other), _elapsed_s(item)) if item.offline and other.offline else None


def _latency(item: Measured, percent: float) -> Estimate | None:
    return percentile(item.latency_ms, percent) if item.latency_ms else None


def _highest_rate(runs: Sequence[ServerRun], bound_p99_ms: float | None) -> float | None:
    if not runs or bound_p99_ms is None:
        return None
    return max((run.rate_per_s for run in runs if holds(run, bound_p99_ms)), default=0.0)


def _phases(item: Measured, sequences: int) -> dict[str, float]:
    if not item.offline or not sequences:
        return {}
    means = {name: float(np.mean([run.phases_s.get(name, 0.0) for run in item.offline])) for name in PHASES}
    return {name: 1e6 * elapsed_s / sequences for name, elapsed_s in means.items() if elapsed_s > 0}


def _joules(item: Measured, sequences: int) -> dict[str, float]:
    if not sequences or not all(run.energy_j for run in item.offline):
        return {}
    meters = sorted({meter for run in item.offline for meter in run.energy_j})
    return {meter: 1e3 * float(np.median([r.energy_j[meter] for r in item.offline])) / sequences for meter in meters}
