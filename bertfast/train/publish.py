"""The end of a run: its weights, and what it recorded, become a checkpoint artefact."""

from __future__ import annotations

import shutil
from collections.abc import Mapping

from torch import nn

from bertfast import artifact
from bertfast.model.weights import save_checkpoint
from bertfast.tasks import Task
from bertfast.text.tokenizer import Tokenizer
from bertfast.train.state import RunDirectory


def publish(
    run: RunDirectory,
    model: nn.Module,
    tokenizer: Tokenizer,
    task: Task,
    labels: tuple[str, ...],
    parents: Mapping[str, str],
    result: Mapping[str, float],
    *,
    overwrite: bool,
) -> None:
    """Write the checkpoint at `run.out` with the run's metrics in it, then remove the run's directory."""
    with artifact.create(
        run.out, "checkpoint", task=task.name, labels=labels, parents=parents, overwrite=overwrite
    ) as draft:
        save_checkpoint(draft.path, model, tokenizer, task.architecture, labels)
        shutil.copy2(run.metrics_file, draft.path)
        shutil.copytree(run.path / "tensorboard", draft.path / "tensorboard")
        draft.settings = {**run.identity, "result": dict(result)}
    shutil.rmtree(run.path)
