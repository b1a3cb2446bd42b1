"""Gradient checkpointing: less memory, and not a bit of difference."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from bertfast.config import ModelConfig
from bertfast.model.encoder import BertModel


def gradients_and_bytes(config: ModelConfig, precision: torch.dtype, *, again: bool) -> tuple[list[Tensor], int]:
    """The states and gradients of a step with dropout, and the bytes that autograd keeps for the backward pass."""
    torch.manual_seed(0)
    model = BertModel(config)
    model.encoder.gradient_checkpointing = again
    ids = torch.randint(0, config.vocab_size, (4, 16))
    kept: dict[int, int] = {}

    def keep(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    torch.manual_seed(1)
    with (
        torch.autocast("cpu", torch.bfloat16, enabled=precision is torch.bfloat16),
        torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor),
    ):
        hidden = model(ids, torch.ones_like(ids), torch.zeros_like(ids))
    hidden.float().square().sum().backward()
    return [hidden.detach(), *(p.grad for p in model.parameters() if p.grad is not None)], sum(kept.values())


@pytest.mark.parametrize("precision", [torch.float32, torch.bfloat16])
def test_computing_layers_again_changes_no_bit_and_keeps_less(tiny_config: ModelConfig, precision: torch.dtype) -> None:
    config = tiny_config.model_copy(update={"num_hidden_layers": 6, "hidden_dropout_prob": 0.3})
    plain, plain_bytes = gradients_and_bytes(config, precision, again=False)
    checkpointed, bytes_kept = gradients_and_bytes(config, precision, again=True)
    assert len(plain) == len(checkpointed) > 6 * 16
    assert all(torch.equal(one, other) for one, other in zip(plain, checkpointed, strict=True))
    assert bytes_kept < plain_bytes / 4


def test_evaluation_computes_nothing_twice(tiny_config: ModelConfig, monkeypatch: pytest.MonkeyPatch) -> None:
    model = BertModel(tiny_config).eval()
    model.encoder.gradient_checkpointing = True
    monkeypatch.setattr("bertfast.model.encoder.checkpoint", None)
    ids = torch.ones(1, 4, dtype=torch.int64)
    assert model(ids, ids, ids).shape == (1, 4, tiny_config.hidden_size)
