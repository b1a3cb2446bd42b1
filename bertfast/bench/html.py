"""The report as one HTML file: no network, no script, pictures as SVG."""

from __future__ import annotations

import html
import importlib.util
import io
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from bertfast.bench.report import COLUMNS, Measured, Report, hardware_line, table, truncated
from bertfast.errors import ConfigError

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_STYLE = """
:root { color-scheme: light dark }
body { font: 15px/1.5 system-ui, sans-serif; max-width: 60rem; margin: 2rem auto; padding: 0 1rem }
table { border-collapse: collapse; width: 100%; font-variant-numeric: tabular-nums }
th, td { text-align: right; padding: .3rem .6rem; border-bottom: 1px solid #8884 }
th:first-child, td:first-child { text-align: left }
td.failed { text-align: left; color: #c33 }
.pictures { display: flex; flex-wrap: wrap; gap: 1rem; margin: 1.5rem 0 }
.pictures svg { max-width: 100%; height: auto; background: #fff; border-radius: 6px }
code { font-size: 90%; overflow-wrap: anywhere }
"""


def require_reporting() -> None:
    """Raise ConfigError, before anything is measured, where a package that the report needs is missing."""
    for module, package in (("matplotlib", "matplotlib"), ("sklearn", "scikit-learn")):
        if importlib.util.find_spec(module) is None:
            raise ConfigError(f"the report needs {package}: pip install 'bertfast[bench]'")


def write_html(report: Report, path: Path) -> None:
    """Write the report page."""
    from matplotlib.figure import Figure

    whole = [item for item in report.candidates if item.error is None]
    pictures = []
    if any(item.offline_s for item in whole):
        pictures.append(_accuracy_against_throughput(Figure(figsize=(6, 4), layout="constrained"), report, whole))
    if any(item.latency_ms for item in whole):
        pictures.append(_latency_curves(Figure(figsize=(6, 4), layout="constrained"), whole))
    path.write_text(_page(report, pictures), encoding="utf-8")


def _page(report: Report, pictures: list[str]) -> str:
    header = "".join(f"<th>{html.escape(name)}</th>" for name in COLUMNS)
    body = "".join(_table_row(item, cells) for item, cells in zip(report.candidates, table(report), strict=True))
    facts = {
        "Data": f"{report.data}, {report.rows} rows (SHA-256 {report.data_sha256[:12]})",
        "Machine": hardware_line(report),
        "Libraries": ", ".join(f"{name} {number}" for name, number in sorted(report.libraries.items())),
        "Token lengths": ", ".join(f"{name} {value}" for name, value in report.length_percentiles.items()),
        "Cut": f"{truncated(report)} rows",
        "Repeats": f"{report.repeats}, interleaved",
    }
    listing = "".join(f"<li><b>{name}:</b> {html.escape(value)}</li>" for name, value in facts.items())
    return (
        "<!doctype html><html lang='en'><meta charset='utf-8'>"
        "<meta name='viewport' content='width=device-width, initial-scale=1'>"
        f"<title>bertfast benchmark: {html.escape(report.data)}</title><style>{_STYLE}</style>"
        f"<h1>{html.escape(report.task)} on {html.escape(report.data)}</h1>"
        f"<table><thead><tr>{header}</tr></thead><tbody>{body}</tbody></table>"
        f"<div class='pictures'>{''.join(pictures)}</div><ul>{listing}</ul>"
        "<p>Throughput is the median over repeats; <i>x ref</i> is the median of the ratios to the reference within a "
        "repeat. Tokenisation is not in these times. Raw samples are in <code>report.json</code>.</p>"
        f"<p><code>{html.escape(report.command)}</code></p></html>\n"
    )


def _table_row(item: Measured, cells: tuple[str, ...]) -> str:
    if item.error is not None:
        name, reason = html.escape(cells[0]), html.escape(cells[1])
        return f"<tr><td>{name}</td><td class='failed' colspan='{len(COLUMNS) - 1}'>{reason}</td></tr>"
    return "<tr>" + "".join(f"<td>{html.escape(cell)}</td>" for cell in cells) + "</tr>"


def _accuracy_against_throughput(figure: Figure, report: Report, whole: list[Measured]) -> str:
    axes = figure.add_subplot()
    for item in whole:
        if not item.offline_s:
            continue
        speeds = np.array(item.sequences_per_s)
        middle = float(np.median(speeds))
        score = 100 * item.metrics.get(report.metric or "", 0.0)
        spread = [[middle - speeds.min()], [speeds.max() - middle]]
        axes.errorbar(middle, score, xerr=spread, fmt="o", capsize=3)
        axes.annotate(f"{item.name} ({item.precision})", (middle, score), xytext=(6, 6), textcoords="offset points")
    axes.set_xlim(left=0)
    axes.margins(x=0.2, y=0.3)
    axes.set_xlabel("sequences/s, offline (median, least to most)")
    axes.set_ylabel(f"{report.metric} %" if report.metric else "no labels")
    axes.grid(alpha=0.3)
    return _svg(figure)


def _latency_curves(figure: Figure, whole: list[Measured]) -> str:
    axes = figure.add_subplot()
    for item in whole:
        samples = np.sort([value for repeat in item.latency_ms for value in repeat])
        axes.plot(samples, np.arange(1, len(samples) + 1) / len(samples) * 100, label=item.name)
    axes.set_xscale("log")
    axes.set_xlabel("single-stream latency, ms")
    axes.set_ylabel("% of requests answered within")
    axes.grid(alpha=0.3, which="both")
    axes.legend()
    return _svg(figure)


def _svg(figure: Figure) -> str:
    stream = io.StringIO()
    figure.savefig(stream, format="svg", metadata={"Date": None})
    text = stream.getvalue()
    return text[text.index("<svg") :]
