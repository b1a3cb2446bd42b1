"""The result tables: their columns and what stands in them, for every form of the report."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from bertfast.bench.figures import Figures
from bertfast.bench.results import Results
from bertfast.bench.uncertainty import Estimate

NOTHING = "-"


def number(value: Estimate | float | None, digits: int) -> str:
    if value is None:
        return NOTHING
    return f"{value.value if isinstance(value, Estimate) else value:,.{digits}f}"


def spread(estimate: Estimate | None) -> str:
    """A figure and its interval."""
    if estimate is None:
        return NOTHING
    digits = 0 if estimate.value >= 10 else 1
    return f"{estimate.value:,.{digits}f} ({estimate.low:,.{digits}f} to {estimate.high:,.{digits}f})"


def speedup(row: Figures) -> str:
    if row.speedup is None or row.is_reference:
        return number(row.speedup, 2)
    return "{:.2f} ({:.2f} to {:.2f})".format(*row.speedup)


def compute_share(row: Figures) -> str:
    """What a system does not take apart has no share."""
    if "compute" not in row.us_per_sequence:
        return NOTHING
    return f"{100 * row.us_per_sequence['compute'] / sum(row.us_per_sequence.values()):.0f}"


def drop(row: Figures) -> str:
    if row.is_reference and row.score is not None:
        return "reference"
    interval = " ({:.2f} to {:.2f})".format(*row.drop_interval) if row.drop_interval and any(row.drop_interval) else ""
    return number(row.drop, 2) + interval


def lost_and_gained(row: Figures) -> str:
    if row.mcnemar is None:
        return NOTHING
    chance = f" (p {row.mcnemar:.2g})" if row.measured.lost or row.measured.gained else ""
    return f"{row.measured.lost}/{row.measured.gained}{chance}"


def flips(row: Figures) -> str:
    return count(row.measured.flips)


def drift(row: Figures) -> str:
    change = row.measured.largest_score_drift
    return NOTHING if change is None else f"{change:.2g}"


def joules(row: Figures) -> str:
    return ", ".join(f"{meter} {value:,.0f}" for meter, value in row.joules.items()) or NOTHING


def count(value: int | None) -> str:
    return NOTHING if value is None else f"{value:,}"


def precision(row: Figures) -> str:
    found = row.measured.precision or NOTHING
    return f"{found}, in fp32" if row.measured.emulated else found


def megabytes(size: int | None) -> str:
    return NOTHING if size is None else f"{size / 1e6:,.0f}"


@dataclass(frozen=True)
class Column:
    """A column of a table.

    Attributes:
        heading: with `{metric}` and `{bound}` to be filled in.
        cell: a candidate's text, `NOTHING` where it was not measured.
        meaning: what a reader must know of the heading.
        brief: whether it is one of those that fit a terminal.
    """

    heading: str
    cell: Callable[[Figures], str]
    meaning: str = ""
    brief: bool = True


COLUMNS = (
    Column("candidate", lambda row: row.name),
    Column("precision", precision),
    Column("{metric} %", lambda row: number(row.score, 2)),
    Column("drop", drop, "points of {metric} lost against the reference, and the 95% interval by resampling rows"),
    Column(
        "lost/gained",
        lost_and_gained,
        "rows that the reference gets right and this one wrong, and the other way round; p is McNemar's, exact",
        brief=False,
    ),
    Column(
        "sequences/s",
        lambda row: spread(row.sequences_per_s),
        "offline, batches of similar length: the median over repeats and its 95% interval",
    ),
    Column("x ref", speedup, "the median of the ratios to the reference within a repeat, and its 95% interval"),
    Column(
        "compute %",
        compute_share,
        "of the time offline: the model alone; the rest goes into tokenisation, copies and decoding",
        brief=False,
    ),
    Column("p50 ms", lambda row: number(row.p50_ms, 2), "one request at a time, from the text to the answer"),
    Column("p99 ms", lambda row: number(row.p99_ms, 2)),
    Column(
        "server/s",
        lambda row: number(row.server_per_s, 0),
        "the highest rate of random arrivals tried that kept p99 within {bound} ms",
    ),
    Column("peak MB", lambda row: megabytes(row.measured.peak_memory_bytes), "memory of the process"),
    Column("GPU MB", lambda row: megabytes(row.measured.peak_device_memory_bytes)),
)
DETAILS = (
    COLUMNS[0],
    Column("flips", flips, "rows that are decided otherwise than by the reference"),
    Column("drift", drift, "the largest change of a score against the reference; of vectors, 1 - the cosine"),
    Column(
        "as given/s",
        lambda row: number(row.given_sequences_per_s, 0),
        "sequences/s with batches in the order of the file",
    ),
    Column("tokens/s", lambda row: number(row.real_tokens_per_s, 0), "offline, padding left out"),
    Column("J/1,000", joules, "energy of 1,000 sequences offline, by meter"),
    Column(
        "batch", lambda row: count(row.measured.batch_size), "the most sequences of a batch, where it has such a rule"
    ),
    Column("load s", lambda row: number(row.measured.load_s, 1), "from the first import until it can be asked"),
    Column("build s", lambda row: number(row.measured.build_s, 1), "of an engine, before it is loaded"),
    Column("disk MB", lambda row: megabytes(row.measured.artefact_bytes), "of the artefact"),
)


def columns_of(
    results: Results, rows: Sequence[Figures], columns: Sequence[Column] = COLUMNS, *, brief: bool = False
) -> list[Column]:
    """Those of the columns in which any candidate has something to show, their headings filled in."""
    words = {"metric": results.metric or "score", "bound": f"{results.bound_p99_ms or 0:g}"}
    return [
        replace(column, heading=column.heading.format(**words), meaning=column.meaning.format(**words))
        for column in columns
        if (column.brief or not brief) and any(column.cell(row) != NOTHING for row in rows)
    ]


def cells(row: Figures, columns: Sequence[Column]) -> list[str]:
    """A candidate's row; one that failed has its name alone, as what it lacks is told elsewhere."""
    if row.measured.error is not None:
        return [row.name, "failed", *("" for _ in columns[2:])][: len(columns)]
    return [column.cell(row) for column in columns]
