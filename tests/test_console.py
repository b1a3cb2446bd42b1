from __future__ import annotations

import pytest

from bertfast import console


@pytest.mark.parametrize(("every_s", "lines"), [(0.0, ["0/2 one", "1/2 [two]"]), (60.0, [])])
def test_progress_goes_into_a_log_line_by_line_but_not_too_often(
    every_s: float, lines: list[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(console, "SAID_EVERY_S", every_s)
    with console.notifying() as notify:
        notify("one", 0, 2)
        notify("[two]", 1, 2)
    assert capsys.readouterr().err.splitlines() == lines


def test_things_are_counted_in_a_log_too(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(console, "SAID_EVERY_S", 0.0)
    with console.counting("rows") as count:
        count(1500)
        count(1)
    with console.counting_text() as count_text:
        count_text(2, 3_000_000)
    said = capsys.readouterr().err.splitlines()
    assert said[:3] == ["1,500 rows", "1,501 rows", "2 documents, 3 MB"]
    assert said[3].startswith("3.0 MB of text in ")
