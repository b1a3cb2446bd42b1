"""The best weights by what dev says, and the end of a run that gets no better."""

from __future__ import annotations

import math
import os
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from bertfast import artifact
from bertfast.config import FinetuneConfig
from bertfast.model.weights import open_checkpoint
from bertfast.tasks import get_task
from bertfast.train import finetune as finetuning
from bertfast.train import loop
from bertfast.train.finetune import finetune
from bertfast.train.selection import Best, Criterion, better, criterion_of, given_up, quoted
from tests.conftest import TINY_FINETUNE, alike, failing_after, weights

Files = tuple[Path, Path]


def settings(**changes: object) -> FinetuneConfig:
    return TINY_FINETUNE.model_copy(update={"max_steps": 12, "evaluate_every_steps": 2, **changes})


def run(start: Path, files: Files, out: Path, config: FinetuneConfig, *, resume: bool = False) -> dict[str, Any]:
    return finetune(open_checkpoint(start), get_task("classify"), *files, out, config, resume=resume)


def judged(monkeypatch: pytest.MonkeyPatch, values: Sequence[float]) -> None:
    """Let the n-th evaluation of a run's weights find the n-th value; evaluating them again finds the same."""
    known: dict[bytes, float] = {}

    def evaluate(model: nn.Module, **_: object) -> dict[str, float]:
        key = model.get_parameter("classifier.weight").detach().numpy().tobytes()
        return {"dev_accuracy": known.setdefault(key, values[min(len(known), len(values) - 1)])}

    monkeypatch.setattr(finetuning, "_evaluate", evaluate)


def cut_after(steps: int, start: Path, files: Files, out: Path, config: FinetuneConfig) -> None:
    with failing_after(steps):
        run(start, files, out, config)


