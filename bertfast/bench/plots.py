"""The pictures of the report, as SVG that takes its ink from the page, in light and in dark.

A candidate has the same number and colour everywhere; ours are drawn solid, peers dashed. Sizes are those of a phone:
a picture is about 400 pixels wide, and a wide page shows several in a row.
"""

from __future__ import annotations

import io
import math
from collections.abc import Callable, Container, Sequence
from dataclasses import dataclass
from itertools import count
from typing import TYPE_CHECKING, Any

import numpy as np

from bertfast.bench.figures import Figures, pareto_front
from bertfast.bench.results import Results
from bertfast.bench.scenarios import p99_ms
from bertfast.bench.uncertainty import Estimate

if TYPE_CHECKING:
    from matplotlib.axes import Axes

PALETTE = (
    *("#2f7de1", "#e0722d", "#17996d", "#945ecf", "#d9415d", "#1299ab"),
    *("#ad7f0a", "#c4569a", "#6b7f2a", "#5b6fd6", "#a8623e", "#6c7d8c"),
)
INK = "#010203"  # stands for the page's own colour until the picture is written
PAPER = "#fefdfc"  # likewise for what a picture lies on
NARROW_IN = (4.6, 3.4)
WIDE_IN = (9.2, 3.9)
DISC_POINTS = 14.0
STYLE: Any = {
    "svg.fonttype": "none",  # text stays text
    "svg.hashsalt": "bertfast",
    "text.parse_math": False,
    "font.size": 9,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "grid.alpha": 0.18,
    **dict.fromkeys(
        ("text.color", "axes.labelcolor", "axes.edgecolor", "xtick.color", "ytick.color", "grid.color"), INK
    ),
}


def color_of(place: int) -> str:
    """The colour of the candidate at this place of the results."""
    return PALETTE[place % len(PALETTE)]


def draw(paint: Callable[[Axes], object], size_in: tuple[float, float] = NARROW_IN) -> str:
    """An SVG element with what `paint` draws."""
    import matplotlib as mpl
    from matplotlib.figure import Figure

    stream = io.StringIO()
    with mpl.rc_context(STYLE):
        figure = Figure(figsize=size_in, dpi=72, layout="constrained")  # a pixel is a point
        axes = figure.add_subplot()
        axes.grid(visible=True)
        axes.set_axisbelow(True)
        paint(axes)
        unknown = dict.fromkeys(("Date", "Creator", "Format", "Type"))
        figure.savefig(stream, format="svg", transparent=True, metadata=unknown)
    text = stream.getvalue()
    return text[text.index("<svg") :].replace(INK, "currentColor").replace(PAPER, "var(--card)")


@dataclass(frozen=True)
class Point:
    """A candidate among the others; (low, middle, high) upwards are the score's, or p99's where nothing was scored."""

    place: int
    name: str
    speed: Estimate
    height: Estimate


def points_of(rows: Sequence[Figures], *, scored: bool) -> list[Point]:
    """The candidates of which both throughput and the other are known."""
    heights = [_score(row) if scored else row.p99_ms for row in rows]
    return [
        Point(place, row.name, row.sequences_per_s, height)
        for place, (row, height) in enumerate(zip(rows, heights, strict=True))
        if row.sequences_per_s is not None and height is not None
    ]


def trade_off(results: Results, points: Sequence[Point], *, scored: bool, size_in: tuple[float, float]) -> str:
    """The metric, or p99, against offline throughput, and the Pareto front. Refused candidates are hollow.

    Error bars are 95% intervals: of the median throughput, and of the paired difference to the reference's score.
    """
    refused = results.verdict.refused if results.verdict else {}

    def paint(axes: Axes) -> None:
        for point in points:
            (x, left, right), (y, low, high) = point.speed, point.height
            color = color_of(point.place)
            axes.errorbar(
                x, y, xerr=[[x - left], [right - x]], yerr=[[y - low], [high - y]], color=color, lw=0.8, alpha=0.5
            )
        _draw_front(axes, [(point.speed.value, point.height.value) for point in points], scored)
        axes.set_xscale("log")
        _plain_ticks(axes.xaxis)
        axes.margins(x=0.06, y=0.1)
        axes.set_xlabel("sequences/s, offline →")
        axes.set_ylabel(f"{results.metric} % →" if scored else "p99 ms, one request at a time →")
        if not scored:
            axes.invert_yaxis()
        _draw_discs(axes, points, refused)

    return draw(paint, size_in)


