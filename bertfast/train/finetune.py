"""`bertfast train classify`: from a checkpoint and labelled rows to a checkpoint that answers."""

from __future__ import annotations

import hashlib
import json
import math
import os
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache, partial
from pathlib import Path

import numpy as np
import torch
from torch import nn

from bertfast.config import FinetuneConfig
from bertfast.errors import ConfigError, DataError
from bertfast.model.weights import Checkpoint, load_weights
from bertfast.tasks import Task
from bertfast.text.batch import Int64, TrainingBatch, group_by_budget, pad
from bertfast.text.labelled import Columns, Example, label_ids, label_names, read_examples
from bertfast.text.tokenizer import Encoded, Tokenizer
from bertfast.train.device import resolve
from bertfast.train.loop import evaluate_losses, fit, total_steps
from bertfast.train.publish import publish
from bertfast.train.state import RunDirectory


@dataclass(frozen=True)
class EncodedRows:
    """Tokenised rows with their label ids; `lengths` counts real tokens."""

    rows: Sequence[Encoded]
    labels: Int64
    lengths: Int64
    truncated: int

    def batch(self, indices: Int64, pad_id: int) -> TrainingBatch:
        return TrainingBatch(pad([self.rows[i] for i in indices], pad_id), {"labels": self.labels[indices]})


class FinetuneSource:
    """Steps over labelled rows: every epoch a new order, in batches of similar length."""

    static_shapes = False
    flops_per_token: float | None = None

    def __init__(self, data: EncodedRows, pad_id: int, config: FinetuneConfig) -> None:
        self.data = data
        self.pad_id = pad_id
        self.config = config
        self.epoch_batches = lru_cache(maxsize=2)(self._epoch_batches)

    def __reduce__(self) -> tuple[type[FinetuneSource], tuple[EncodedRows, int, FinetuneConfig]]:
        return FinetuneSource, (self.data, self.pad_id, self.config)

    @property
    def steps_per_epoch(self) -> int:
        return math.ceil(len(self.data.rows) / self.config.global_batch_size)

    def micro_batches(self, step: int) -> Sequence[TrainingBatch]:
        epoch, place = divmod(step, self.steps_per_epoch)
        indices = self.epoch_batches(epoch)[place]
        parts = group_by_budget(self.data.lengths[indices], self.config.micro_batch_tokens, len(indices))
        return [self.data.batch(indices[part], self.pad_id) for part in parts]

    def idle_batch(self) -> TrainingBatch:
        raise NotImplementedError("fine-tuning runs in one process")

    def _epoch_batches(self, epoch: int) -> list[Int64]:
        """Rows in random order; pools of `bucket_batches` batches are sorted by length; the batches are shuffled."""
        rng = np.random.default_rng([self.config.seed, epoch])
        order = rng.permutation(len(self.data.rows))
        size = self.config.global_batch_size
        pool = size * self.config.bucket_batches
        pools = (order[start : start + pool] for start in range(0, len(order), pool))
        by_length = (part[np.argsort(self.data.lengths[part], kind="stable")] for part in pools)
        batches = [part[start : start + size] for part in by_length for start in range(0, len(part), size)]
        return [batches[i] for i in rng.permutation(len(batches))]


def finetune(
    start: Checkpoint,
    task: Task,
    train_file: Path,
    dev_file: Path,
    out: Path,
    config: FinetuneConfig,
    *,
    columns: Columns | None = None,
    from_scratch: bool = False,
    resume: bool = False,
    overwrite: bool = False,
) -> dict[str, float]:
    """Fine-tune `start` and publish the checkpoint at `out`; returns the evaluation of the last epoch on dev.

    Args:
        from_scratch: keep the shape and the tokenizer of `start` but not its weights (to see what they are worth).
    """
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
    examples, dev_examples = read_examples(train_file, columns), read_examples(dev_file, columns)
    if (dev_examples[0].pair is None) != (examples[0].pair is None):
        raise DataError(f"{train_file} and {dev_file} differ: one holds pairs and the other single texts.")
    labels = label_names(examples)
    data = encode_rows(examples, labels, start.tokenizer, config, train_file)
    dev = encode_rows(dev_examples, labels, start.tokenizer, config, dev_file)
    source = FinetuneSource(data, start.tokenizer.pad_id, config)
    config = resolve(config, total_steps(source.steps_per_epoch, config))
    identity = {**config.model_dump(), "start": start.sha256, "from_scratch": from_scratch}
    run = RunDirectory(
        out, identity | {"train": _digest(examples), "dev": _digest(dev_examples), "labels": list(labels)}
    )
    if resume and not overwrite and (ended := run.result()) is not None:
        return ended
    with run.begun(resume=resume, overwrite=overwrite):
        torch.manual_seed(config.seed)
        model = task.build(start.config, len(labels))
        if not from_scratch:
            load_weights(model, start.path, encoder_only=start.task != task.name or start.labels != labels)
        evaluate = partial(_evaluate, task=task, data=dev, pad_id=start.tokenizer.pad_id, config=config)
        result = fit(model, task, source, config, run, evaluate)
        result |= {"train_truncated": data.truncated, "dev_truncated": dev.truncated}
        weights, parents = model.state_dict(), {"start": start.sha256}
        publish(run, weights, start.config, start.tokenizer, task, labels, parents, result, overwrite=overwrite)
    return result


def encode_rows(
    examples: Sequence[Example], labels: Sequence[str], tokenizer: Tokenizer, config: FinetuneConfig, source: Path
) -> EncodedRows:
    ids = np.array(label_ids(examples, labels, source), np.int64)
    rows = tokenizer.encode([(row.text, row.pair) for row in examples], config.max_length)
    return EncodedRows(rows, ids, np.array([len(row) for row in rows]), sum(row.truncated for row in rows))


def _evaluate(
    model: nn.Module, *, task: Task, data: EncodedRows, pad_id: int, config: FinetuneConfig
) -> dict[str, float]:
    groups = group_by_budget(data.lengths, config.micro_batch_tokens, len(data.rows))
    losses = evaluate_losses(model, task, (data.batch(rows, pad_id) for rows in groups))
    majority = np.bincount(data.labels).max() / len(data.labels)
    rows = losses.counts["loss"]
    return {
        "dev_loss": losses.sums["loss"] / rows,
        "dev_accuracy": losses.correct["loss"] / rows,
        "dev_majority": float(majority),
    }


def _digest(examples: Sequence[Example]) -> str:
    rows = json.dumps([(row.text, row.pair, row.label) for row in examples])
    return hashlib.sha256(rows.encode()).hexdigest()
