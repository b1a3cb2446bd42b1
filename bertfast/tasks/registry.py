"""Which tasks there are, and which one a checkpoint serves."""

from __future__ import annotations

from bertfast.errors import ArtifactError, ConfigError, did_you_mean
from bertfast.model.weights import ENCODER, Checkpoint
from bertfast.tasks.classify import CLASSIFY
from bertfast.tasks.embed import EMBED
from bertfast.tasks.multi_label import MULTI_LABEL
from bertfast.tasks.pretrain import PRETRAIN
from bertfast.tasks.qa import QA
from bertfast.tasks.regress import REGRESS
from bertfast.tasks.rerank import RERANK
from bertfast.tasks.tag import TAG
from bertfast.tasks.task import Task

TASKS = {task.name: task for task in (PRETRAIN, CLASSIFY, MULTI_LABEL, REGRESS, TAG, QA, EMBED, RERANK)}


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
    alike = [task for task in TASKS.values() if task.architecture == checkpoint.architecture != ENCODER]
    several_numbers = checkpoint.problem == REGRESS.problem and len(checkpoint.labels) > 1
    for task in alike:
        if task.problem == checkpoint.problem and not several_numbers:
            return task
    if alike:
        raise ArtifactError(
            f"{checkpoint.path} has a head for {checkpoint.problem} ({len(checkpoint.labels)} labels). bertfast serves "
            f"{', '.join(str(task.problem) for task in alike if task.problem)}, and regression to one number."
        )
    named = checkpoint.architecture or "no architecture"
    raise ArtifactError(
        f"{checkpoint.path} is {named}, which has no head for {', '.join(TASKS)}. Fine-tune it for one of them first, "
        f"such as by bertfast train classify --model {checkpoint.path} ..."
    )
