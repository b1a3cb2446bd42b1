"""Distillation: a student learns a task from its labels and from a teacher's answers (Hinton et al. 2015)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

import torch
from torch import Tensor, nn

from bertfast.config import Config, FinetuneConfig
from bertfast.errors import ConfigError
from bertfast.model.encoder import BertEncoder
from bertfast.model.weights import Checkpoint, load_weights
from bertfast.tasks import Context, Task, task_of
from bertfast.text.labelled import evenly_spread

_TEACHER = "teacher."


def refuse_other_teacher(teacher: Checkpoint, task: Task, context: Context) -> None:
    """Raise ConfigError unless the teacher answers the same requests, read the same way, with the same labels."""
    taught = task_of(teacher)
    if taught.name != task.name:
        raise ConfigError(
            f"--teacher {teacher.path} answers '{taught.name}', and the student is to learn '{task.name}'. "
            f"Fine-tune the teacher with 'bertfast train {task.name}' first."
        )
    if context.labels and teacher.labels != context.labels:
        same = sorted(teacher.labels) == sorted(context.labels)
        raise ConfigError(
            f"--teacher {teacher.path} answers with the labels {', '.join(teacher.labels)}, and the training data have "
            f"{'them in another order: ' if same else ''}{', '.join(context.labels)}. Fine-tune the teacher on data "
            "with the same labels."
        )
    if teacher.tokenizer.backend.get_vocab() != context.tokenizer.backend.get_vocab():
        raise ConfigError(
            f"--teacher {teacher.path} has another vocabulary than --model, so it would read other words. "
            "Start the student from a checkpoint with the teacher's vocabulary, such as the teacher with layers=3."
        )
    if context.max_length > teacher.config.max_position_embeddings:
        raise ConfigError(
            f"max_length {context.max_length} exceeds the {teacher.config.max_position_embeddings} positions of "
            f"--teacher {teacher.path}. Pass --set max_length={teacher.config.max_position_embeddings} or less."
        )


def refuse_lessons_without_teacher(config: FinetuneConfig) -> None:
    """Raise ConfigError where a setting was given that only a teacher makes use of, and there is none."""
    given = sorted(config.model_fields_set & {"distill_weight", "distill_temperature"})
    if given:
        raise ConfigError(
            f"{given[0]} = {getattr(config, given[0])} is about a teacher, and there is none. Name one with --teacher, "
            f"or leave {given[0]} out."
        )


def load_teacher(teacher: Checkpoint, task: Task) -> nn.Module:
    """The teacher as it answers: without dropout, and never trained."""
    settings = task.settings.parse(teacher.task_settings, str(teacher.path))
    model = task.build(teacher.config, len(teacher.labels), settings)
    load_weights(model, teacher.path, complete=True)
    return model.eval().requires_grad_(False)


def distilled(task: Task, teacher: nn.Module, config: FinetuneConfig) -> Task:
    """The task with the teacher's outputs beside the student's, and losses in which both labels and teacher count.

    A loss is (1 - w) times that of the labels plus w times that of the teacher, w being `distill_weight`.
    """
    share = config.distill_weight

    def forward(model: nn.Module, inputs: Mapping[str, Tensor], targets: Mapping[str, Tensor]) -> dict[str, Tensor]:
        with torch.no_grad():
            taught = task.forward(teacher, inputs, targets)
        return {**task.forward(model, inputs, targets), **{_TEACHER + name: value for name, value in taught.items()}}

    def losses(outputs: Mapping[str, Tensor], targets: Mapping[str, Tensor], settings: Config) -> dict[str, Tensor]:
        student = {name: value for name, value in outputs.items() if not name.startswith(_TEACHER)}
        taught = {name: outputs[_TEACHER + name] for name in student}
        soft = task.distill(student, taught, targets, config.distill_temperature)
        hard = task.losses(student, targets, settings)
        return {name: (1 - share) * loss + share * soft[name] for name, loss in hard.items()}

    return replace(task, forward=forward, losses=losses)


def keep_layers(model: nn.Module, count: int) -> None:
    """Leave a model so many of its layers, evenly spread from the lowest to the highest (Sanh et al. 2019, 3)."""
    for part in model.modules():
        if isinstance(part, BertEncoder):
            part.layer = nn.ModuleList(part.layer[place] for place in evenly_spread(len(part.layer), count))
