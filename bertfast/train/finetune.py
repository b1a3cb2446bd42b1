"""`bertfast train TASK`: from a checkpoint and examples to a checkpoint that answers."""

from __future__ import annotations

import hashlib
import json
import math
import os
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache, partial
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from bertfast.backends.predictor import answers, one_by_one
from bertfast.backends.protocol import Arrays
from bertfast.config import FinetuneConfig
from bertfast.errors import ConfigError, DataError
from bertfast.model.weights import Checkpoint, load_weights
from bertfast.tasks import Context, Task
from bertfast.text.batch import Batch, Features, Int64, TrainingBatch, group_by_budget
from bertfast.text.labelled import Columns, Example, Request
from bertfast.text.tokenizer import Encoded
from bertfast.train.device import resolve
from bertfast.train.distill import distilled, keep_layers, load_teacher, refuse_other_teacher
from bertfast.train.loop import fit, to_inputs, total_steps
from bertfast.train.optimizer import freeze
from bertfast.train.publish import publish
from bertfast.train.report import RUN_PANELS, Panel, report_run
from bertfast.train.selection import criterion_of, metrics_on_dev, quoted
from bertfast.train.state import RunDirectory
from bertfast.train.vocabulary import VocabularyInUse, restrict_vocabulary, tokens_in_use

_NOTHING = "nothing was learnt that shows."
CURVES_FROM_S = 60  # drawing them takes a second or two, and many a run not much more


class FinetuneSource:
    """Steps over items: every epoch a new order, in batches of similar length."""

    static_shapes = False
    flops_per_token: float | None = None

    def __init__(self, features: Features, pad_id: int, config: FinetuneConfig) -> None:
        self.features = features
        self.pad_id = pad_id
        self.config = config
        self.epoch_batches = lru_cache(maxsize=2)(self._epoch_batches)

    def __reduce__(self) -> tuple[type[FinetuneSource], tuple[Features, int, FinetuneConfig]]:
        return FinetuneSource, (self.features, self.pad_id, self.config)

    @property
    def steps_per_epoch(self) -> int:
        return steps_per_epoch(self.features, self.config)

    def micro_batches(self, step: int) -> Sequence[TrainingBatch]:
        epoch, place = divmod(step, self.steps_per_epoch)
        items = self.epoch_batches(epoch)[place]
        if self.features.whole_steps:
            return [self.features.batch(items, self.pad_id)]
        parts = group_by_budget(self.features.lengths[items], self.config.micro_batch_tokens, len(items))
        return [self.features.batch(items[part], self.pad_id) for part in parts]

    def _epoch_batches(self, epoch: int) -> list[Int64]:
        """Items in random order; pools of `bucket_batches` batches are sorted by length; the batches are shuffled.

        The items of a step are then alike in length, in-batch negatives too.
        """
        rng = np.random.default_rng([self.config.seed, epoch])
        order = rng.permutation(len(self.features))
        size = self.config.global_batch_size
        pool = size * self.config.bucket_batches
        pools = (order[start : start + pool] for start in range(0, len(order), pool))
        by_length = (part[np.argsort(self.features.lengths[part], kind="stable")] for part in pools)
        batches = [part[start : start + size] for part in by_length for start in range(0, len(part), size)]
        return [batches[i] for i in rng.permutation(len(batches))]


def steps_per_epoch(features: Features, config: FinetuneConfig) -> int:
    return math.ceil(len(features) / config.global_batch_size)


def finetune(
    start: Checkpoint,
    task: Task,
    train_file: Path,
    dev_file: Path,
    out: Path,
    config: FinetuneConfig,
    *,
    task_settings: Mapping[str, Any] | None = None,
    columns: Columns | None = None,
    teacher: Checkpoint | None = None,
    from_scratch: bool = False,
    resume: bool = False,
    overwrite: bool = False,
) -> dict[str, float]:
    """Fine-tune `start` and publish the checkpoint at `out`; returns the evaluation on dev of what is published.

    Args:
        task_settings: the task's own settings; what is left out is as the weights of `start` need it, has
            its default or is learnt from the examples.
        teacher: a checkpoint that answers the same task; the model learns from its answers too.
        from_scratch: keep the shape and the tokenizer of `start` but not its weights (to see what they are worth).
    """
    _refuse_what_cannot_run(start, config)
    lesson = _prepare(start, task, (train_file, dev_file), config, task_settings or {}, columns or Columns())
    context, features = lesson.context, lesson.features
    if teacher is not None:
        refuse_other_teacher(teacher, task, context)
    steps = total_steps(steps_per_epoch(features, config), config)
    config = resolve(config, steps, static_shapes=FinetuneSource.static_shapes)
    parents = {"start": start.sha256} | ({"teacher": teacher.sha256} if teacher else {})
    identity = _identity(start, task, lesson, config) | {
        "teacher": parents.get("teacher"),
        "from_scratch": from_scratch,
    }
    run = RunDirectory(out, identity)
    if resume and not overwrite and (ended := run.result()) is not None:
        return ended
    with run.begun(resume=resume, overwrite=overwrite):
        model = _student(start, task, context, config, from_scratch=from_scratch)
        in_use = restrict_vocabulary(model, lesson.tokens)
        learnt = task
        if teacher is not None:
            teaching = load_teacher(teacher, task).to(config.device)
            restrict_vocabulary(teaching, lesson.tokens)
            learnt = distilled(task, teaching, config)
        source = FinetuneSource(in_use.features(features), int(in_use.rows(context.tokenizer.pad_id)), config)
        evaluate = partial(_evaluate, exam=lesson.exam, in_use=in_use, logs=run.logs)
        criterion = criterion_of(config, task)
        result = fit(model, learnt, context.settings, source, config, run, evaluate, criterion=criterion)
        result |= {"train_truncated": features.truncated, "selected_on_dev": criterion is not None}
        shape = start.config.model_copy(update={"num_hidden_layers": _num_layers(start, config)})
        _warn_of_nothing_learnt(result, quoted(result, metrics_on_dev(task)))
        _report(run, task, result, config, steps)
        publish(run, in_use.weights(model), shape, task, context, parents, result, overwrite=overwrite)
    return result


