"""What a run came to: `report.md` and, where matplotlib is installed, `curves.png` beside its metrics."""

from __future__ import annotations

import importlib.util
import json
import math
import warnings
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING, Any

import numpy as np

from bertfast.config import TrainConfig
from bertfast.train.diagnosis import Alarm, Row, Watch, accuracy_interval

if TYPE_CHECKING:
    from matplotlib.axes import Axes

REPORT, CURVES = "report.md", "curves.png"
_MOST_POINTS = 500
_COLUMNS = 3


@dataclass(frozen=True)
class Panel:
    """One picture: values over steps, with a line for what is no achievement.

    Attributes:
        keys: what is drawn; a key that no row has is left out.
        baseline: a key, whose last value counts, or a number.
    """

    title: str
    keys: tuple[str, ...]
    baseline: str | float | None = None
    percent: bool = False
    logarithmic: bool = False


RUN_PANELS = (
    Panel("real tokens/s", ("real_tokens_per_s",)),
    Panel("gradient norm, before the clip", ("grad_norm",), logarithmic=True),
    Panel("learning rate", ("learning_rate",)),
    Panel("waiting for data", ("loader_wait_share",), percent=True),
    Panel("MFU, packing efficiency", ("mfu", "packing_efficiency"), percent=True),
)
PANELS = (
    Panel("MLM loss, nats", ("train_mlm", "heldout_mlm"), "unigram_entropy"),
    Panel("NSP loss, nats", ("train_nsp", "heldout_nsp"), math.log(2)),
    Panel("MLM accuracy", ("heldout_mlm_accuracy",), "mlm_majority", percent=True),
    Panel("NSP accuracy", ("heldout_nsp_accuracy",), "nsp_majority", percent=True),
    *RUN_PANELS,
)

# What is told of the training beside its steps and its time: a key's median over the rows, or its value in the result.
_FACTS = (
    ("real tokens/s, median", "real_tokens_per_s", "{:,.0f}"),
    ("MFU, median", "mfu", "{:.1%}"),
    ("packing efficiency, median", "packing_efficiency", "{:.1%}"),
    ("waiting for data, median", "loader_wait_share", "{:.1%}"),
)


def report_run(logs: Path, result: Mapping[str, Any], **what: Any) -> None:
    """`write_report`, or a warning: whatever a drawing library may raise, the weights are to be published."""
    try:
        write_report(logs, result, **what)
    except Exception as error:
        warnings.warn(f"the report of the run could not be written: {error!r}", stacklevel=2)


def write_report(
    logs: Path,
    result: Mapping[str, Any],
    *,
    title: str,
    config: TrainConfig,
    total_steps: int,
    facts: Mapping[str, object] | None = None,
    panels: Sequence[Panel] = PANELS,
) -> Path:
    """Write the report of a run that has ended into its folder of logs; returns the path of `report.md`.

    Args:
        logs: where `metrics.jsonl` is.
        result: the last evaluation; what it lacks is left out of the report.
        config: the run's settings.
        total_steps: how many steps it took.
        facts: what else is to be told, such as the model's shape or the device.
        panels: what is drawn; nothing where there are none.
    """
    rows = read_rows(logs / "metrics.jsonl")
    parts = (
        f"# {title}",
        _table(("held-out", "value", "95% interval", "baseline"), _heldout(result)),
        _table(("training", ""), [*_training(rows, result), *((name, str(x)) for name, x in (facts or {}).items())]),
        "## Alarms",
        _listing(alarms(rows, config, total_steps, result.get("unigram_entropy"))),
        _picture(rows, logs, panels) if panels else "",
    )
    path = logs / REPORT
    path.write_text("\n\n".join(part for part in parts if part) + "\n", encoding="utf-8")
    return path


def _picture(rows: Sequence[Row], logs: Path, panels: Sequence[Panel]) -> str:
    if importlib.util.find_spec("matplotlib") is None:
        return "No curves without matplotlib: `pip install 'bertfast[bench]'`."
    draw_curves(rows, logs / CURVES, panels)
    return f"![curves]({CURVES})"


def read_rows(file: Path) -> list[Row]:
    """The rows of `metrics.jsonl`; a last line that a kill has cut short is passed over."""
    rows = []
    for line in file.read_text(encoding="utf-8").splitlines():
        try:
            rows.append(json.loads(line))
        except json.JSONDecodeError:
            continue
    return rows


