"""`bertfast train pretrain`: from a corpus to a checkpoint with MLM and NSP heads."""

from __future__ import annotations

import math
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from bertfast import artifact
from bertfast.config import ModelConfig, Precision, PretrainConfig
from bertfast.errors import ConfigError
from bertfast.model.encoder import takes_boundaries
from bertfast.model.weights import Checkpoint, load_weights
from bertfast.tasks import Context
from bertfast.tasks.pretrain import PRETRAIN
from bertfast.tasks.task import NoSettings
from bertfast.text.batch import IGNORE_INDEX, Int64, TrainingBatch
from bertfast.text.corpus import Corpus, verify_corpus
from bertfast.text.instances import InstanceSource, split_documents
from bertfast.text.masking import max_predictions
from bertfast.text.packing import Layout, Limits, Sizes, choose_layout, pack, sizes_of
from bertfast.train.device import resolve
from bertfast.train.diagnosis import Watch, flops_per_token
from bertfast.train.distributed import World, joined, whole
from bertfast.train.loop import evaluate_losses, fit, total_steps
from bertfast.train.publish import publish
from bertfast.train.report import report_run
from bertfast.train.state import RunDirectory

_EVALUATION_BATCH = 32
_SAMPLE = 2048
_DROPOUTS = {"hidden_dropout_prob", "attention_probs_dropout_prob"}  # all of a shape that is not in the weights
_VERIFIED_BYTES = 1 << 30  # a second or two of reading; what is larger, 'bertfast corpus verify' checks


