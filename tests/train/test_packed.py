"""Packed sequences are learnt from as if each stood alone."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

from bertfast.config import ModelConfig, PretrainConfig
from bertfast.model import encoder
from bertfast.model.encoder import BertModel
from bertfast.model.heads import pad_vocabulary
from bertfast.tasks import get_task
from bertfast.text.batch import TrainingBatch
from bertfast.text.corpus import Corpus
from bertfast.text.instances import InstanceSource
from bertfast.train import pretrain
from bertfast.train.distributed import World
from bertfast.train.loop import to_inputs
from bertfast.train.pretrain import PretrainSource, packed_layout, sample_sizes
from tests.conftest import TINY_PRETRAIN
from tests.train.test_loop import losses_and_gradients

CPU = torch.device("cpu")
CONFIG = TINY_PRETRAIN.model_copy(update={"short_seq_prob": 0.6, "global_batch_size": 24, "device": "cpu"})


def batches(corpus: Corpus, shape: ModelConfig, *, one_row: bool = False, **changes: object) -> list[TrainingBatch]:
    config: PretrainConfig = CONFIG.model_copy(update=changes)
    instances = InstanceSource(corpus, np.arange(corpus.num_documents), config)
    layout = packed_layout(sample_sizes(instances), config, shape, World())
    assert layout is None or not one_row or layout.rows == 1
    return list(PretrainSource(instances, config, World(), layout).micro_batches(0))


def assert_alike(ours: dict[str, Tensor], theirs: dict[str, Tensor]) -> None:
    """Gradients to 1e-5 of their size; one that is zero by nature (a key's bias) to that of the others'."""
    floor = 1e-4 * max(gradient.norm().item() for gradient in theirs.values())
    for name, gradient in theirs.items():
        assert (ours[name] - gradient).norm().item() <= 1e-5 * max(gradient.norm().item(), floor), name


@pytest.mark.parametrize("changes", [{}, {"row_tokens": 64}, {"row_tokens": 50, "micro_batch_tokens": 150}])
def test_packed_and_unpacked_give_the_same_losses_and_gradients(
    corpus: Corpus, tiny_config: ModelConfig, changes: dict[str, int]
) -> None:
    losses, gradients = losses_and_gradients(batches(corpus, tiny_config, packing=False), tiny_config)
    packed = batches(corpus, tiny_config, **changes)
    assert len(packed) > 1 or "micro_batch_tokens" not in changes
    packed_losses, packed_gradients = losses_and_gradients(packed, tiny_config)
    assert packed_losses == pytest.approx(losses, rel=1e-5)
    assert_alike(packed_gradients, gradients)


def hidden_states(model: BertModel, batch: TrainingBatch) -> Tensor:
    inputs = to_inputs(batch.batch, CPU)
    del inputs["sequence_starts"]
    with torch.no_grad():
        return model(**inputs)


def test_a_sequence_does_not_see_its_neighbours(corpus: Corpus, tiny_config: ModelConfig) -> None:
    """Other tokens in one sequence change nothing, not even the last bit, in another."""
    torch.manual_seed(0)
    model = BertModel(tiny_config).eval()
    (batch,) = batches(corpus, tiny_config)
    before = hidden_states(model, batch).flatten(0, 1)
    packing = batch.batch.packing
    assert packing is not None
    start, end = packing.cu_seqlens[1:3]
    batch.batch.input_ids.ravel()[start:end] = 7
    after = hidden_states(model, batch).flatten(0, 1)
    changed = (before != after).any(1)
    assert changed[start:end].all()
    assert not changed[:start].any()
    assert not changed[end:].any()


def attention_by_boundaries(
    query: Tensor, key: Tensor, value: Tensor, cu_q: Tensor, cu_k: Tensor, max_q: int, max_k: int
) -> Tensor:
    """What the CUDA kernel computes, sequence by sequence; beyond the boundaries it leaves whatever was there."""
    assert cu_q.dtype == cu_k.dtype == torch.int32
    context = torch.full_like(query, float("nan"))
    for asking, asked in zip(*map(itertools.pairwise, (cu_q.tolist(), cu_k.tolist())), strict=True):
        assert asking[1] - asking[0] <= max_q
        assert asked[1] - asked[0] <= max_k
        if asked[1] > asked[0]:
            of_query, of_key = slice(*asking), slice(*asked)
            one = (part.transpose(0, 1)[None] for part in (query[of_query], key[of_key], value[of_key]))
            context[of_query] = scaled_dot_product_attention(*one)[0].transpose(0, 1)
    return context


@pytest.mark.parametrize("one_row", [True, False])
def test_attention_by_boundaries_is_attention_by_mask(
    corpus: Corpus, tiny_config: ModelConfig, monkeypatch: pytest.MonkeyPatch, one_row: bool
) -> None:
    """The way that CUDA takes, with its kernel replaced: what is tested is what the kernel is given."""
    losses, gradients = losses_and_gradients(batches(corpus, tiny_config, packing=False), tiny_config)
    if one_row:
        monkeypatch.setattr(pretrain, "takes_boundaries", lambda *_: True)
    packed = batches(corpus, tiny_config, one_row=one_row)
    monkeypatch.setattr(encoder, "varlen_attn", attention_by_boundaries)
    monkeypatch.setattr(encoder, "takes_boundaries", lambda *_: True)
    packed_losses, packed_gradients = losses_and_gradients(packed, tiny_config)
    assert packed_losses == pytest.approx(losses, rel=1e-5)
    assert_alike(packed_gradients, gradients)


def test_boundaries_serve_on_cuda_in_half_precision_without_dropout() -> None:
    assert encoder.takes_boundaries("cuda", torch.bfloat16, 0.0)
    assert not encoder.takes_boundaries("cuda", torch.bfloat16, 0.1)
    assert not encoder.takes_boundaries("cuda", torch.float32, 0.0)
    assert not encoder.takes_boundaries("cpu", torch.bfloat16, 0.0)


def test_a_padded_vocabulary_gives_the_same_logits(tiny_config: ModelConfig) -> None:
    weight, bias, hidden = torch.randn(70, 8), torch.randn(70), torch.randn(5, 8)
    padded = torch.nn.functional.linear(hidden, *pad_vocabulary(weight, bias))
    assert padded.shape == (5, 128)
    assert torch.allclose(padded[:, :70], torch.nn.functional.linear(hidden, weight, bias), rtol=1e-5, atol=1e-6)


def test_the_order_of_the_data_does_not_depend_on_the_ranks(corpus: Corpus, tiny_config: ModelConfig) -> None:
    task = get_task("pretrain")
    instances = InstanceSource(corpus, np.arange(corpus.num_documents), CONFIG)
    sample = sample_sizes(instances)

    def learnt(size: int) -> list[tuple[int, ...]]:
        parts = []
        for rank in range(size):
            world = World(rank, size)
            source = PretrainSource(instances, CONFIG, world, packed_layout(sample, CONFIG, tiny_config, world))
            for item in source.micro_batches(3):
                assert task.counts(item.targets)["nsp"] > 0
                bounds = item.batch.packing.cu_seqlens  # type: ignore[union-attr]
                ids = item.batch.input_ids.ravel()
                parts += [tuple(ids[a:b].tolist()) for a, b in itertools.pairwise(bounds) if ids[a:b].any()]
        return sorted(parts)

    assert learnt(1) == learnt(2) == learnt(3)
    assert len(learnt(1)) == CONFIG.global_batch_size
