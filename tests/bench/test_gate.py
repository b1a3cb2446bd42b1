from __future__ import annotations

from typing import Any

import pytest

from bertfast.bench.gate import Limits, verdict_on
from tests.bench.made import UNLABELLED, failed, measured, results, served

ONNX: dict[str, Any] = {"artefact": "onnx", "artefact_sha256": "b" * 64}
REFERENCE = measured("torch")


def int8(name: str, per_s: float, **changes: Any) -> Any:
    return measured(name, per_s, **({"precision": "int8", **ONNX} | changes))


def test_the_fastest_that_holds_every_limit_is_shipped() -> None:
    run = results(
        REFERENCE, measured("a", 200.0, lost=2, gained=1, **ONNX), measured("b", 300.0, lost=9, gained=1, **ONNX)
    )
    verdict = verdict_on(run, Limits(max_drop=0.3))
    assert (verdict.ship, verdict.choice) == (True, "a")
    assert verdict.summary.startswith("Ship a: fp32, 200 sequences/s, 2.00 times the reference, 0.10 points lost.")
    assert list(verdict.refused) == ["b"]
    assert verdict_on(run, Limits(max_drop=0.8)).choice == "b"


def test_a_drop_is_refused_with_its_pairs_and_its_chance() -> None:
    verdict = verdict_on(results(REFERENCE, int8("b", 300.0, lost=60, gained=10)), Limits(max_drop=1))
    assert not verdict.ship
    reason = verdict.refused["b"]
    assert "accuracy drops by 5.00 points, and 1 is the limit" in reason
    assert "60 rows lost and 10 gained, McNemar's p 8e-10" in reason
    assert "95% interval of the drop 3.36 to 6.64" in reason
    assert "too small" not in reason
    assert verdict.summary.startswith("Do not ship. The fastest, b: accuracy drops by 5.00 points")
    assert verdict.summary.endswith("Stay with torch: fp32, 100 sequences/s.")


def test_a_file_that_is_too_small_is_said_to_be() -> None:
    run = results(REFERENCE, int8("b", 300.0, lost=6, gained=2))
    assert "The file is too small to tell this from chance" in verdict_on(run, Limits(max_drop=0.3)).refused["b"]
    shipped = verdict_on(run, Limits(max_drop=0.5))
    assert shipped.ship
    assert "1,000 rows are few: the drop may be up to 0.95 points" in shipped.summary


def test_few_rows_of_which_none_changed_are_said_to_be_few() -> None:
    run = results(REFERENCE, int8("b", 300.0, lost=0, gained=0))
    assert "1,000 rows are few: the drop may be up to 0.30 points" in verdict_on(run, Limits(max_drop=0.2)).summary
    assert "few" not in verdict_on(run, Limits(max_drop=0.3)).summary


def test_a_slower_artefact_that_is_asked_about_is_not_called_the_fastest() -> None:
    run = results(REFERENCE, measured("known", 300.0), int8("b", 200.0, lost=0, gained=0))
    summary = verdict_on(run, Limits(min_speedup=2.5)).summary
    assert summary.startswith("Do not ship. The fastest of the other artefacts, b: 2.00 times the reference")


def test_the_limit_itself_is_held() -> None:
    run = results(REFERENCE, measured("b", 150.0, lost=7, gained=0, **ONNX))  # 90.0 - 89.3 is 0.7000000000000028
    assert verdict_on(run, Limits(max_drop=0.7, min_speedup=1.5, max_p99_ms=6)).choice == "b"


@pytest.mark.parametrize(
    ("limits", "why"),
    [
        ({"min_speedup": 2.0}, "1.50 times the reference's throughput (1.50 to 1.50), and 2 is asked for"),
        ({"max_p99_ms": 5.0}, "p99 is 6.00 ms, one request at a time, and 5 ms is the limit"),
    ],
)
def test_speed_is_judged_too(limits: dict[str, float], why: str) -> None:
    verdict = verdict_on(results(REFERENCE, measured("b", 150.0, lost=0, gained=0, **ONNX)), Limits(**limits))
    assert (verdict.ship, verdict.choice) == (False, None)
    assert verdict.refused["b"] == why
    assert verdict.summary.endswith("Nothing else passes either.")


