"""The layers' backward pass written by hand is autograd's."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from bertfast.config import ModelConfig
from bertfast.model import encoder
from bertfast.model.encoder import BertModel


def learnt(
    model: BertModel,
    by_hand: bool,
    precision: torch.dtype,
    monkeypatch: pytest.MonkeyPatch,
    first_only: bool,
    tokens: int = 24,
) -> dict[str, Tensor]:
    """Hidden states and gradients of one sequence, whose dropout draws the same numbers either way."""
    monkeypatch.setattr(encoder, "leaves_padding_out", lambda *_: by_hand)
    model.zero_grad()
    torch.manual_seed(1)
    ids = torch.randint(5, model.config.vocab_size, (1, tokens))
    weights = torch.randn(1, tokens, model.config.hidden_size)
    with torch.autocast("cpu", torch.bfloat16, enabled=precision is torch.bfloat16):
        hidden = model(ids, torch.ones_like(ids), torch.zeros_like(ids), first_only=first_only)
    (hidden.float() * weights[:, : hidden.shape[1]]).sum().backward()
    return {"hidden": hidden.detach()} | {n: p.grad for n, p in model.named_parameters() if p.grad is not None}


@pytest.mark.parametrize("first_only", [False, True])
@pytest.mark.parametrize("activation", ["gelu", "gelu_new", "gelu_pytorch_tanh", "relu"])
def test_every_gradient_is_autograds(
    tiny_config: ModelConfig, monkeypatch: pytest.MonkeyPatch, activation: str, first_only: bool
) -> None:
    torch.manual_seed(0)
    model = BertModel(tiny_config.model_copy(update={"hidden_act": activation})).train()
    autograds, ours = (learnt(model, how, torch.float32, monkeypatch, first_only) for how in (False, True))
    assert ours.keys() == autograds.keys()
    assert len(ours) > 16 * len(model.encoder.layer)
    for name, expected in autograds.items():
        assert torch.allclose(ours[name], expected, rtol=1e-4, atol=1e-5), name


@pytest.mark.parametrize("first_only", [False, True])
@pytest.mark.parametrize("tokens", [8, 24, 64])
def test_in_bf16_gradients_stay_as_near_as_autocasts(
    tiny_config: ModelConfig, monkeypatch: pytest.MonkeyPatch, tokens: int, first_only: bool
) -> None:
    """The softmax is in bf16 or in fp32, by the number of keys."""
    torch.manual_seed(0)
    model = BertModel(tiny_config).train()
    exact = learnt(model, False, torch.float32, monkeypatch, first_only, tokens)
    autocasts, ours = (learnt(model, how, torch.bfloat16, monkeypatch, first_only, tokens) for how in (False, True))

    def distance(found: dict[str, Tensor]) -> float:
        return sum(float((found[name] - tensor).square().sum()) for name, tensor in exact.items()) ** 0.5

    assert 0 < distance(ours) < 1.2 * distance(autocasts)


def test_frozen_layers_take_no_gradients(tiny_config: ModelConfig) -> None:
    model = BertModel(tiny_config).train()
    for part in (model.embeddings, model.encoder.layer[0]):
        part.requires_grad_(False)
    ids = torch.randint(5, tiny_config.vocab_size, (2, 9))
    model(ids, torch.ones_like(ids), torch.zeros_like(ids)).square().sum().backward()
    assert all(parameter.grad is None for parameter in model.encoder.layer[0].parameters())
    assert all(parameter.grad is not None for parameter in model.encoder.layer[1].parameters())


def test_in_64_bits_the_modules_train_as_they_stand(tiny_config: ModelConfig) -> None:
    model = BertModel(tiny_config).double().train()
    ids = torch.randint(5, tiny_config.vocab_size, (2, 9))
    assert model(ids, torch.ones_like(ids), torch.zeros_like(ids)).dtype == torch.float64