def latencies(rows: Sequence[Figures]) -> str:
    """How many requests were answered within a time, one at a time."""

    def paint(axes: Axes) -> None:
        for place, row in enumerate(rows):
            samples = np.sort(np.asarray(row.measured.latency_ms).ravel())
            if len(samples):
                axes.plot(samples, np.arange(1, len(samples) + 1) / len(samples) * 100, **_line(place, row))
        axes.axhline(99, color=INK, lw=0.7, ls=":")
        axes.set_xscale("log")
        _plain_ticks(axes.xaxis)
        axes.set_ylim(0, 101)
        axes.set_xlabel("ms from the text to the answer")
        axes.set_ylabel("% of requests")

    return draw(paint)


def rates(results: Results, rows: Sequence[Figures]) -> str:
    """p99 at each rate of arrivals, and the bound that it had to keep."""

    def paint(axes: Axes) -> None:
        for place, row in enumerate(rows):
            runs = sorted(row.measured.server, key=lambda run: run.rate_per_s)
            late_ms = [p99_ms(run) for run in runs]
            axes.plot([run.rate_per_s for run in runs], late_ms, marker=".", **_line(place, row))
        if results.bound_p99_ms is not None:
            axes.axhline(results.bound_p99_ms, color=INK, lw=0.9, ls=":")
        axes.set_xscale("log")
        axes.set_yscale("log")
        _plain_ticks(axes.xaxis)
        _plain_ticks(axes.yaxis)
        axes.set_xlabel("requests/s that arrive")
        axes.set_ylabel("p99 ms")

    return draw(paint)


def lengths(results: Results) -> str:
    """How many sequences have how many tokens."""
    counts = np.asarray(results.lengths)
    shortest, longest = int(np.flatnonzero(counts)[0]), len(counts) - 1
    width = -(-(longest - shortest + 1) // 48)
    edges = np.arange(shortest, longest + width + 1, width)

    def paint(axes: Axes) -> None:
        axes.hist(np.arange(len(counts)), bins=(edges - 0.5).tolist(), weights=counts, color=PALETTE[0], alpha=0.85)
        axes.set_xlabel("tokens of a sequence")
        axes.set_ylabel("sequences")

    return draw(paint)


def _score(row: Figures) -> Estimate | None:
    """The score with the interval of its paired difference to the reference's."""
    if row.score is None or row.drop is None or row.drop_interval is None:
        return None if row.score is None else Estimate(row.score, row.score, row.score)
    low, high = row.drop_interval
    return Estimate(row.score, row.score + row.drop - high, row.score + row.drop - low)


def _draw_discs(axes: Axes, points: Sequence[Point], refused: Container[str]) -> None:
    """A numbered disc at each point; where another is in the way, the point is a dot and its number stands above it."""
    places = axes.transData.transform([(point.speed.value, point.height.value) for point in points])
    taken: list[tuple[float, float]] = []
    for point, (x, y) in sorted(zip(points, places.tolist(), strict=True), key=lambda pair: pair[1]):
        lift = next(lift for lift in count(0, DISC_POINTS) if all(_apart((x, y + lift), other) for other in taken))
        taken.append((x, y + lift))
        hollow = point.name in refused
        color = color_of(point.place)
        axes.plot(
            point.speed.value, point.height.value, "o", color=color, mfc=PAPER if hollow else color, ms=5, zorder=4
        )
        axes.annotate(
            str(point.place + 1),
            (point.speed.value, point.height.value),
            (0, lift),
            textcoords="offset points",
            ha="center",
            va="center",
            size=7,
            weight="bold",
            color=color if hollow or lift else "white",
            bbox={
                "boxstyle": "circle,pad=0.25",
                "fc": PAPER if hollow or lift else color,
                "ec": "none" if lift else color,
            },
            arrowprops={"arrowstyle": "-", "color": color, "lw": 0.6, "shrinkA": 0, "shrinkB": 0} if lift else None,
            zorder=5,
        )


def _apart(place: tuple[float, float], other: tuple[float, float]) -> bool:
    return math.dist(place, other) >= DISC_POINTS


def _draw_front(axes: Axes, points: Sequence[tuple[float, float]], scored: bool) -> None:
    """The edge of what can be had: at a speed on it, no candidate is better."""
    front = [points[i] for i in pareto_front([(x, y if scored else -y) for x, y in points])]
    axes.plot(*zip(*front, strict=True), color=INK, lw=1.1, ls="--", drawstyle="steps-pre", alpha=0.7, zorder=2)


def _line(place: int, row: Figures) -> dict[str, Any]:
    ours = row.measured.is_ours
    return {
        "color": color_of(place),
        "lw": 1.6 if ours else 1.0,
        "ls": "-" if ours else "--",
        "alpha": 1 if ours else 0.8,
    }


def _plain_ticks(axis: Any) -> None:
    """Numbers as they are read, on a logarithmic axis too."""
    from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

    axis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,g}"))
    axis.set_minor_formatter(NullFormatter())
