"""benchmarks/gpu: every step runs on a CPU with tiny shapes, and none takes another down."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from benchmarks.gpu import lengths, models, run
from benchmarks.gpu.run import PLAN, Step


def statuses(out: Path) -> dict[str, str]:
    return {item["step"]: item["status"] for item in run.read_runs(out / "gpu.json")}


def test_a_step_that_fails_or_hangs_leaves_the_others_and_what_is_done_stays(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    good = Step("good", "timing:ceilings", 100)
    plan = (Step("missing", "timing:nothing", 100), Step("hanging", "timing:ceilings", 0), good)
    monkeypatch.setattr(run, "PLAN", plan)
    command = ["--out", str(tmp_path), "--dry", "--commit", "a"]
    run.main([*command, "--limit-s", "50"])
    assert statuses(tmp_path) == {"hanging": "timed out"}  # nothing is begun that may end later
    run.main(command)
    assert statuses(tmp_path) == {"hanging": "timed out", "missing": "failed", "good": "done"}
    found = {item["step"]: item for item in run.read_runs(tmp_path / "gpu.json")}
    assert "has no attribute 'nothing'" in found["missing"]["said"]
    assert found["good"]["rows"][-1]["gbytes_per_s"] > 0
    assert found["good"]["commit"] == "a"
    assert set(found["good"]["libraries"]) >= {"python", "torch", "transformers"}
    capsys.readouterr()
    run.main([*command, "--only", "goo", "mis"])
    assert "good" not in (said := capsys.readouterr().out)
    assert "missing: failed" in said


def test_the_plan_fits_into_three_calls_of_ten_minutes() -> None:
    assert sum(step.limit_s for step in PLAN) <= 3 * 600
    assert len({step.name for step in PLAN}) == len(PLAN)


def test_sequences_have_the_lengths_of_the_mix() -> None:
    drawn = [len(sequence) for sequence in lengths.draw("squad", 2000, 300, 384)]
    assert max(drawn) == 384
    assert np.mean(drawn) == pytest.approx(183.3, rel=0.03)
    assert drawn == [len(sequence) for sequence in lengths.draw("squad", 2000, 300, 384)]
    assert max(len(sequence) for sequence in lengths.draw("sst2", 200, 300, 20)) == 20


@pytest.mark.data
def test_the_counts_of_lengths_are_those_of_the_data(data_folder: Path, minilm: Path) -> None:
    counted = lengths.read_counts()
    for mix, (task, file, longest) in lengths.SOURCES.items():
        assert counted[mix] == lengths.count(task, data_folder / file, longest)


def test_the_shapes_have_as_many_weights_as_their_models() -> None:
    from benchmarks.gpu.inference import layer_weights

    assert {name: round(layer_weights(shape) / 1e6) for name, shape in models.SHAPES.items()} == {
        "minilm": 11,
        "bert-base": 85,
        "bert-large": 302,
    }


@pytest.mark.slow
def test_every_step_runs_dry(tmp_path: Path) -> None:
    run.main(["--out", str(tmp_path), "--dry"])
    runs = run.read_runs(tmp_path / "gpu.json")
    assert {item["step"]: item.get("said") for item in runs if item["status"] != "done"} == {}
    assert len(runs) == len(PLAN)
    for item in runs:
        errors = [row for row in item["rows"] if "error" in row]
        assert item["rows"]
        assert not errors or item["step"] == "rtx"  # which finds no GPU here