def test_the_best_weights_are_published(
    pretrained: Path, row_files: Files, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    judged(monkeypatch, [0.3, 0.5, 0.9, 0.4, 0.9, 0.2])
    result = run(pretrained, row_files, tmp_path / "best", settings(keep="best"))
    assert (result["best_step"], result["dev_accuracy"], result["steps"]) == (6, 0.9, 12)
    assert result["selected_on_dev"] is True
    manifest = artifact.open_manifest(tmp_path / "best", "checkpoint")
    assert manifest.settings["result"] == result
    with monkeypatch.context() as patch, pytest.raises(InterruptedError):
        real = loop.better

        def stop(best: Best | None, *arguments: Any) -> Best:
            found = real(best, *arguments)
            if found.step == 6:
                torch.save(found.weights, tmp_path / "step-6.pt")
                raise InterruptedError
            return found

        judged(patch, [0.3, 0.5, 0.9])
        patch.setattr(loop, "better", stop)
        run(pretrained, row_files, tmp_path / "again", settings(keep="best"))
    expected, published = torch.load(tmp_path / "step-6.pt"), weights(tmp_path / "best")
    assert torch.equal(published["classifier.weight"], expected["classifier.weight"])
    name = "bert.encoder.layer.1.output.dense.weight"
    assert torch.equal(published[name], expected[name])


def test_a_run_stops_when_it_gets_no_better(
    pretrained: Path, row_files: Files, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    judged(monkeypatch, [0.3, 0.5, 0.5, 0.4, 0.9])
    stopped = run(pretrained, row_files, tmp_path / "last", settings(patience=2, keep="last"))
    assert (stopped["steps"], stopped["dev_accuracy"], stopped["selected_on_dev"]) == (8, 0.4, True)
    assert "best_step" not in stopped
    judged(monkeypatch, [0.3, 0.5, 0.5, 0.4, 0.9])
    kept = run(pretrained, row_files, tmp_path / "best", settings(patience=2))
    assert (kept["steps"], kept["best_step"], kept["dev_accuracy"]) == (8, 4, 0.5)
    assert not alike(tmp_path / "last", tmp_path / "best")


@pytest.mark.parametrize("cut", [3, 5, 7])
@pytest.mark.parametrize("keep", ["best", "last"])
def test_a_selected_run_that_goes_on_ends_with_the_same_weights(
    pretrained: Path, row_files: Files, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, cut: int, keep: str
) -> None:
    """The best step (2) lies before the cut, and patience runs out (at 8) behind it."""
    values, config = [0.5, 0.4, 0.3, 0.2, 0.9], settings(keep=keep, patience=3, checkpoint_every_steps=3)
    judged(monkeypatch, values)
    undisturbed = run(pretrained, row_files, tmp_path / "whole", config)
    judged(monkeypatch, values)
    cut_after(cut, pretrained, row_files, tmp_path / "cut", config)
    resumed = run(pretrained, row_files, tmp_path / "cut", config, resume=True)
    assert undisturbed["steps"] == resumed["steps"] == 8
    assert undisturbed["dev_accuracy"] == resumed["dev_accuracy"] == (0.5 if keep == "best" else 0.2)
    assert alike(tmp_path / "whole", tmp_path / "cut")


def test_a_run_that_gave_up_does_not_go_on(
    pretrained: Path, row_files: Files, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Cut off between its last state and its publication."""
    config = settings(keep="best", patience=1)
    judged(monkeypatch, [0.5, 0.4, 0.9])
    with monkeypatch.context() as patch, pytest.raises(RuntimeError, match="not published"):

        def fail(*_: object, **__: object) -> None:
            raise RuntimeError("not published")

        patch.setattr(finetuning, "publish", fail)
        run(pretrained, row_files, tmp_path / "m", config)
    result = run(pretrained, row_files, tmp_path / "m", config, resume=True)
    assert (result["steps"], result["best_step"], result["dev_accuracy"]) == (4, 2, 0.5)


def test_without_a_criterion_nothing_is_selected(pretrained: Path, row_files: Files, tmp_path: Path) -> None:
    result = run(pretrained, row_files, tmp_path / "m", settings(max_steps=2))
    assert result["selected_on_dev"] is False
    assert result["steps"] == 2
    assert result["train_s"] > 0
    assert criterion_of(settings(), get_task("classify")) is None


def test_the_time_of_training_goes_on_after_a_resume(pretrained: Path, row_files: Files, tmp_path: Path) -> None:
    cut_after(5, pretrained, row_files, tmp_path / "m", settings())
    saved = artifact.open_manifest(tmp_path / "m.run" / "state-00000004").settings["train_s"]
    assert 0 < saved < run(pretrained, row_files, tmp_path / "m", settings(), resume=True)["train_s"]


def test_ties_keep_the_earlier_step_and_nan_is_the_worst() -> None:
    criterion, model = Criterion(("f1",), keep_best=True, patience=2), nn.Linear(1, 1)
    best = better(None, criterion, 1, {"f1": math.nan}, model)
    best = better(best, criterion, 2, {"f1": 0.0}, model)
    assert (best.step, best.since, set(best.weights)) == (2, 0, {"weight", "bias"})
    best = better(best, criterion, 3, {"f1": 0.0}, model)
    assert not given_up(best, criterion)
    best = better(best, criterion, 4, {"f1": math.nan}, model)
    assert (best.step, best.since, given_up(best, criterion)) == (2, 2, True)
    assert not given_up(best, None)


def test_vectors_are_judged_by_their_order_or_else_by_what_they_find() -> None:
    criterion = criterion_of(settings(keep="best"), get_task("embed"))
    assert criterion is not None
    graded, ungraded = {"dev_pearson": 1.0, "dev_spearman": 0.5}, {"dev_mrr": 1.0, "dev_recall@1": 0.5}
    for found in (graded, ungraded):
        assert better(None, criterion, 1, found, nn.Linear(1, 1)).value == 0.5
    with pytest.raises(KeyError, match="none of dev_spearman, dev_recall@1 is among dev_mrr"):
        quoted({"dev_mrr": 1.0}, criterion.metrics)


def test_the_weights_that_are_kept_do_not_change_with_training() -> None:
    model = nn.Linear(1, 1)
    best = better(None, Criterion(("f1",), keep_best=True, patience=None), 1, {"f1": 0.5}, model)
    before = model.weight.detach().clone()
    with torch.no_grad():
        model.weight.add_(1)
    assert torch.equal(best.weights["weight"], before)


def test_a_killed_selected_run_resumes_bit_for_bit(pretrained: Path, row_files: Files, tmp_path: Path) -> None:
    command = [sys.executable, "-m", "bertfast", "train", "classify", "--model", str(pretrained)]
    command += ["--train", str(row_files[0]), "--dev", str(row_files[1])]
    values = {"max_steps": 40, "evaluate_every_steps": 3, "checkpoint_every_steps": 4, "keep": "best"}
    values |= {"max_length": 32, "global_batch_size": 8, "learning_rate": 1e-3, "precision": "fp32", "threads": 1}
    command += [f"--set={key}={value}" for key, value in values.items()]
    process = subprocess.Popen([*command, "--out", str(tmp_path / "killed")], stderr=subprocess.DEVNULL)
    while not list((tmp_path / "killed.run").glob("state-*[0-9]")) and process.poll() is None:
        time.sleep(0.01)
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    assert not (tmp_path / "killed").exists()
    for out, more in (("killed", ["--resume"]), ("whole", [])):
        subprocess.run([*command, "--out", str(tmp_path / out), *more], check=True, capture_output=True)
    assert alike(tmp_path / "killed", tmp_path / "whole")


def test_words_that_no_example_holds_are_those_of_the_best_step_too(
    pretrained: Path, row_files: Files, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As where the whole embedding is trained: their weights have decayed for as many steps as the others'."""
    config = settings(keep="best", weight_decay=0.5)
    judged(monkeypatch, [0.3, 0.9, 0.2])
    run(pretrained, row_files, tmp_path / "cut", config)
    monkeypatch.setattr(finetuning, "_tokens_met", lambda start, *_: np.arange(start.config.vocab_size))
    judged(monkeypatch, [0.3, 0.9, 0.2])
    assert run(pretrained, row_files, tmp_path / "whole", config)["best_step"] == 4
    cut, whole = weights(tmp_path / "cut"), weights(tmp_path / "whole")
    for name, expected in whole.items():
        assert torch.allclose(cut[name], expected, atol=2e-6), name
