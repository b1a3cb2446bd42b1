"""The report as one HTML file: no network, no script."""

from __future__ import annotations

import importlib.util
from collections.abc import Sequence
from html import escape
from importlib import resources
from pathlib import Path

import numpy as np

from bertfast.bench import plots
from bertfast.bench.figures import (
    GRID_CAPTION,
    PHASES,
    Figures,
    figures,
    grid_of,
    hardware_line,
    run_line,
    server_caption,
    truncated,
    warnings,
)
from bertfast.bench.results import Results
from bertfast.bench.table import DETAILS, Column, cells, columns_of
from bertfast.errors import ConfigError

_FEW_WARNINGS = 5  # as many are shown without a click
# The browser itself refuses to fetch anything.
_POLICY = "default-src 'none'; style-src 'unsafe-inline'"


def require_reporting() -> None:
    """Raise ConfigError, before anything is measured, where a package that the report needs is missing."""
    for module, package in (("matplotlib", "matplotlib"), ("scipy", "scipy"), ("sklearn", "scikit-learn")):
        if importlib.util.find_spec(module) is None:
            raise ConfigError(f"the report needs {package}: pip install 'bertfast[bench]'")


def write_html(results: Results, path: Path) -> None:
    """Write the report page."""
    rows = figures(results)
    title = escape(f"{results.task} on {results.data}")
    style = resources.files("bertfast.bench").joinpath("report.css").read_text(encoding="utf-8")
    body = "\n".join([_heading(results, title), _verdict(results), _results(results, rows), _figures(results, rows)])
    path.write_text(
        "<!doctype html>\n<html lang='en'><head><meta charset='utf-8'>"
        "<meta name='viewport' content='width=device-width, initial-scale=1'>"
        f'<meta http-equiv="Content-Security-Policy" content="{_POLICY}">'
        f"<title>bertfast benchmark: {title}</title>\n<style>\n{style}</style></head>\n"
        f"<body>\n{body}\n{_details(results, rows)}\n{_environment(results, rows)}\n</body></html>\n",
        encoding="utf-8",
    )


def _heading(results: Results, title: str) -> str:
    return f"<h1>{title}</h1><p class='soft'>{escape(run_line(results))}</p>"


def _verdict(results: Results) -> str:
    if results.verdict is None:
        return ""
    verdict = results.verdict
    reasons = "".join(f"<li><b>{escape(name)}</b>: {escape(why)}.</li>" for name, why in verdict.refused.items())
    refused = f"<details open><summary>Refused: {len(verdict.refused)}</summary><ul>{reasons}</ul></details>"
    return (
        f"<section class='verdict {'yes' if verdict.ship else 'no'}'><p>{escape(verdict.summary)}</p>"
        f"{refused if reasons else ''}</section>"
    )


def _table(results: Results, rows: Sequence[Figures], columns: Sequence[Column]) -> str:
    header = "".join(f"<th>{escape(column.heading)}</th>" for column in columns)
    body = "".join(
        f"<tr class='{_state(results, row)}'><td>{_disc(place)}{escape(row.name)}</td>"
        f"{_data(row, cells(row, columns))}</tr>"
        for place, row in enumerate(rows)
    )
    meanings = " ".join(f"<b>{escape(c.heading)}</b>: {escape(c.meaning)}." for c in columns if c.meaning)
    return (
        f"<div class='wide results'><table><thead><tr>{header}</tr></thead><tbody>{body}</tbody></table></div>"
        f"<details class='soft'><summary>What the columns say</summary><p>{meanings}</p></details>"
    )


def _results(results: Results, rows: Sequence[Figures]) -> str:
    lines = [f"<li>{escape(line)}</li>" for line in warnings(rows)]
    opened = " open" if len(lines) <= _FEW_WARNINGS else ""
    summary = f"What makes these figures doubtful: {len(lines)}"
    doubts = f"<details{opened}><summary>{summary}</summary><ul>{''.join(lines)}</ul></details>" if lines else ""
    table = _table(results, rows, columns_of(results, rows))
    return f"<section class='card'>{table}{doubts}</section>"