def test_all_that_is_wrong_with_a_candidate_is_said() -> None:
    run = results(REFERENCE, measured("b", 150.0, lost=30, gained=0, **ONNX))
    reason = verdict_on(run, Limits(max_drop=1, min_speedup=2, max_p99_ms=5)).refused["b"]
    first, *others = reason.split(". Also: ")
    assert first.startswith("accuracy drops by 3.00 points, and 1 is the limit")
    assert [why.partition(",")[0] for why in others] == [
        "1.50 times the reference's throughput (1.50 to 1.50)",
        "p99 is 6.00 ms",
    ]
    assert verdict_on(results(REFERENCE, failed("b", **ONNX)), Limits(min_speedup=2)).refused["b"].count("Also") == 0


def test_a_rate_of_arrivals_must_hold() -> None:
    run = results(REFERENCE, measured("b", server=(served(10, 30),), lost=0, gained=0, **ONNX), bound_p99_ms=20)
    assert verdict_on(run, Limits(max_p99_ms=20)).refused["b"].startswith("no rate of arrivals")


@pytest.mark.parametrize(("wider", "refused"), [("bf16", True), ("fp16", True), ("fp32", True), (None, False)])
def test_int8_must_be_faster_than_the_same_backend_with_more_bits(wider: str | None, refused: bool) -> None:
    others = [measured("wide", 310.0, precision=wider, backend="openvino", lost=0, gained=0)] if wider else []
    run = results(REFERENCE, *others, int8("small", 300.0, backend="openvino", lost=0, gained=0))
    found = verdict_on(run, Limits(min_speedup=1.5)).refused.get("small", "")
    assert found.startswith(f"int8 is not faster than {wider} here: 0.97 times wide") == refused


def test_int8_is_held_against_sixteen_bits_before_thirty_two() -> None:
    fast, slow = (
        measured(p, s, precision=p, backend="openvino", lost=0, gained=0) for p, s in (("bf16", 400.0), ("fp32", 90.0))
    )
    run = results(REFERENCE, fast, slow, int8("small", 300.0, backend="openvino", lost=0, gained=0))
    assert "not faster than bf16" in verdict_on(run, Limits(max_drop=1)).refused["small"]
    elsewhere = int8("small", 300.0, backend="onnxruntime", lost=0, gained=0)
    assert "small" not in verdict_on(results(REFERENCE, fast, slow, elsewhere), Limits(max_drop=1)).refused


def test_int8_is_not_held_against_what_is_not_accurate_enough_itself() -> None:
    student = measured("student", 900.0, precision="bf16", backend="openvino", lost=90, gained=0, **ONNX)
    wider = measured("wide", 90.0, backend="openvino", lost=0, gained=0)
    run = results(REFERENCE, student, wider, int8("small", 300.0, backend="openvino", lost=1, gained=0))
    verdict = verdict_on(run, Limits(max_drop=1))
    assert (verdict.choice, list(verdict.refused)) == ("small", ["student"])
    assert "not faster than bf16" in verdict_on(run, Limits(min_speedup=1)).refused["small"]


def test_int8_that_may_as_well_be_slower_is_refused() -> None:
    noisy = measured("small", [101.0, 95.0, 120.0], precision="int8", backend="torch", lost=0, gained=0, **ONNX)
    assert "(0.95 to 1.20)" in verdict_on(results(REFERENCE, noisy), Limits(max_drop=1)).refused["small"]


