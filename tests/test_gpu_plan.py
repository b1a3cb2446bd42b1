"""benchmarks/gpu: every step runs on a CPU with tiny shapes, and none takes another down."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from benchmarks.gpu import engines, inference, lengths, models, run
from benchmarks.gpu.run import PLAN, Step
from benchmarks.gpu.step import Run
from bertfast.backends import open_served
from bertfast.backends.pytorch import TorchBackend


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


@pytest.mark.parametrize(
    ("commits", "cards"),
    [(("a", "a"), ("H100", "H200")), (("a-dirty",) * 2, ("H100",) * 2), ((None,) * 2, (None,) * 2)],
)
def test_what_was_done_elsewhere_or_on_a_dirty_tree_is_done_again(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    commits: tuple[str | None, ...],
    cards: tuple[str | None, ...],
) -> None:
    """Other hardware's runs stay in the file; without git nobody knows what was measured."""
    asked: list[str] = []

    def perform(step: Step, _: object) -> run.Row:
        asked.append(step.name)
        return {"step": step.name, "status": "done", "elapsed_s": 1.0, "rows": []}

    monkeypatch.setattr(run, "PLAN", PLAN[:2])
    monkeypatch.setattr(run, "perform", perform)
    for commit, card in zip(commits, cards, strict=True):
        monkeypatch.setattr(run, "said_by", lambda command, card=card: card if command[0] == "nvidia-smi" else None)
        run.main(["--out", str(tmp_path), *(["--commit", commit] if commit else [])])
    assert len(asked) == 4
    assert len(run.read_runs(tmp_path / "gpu.json")) == 2 * len(set(cards))


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
    assert {name: round(inference.layer_weights(shape) / 1e6) for name, shape in models.SHAPES.items()} == {
        "minilm": 11,
        "bert-base": 85,
        "bert-large": 302,
    }


def test_what_is_measured_is_written_before_what_compiles_is_made(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A step that is ended while something compiles has a table; what users call is timed."""
    streamed: list[int] = []

    def contender(*_: object) -> inference.Contender:
        return inference.Contender(lambda: None, lambda: streamed.append(1))

    def hanging(*_: object) -> inference.Contender:
        raise KeyboardInterrupt

    makers = {"torch-packed bf16": contender, "other": contender, "torch-packed bf16 compiled": hanging}
    monkeypatch.setattr(inference, "all_makers", lambda *_: makers)
    here = Run(torch.device("cpu"), True, tmp_path / "rows")
    for step in (inference.offline, inference.single_stream):
        here.rows.unlink(missing_ok=True)
        with pytest.raises(KeyboardInterrupt):
            step(here, "minilm", *(["sst2"] if step is inference.offline else []))
        rows = [json.loads(line) for line in here.rows.read_text().splitlines()]
        measured = [row["contender"] for row in rows if "sequences_per_s" in row or row.get("part") == "whole"]
        assert measured == ["torch-packed bf16", "other"]


def test_engines_run_dry_on_the_fake_gpu(tmp_path: Path) -> None:
    """Built by TensorRT for RTX, loaded by our runtime, computed by ONNX Runtime: the way, not the numbers."""
    here = Run(torch.device("cpu"), True, tmp_path / "rows")
    engines.engines(here)
    rows = [json.loads(line) for line in here.rows.read_text().splitlines()]
    assert [row for row in rows if "error" in row] == []
    assert [row["within"] for row in rows if row.get("what") == "correctness"] == [True, True]
    assert {row["contender"] for row in rows} == {"tensorrt-rtx fp32", "tensorrt-rtx fp16", "torch-packed bf16"}


def test_the_way_from_ids_to_answers_is_the_one_that_users_take(
    classifier: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, asked = open_served(classifier), []
    monkeypatch.setattr(TorchBackend, "stream", lambda self, batches: asked.extend(batches) or ())
    found = inference.ours(TorchBackend, model, lengths.draw("sst2", 9, 100, 20))
    found.whole()
    assert sum(map(len, asked)) == 9


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
