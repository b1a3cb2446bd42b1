"""Options of fine-tuning in a whole run: frozen layers, rates by layer, gradient checkpointing."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from bertfast.model import encoder as encoding
from bertfast.model.tensors import read_tensors
from bertfast.model.weights import open_checkpoint
from bertfast.tasks import get_task
from bertfast.train import loop
from bertfast.train.finetune import finetune
from tests.conftest import TINY_FINETUNE, alike, failing_after, weights

Files = tuple[Path, Path]


def tuned(start: Path, files: Files, out: Path, *, resume: bool = False, **changes: object) -> dict[str, float]:
    config = TINY_FINETUNE.model_copy(update={"max_steps": 6, **changes})
    return finetune(open_checkpoint(start), get_task("classify"), *files, out, config, resume=resume)


def test_frozen_layers_stay_as_they_were_and_have_no_moments(
    pretrained: Path, row_files: Files, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Words that no example holds do not move either, though the others' weights decay."""
    saved: list[set[str]] = []
    real = loop.RunDirectory.save_state

    def save(run: Any, *arguments: Any) -> None:
        real(run, *arguments)
        saved.append(set(read_tensors(run.states()[-1] / "optimizer.safetensors")))

    monkeypatch.setattr(loop.RunDirectory, "save_state", save)
    tuned(pretrained, row_files, tmp_path / "m", freeze_layers=1, weight_decay=0.5)
    before, after = weights(pretrained), weights(tmp_path / "m")
    for name, tensor in after.items():
        frozen = name.startswith(("bert.embeddings.", "bert.encoder.layer.0."))
        assert not frozen or torch.equal(tensor, before[name]), name
    assert not torch.equal(
        after["bert.encoder.layer.1.output.dense.weight"], before["bert.encoder.layer.1.output.dense.weight"]
    )
    assert saved
    assert not any(name.startswith(("bert.embeddings.", "bert.encoder.layer.0.")) for name in saved[-1])


@pytest.mark.parametrize("changes", [{"freeze_layers": 1}, {"layer_lr_decay": 0.5}, {"gradient_checkpointing": True}])
def test_every_option_goes_on_bit_for_bit(
    pretrained: Path, row_files: Files, tmp_path: Path, changes: dict[str, object]
) -> None:
    tuned(pretrained, row_files, tmp_path / "whole", **changes)
    with failing_after(3):
        tuned(pretrained, row_files, tmp_path / "cut", **changes)
    tuned(pretrained, row_files, tmp_path / "cut", resume=True, **changes)
    assert alike(tmp_path / "whole", tmp_path / "cut")


def test_layers_are_computed_again_where_that_is_asked_for_and_change_not_a_bit(
    pretrained: Path, row_files: Files, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls, real = [0], encoding.checkpoint

    def counted(*arguments: Any, **named: Any) -> Any:
        calls[0] += 1
        return real(*arguments, **named)

    monkeypatch.setattr(encoding, "checkpoint", counted)
    tuned(pretrained, row_files, tmp_path / "plain")
    assert calls == [0]
    tuned(pretrained, row_files, tmp_path / "again", gradient_checkpointing=True)
    assert calls == [6 * 2]  # each of six steps, each of two layers
    assert alike(tmp_path / "plain", tmp_path / "again")


def test_layer_rates_reach_the_words_that_no_example_holds(pretrained: Path, row_files: Files, tmp_path: Path) -> None:
    """Their weights decay with the embeddings' share of the rate, as if they had been in training."""
    tuned(pretrained, row_files, tmp_path / "plain", weight_decay=0.5)
    tuned(pretrained, row_files, tmp_path / "slow", weight_decay=0.5, layer_lr_decay=0.5)
    name = "bert.embeddings.word_embeddings.weight"
    before, usual, slow = (weights(path)[name] for path in (pretrained, tmp_path / "plain", tmp_path / "slow"))
    untouched = (usual / before).std(dim=1) < 1e-4
    assert untouched.any()
    lost, lost_slowly = (1 - (after / before)[untouched].mean() for after in (usual, slow))
    assert float(lost_slowly / lost) == pytest.approx(0.5**3, rel=0.02)


def test_a_run_is_reported(pretrained: Path, row_files: Files, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With curves where it was long enough to be looked at."""
    result = tuned(pretrained, row_files, tmp_path / "short")
    report = (tmp_path / "short" / "logs" / "report.md").read_text()
    assert f"| dev_accuracy | {round(result['dev_accuracy'], 4)} |" in report
    assert "| steps | 6 |" in report
    assert not (tmp_path / "short" / "logs" / "curves.png").exists()
    monkeypatch.setattr("bertfast.train.finetune.CURVES_FROM_S", 0)
    tuned(pretrained, row_files, tmp_path / "long")
    assert "curves.png" in (tmp_path / "long" / "logs" / "report.md").read_text()
    assert (tmp_path / "long" / "logs" / "curves.png").stat().st_size > 1000
