"""Which candidate may be shipped, and why the others may not: judged on the results alone."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

from pydantic import NonNegativeFloat, PositiveFloat

from bertfast.bench.figures import Figures, failure, figures, times_faster
from bertfast.bench.results import Results, Verdict
from bertfast.config import Config

SIXTEEN_BITS = ("fp16", "bf16")
EIGHT_BITS = ("int8", "fp8")
ROUNDING = 1e-9


class Limits(Config):
    """What a candidate must hold.

    Attributes:
        max_drop: points of the metric that it may lose against the reference.
        min_speedup: offline throughput, by the reference's.
        max_p99_ms: of single-stream latencies, and of some rate of arrivals where the server scenario ran.
    """

    max_drop: NonNegativeFloat | None = None
    min_speedup: PositiveFloat | None = None
    max_p99_ms: PositiveFloat | None = None

    @property
    def any(self) -> bool:
        return self != Limits()


Rule = Callable[[Figures], str | None]


@dataclass(frozen=True)
class Pace:
    """How candidates are put in order: by offline throughput, or by p99 where only single-stream ran.

    Attributes:
        key: the more the better.
        text: a candidate's pace in words.
    """

    key: Callable[[Figures], float]
    text: Callable[[Figures], str]


def verdict_on(results: Results, limits: Limits) -> Verdict:
    """The verdict.

    What one has already is no news: where there are other artefacts than the reference's, one of them must pass. A peer
    is measured to compare with, and is no choice; the summary says where one that passes is faster.
    """
    rows = figures(results)
    right: list[Rule] = [_is_emulated, partial(_drops, results, limits)]
    accurate = [row for row in rows if _reasons(right, row) is None]
    fast: list[Rule] = [
        partial(_gains_nothing, accurate),
        partial(_is_slow, limits),
        partial(_is_late, results, limits),
    ]
    reasons = {row.name: _reasons(right if row.measured.emulated else [*right, *fast], row) for row in rows}
    pace = _pace(rows)
    ranked = sorted(rows, key=pace.key, reverse=True)
    passing = [row for row in ranked if reasons[row.name] is None]
    refused = {row.name: reason for row in rows if row.measured.is_ours and (reason := reasons[row.name])}
    choice = next((row for row in passing if row.measured.is_ours), None)
    asked = _asked_about(ranked)
    if choice is not None and any(row in asked for row in passing):
        summary = (
            f"Ship {choice.name}: {_merits(choice, pace)}.{_doubt(choice, results, limits)}{_faster(passing[0], pace)}"
        )
        return Verdict(ship=True, choice=choice.name, summary=summary, refused=refused)
    first = next((row for row in ranked if row.measured.is_ours), None)
    others = "" if asked[:1] == [first] else " of the other artefacts"
    foremost = f"The fastest{others}, {asked[0].name}: {refused[asked[0].name]}." if asked else ""
    left = f"Stay with {choice.name}: {_merits(choice, pace)}." if choice else "Nothing else passes either."
    summary = f"Do not ship. {foremost} {left}"
    return Verdict(ship=False, choice=choice.name if choice else None, summary=summary, refused=refused)


def _asked_about(rows: Sequence[Figures]) -> list[Figures]:
    """Ours from other artefacts than the reference's; where there are none, all of ours. In the order given."""
    ours = [row for row in rows if row.measured.is_ours]
    known = {row.measured.artefact_sha256 for row in rows if row.is_reference}
    return [row for row in ours if row.measured.artefact_sha256 not in known] or ours


def _reasons(rules: Sequence[Rule], row: Figures) -> str | None:
    """What all the rules that refuse the row say; of one that failed nothing else is worth saying."""
    if why := _fails(row):
        return why
    return ". Also: ".join(filter(None, (rule(row) for rule in rules))) or None


def _fails(row: Figures) -> str | None:
    why = failure(row)
    return f"it failed: {why}" if row.measured.error is not None else why


def _is_emulated(row: Figures) -> str | None:
    if not row.measured.emulated:
        return None
    return (
        f"this machine has no {row.measured.precision}: its numbers were computed in fp32, and its speed is not its own"
    )


def _drops(results: Results, limits: Limits, row: Figures) -> str | None:
    if limits.max_drop is None:
        return None
    precision = next(item.precision for item in results.candidates if item.name == results.reference)
    if precision != "fp32":
        return (
            f"its drop is not known, and {limits.max_drop:g} points are the limit: nothing in fp32 answered, and "
            f"{results.reference} in {precision} is no measure. Add the checkpoint to the artefacts"
        )
    if row.is_reference:
        return None
    if row.drop is None:
        return f"its drop is not known, and {limits.max_drop:g} points are the limit: {_why_unknown(results)}"
    if row.drop <= limits.max_drop + ROUNDING:
        return None
    return (
        f"{results.metric} drops by {row.drop:.2f} points, and {limits.max_drop:g} is the limit"
        f"{_evidence(row)}{_too_small_to_tell(row, limits.max_drop)}"
    )


