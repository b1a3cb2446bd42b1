"""The report in words."""

from __future__ import annotations

from pathlib import Path

from bertfast.bench.results import Results


def write_reports(results: Results, directory: Path) -> None:
    """Write report.json, report.md and report.html."""
    results.write(directory)
    lines = [f"{item.name}: {item.error or item.metrics}" for item in results.candidates]
    (directory / "report.md").write_text("\n".join(lines) + "\n", encoding="utf-8")
    (directory / "report.html").write_text("<p>" + "<p>".join(lines) + "\n", encoding="utf-8")


def print_table(results: Results) -> None:
    """The result table on standard output."""
    for item in results.candidates:
        print(item.name, item.error or item.metrics)
