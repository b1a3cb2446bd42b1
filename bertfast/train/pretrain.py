"""`bertfast train pretrain`: from a corpus to a checkpoint with MLM and NSP heads."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from bertfast.config import ModelConfig, PretrainConfig
from bertfast.errors import ConfigError
from bertfast.model.weights import Checkpoint, load_weights
from bertfast.tasks import get_task
from bertfast.text.batch import IGNORE_INDEX, TrainingBatch
from bertfast.text.corpus import Corpus, verify_corpus
from bertfast.text.instances import InstanceSource, split_documents
from bertfast.train.device import resolve
from bertfast.train.loop import evaluate_losses, fit, total_steps
from bertfast.train.publish import publish
from bertfast.train.state import RunDirectory

_EVALUATION_BATCH = 32
_VERIFIED_BYTES = 1 << 30  # a second or two of reading; what is larger, 'bertfast corpus verify' checks


class PretrainSource:
    """Steps of a pretraining run over the endless sequence of epochs."""

    static_shapes = True

    def __init__(self, instances: InstanceSource, config: PretrainConfig) -> None:
        self.instances = instances
        self.global_batch_size = config.global_batch_size
        rows = max(1, config.micro_batch_tokens // config.max_length)
        pieces = math.ceil(config.global_batch_size / rows)
        self.pieces = next(n for n in range(pieces, config.global_batch_size + 1) if config.global_batch_size % n == 0)

    @property
    def steps_per_epoch(self) -> int:
        return max(1, len(self.instances) // self.global_batch_size)

    def micro_batches(self, step: int) -> Sequence[TrainingBatch]:
        places = np.arange(step * self.global_batch_size, (step + 1) * self.global_batch_size)
        return [self.instances.batch(part) for part in np.split(places, self.pieces)]


def pretrain(
    corpus: Corpus,
    out: Path,
    config: PretrainConfig,
    *,
    model_settings: dict[str, Any] | None = None,
    start: Checkpoint | None = None,
    resume: bool = False,
    overwrite: bool = False,
) -> dict[str, float]:
    """Pretrain from scratch, or further from `start`, and publish the checkpoint at `out`.

    The hashes of a corpus of up to 1 GiB are checked first.

    Args:
        model_settings: the encoder's shape for a run from scratch; the vocabulary's size is the tokenizer's.
    Returns:
        The held-out evaluation: `heldout_mlm` and `heldout_nsp` in nats, their accuracies, and the baselines
        `unigram_entropy` (nats) and `nsp_majority`.
    """
    task = get_task("pretrain")
    shape = _model_config(corpus, config, model_settings or {}, start)
    training, heldout = split_documents(corpus, config.heldout_fraction, config.seed)
    source = PretrainSource(InstanceSource(corpus, training, config), config)
    config = resolve(config, total_steps(source, config))
    identity = {**config.model_dump(), "model": shape.model_dump(), "corpus": corpus.sha256}
    run = RunDirectory(out, identity | {"start": start.sha256 if start else None})
    if resume and not overwrite and (ended := run.result()) is not None:
        return ended
    verify_corpus(corpus.path, at_most_bytes=_VERIFIED_BYTES)
    run.begin(resume=resume, overwrite=overwrite)
    torch.manual_seed(config.seed)
    model = task.build(shape, 2)
    if start is not None:
        load_weights(model, start.path)
    evaluate = partial(_evaluate, corpus=corpus, documents=heldout, config=config)
    result = fit(model, task, source, config, run, evaluate)
    parents = {"corpus": corpus.sha256} | ({"start": start.sha256} if start else {})
    publish(run, model, corpus.tokenizer, task, (), parents, result, overwrite=overwrite)
    return result


def unigram_entropy(batches: Sequence[TrainingBatch], corpus: Corpus) -> float:
    """Cross-entropy in nats of predicting the batches' masked tokens by the corpus' token frequencies alone."""
    counts = corpus.token_counts() + 1.0
    log_probability = np.log(counts / counts.sum())
    labels = np.concatenate([batch.targets["masked_labels"] for batch in batches])
    return float(-log_probability[labels[labels != IGNORE_INDEX]].mean())


def _evaluate(model: nn.Module, *, corpus: Corpus, documents: np.ndarray, config: PretrainConfig) -> dict[str, float]:
    if not len(documents):
        return {}
    batches = list(_heldout_batches(InstanceSource(corpus, documents, config), config))
    labels = np.concatenate([batch.targets["next_sentence_labels"] for batch in batches])
    losses = evaluate_losses(model, get_task("pretrain"), batches)
    return losses.means("heldout_") | {
        "unigram_entropy": unigram_entropy(batches, corpus),
        "nsp_majority": float(max(labels.mean(), 1 - labels.mean())),
    }


def _heldout_batches(source: InstanceSource, config: PretrainConfig) -> Iterator[TrainingBatch]:
    count = min(config.heldout_instances, len(source))
    for first in range(0, count, _EVALUATION_BATCH):
        yield source.batch(range(first, min(count, first + _EVALUATION_BATCH)))


def _model_config(
    corpus: Corpus, config: PretrainConfig, settings: dict[str, Any], start: Checkpoint | None
) -> ModelConfig:
    if start is not None:
        if settings:
            raise ConfigError(f"the shape is that of --model {start.path}: leave out [model] ({', '.join(settings)}).")
        if start.tokenizer.backend.get_vocab() != corpus.tokenizer.backend.get_vocab():
            raise ConfigError(
                f"{corpus.path} was built with another vocabulary than {start.path} has. "
                f"Build it with --tokenizer {start.path}."
            )
        shape = start.config
    else:
        own = {"vocab_size": corpus.tokenizer.vocab_size, "pad_token_id": corpus.tokenizer.pad_id}
        shape = ModelConfig.parse(own | settings, "[model]")
        if shape.vocab_size < corpus.tokenizer.vocab_size:
            raise ConfigError(
                f"model.vocab_size {shape.vocab_size} is less than the corpus' {corpus.tokenizer.vocab_size} tokens. "
                "Leave it out."
            )
    if config.max_length > shape.max_position_embeddings:
        raise ConfigError(
            f"max_length {config.max_length} exceeds the model's max_position_embeddings "
            f"{shape.max_position_embeddings}. Lower the one or raise the other."
        )
    return shape
