from __future__ import annotations

import pytest

from bertfast.bench.compare import compare
from bertfast.bench.gate import Limits, verdict_on
from bertfast.bench.report import markdown, markdown_table, print_comparison, print_table
from bertfast.bench.results import OfflineRun, Results
from tests.bench.made import UNLABELLED, failed, measured, results, served, shaped

RUN = results(
    measured("torch"),
    measured("onnx", [190.0, 200.0, 210.0], lost=6, gained=2, precision="bf16", warnings=("busy",)),
    failed("peer|[x]", "MemoryError: [none] left"),
)


def table_of(run: Results, *, brief: bool = False) -> dict[str, dict[str, str]]:
    """The Markdown table, by candidate and heading."""
    header, _, *lines = (line[2:-2].split(" | ") for line in markdown_table(run, brief=brief).split("\n"))
    return {cells[0]: dict(zip(header, cells, strict=True)) for cells in lines}


def test_the_table_shows_every_figure_with_its_uncertainty() -> None:
    assert table_of(RUN)["onnx"] == {
        "candidate": "onnx",
        "precision": "bf16",
        "accuracy %": "89.60",
        "drop": "0.40 (-0.15 to 0.95)",
        "lost/gained": "6/2 (p 0.29)",
        "sequences/s": "200 (190 to 210)",
        "x ref": "2.00 (1.90 to 2.10)",
        "compute %": "75",
        "p50 ms": "4.00",
        "p99 ms": "6.00",
        "peak MB": "300",
    }
    assert table_of(RUN)["torch"]["drop"] == "reference"


def test_columns_of_what_was_not_measured_are_left_out() -> None:
    bare = results(measured("torch", metrics={}, latency_ms=()), **UNLABELLED)
    assert list(table_of(bare)["torch"]) == ["candidate", "precision", "sequences/s", "x ref", "compute %", "peak MB"]
    run = results(measured("torch", server=(served(50.0, 7.0),)), bound_p99_ms=8.0)
    assert table_of(run)["torch"]["server/s"] == "50"
    assert "kept p99 within 8 ms" in markdown(run)
    assert "lost/gained" not in table_of(RUN, brief=True)["onnx"]


def test_details_have_a_table_of_their_own() -> None:
    energy = tuple(OfflineRun(phases_s={}, elapsed_s=1, energy_j={"cpu": 40, "gpu": 7}) for _ in range(3))
    run = results(
        measured("torch"),
        measured(
            "onnx",
            lost=6,
            gained=2,
            load_s=1.26,
            build_s=30.0,
            largest_score_drift=0.0123,
            offline=energy,
            batch_size=32,
        ),
    )
    page = markdown(run)
    assert "| candidate | flips | drift | tokens/s | J/1,000 | batch | load s | build s | disk MB |" in page
    assert "| torch | - | - | 2,000 | - | - | - | - | 24 |" in page
    assert "| onnx | 8 | 0.012 | 20,000 | cpu 40, gpu 7 | 32 | 1.3 | 30.0 | 24 |" in page


def test_every_rate_and_shape_that_was_tried_is_told() -> None:
    grid = (shaped(4, 8, 0.02), shaped(1, 8, 0.01))
    run = results(
        measured("torch", server=(served(200.0, 9.0), served(50.0, 7.0)), grid=grid),
        measured("onnx", grid=grid[:1]),
        measured("peer"),
        bound_p99_ms=8.0,
    )
    page = markdown(run)
    assert "p99 had to stay under 8 ms.\n\n| candidate | requests/s: p99 ms |\n| --- | --- |\n" in page
    assert "| torch | 50: 7.0; 200: 9.0 |\n\n" in page
    assert "| candidate | 1 x 8 | 4 x 8 |\n| --- | --- | --- |\n| torch | 100 | 200 |\n| onnx | - | 200 |\n\n" in page
    assert "Serving" not in markdown(RUN)
    assert "one shape" not in markdown(RUN)


def test_a_system_that_does_not_take_its_time_apart_has_no_share_of_computing() -> None:
    opaque = (OfflineRun(phases_s={"other": 5.0}, elapsed_s=5.0),) * 3
    table = table_of(results(measured("torch"), measured("peer", offline=opaque)))
    assert (table["torch"]["compute %"], table["peer"]["compute %"]) == ("75", "-")


def test_failures_warnings_and_the_verdict_are_told_in_every_form(capsys: pytest.CaptureFixture[str]) -> None:
    run = RUN.model_copy(update={"verdict": verdict_on(RUN, Limits(max_drop=0.1))})
    print_table(run)
    printed = capsys.readouterr().out
    for text in (printed, markdown(run)):
        assert "peer|[x] failed: MemoryError: [none] left" in text
        assert "onnx: busy" in text
        assert run.verdict is not None
        assert run.verdict.summary in text
        assert "Refused: onnx: accuracy drops by 0.40 points" in text
    assert "│" not in printed
    assert table_of(RUN)["peer\\|[x]"]["precision"] == "failed"


def test_the_commit_is_told_where_it_is_known() -> None:
    assert "--out report`. Commit: 1a2b3c\n" in markdown(RUN.model_copy(update={"commit": "1a2b3c"}))
    assert "Commit" not in markdown(RUN)


def test_a_file_without_labels_is_said_to_be_one() -> None:
    assert "The file has no labels: speed only." in markdown(results(measured("a", metrics={}), **UNLABELLED))
    assert "no labels" not in markdown(RUN)


def test_repeats_are_counted_as_they_were_made() -> None:
    assert "2 threads; 3 interleaved repeats, timed" in markdown(RUN)
    noisy = results(measured("a", [100.0, 50.0, 70.0, 80.0]), threads=1)
    assert "1 thread; 3 interleaved repeats, up to 4 where they differed, timed" in markdown(noisy)
    assert "1 interleaved repeat, timed" in markdown(results(measured("a", [100.0], latency_ms=()), repeats=1))


def test_a_comparison_is_printed_candidate_by_candidate(capsys: pytest.CaptureFixture[str]) -> None:
    new = results(measured("torch", 50.0), measured("other"), data_sha256="e" * 64)
    print_comparison(compare(RUN, new))
    printed = capsys.readouterr().out
    assert "100.00 → 50.00 (-50.0%) worse" in printed
    assert "90.00 → 90.00 (+0.00)" in printed
    for line in (
        "warning: the data differ",
        "only in the old run: onnx",
        "only in the new run: other",
        "Something regr",
    ):
        assert line in printed
    print_comparison(compare(RUN, RUN))
    assert "Nothing regressed." in capsys.readouterr().out
