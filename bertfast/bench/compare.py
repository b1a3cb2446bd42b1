"""Two runs beside each other: what became slower, less accurate or larger."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from pydantic import ValidationError

from bertfast.bench.figures import Figures, failure, figures
from bertfast.bench.results import RESULTS_SCHEMA_VERSION, Results
from bertfast.bench.uncertainty import Estimate, proportions_p
from bertfast.config import Config
from bertfast.errors import DataError

LEAST_CHANGE = 0.03
LEAST_MEMORY_CHANGE = 0.1  # the peak of a process differs by a few per cent from one run to the next
CHANCE = 0.05


class Change(Config):
    """A figure of a candidate that both runs measured.

    Attributes:
        measure: the heading of its column.
        verdict: `regressed`, `improved` or `same`; a change counts where it is larger than noise.
    """

    candidate: str
    measure: str
    old: float
    new: float
    verdict: str


class Comparison(Config):
    """Two runs, candidate by candidate.

    Attributes:
        warnings: what makes the comparison doubtful.
        only_old: candidates that the new run lacks.
        only_new: the other way round.
        failing: candidates that fail or answer NaN in the new run and did not in the old one, and why.
        mended: the other way round.
    """

    warnings: tuple[str, ...]
    only_old: tuple[str, ...]
    only_new: tuple[str, ...]
    failing: dict[str, str]
    mended: tuple[str, ...]
    changes: tuple[Change, ...]

    @property
    def regressed(self) -> bool:
        return bool(self.failing) or any(change.verdict == "regressed" for change in self.changes)


def read_results(path: Path) -> Results:
    """The results of a report.json, or of the report's directory.

    Raises:
        DataError: the file is missing or holds no results of this version.
    """
    path = path / "report.json" if path.is_dir() else path
    if not path.is_file():
        raise DataError(f"{path} does not exist. Give the report.json that 'bertfast bench --out DIR' wrote, or DIR.")
    text = path.read_text(encoding="utf-8", errors="replace")
    try:
        found = json.loads(text).get("schema_version")
    except (ValueError, AttributeError):
        raise DataError(f"{path} is no report.json: it holds no JSON object.") from None
    if found != RESULTS_SCHEMA_VERSION:
        raise DataError(
            f"{path} has schema {found}, and this version of bertfast reads {RESULTS_SCHEMA_VERSION}. "
            "Measure again with this version."
        )
    try:
        return Results.model_validate_json(text)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(map(str, first["loc"]))
        raise DataError(f"{path} is not whole: {where}: {first['msg']}. Measure again.") from None


def compare(old: Results, new: Results) -> Comparison:
    """Candidates are matched by name."""
    before, after = ({row.name: row for row in figures(results)} for results in (old, new))
    both = [name for name in before if name in after]
    sound = {name for name in both if failure(before[name]) is None}
    failing = {name: why for name in both if name in sound and (why := failure(after[name])) is not None}
    return Comparison(
        warnings=tuple(_doubts(old, new)),
        only_old=tuple(name for name in before if name not in after),
        only_new=tuple(name for name in after if name not in before),
        failing=failing,
        mended=tuple(name for name in both if name not in sound and failure(after[name]) is None),
        changes=tuple(
            change
            for name in both
            if name in sound and name not in failing
            for change in _changes(old, new, before[name], after[name])
        ),
    )


@dataclass(frozen=True)
class _Measure:
    """A figure to compare, where both runs have it."""

    name: str
    old: Estimate | None
    new: Estimate | None
    more_is_better: bool
    least_change: float


def _changes(old: Results, new: Results, before: Figures, after: Figures) -> Iterator[Change]:
    if old.metric == new.metric and before.score is not None and after.score is not None:
        yield _score_change(old, new, before, after)
    memory, new_memory = (_exact(row.measured.peak_memory_bytes) for row in (before, after))
    for measure in (
        _Measure("sequences/s", before.sequences_per_s, after.sequences_per_s, True, LEAST_CHANGE),
        _Measure("p99 ms", before.p99_ms, after.p99_ms, False, LEAST_CHANGE),
        _Measure("peak MB", memory, new_memory, False, LEAST_MEMORY_CHANGE),
    ):
        if measure.old is not None and measure.new is not None:
            yield _timed_change(before.name, measure, measure.old, measure.new)


def _timed_change(candidate: str, measure: _Measure, old: Estimate, new: Estimate) -> Change:
    relative = new.value / old.value - 1
    changed = abs(relative) > measure.least_change and not old.overlaps(new)
    return Change(
        candidate=candidate,
        measure=measure.name,
        old=old.value,
        new=new.value,
        verdict=_verdict(changed, better=(relative > 0) == measure.more_is_better),
    )


def _score_change(old: Results, new: Results, before: Figures, after: Figures) -> Change:
    assert before.score is not None
    assert after.score is not None
    return Change(
        candidate=before.name,
        measure=f"{old.metric} %",
        old=before.score,
        new=after.score,
        verdict=_verdict(_other_scores(old, new, before, after), better=after.score > before.score),
    )


def _other_scores(old: Results, new: Results, before: Figures, after: Figures) -> bool:
    """Whether the intervals of the drops lie apart, where both are against the same reference on the same rows; else
    whether the scores differ as shares."""
    assert before.score is not None
    assert after.score is not None
    (level, drop), (new_level, new_drop) = (_against_reference(row) for row in (before, after))
    same = old.data_sha256 == new.data_sha256 and old.rows == new.rows and math.isclose(level, new_level)
    if same and drop is not None and new_drop is not None:
        return not drop.overlaps(new_drop)
    return _other_shares(old, new, before.score, after.score)


def _against_reference(row: Figures) -> tuple[float, Estimate | None]:
    """(the reference's score, the drop against it); the reference has no drop against itself."""
    assert row.score is not None
    if row.drop is None:
        return row.score, Estimate(0.0, 0.0, 0.0)
    return row.score + row.drop, Estimate(row.drop, *row.drop_interval) if row.drop_interval else None


def _other_shares(old: Results, new: Results, before: float, after: float) -> bool:
    """Whether shares of right rows differ by Fisher's exact test, as runs keep no answers and rows cannot be paired;
    a metric that is no such share, whether it changed by more than the least change that counts."""
    right = [_right_rows(score, results.rows) for score, results in ((before, old), (after, new))]
    if right[0] is None or right[1] is None:
        return abs(after - before) > LEAST_CHANGE * abs(before)
    return proportions_p((right[0], right[1]), (old.rows, new.rows)) < CHANCE


def _right_rows(score: float, rows: int) -> int | None:
    """How many rows are right, where the metric is the share of them; None where it is something else."""
    count = score / 100 * rows
    return round(count) if math.isclose(count, round(count), abs_tol=1e-6) else None


def _verdict(changed: bool, *, better: bool) -> str:
    if not changed:
        return "same"
    return "improved" if better else "regressed"


def _exact(size: int | None) -> Estimate | None:
    return None if size is None else Estimate(size / 1e6, size / 1e6, size / 1e6)


def _doubts(old: Results, new: Results) -> Iterator[str]:
    if old.task != new.task or old.metric != new.metric:
        yield f"the runs are of {old.task} ({old.metric}) and {new.task} ({new.metric})."
    if old.data_sha256 != new.data_sha256 or old.rows != new.rows:
        yield f"the data differ: {_data(old)} and {_data(new)}."
    if old.threads != new.threads:
        yield "the threads differ: {} and {}.".format(
            *(run.threads or "the backends' own number" for run in (old, new))
        )
    keys = [key for key in old.hardware | new.hardware if old.hardware.get(key) != new.hardware.get(key)]
    if keys:
        told = ", ".join(f"{key} {old.hardware.get(key)} and {new.hardware.get(key)}" for key in keys)
        yield f"the machines differ: {told}."


def _data(results: Results) -> str:
    return f"{results.data} ({results.rows:,} rows, SHA-256 {results.data_sha256[:12]})"