@dataclass(frozen=True)
class Lesson:
    """The examples of a run as the model reads them.

    Attributes:
        tokens: int64, the tokens that they hold.
        digests: identities of the files' examples.
    """

    context: Context
    features: Features
    exam: Exam
    tokens: Int64
    digests: Mapping[str, str]


def _prepare(
    start: Checkpoint,
    task: Task,
    files: tuple[Path, Path],
    config: FinetuneConfig,
    task_settings: Mapping[str, Any],
    columns: Columns,
) -> Lesson:
    kept = task.of_the_weights if start.task == task.name else ()
    inherited = {name: start.task_settings[name] for name in kept if name in start.task_settings}
    settings = task.settings.parse({**inherited, **task_settings}, "task settings")
    train, dev = (task.read(file, columns, settings, True) for file in files)
    _refuse_other_questions(train, dev, files)
    settings = task.settle(settings, train)
    context = Context(start.tokenizer, task.labels(train), config.max_length, settings)
    task.refuse(dev, context.labels)
    features, exam = task.features(train, context), set_exam(task, dev, context)
    tokens = _tokens_met(start, config, features, exam)
    digests = {"train": _digest(train), "dev": _digest(dev)}
    if digests["train"] == digests["dev"]:
        warnings.warn(
            f"{files[0]} and {files[1]} hold the same rows: what is found on dev says how well they were learnt by "
            "heart, and not what will come of other texts. Give rows that are not trained on.",
            stacklevel=3,
        )
    return Lesson(context, features, exam, tokens, digests)


def _tokens_met(start: Checkpoint, config: FinetuneConfig, features: Features, exam: Exam) -> Int64:
    """All tokens that the run meets; with LAMB, whose step depends on the norm of a whole tensor, all there are."""
    if config.optimizer == "lamb":
        return np.arange(start.config.vocab_size)
    met = (sequence.input_ids for sequence in chain(*features.sequences, *exam.encoded))
    return tokens_in_use(chain([[start.tokenizer.pad_id]], met), start.config.vocab_size)


def _identity(start: Checkpoint, task: Task, lesson: Lesson, config: FinetuneConfig) -> dict[str, Any]:
    """What must be the same for a run to go on; the tokens stand for the tokenizer."""
    identity = {
        **config.model_dump(),
        **lesson.digests,
        "task_name": task.name,
        "task": lesson.context.settings.model_dump(),
        "labels": list(lesson.context.labels),
        "start": start.sha256,
        "model": start.config.model_dump(),
        "tokens": hashlib.sha256(lesson.tokens.tobytes()).hexdigest(),
    }
    if criterion_of(config, task) is not None:  # evaluations then decide what is published
        identity["selects_every_steps"] = config.evaluate_every_steps
    return identity


def _report(run: RunDirectory, task: Task, result: Mapping[str, float], config: FinetuneConfig, steps: int) -> None:
    metric = quoted(result, metrics_on_dev(task))
    panels = (Panel("training loss", ("train_loss",)), Panel(metric, (metric,)), *RUN_PANELS)
    report_run(
        run.logs,
        result,
        title=f"Fine-tuning of {run.out.name} ({task.name})",
        config=config,
        total_steps=steps,
        facts={name: round(value, 4) for name, value in result.items()},
        panels=panels if result["train_s"] >= CURVES_FROM_S else (),
    )


