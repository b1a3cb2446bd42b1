"""The report in words: the result table in a terminal and in Markdown."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from bertfast.bench.compare import Change, Comparison
from bertfast.bench.figures import (
    GRID_CAPTION,
    Figures,
    failures,
    figures,
    grid_of,
    hardware_line,
    run_line,
    server_caption,
    truncated,
    warnings,
)
from bertfast.bench.html import write_html
from bertfast.bench.results import Results
from bertfast.bench.scenarios import p99_ms
from bertfast.bench.table import DETAILS, NOTHING, Column, cells, columns_of, number


def write_reports(results: Results, directory: Path) -> None:
    """Write report.json, report.md and report.html."""
    results.write(directory)
    (directory / "report.md").write_text(markdown(results), encoding="utf-8")
    write_html(results, directory / "report.html")


def print_table(results: Results) -> None:
    """The result table on standard output, and the verdict where there is one."""
    rows = figures(results)
    columns = columns_of(results, rows, brief=True)
    view = Table(caption=hardware_line(results), box=SIMPLE_HEAD, padding=(0, 1), caption_justify="left")
    for place, column in enumerate(columns):
        view.add_column(column.heading, justify="left" if place < 2 else "right", overflow="fold")
    for row in rows:
        view.add_row(*map(escape, cells(row, columns)))
    console = Console(width=None if sys.stdout.isatty() else 200)
    console.print(view)
    for line in [*failures(rows), *warnings(rows), *_verdict(results)]:
        console.print(line, markup=False, highlight=False, soft_wrap=True)


def print_comparison(comparison: Comparison) -> None:
    """What changed from one run to another, on standard output: a row a candidate, coloured where it counts."""
    by_candidate: dict[str, dict[str, str]] = {}
    for change in comparison.changes:
        by_candidate.setdefault(change.candidate, {})[change.measure] = _from_old_to_new(change)
    measures = list(dict.fromkeys(change.measure for change in comparison.changes))
    view = Table("candidate", box=SIMPLE_HEAD, padding=(0, 1))
    for measure in measures:
        view.add_column(escape(measure), justify="right", overflow="fold")
    for name, changes in by_candidate.items():
        view.add_row(escape(name), *(changes.get(measure, NOTHING) for measure in measures))
    console = Console(width=None if sys.stdout.isatty() else 200)
    console.print(view, highlight=False)
    for line in _in_words(comparison):
        console.print(line, markup=False, highlight=False, soft_wrap=True)


def _from_old_to_new(change: Change) -> str:
    digits = 2 if change.measure.endswith("%") or min(change.old, change.new) < 100 else 0
    by = f"{change.new - change.old:+.2f}" if change.measure.endswith("%") else f"{change.new / change.old - 1:+.1%}"
    text = f"{change.old:,.{digits}f} → {change.new:,.{digits}f} ({by})"
    return {"regressed": f"[red]{text} worse[/]", "improved": f"[green]{text} better[/]", "same": text}[change.verdict]


def _in_words(comparison: Comparison) -> list[str]:
    return [
        *(f"warning: {doubt}" for doubt in comparison.warnings),
        *(f"regressed: {name} failed: {why}" for name, why in comparison.failing.items()),
        *(f"improved: {name} failed before." for name in comparison.mended),
        *(f"only in the old run: {name}" for name in comparison.only_old),
        *(f"only in the new run: {name}" for name in comparison.only_new),
        "Something regressed." if comparison.regressed else "Nothing regressed.",
    ]


def markdown_table(results: Results, *, brief: bool = False) -> str:
    """The result table alone."""
    rows = figures(results)
    return _markdown_rows(rows, columns_of(results, rows, brief=brief))


def markdown(results: Results) -> str:
    """The report as a Markdown page."""
    rows = figures(results)
    columns, details = columns_of(results, rows), columns_of(results, rows, DETAILS)
    meanings = [f"`{column.heading}`: {column.meaning}." for column in [*columns, *details] if column.meaning]
    libraries = ", ".join(f"{name} {version}" for name, version in sorted(results.libraries.items()))
    verdict, *refused = _verdict(results) or [""]
    parts = [
        f"# Benchmark: {results.task} on {results.data}",
        f"**{verdict}**" if verdict else "",
        "\n".join(f"- {line}" for line in refused),
        run_line(results),
        _markdown_rows(rows, columns),
        "\n".join(f"- {line}" for line in [*failures(rows), *warnings(rows)]),
        _markdown_rows(rows, details),
        " ".join(meanings),
        _rates(results, rows),
        _grid(rows),
        f"Command: `{results.command}`{f'. Commit: {results.commit}' if results.commit else ''}",
        f"Libraries: {libraries}. Data: SHA-256 {results.data_sha256[:12]}; {truncated(rows)} rows were cut.",
    ]
    return "\n\n".join(part for part in parts if part) + "\n"


def _markdown_rows(rows: Sequence[Figures], columns: Sequence[Column]) -> str:
    return _markdown([[column.heading for column in columns], *(cells(row, columns) for row in rows)])


def _markdown(lines: Sequence[Sequence[str]]) -> str:
    """A table of a heading and rows."""
    ruled = [lines[0], ["---"] * len(lines[0]), *lines[1:]]
    return "\n".join("| " + " | ".join(cell.replace("|", "\\|") for cell in line) + " |" for line in ruled)


def _rates(results: Results, rows: Sequence[Figures]) -> str:
    """Every rate of arrivals that was tried, and what it came to."""
    served = [(row, sorted(row.measured.server, key=lambda run: run.rate_per_s)) for row in rows if row.measured.server]
    if not served:
        return ""
    lines = [(row.name, "; ".join(f"{run.rate_per_s:,.0f}: {p99_ms(run):.1f}" for run in runs)) for row, runs in served]
    return f"Serving. {server_caption(results)}.\n\n{_markdown([('candidate', 'requests/s: p99 ms'), *lines])}"


def _grid(rows: Sequence[Figures]) -> str:
    shapes, speeds = grid_of(rows)
    if not shapes:
        return ""
    lines = [
        [rows[place].name, *(number(of_one.get(shape), 0) for shape in shapes)] for place, of_one in speeds.items()
    ]
    return f"{GRID_CAPTION}\n\n{_markdown([['candidate', *shapes.values()], *lines])}"


def _verdict(results: Results) -> list[str]:
    if results.verdict is None:
        return []
    refused = [f"Refused: {name}: {reason}." for name, reason in results.verdict.refused.items()]
    return [results.verdict.summary, *refused]
