from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from bertfast.bench import plots
from bertfast.bench.figures import figures
from tests.bench.made import UNLABELLED, measured, results


@pytest.fixture
def drawn(monkeypatch: pytest.MonkeyPatch) -> list[Axes]:
    """The axes that pictures are drawn on, which come to be as they are."""
    axes: list[Axes] = []

    def draw(paint: Callable[[Axes], object], *_: Any) -> str:
        axes.append(Figure().add_subplot())
        paint(axes[-1])
        return ""

    monkeypatch.setattr(plots, "draw", draw)
    return axes


def numbers(axes: Axes) -> dict[str, tuple[float, float]]:
    """Where the numbered discs point to."""
    return {text.get_text(): text.xy for text in axes.texts}  # type: ignore[attr-defined]


def test_candidates_stand_where_their_figures_say(drawn: list[Axes]) -> None:
    run = results(measured("a"), measured("b", 200.0, lost=20, gained=10), measured("c", 50.0, lost=0, gained=0))
    points = plots.points_of(figures(run), scored=True)
    plots.trade_off(run, points, scored=True, size_in=plots.WIDE_IN)
    assert numbers(drawn[0]) == {"1": (100, 90), "2": (200, 89), "3": (50, 90)}
    front = drawn[0].lines[-4]  # three dots follow
    assert front.get_xydata().tolist() == [[100, 90], [200, 89]]  # type: ignore[union-attr]
    assert not drawn[0].yaxis_inverted()


def test_low_latency_is_up(drawn: list[Axes]) -> None:
    slow, fast = (
        measured(name, rate, metrics={}, latency_ms=((ms,) * 9,))
        for name, rate, ms in (("a", 90.0, 9.0), ("b", 80.0, 3.0))
    )
    run = results(slow, fast, **UNLABELLED)
    plots.trade_off(run, plots.points_of(figures(run), scored=False), scored=False, size_in=plots.WIDE_IN)
    assert numbers(drawn[0]) == {"1": (90, 9), "2": (80, 3)}
    assert drawn[0].yaxis_inverted()
    assert drawn[0].lines[-3].get_xydata().tolist() == [[80, 3], [90, 9]]  # type: ignore[union-attr]


def test_discs_do_not_hide_each_other(drawn: list[Axes]) -> None:
    run = results(*(measured(str(i), 100.0) for i in range(6)))
    plots.trade_off(run, plots.points_of(figures(run), scored=True), scored=True, size_in=plots.WIDE_IN)
    heights = sorted(text.get_position()[1] for text in drawn[0].texts)
    assert heights == [i * plots.DISC_POINTS for i in range(6)]


def test_every_sequence_is_in_the_histogram(drawn: list[Axes]) -> None:
    counts = [0, 0, 7, *[1] * 300, 4]
    plots.lengths(results(measured("a"), lengths=tuple(counts)))
    assert sum(bar.get_height() for bar in drawn[0].patches) == sum(counts)  # type: ignore[attr-defined]
    assert len(drawn[0].patches) <= 49