def alarms(rows: Sequence[Row], config: TrainConfig, total_steps: int, unigram_entropy: float | None) -> list[Alarm]:
    """The alarms of a run, each as of the step at which it was first raised."""
    watch = Watch(config, total_steps, unigram_entropy)
    for row in rows:
        watch.see(row)
    return watch.raised


def draw_curves(rows: Sequence[Row], path: Path, panels: Sequence[Panel] = PANELS) -> None:
    """Draw every panel for which there are rows, as PNG. Touches none of matplotlib's global state."""
    from matplotlib.figure import Figure

    panels = [panel for panel in panels if any(key in row for row in rows for key in panel.keys)]
    lines = math.ceil(len(panels) / _COLUMNS)
    figure = Figure(figsize=(5 * _COLUMNS, 3.2 * max(1, lines)), layout="constrained")
    for number, panel in enumerate(panels, 1):
        _draw(panel, rows, figure.add_subplot(lines, _COLUMNS, number))
    figure.savefig(path, dpi=100)


def _draw(panel: Panel, rows: Sequence[Row], axes: Axes) -> None:
    from matplotlib.ticker import PercentFormatter

    for key in panel.keys:
        known = [row for row in rows if key in row]
        if known:
            steps, values = thinned([row["step"] for row in known], [row[key] for row in known])
            axes.plot(steps, values, marker="o" if len(steps) < _MOST_POINTS // 10 else "", markersize=3, label=key)
    level = _last(rows, panel.baseline) if isinstance(panel.baseline, str) else panel.baseline
    if level is not None:
        name = panel.baseline if isinstance(panel.baseline, str) else "chance"
        axes.axhline(level, color="grey", linestyle="--", label=name)
    if panel.percent:
        axes.yaxis.set_major_formatter(PercentFormatter(1.0))
    if panel.logarithmic:
        axes.set_yscale("log")
    axes.set_title(panel.title)
    axes.set_xlabel("step")
    axes.grid(alpha=0.3)
    if len(axes.lines) > 1:
        axes.legend()


def thinned(steps: Sequence[float], values: Sequence[float]) -> tuple[list[float], list[float]]:
    """At most `_MOST_POINTS` points: the means of runs of neighbours of equal length, but for one."""
    pieces = min(len(steps), _MOST_POINTS)
    return tuple([float(piece.mean()) for piece in np.array_split(column, pieces)] for column in (steps, values))  # type: ignore[return-value]


def _last(rows: Sequence[Row], key: str) -> float | None:
    return next((row[key] for row in reversed(rows) if key in row), None)


def _heldout(result: Mapping[str, Any]) -> Iterator[tuple[str, ...]]:
    baselines = {"mlm": ("unigram entropy", result.get("unigram_entropy")), "nsp": ("chance", math.log(2))}
    majorities = {"mlm": "always the commonest token", "nsp": "always the commoner answer"}
    for name, (what, level) in baselines.items():
        if (loss := result.get(f"heldout_{name}")) is not None:
            yield f"{name.upper()} loss, nats", f"{loss:.3f}", "", "" if level is None else f"{what} {level:.3f}"
        if (accuracy := result.get(f"heldout_{name}_accuracy")) is not None:
            share = result.get(f"{name}_majority")
            interval = _interval(accuracy, result.get(f"heldout_{name}_count"))
            baseline = "" if share is None else f"{majorities[name]} {share:.1%}"
            yield f"{name.upper()} accuracy", f"{accuracy:.1%}", interval, baseline


def _interval(accuracy: float, count: float | None) -> str:
    if not count:
        return ""
    low, high = accuracy_interval(round(accuracy * count), int(count))
    return f"{low:.1%} to {high:.1%} of {int(count):,}"


def _training(rows: Sequence[Row], result: Mapping[str, Any]) -> Iterator[tuple[str, ...]]:
    if rows:
        yield "steps", f"{int(rows[-1]['step']):,}"
        yield "time", f"{rows[-1]['elapsed_s']:,.0f} s"
    for name, key, form in _FACTS:
        values = [row[key] for row in rows if key in row]
        if values or key in result:
            yield name, form.format(median(values) if values else result[key])


def _table(header: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    lines = [f"| {' | '.join(row)} |" for row in rows]
    return "\n".join([f"| {' | '.join(header)} |", "|---" * len(header) + "|", *lines]) if lines else ""


def _listing(found: Sequence[Alarm]) -> str:
    return "\n".join(f"- Step {alarm.step:,}, {alarm.kind}: {alarm.text}" for alarm in found) or "None."