def test_what_is_emulated_is_refused_and_not_judged_by_a_speed_that_is_not_its_own() -> None:
    eight = measured("eight", 30.0, precision="fp8", backend="torch", emulated=True, lost=0, gained=0, **ONNX)
    verdict = verdict_on(results(REFERENCE, eight), Limits(max_drop=1, min_speedup=1.5))
    assert not verdict.ship
    assert verdict.refused["eight"].startswith("this machine has no fp8: its numbers were computed in fp32")
    assert "Also" not in verdict.refused["eight"]
    worse = eight.model_copy(update={"metrics": {"accuracy": 0.5}})
    assert (
        ". Also: accuracy drops by 40.00 points"
        in verdict_on(results(REFERENCE, worse), Limits(max_drop=1)).refused["eight"]
    )


def test_failures_and_numbers_that_are_none_are_refused() -> None:
    run = results(REFERENCE, failed("b", **ONNX), measured("c", 400.0, metrics={}, not_finite=3, **ONNX))
    verdict = verdict_on(run, Limits(max_drop=5))
    assert not verdict.ship
    assert verdict.refused == {
        "b": "it failed: MemoryError: no more",
        "c": "3 of its answers hold numbers that are NaN or infinite",
    }


def test_what_one_has_already_is_no_news_unless_there_is_nothing_else() -> None:
    assert not verdict_on(results(REFERENCE, int8("b", 300.0, lost=50, gained=0)), Limits(max_drop=1)).ship
    assert verdict_on(results(REFERENCE), Limits(max_drop=1)).ship
    other_backend = measured("c", 120.0, lost=0, gained=0)
    broken = int8("b", 300.0, lost=50, gained=0)
    verdict = verdict_on(results(REFERENCE, other_backend, broken), Limits(max_drop=1))
    assert (verdict.ship, verdict.choice) == (False, "c")


def test_a_peer_is_no_choice_but_is_named_where_it_is_faster() -> None:
    peer = measured("theirs", 500.0, system="theirs", lost=0, gained=0)
    ours = measured("b", 200.0, lost=0, gained=0, **ONNX)
    verdict = verdict_on(results(REFERENCE, ours, peer), Limits(max_drop=1))
    assert verdict.choice == "b"
    assert verdict.summary.endswith("The peer theirs passes too and is faster: 500 sequences/s.")
    late = verdict_on(results(REFERENCE, ours, peer), Limits(max_p99_ms=1))
    assert set(late.refused) == {"torch", "b"}


def test_where_only_requests_were_timed_the_lowest_p99_is_chosen() -> None:
    rows = [
        measured(n, offline=(), latency_ms=((ms,) * 9,) * 3, lost=0, gained=0, **ONNX)
        for n, ms in (("b", 3.0), ("c", 2.0))
    ]
    run = results(measured("torch", offline=(), latency_ms=((1.0,) * 9,)), *rows)
    assert verdict_on(run, Limits(max_p99_ms=5)).choice == "torch"
    assert "b: fp32, p99 3.00 ms" in verdict_on(results(rows[0], rows[0]), Limits(max_p99_ms=5)).summary


def test_without_labels_no_drop_is_known() -> None:
    run = results(measured("torch", metrics={}), measured("b", metrics={}, **ONNX), **UNLABELLED)
    assert "the file has no labels" in verdict_on(run, Limits(max_drop=1)).refused["b"]


@pytest.mark.parametrize("others", [(), (failed("torch"),)])
def test_what_is_not_fp32_is_no_measure_of_its_own_drop(others: Any) -> None:
    run = results(int8("small", 300.0), int8("other", 200.0, lost=0, gained=0), *others)
    verdict = verdict_on(run, Limits(max_drop=1))
    assert (verdict.ship, verdict.choice) == (False, None)
    for name in ("small", "other"):
        assert "nothing in fp32 answered, and small in int8 is no measure" in verdict.refused[name]
    assert verdict_on(results(int8("small", 300.0)), Limits(max_p99_ms=60)).ship


def test_a_gate_is_one_that_demands_something() -> None:
    assert not Limits().any
    assert Limits(max_drop=0).any
