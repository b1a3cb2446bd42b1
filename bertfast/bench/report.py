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
from bertfast.bench.figures import Figures, failures, figures, hardware_line, truncated, warnings
from bertfast.bench.html import write_html
from bertfast.bench.results import Results
from bertfast.bench.table import DETAILS, NOTHING, Column, cells, columns_of


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
        f"{results.rows:,} rows; {hardware_line(results)}; {results.repeats} interleaved repeats, timed from the text "
        "to the answer.",
        "" if results.labelled else "The file has no labels: speed only.",
        _markdown_rows(rows, columns),
        "\n".join(f"- {line}" for line in [*failures(rows), *warnings(rows)]),
        _markdown_rows(rows, details),
        " ".join(meanings),
        f"Command: `{results.command}`",
        f"Libraries: {libraries}. Data: SHA-256 {results.data_sha256[:12]}; {truncated(rows)} rows were cut.",
    ]
    return "\n\n".join(part for part in parts if part) + "\n"


def _markdown_rows(rows: Sequence[Figures], columns: Sequence[Column]) -> str:
    lines = [[column.heading for column in columns], ["---"] * len(columns), *(cells(row, columns) for row in rows)]
    return "\n".join("| " + " | ".join(cell.replace("|", "\\|") for cell in line) + " |" for line in lines)


def _verdict(results: Results) -> list[str]:
    if results.verdict is None:
        return []
    refused = [f"Refused: {name}: {reason}." for name, reason in results.verdict.refused.items()]
    return [results.verdict.summary, *refused]