def _details(results: Results, rows: Sequence[Figures]) -> str:
    sound = [row for row in rows if row.measured.error is None]
    return (
        f"<section class='card'><h2>Details</h2>{_table(results, rows, columns_of(results, rows, DETAILS))}</section>"
        if sound
        else ""
    )


def _state(results: Results, row: Figures) -> str:
    if results.verdict is None:
        return ""
    if row.name == results.verdict.choice:
        return "choice"
    return "refused" if row.name in results.verdict.refused else ""


def _data(row: Figures, texts: Sequence[str]) -> str:
    if row.measured.error is not None:
        return f"<td class='failed' colspan='{len(texts) - 1}'>failed: {escape(row.measured.error)}</td>"
    return "".join(_cell(text) for text in texts[1:])


def _cell(text: str) -> str:
    """What is in parentheses, such as an interval, stands below the figure: the table is to fit the page."""
    figure, parenthesis, rest = escape(text).partition(" (")
    return f"<td>{figure}{f'<small>({rest}</small>' if parenthesis else ''}</td>"


def _disc(place: int) -> str:
    return f"<i class='n' style='background:{plots.color_of(place)}'>{place + 1}</i>"


def _figures(results: Results, rows: Sequence[Figures]) -> str:
    """All that was measured; what was not is left out."""
    cards = [_trade_off(results, rows), _latencies(rows), _phases(rows), _lengths(results, rows)]
    cards += [_rates(results, rows), _grid(rows)]
    names = "".join(
        f"<li>{_disc(place)}{escape(row.name)}</li>" for place, row in enumerate(rows) if not row.measured.error
    )
    return f"<ul class='legend'>{names}</ul><div class='figures'>{''.join(cards)}</div>"


def _card(title: str, content: str, caption: str, more: str = "") -> str:
    return (
        f"<section class='card {more}'><h2>{escape(title[0].upper() + title[1:])}</h2><figure>{content}"
        f"<figcaption>{escape(caption)}</figcaption></figure></section>"
    )


def _trade_off(results: Results, rows: Sequence[Figures]) -> str:
    """Drawn twice, for a wide and for a narrow page; the style shows one."""
    scored = any(row.score is not None for row in rows)
    points = plots.points_of(rows, scored=scored)
    if len(points) < 2:
        return ""
    content = "".join(
        f"<div class='{name}'>{plots.trade_off(results, points, scored=scored, size_in=size_in)}</div>"
        for name, size_in in (("at-wide", plots.WIDE_IN), ("at-narrow", plots.NARROW_IN))
    )
    caption = "Up and to the right is better; the dashed line is the Pareto front. Bars are 95% intervals"
    caption += ": upwards of the paired difference to the reference." if scored else "."
    caption += " Hollow: refused." if results.verdict and results.verdict.refused else ""
    return _card(f"{results.metric if scored else 'Latency'} against throughput", content, caption, "double")


def _latencies(rows: Sequence[Figures]) -> str:
    if not any(row.measured.latency_ms for row in rows):
        return ""
    caption = "One request at a time, all repeats. Solid: bertfast; dashed: peers; the dotted line is p99."
    return _card("Latency", plots.latencies(rows), caption)


def _rates(results: Results, rows: Sequence[Figures]) -> str:
    if not any(row.measured.server for row in rows):
        return ""
    return _card("Serving", plots.rates(results, rows), f"{server_caption(results)}, the dotted line.")


def _phases(rows: Sequence[Figures]) -> str:
    timed = [(place, row.us_per_sequence) for place, row in enumerate(rows) if row.us_per_sequence]
    if not timed:
        return ""
    bars = "".join(f"{_disc(place)}{_bar(phases)}" for place, phases in timed)
    met = [phase for phase in PHASES if any(phase in phases for _, phases in timed)]
    legend = "".join(f"<li><span class='swatch {phase}'></span>{phase}</li>" for phase in met)
    content = f"<ul class='legend'>{legend}</ul><div class='bars'>{bars}</div>"
    caption = "Offline: shares of the time from the text to the answer, and microseconds of a sequence. "
    caption += "Where batches are computed beside the rest, compute is what is waited for. "
    return _card("Where the time goes", content, caption + "Other: what a system does not take apart.")


