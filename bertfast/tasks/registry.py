"""Which tasks there are, and which one a checkpoint serves."""

from __future__ import annotations

from bertfast.errors import ArtifactError, ConfigError, did_you_mean
from bertfast.model.weights import SENTENCE_TRANSFORMER, Checkpoint
from bertfast.tasks.classify import CLASSIFY
from bertfast.tasks.pretrain import PRETRAIN
from bertfast.tasks.tag import TAG
from bertfast.tasks.task import Task

TASKS = {task.name: task for task in (PRETRAIN, CLASSIFY, TAG)}


def get_task(name: str) -> Task:
    """The task of this name; ConfigError where there is none."""
    if name not in TASKS:
        raise ConfigError(f"'{name}' is not a task. The tasks are {', '.join(TASKS)}.{did_you_mean(name, TASKS)}")
    return TASKS[name]


def task_of(checkpoint: Checkpoint) -> Task:
    """The task that a checkpoint serves: by our manifest, else by the architecture that a foreign one names.

    Raises:
        ArtifactError: a bare encoder, or an architecture that no task here has.
    """
    if checkpoint.task is not None:
        return get_task(checkpoint.task)
    for task in TASKS.values():
        if task.architecture == checkpoint.architecture:
            if checkpoint.problem not in (None, "single_label_classification") or len(checkpoint.labels) == 1:
                raise ArtifactError(
                    f"{checkpoint.path} has a head for {checkpoint.problem or 'one score'} ({len(checkpoint.labels)} "
                    "labels), and bertfast serves classifiers that choose one of several labels."
                )
            return task
    named = checkpoint.architecture or "no architecture"
    what = "a sentence-transformers folder" if named == SENTENCE_TRANSFORMER else named
    raise ArtifactError(
        f"{checkpoint.path} is {what}, which has no head for {', '.join(TASKS)}. "
        f"Fine-tune it first: bertfast train classify --model {checkpoint.path} ..."
    )
