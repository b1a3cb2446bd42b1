"""The end of a run: its weights, and what it recorded, become a checkpoint artefact."""

from __future__ import annotations

import shutil
from collections.abc import Mapping

from torch import Tensor

from bertfast import artifact
from bertfast.config import ModelConfig
from bertfast.model.weights import save_checkpoint
from bertfast.tasks import Context, Task
from bertfast.train.state import RunDirectory


def publish(
    run: RunDirectory,
    weights: Mapping[str, Tensor],
    shape: ModelConfig,
    task: Task,
    context: Context,
    parents: Mapping[str, str],
    result: Mapping[str, float],
    *,
    overwrite: bool,
) -> None:
    """Write the checkpoint at `run.out` with the run's metrics in it, then remove the run's directory."""
    with artifact.create(
        run.out, "checkpoint", task=task.name, labels=context.labels, parents=parents, overwrite=overwrite
    ) as draft:
        save_checkpoint(draft.path, weights, shape, context.tokenizer, task.architecture, context.labels, task.problem)
        task.furnish(draft.path, shape, context)
        shutil.copytree(run.logs, draft.path / artifact.LOGS)
        draft.settings = {**run.identity, "result": dict(result)}
    artifact.remove_own_directory(run.path)