class PretrainSource:
    """A rank's share of the steps of a pretraining run, over the endless sequence of epochs.

    Step n learns from instances n * G up to (n + 1) * G, whatever the number of ranks and however they are laid out.
    """

    static_shapes = True

    def __init__(
        self,
        instances: InstanceSource,
        config: PretrainConfig,
        world: World,
        layout: Layout | None,
        flops_per_token: float | None = None,
    ) -> None:
        self.instances = instances
        self.flops_per_token = flops_per_token
        self.steps_per_epoch = steps_per_epoch(instances, config)
        self.global_batch_size = config.global_batch_size
        self.world = world
        self.share = world.share(config.global_batch_size)
        self.layout = layout
        pieces = math.ceil(self.share / max(1, config.micro_batch_tokens // config.max_length))
        self.rows = math.ceil(self.share / pieces)

    def micro_batches(self, step: int) -> Sequence[TrainingBatch]:
        first = step * self.global_batch_size + self.world.rank * self.share
        instances = [self.instances.at(place) for place in range(first, first + self.share)]
        if self.layout is not None:
            return pack(instances, self.layout, self.instances.corpus.tokenizer.pad_id)
        starts = range(0, self.share, self.rows)
        return [self.instances.collate(instances[start : start + self.rows], self.rows) for start in starts]


def steps_per_epoch(instances: InstanceSource, config: PretrainConfig) -> int:
    return max(1, len(instances) // config.global_batch_size)


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

    Started by `torchrun`, all its processes train one model together.
    The hashes of a corpus of up to 1 GiB are checked first.

    Args:
        model_settings: the encoder's shape for a run from scratch; the vocabulary's size is the tokenizer's.
    Returns:
        The held-out evaluation: `heldout_mlm` and `heldout_nsp` in nats, their accuracies and counts, and the
        baselines `unigram_entropy` (nats) and `nsp_majority`.
    """
    task, context = PRETRAIN, Context(corpus.tokenizer, (), config.max_length, NoSettings())
    shape = _model_config(corpus, config, model_settings or {}, start)
    training, heldout = split_documents(corpus, config.heldout_fraction, config.seed)
    instances = InstanceSource(corpus, training, config)
    steps = total_steps(steps_per_epoch(instances, config), config)
    config = resolve(config, steps, static_shapes=PretrainSource.static_shapes)
    sample = sample_sizes(instances)
    with joined(config.device) as world:
        layout = packed_layout(sample, config, shape, world)
        source = PretrainSource(instances, config, world, layout, training_flops_per_token(sample, shape))
        identity = {**config.model_dump(), "model": shape.model_dump(), "corpus": corpus.sha256}
        run = RunDirectory(out, identity | {"start": start.sha256 if start else None}, world)
        if resume and not overwrite and (ended := run.result()) is not None:
            return ended
        if world.leads:
            verify_corpus(corpus.path, at_most_bytes=_VERIFIED_BYTES)
        with run.begun(resume=resume, overwrite=overwrite):
            torch.manual_seed(config.seed)
            model = task.build(shape, 2, context.settings)
            if start is not None:
                load_weights(model, start.path)
            exam = set_exam(corpus, heldout, config)
            watch = Watch(config, steps, exam.unigram_entropy if exam else None)
            result = fit(
                model, task, context.settings, source, config, run, partial(_evaluate, exam=exam), world, watch
            )
            weights = {name: whole(tensor) for name, tensor in model.state_dict().items()}
            if world.leads:
                _report(run, result, config, steps, corpus, shape, world)
                parents = {"corpus": corpus.sha256} | ({"start": start.sha256} if start else {})
                publish(run, weights, shape, task, context, parents, result, overwrite=overwrite)
            world.wait()
    return result


def sample_sizes(instances: InstanceSource) -> Sizes:
    """The sizes of the first sequences, by which a run is laid out."""
    return sizes_of([instances.at(place) for place in range(min(len(instances), _SAMPLE))])


def packed_layout(sample: Sizes, config: PretrainConfig, shape: ModelConfig, world: World) -> Layout | None:
    """The shapes of packed micro-batches for a resolved configuration, or None where packing is off.

    One long row where the attention kernel takes the boundaries of sequences: on CUDA, in bf16, without dropout of
    attention probabilities. Elsewhere rows are short, since a mask's cost grows with their square.
    """
    if not config.packing:
        return None
    computed_in = torch.bfloat16 if config.precision is Precision.BF16 else torch.float32
    one_row = takes_boundaries(config.device, computed_in, shape.attention_probs_dropout_prob)
    if config.device == "cuda" and not one_row:
        warnings.warn(
            f"attention in {config.precision} with dropout {shape.attention_probs_dropout_prob} has no kernel for "
            "packed sequences, and a mask is slower. Set precision=bf16 and model.attention_probs_dropout_prob=0.",
            stacklevel=2,
        )
    return choose_layout(
        sample,
        Limits(config.max_length, max_predictions(config)),
        batch_size=world.share(config.global_batch_size),
        ranks=world.size,
        row_tokens=None if one_row else config.row_tokens or config.max_length,
        micro_batch_tokens=config.micro_batch_tokens,
    )


@dataclass(frozen=True)
class Exam:
    """Held-out text, and what is reached on it without learning.

    Attributes:
        batches: what a model is evaluated on.
        unigram_entropy: nats, of predicting the masked tokens by the corpus' token frequencies alone.
        mlm_majority: the accuracy of always giving the commonest token.
        nsp_majority: the accuracy of always giving the commoner answer.
    """

    batches: Sequence[TrainingBatch]
    unigram_entropy: float
    mlm_majority: float
    nsp_majority: float


def set_exam(corpus: Corpus, documents: Int64, config: PretrainConfig) -> Exam | None:
    """An exam from these documents; None where there are none."""
    if not len(documents):
        return None
    source = InstanceSource(corpus, documents, config)
    count = min(config.heldout_instances, len(source))
    starts = range(0, count, _EVALUATION_BATCH)
    batches = [source.batch(range(first, min(count, first + _EVALUATION_BATCH))) for first in starts]
    labels = np.concatenate([batch.targets["next_sentence_labels"] for batch in batches])
    masked = np.concatenate([batch.targets["masked_labels"] for batch in batches])
    masked = masked[masked != IGNORE_INDEX]
    counts = corpus.token_counts() + 1.0
    entropy = -np.log(counts / counts.sum())[masked].mean()
    commonest = (masked == counts.argmax()).mean()
    return Exam(batches, float(entropy), float(commonest), float(max(labels.mean(), 1 - labels.mean())))


def _evaluate(model: nn.Module, *, exam: Exam | None) -> dict[str, float]:
    if exam is None:
        return {}
    losses = evaluate_losses(model, PRETRAIN, NoSettings(), exam.batches)
    return {
        **losses.means("heldout_"),
        **{f"heldout_{name}_count": float(count) for name, count in losses.counts.items()},
        "unigram_entropy": exam.unigram_entropy,
        "mlm_majority": exam.mlm_majority,
        "nsp_majority": exam.nsp_majority,
    }


def training_flops_per_token(sample: Sizes, shape: ModelConfig) -> float:
    """What training on a real token of such sequences takes (see `diagnosis.flops_per_token`)."""
    length = float((sample.tokens**2).sum() / sample.tokens.sum())
    return flops_per_token(shape, length, float(sample.masked.sum() / sample.tokens.sum()))


def _report(
    run: RunDirectory,
    result: dict[str, float],
    config: PretrainConfig,
    steps: int,
    corpus: Corpus,
    shape: ModelConfig,
    world: World,
) -> None:
    device = torch.cuda.get_device_name() if config.device == "cuda" else artifact.hardware()["cpu"]
    sizes = (shape.num_hidden_layers, shape.hidden_size, shape.num_attention_heads)
    facts = {
        "layers x hidden size x heads": " x ".join(map(str, sizes)),
        "sequences a step, tokens a sequence": f"{config.global_batch_size}, at most {config.max_length}",
        "corpus": f"{corpus.num_tokens:,} tokens in {corpus.num_documents:,} documents",
        "hardware": f"{world.size} x {device}" if world.size > 1 else device,
    }
    repeated = artifact.open_manifest(corpus.path, verify_hashes=False).settings.get("duplicate_sentence_share")
    facts |= {} if repeated is None else {"sentences that repeat an earlier one": f"{repeated:.1%}"}
    title = f"Pretraining of {run.out.name}"
    report_run(run.logs, result, title=title, config=config, total_steps=steps, facts=facts)


def _model_config(
    corpus: Corpus, config: PretrainConfig, settings: dict[str, Any], start: Checkpoint | None
) -> ModelConfig:
    if start is not None:
        if fixed := sorted(set(settings) - _DROPOUTS):
            raise ConfigError(f"the shape is that of --model {start.path}: leave out [model] ({', '.join(fixed)}).")
        if start.tokenizer.backend.get_vocab() != corpus.tokenizer.backend.get_vocab():
            raise ConfigError(
                f"{corpus.path} was built with another vocabulary than {start.path} has. "
                f"Build it with --tokenizer {start.path}."
            )
        shape = ModelConfig.parse(start.config.model_dump() | settings, "[model]")
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
