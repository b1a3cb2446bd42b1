from __future__ import annotations

import json
from pathlib import Path

import pytest

from bertfast.bench.compare import Comparison, compare, read_results
from bertfast.bench.results import Measured, Results
from bertfast.errors import DataError
from tests.bench.made import failed, measured, results

NOISY = [96.0, 100.0, 104.0]


def verdicts(old: Measured, new: Measured) -> dict[str, str]:
    """Those on a candidate that is not the reference, by measure."""
    found = compare(results(measured("ref"), old), results(measured("ref"), new))
    return {change.measure: change.verdict for change in found.changes if change.candidate == old.name}


@pytest.mark.parametrize(
    ("rates", "expected"),
    [
        ([80.0, 84.0, 88.0], "regressed"),
        ([110.0, 114.0, 118.0], "improved"),
        ([90.0, 94.0, 98.0], "same"),  # the intervals overlap
    ],
)
def test_throughput_changes_where_intervals_lie_apart(rates: list[float], expected: str) -> None:
    assert verdicts(measured("b", NOISY), measured("b", rates))["sequences/s"] == expected


def test_a_change_of_under_three_per_cent_is_none_however_sure() -> None:
    assert verdicts(measured("b", 100.0), measured("b", 97.5))["sequences/s"] == "same"
    assert verdicts(measured("b", 100.0), measured("b", 96.5))["sequences/s"] == "regressed"


def test_latency_and_memory_are_better_where_they_are_less() -> None:
    small = measured("b", latency_ms=((2.0,) * 4,), peak_memory_bytes=200_000_000)
    large = measured("b", latency_ms=((3.0,) * 4,), peak_memory_bytes=230_000_000)
    found = verdicts(small, large)
    assert (found["p99 ms"], found["peak MB"]) == ("regressed", "regressed")
    found = verdicts(large, small)
    assert (found["p99 ms"], found["peak MB"]) == ("improved", "improved")
    assert verdicts(small, small.model_copy(update={"peak_memory_bytes": 215_000_000}))["peak MB"] == "same"


@pytest.mark.parametrize(("lost", "expected"), [(5, "same"), (30, "regressed")])
def test_a_drop_on_the_same_rows_is_judged_by_its_pairs(lost: int, expected: str) -> None:
    assert verdicts(measured("b", lost=2, gained=2), measured("b", lost=lost, gained=2))["accuracy %"] == expected
    assert verdicts(measured("b", lost=lost, gained=2), measured("b", lost=2, gained=2))["accuracy %"] in (
        expected.replace("regressed", "improved")
    )


def test_where_pairs_tell_nothing_else_is_asked() -> None:
    """The scores alone are more than three per cent apart."""

    def run(score: float, data: str = "d") -> Results:
        drop = 0.8 - score
        other = measured("b", metrics={"spearman": score}, drop_interval=(drop - 0.04, drop + 0.04))
        return results(measured("ref", metrics={"spearman": 0.8}), other, metric="spearman", data_sha256=data * 64)

    def verdict(old: Results, new: Results) -> str:
        return next(change.verdict for change in compare(old, new).changes if change.candidate == "b")

    assert verdict(run(0.7951), run(0.7651)) == "same"
    assert verdict(run(0.7951), run(0.7051)) == "regressed"
    assert verdict(run(0.7951), run(0.7651, "e")) == "regressed"


def test_the_reference_s_own_score_and_that_of_other_rows_are_judged_as_shares() -> None:
    def run(right: int, data: str = "d") -> Results:
        return results(measured("ref", metrics={"accuracy": right / 1000}), data_sha256=data * 64)

    def verdict(old: Results, new: Results) -> str:
        return compare(old, new).changes[0].verdict

    assert verdict(run(900), run(880)) == "same"  # Fisher's p 0.17
    assert verdict(run(900), run(870)) == "regressed"  # 0.04
    assert verdict(run(870), run(900, "e")) == "improved"


def test_a_metric_that_is_no_share_of_rows_counts_by_its_size() -> None:
    def verdict(before: float, after: float) -> str:
        runs = (results(measured("ref", metrics={"f1": value}), metric="f1") for value in (before, after))
        return compare(*runs).changes[0].verdict

    assert verdict(0.91234, 0.90234) == "same"
    assert verdict(0.91234, 0.88034) == "regressed"
    assert verdict(0.0, 0.10234) == "improved"


def test_candidates_of_one_run_are_named() -> None:
    old = results(measured("ref"), measured("gone"), measured("breaks"), failed("mended"), failed("never"))
    new = results(measured("ref"), measured("new"), failed("breaks"), measured("mended"), failed("never"))
    found = compare(old, new)
    assert (found.only_old, found.only_new) == (("gone",), ("new",))
    assert found.failing == {"breaks": "MemoryError: no more"}
    assert found.mended == ("mended",)
    assert {change.candidate for change in found.changes} == {"ref"}
    assert found.regressed


def test_answers_that_are_no_longer_finite_are_a_failure() -> None:
    sound, broken = measured("b", lost=0, gained=0), measured("b", metrics={}, not_finite=3)
    old, new = (results(measured("ref"), row) for row in (sound, broken))
    found = compare(old, new)
    assert found.failing == {"b": "3 of its answers hold numbers that are NaN or infinite"}
    assert found.regressed
    assert {change.candidate for change in found.changes} == {"ref"}
    assert compare(new, old).mended == ("b",)
    assert not compare(new, new).regressed


def test_runs_of_other_data_machines_and_threads_are_doubted() -> None:
    old = results(measured("ref"))
    new = results(measured("ref"), data_sha256="e" * 64, hardware={"cpu": "a GPU", "cores": 2}, threads=None)
    doubts = " ".join(compare(old, new).warnings)
    assert "the data differ: dev.tsv (1,000 rows, SHA-256 dddddddddddd) and dev.tsv (1,000 rows, SHA-256 eee" in doubts
    assert "the threads differ: 2 and the backends' own number." in doubts
    assert "cpu a CPU and a GPU" in doubts
    assert "cores" not in doubts
    assert compare(old, old).warnings == ()
    other = results(measured("ref"), metric="f1", task="tag")
    assert "the runs are of classify (accuracy) and tag (f1)." in compare(old, other).warnings


def test_a_run_does_not_differ_from_itself(tmp_path: Path) -> None:
    run = results(measured("ref", NOISY), measured("b", NOISY, lost=3, gained=1))
    run.write(tmp_path)
    found = compare(read_results(tmp_path), read_results(tmp_path / "report.json"))
    assert not found.regressed
    assert {change.verdict for change in found.changes} == {"same"}
    assert Comparison.model_validate_json(found.model_dump_json()) == found


def test_what_is_no_report_of_this_version_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "report.json"
    with pytest.raises(DataError, match="does not exist. Give the report.json"):
        read_results(path)
    for text, why in (
        ("# Benchmark", "holds no JSON object"),
        ("[]", "holds no JSON object"),
        (json.dumps({"schema_version": 1}), "has schema 1, and this version of bertfast reads 2"),
        (json.dumps({"schema_version": 2, "rows": 3}), "is not whole: command: Field required"),
    ):
        path.write_text(text)
        with pytest.raises(DataError, match=why):
            read_results(path)