def _bar(us_by_phase: dict[str, float]) -> str:
    total = sum(us_by_phase.values())
    parts = "".join(
        f"<span class='{phase}' style='width:{100 * value / total:.2f}%' title='{phase}: {value:,.0f} µs'></span>"
        for phase, value in us_by_phase.items()
    )
    return f"<span class='bar'>{parts}</span><span class='total'>{total:,.0f} µs</span>"


def _lengths(results: Results, rows: Sequence[Figures]) -> str:
    if not sum(results.lengths):
        return ""
    places = np.repeat(np.arange(len(results.lengths)), results.lengths)
    quantiles = ", ".join(f"p{percent} {np.percentile(places, percent):.0f}" for percent in (50, 90, 99))
    caption = f"{quantiles}, longest {places.max()} tokens; {truncated(rows)} rows were cut. "
    caption += "Padding: its share of the tokens computed on, with batches of similar length and in the file's order."
    return _card("Lengths and padding", plots.lengths(results) + _padding(rows), caption)


def _padding(rows: Sequence[Figures]) -> str:
    """Candidates with the same padding share a line."""
    alike: dict[tuple[str, str], list[int]] = {}
    for place, row in enumerate(rows):
        if row.padding:
            sorted_, given = (_percent(row.padding.get(name)) for name in ("offline", "offline-given"))
            alike.setdefault((sorted_, given), []).append(place)
    lines = "".join(
        f"<tr><td style='white-space:normal'>{''.join(map(_disc, places))}</td><td>{sorted_}</td><td>{given}</td></tr>"
        for (sorted_, given), places in alike.items()
    )
    header = "<tr><th>padding</th><th>similar lengths</th><th>as given</th></tr>"
    return f"<table>{header}{lines}</table>" if lines else ""


def _percent(share: float | None) -> str:
    return "-" if share is None else f"{100 * share:.1f}%"


def _grid(rows: Sequence[Figures]) -> str:
    """Sequences/s of batches of one shape; the best of each shape is marked."""
    shapes, speeds = grid_of(rows)
    if not shapes:
        return ""
    best = {shape: max(of_one.get(shape, 0.0) for of_one in speeds.values()) for shape in shapes}
    header = "<th></th>" + "".join(f"<th>{heading}</th>" for heading in shapes.values())
    body = "".join(
        f"<tr><td>{_disc(place)}</td>{''.join(_speed(of_one.get(shape), best[shape]) for shape in shapes)}</tr>"
        for place, of_one in speeds.items()
    )
    table = f"<div class='wide'><table><tr>{header}</tr>{body}</table></div>"
    return _card("Batches of one shape", table, GRID_CAPTION, "double")


def _speed(value: float | None, best: float) -> str:
    if value is None:
        return "<td>-</td>"
    return f"<td{' class=best' if value == best else ''}>{value:,.0f}</td>"


def _environment(results: Results, rows: Sequence[Figures]) -> str:
    facts = {
        "Machine": f"{hardware_line(results)}, {results.hardware.get('system')}",
        "Data": f"{results.data}, SHA-256 {results.data_sha256}",
        "Reference": results.reference,
        "Libraries": _versions(results.libraries),
    }
    for row in rows:
        if not row.measured.is_ours and row.measured.libraries:
            facts[f"Peer {row.measured.system}"] = _versions(row.measured.libraries)
    facts |= {f"{row.name} failed": row.measured.error for row in rows if row.measured.error is not None}
    facts["Command"] = results.command
    if results.commit is not None:
        facts["Commit"] = results.commit
    listing = "".join(f"<dt>{escape(name)}</dt><dd>{escape(value)}</dd>" for name, value in facts.items())
    return (
        f"<section class='card'><h2>Environment</h2><dl>{listing}</dl></section>"
        "<p class='soft'>Raw samples are in <code>report.json</code>.</p>"
    )


def _versions(libraries: dict[str, str]) -> str:
    return ", ".join(f"{name} {version}" for name, version in sorted(libraries.items()))