def _why_unknown(results: Results) -> str:
    return "it was not scored" if results.labelled else "the file has no labels"


def _evidence(row: Figures) -> str:
    """What the rows say, pair by pair."""
    parts = []
    if row.mcnemar is not None:
        parts.append(f"{row.measured.lost} rows lost and {row.measured.gained} gained, McNemar's p {row.mcnemar:.2g}")
    if row.drop_interval is not None:
        parts.append("95% interval of the drop {:.2f} to {:.2f}".format(*row.drop_interval))
    return f" ({'; '.join(parts)})" if parts else ""


def _too_small_to_tell(row: Figures, limit: float) -> str:
    """A remark where chance alone may have put the drop on the wrong side of the limit."""
    chance = row.drop_interval is not None and row.drop_interval[0] <= limit < row.drop_interval[1]
    return ". The file is too small to tell this from chance: judge it on more rows" if chance else ""


def _gains_nothing(rows: Sequence[Figures], row: Figures) -> str | None:
    """INT8 and FP8 cost accuracy, so they must be faster than what the same backend does with more bits.

    Args:
        rows: those that are accurate enough to be shipped in its place.
    """
    measured = row.measured
    if measured.precision not in EIGHT_BITS or not measured.is_ours:
        return None
    others = [other.measured for other in rows if other.measured.is_ours]
    same = [other for other in others if other.backend == measured.backend]
    wider = [other for other in same if other.precision in SIXTEEN_BITS]
    for other in wider or [other for other in same if other.precision == "fp32"]:
        gain = times_faster(measured, other)
        if gain is not None and gain.low <= 1:
            return (
                f"{measured.precision} is not faster than {other.precision} here: {gain.value:.2f} times {other.name} "
                f"({gain.low:.2f} to {gain.high:.2f}). It would cost accuracy for nothing"
            )
    return None


def _is_slow(limits: Limits, row: Figures) -> str | None:
    if limits.min_speedup is None:
        return None
    if row.speedup is None:
        return f"its speed-up is not known, and {limits.min_speedup:g} is asked for: the scenario offline did not run"
    if row.speedup.value >= limits.min_speedup:
        return None
    return (
        f"{row.speedup.value:.2f} times the reference's throughput "
        f"({row.speedup.low:.2f} to {row.speedup.high:.2f}), and {limits.min_speedup:g} is asked for"
    )


def _is_late(results: Results, limits: Limits, row: Figures) -> str | None:
    if limits.max_p99_ms is None:
        return None
    if row.p99_ms is None and row.server_per_s is None:
        return "its p99 is not known: neither of the scenarios single-stream and server ran"
    if row.p99_ms is not None and row.p99_ms.value > limits.max_p99_ms:
        return f"p99 is {row.p99_ms.value:.2f} ms, one request at a time, and {limits.max_p99_ms:g} ms is the limit"
    if row.server_per_s == 0:
        return f"no rate of arrivals that was tried keeps p99 within {results.bound_p99_ms:g} ms"
    return None


def _pace(rows: Sequence[Figures]) -> Pace:
    if any(row.sequences_per_s for row in rows):
        return Pace(
            lambda row: row.sequences_per_s.value if row.sequences_per_s else 0.0,
            lambda row: f"{row.sequences_per_s.value:,.0f} sequences/s" if row.sequences_per_s else "not timed",
        )
    return Pace(
        lambda row: -row.p99_ms.value if row.p99_ms else float("-inf"),
        lambda row: f"p99 {row.p99_ms.value:.2f} ms" if row.p99_ms else "not timed",
    )


def _merits(row: Figures, pace: Pace) -> str:
    merits = [row.measured.precision] if row.measured.precision else []
    merits.append(pace.text(row))
    if row.speedup is not None and not row.is_reference:
        merits.append(f"{row.speedup.value:.2f} times the reference")
    if row.drop is not None:
        change = "lost" if row.drop > 0 else "gained"
        merits.append(f"{abs(row.drop):.2f} points {change}" if row.drop else "no points lost")
    return ", ".join(merits)


def _doubt(row: Figures, results: Results, limits: Limits) -> str:
    """A remark where the drop may be beyond the limit although it is not on these rows.

    Where no answer changed there is nothing to resample; what happens to none of n rows happens to 3 in n at the most
    (95%; Hanley and Lippman-Hand 1983, "If nothing goes wrong, is everything all right?").
    """
    if limits.max_drop is None or row.drop_interval is None:
        return ""
    most = max(row.drop_interval[1], 300 / results.rows if row.measured.flips == 0 else 0.0)
    if most <= limits.max_drop + ROUNDING:
        return ""
    return f" {results.rows:,} rows are few: the drop may be up to {most:.2f} points (95%)."


def _faster(first: Figures, pace: Pace) -> str:
    """A remark where the fastest of all that pass is a peer."""
    if first.measured.is_ours:
        return ""
    return f" The peer {first.name} passes too and is faster: {pace.text(first)}."