def _warn_of_nothing_learnt(result: Mapping[str, float], metric: str) -> None:
    """Say so where naming the commonest label every time would be right as often, or the metric is 0."""
    majority = result.get("dev_majority")
    accuracy = result.get("dev_accuracy", result.get("dev_subset_accuracy"))
    if majority is not None and accuracy is not None and accuracy <= majority:
        warnings.warn(
            f"{_NOTHING} The accuracy on dev is {accuracy:.1%}, and the commonest answer alone "
            f"gives {majority:.1%}. Train for more epochs, try another learning_rate, or look at the "
            "tables in the run's logs.",
            stacklevel=3,
        )
    elif result[metric] == 0:
        warnings.warn(
            f"{_NOTHING} {metric} is 0. Train for more epochs, or try a higher learning_rate.",
            stacklevel=3,
        )


def _num_layers(start: Checkpoint, config: FinetuneConfig) -> int:
    return config.layers or start.config.num_hidden_layers


def _student(
    start: Checkpoint, task: Task, context: Context, config: FinetuneConfig, *, from_scratch: bool
) -> nn.Module:
    """The model that a run begins with."""
    torch.manual_seed(config.seed)
    model = task.build(start.config, len(context.labels), context.settings)
    if not from_scratch:
        load_weights(model, start.path, encoder_only=start.task != task.name or start.labels != context.labels)
    keep_layers(model, _num_layers(start, config))
    if config.freeze_layers is not None:
        freeze(model, config.freeze_layers)
        if not any(parameter.requires_grad for parameter in model.parameters()):
            raise ConfigError(
                f"freeze_layers {config.freeze_layers} leaves nothing to train: '{task.name}' has no parameters above "
                f"the layers. Pass --set freeze_layers={config.freeze_layers - 1} or less."
            )
    return model


@dataclass(frozen=True)
class Exam:
    """Requests as the model reads them, and the answers that are right."""

    task: Task
    context: Context
    requests: Sequence[Request]
    encoded: Sequence[Sequence[Encoded]]
    golds: Sequence[Any]


def set_exam(task: Task, examples: Sequence[Example], context: Context) -> Exam:
    requests = [example.request for example in examples]
    return Exam(task, context, requests, task.encode(requests, context), [example.gold for example in examples])


def _evaluate(model: nn.Module, *, exam: Exam, in_use: VocabularyInUse, logs: Path) -> dict[str, float]:
    """The task's metrics of what the model answers, in fp32 and without dropout, as it will be served.

    Args:
        logs: where the task's tables go, in place of those of the evaluation before.
    """
    device = next(model.parameters()).device

    @torch.no_grad()
    def run(batch: Batch) -> Arrays:
        outputs = model(**to_inputs(in_use.batch(batch), device))
        return {name: outputs[name].float().cpu().numpy() for name in exam.task.outputs}

    model.eval()
    found = answers(one_by_one(run), exam.task, exam.requests, exam.encoded, exam.context)
    model.train()
    metrics = exam.task.score(found, exam.golds) | {"truncated": sum("truncated" in answer for answer in found)}
    for name, text in exam.task.tables(found, exam.golds).items():
        (logs / name).write_text(text, encoding="utf-8")
    return {f"dev_{name}": value for name, value in metrics.items()}


def _refuse_what_cannot_run(start: Checkpoint, config: FinetuneConfig) -> None:
    if os.environ.get("WORLD_SIZE", "1") != "1":
        raise ConfigError("fine-tuning runs in one process, and torchrun started several. Start it without torchrun.")
    if config.sharding != "ddp":
        raise ConfigError(
            f"sharding '{config.sharding}' cuts over many processes, and fine-tuning runs in one. Leave it."
        )
    if config.max_length > start.config.max_position_embeddings:
        raise ConfigError(
            f"max_length {config.max_length} exceeds the {start.config.max_position_embeddings} positions of "
            f"{start.path}. Pass --set max_length={start.config.max_position_embeddings} or less."
        )
    for name, wanted, there in (
        ("layers", config.layers, start.config.num_hidden_layers),
        ("freeze_layers", config.freeze_layers, _num_layers(start, config)),
    ):
        if wanted is not None and wanted > there:
            raise ConfigError(f"{name} {wanted} exceeds the {there} layers of the model. Pass --set {name}={there}.")


def _refuse_other_questions(train: Sequence[Example], dev: Sequence[Example], files: tuple[Path, Path]) -> None:
    asked, asked_in_dev = (
        " and ".join(name for name in examples[0].request if name != "id") for examples in (train, dev)
    )
    if asked != asked_in_dev:
        raise DataError(
            f"{files[0]} asks about {asked}, and {files[1]} about {asked_in_dev}. Give both the same columns."
        )


def _digest(examples: Sequence[Example]) -> str:
    rows = json.dumps([(dict(row.request), row.gold) for row in examples])
    return hashlib.sha256(rows.encode()).hexdigest()
