"""The layers' backward pass written by hand is autograd's."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from bertfast.config import ModelConfig
from bertfast.model import encoder
from bertfast.model.encoder import BertModel, checkpoint_gradients


def learnt(
    config: ModelConfig,
    by_hand: bool,
    precision: torch.dtype,
    monkeypatch: pytest.MonkeyPatch,
    wanted: str,
    lengths: tuple[int, ...] = (24,),
    checkpointed: bool = False,
) -> dict[str, Tensor]:
    """Hidden states that are wanted, and gradients, of sequences whose dropout draws the same numbers either way."""
    monkeypatch.setattr(encoder, "leaves_padding_out", lambda *_: by_hand)
    torch.manual_seed(0)
    model = BertModel(config).train()
    checkpoint_gradients(model, checkpointed)
    mask = (torch.arange(max(lengths)) < torch.tensor(lengths)[:, None]).long()
    ids = torch.randint(5, config.vocab_size, mask.shape)
    asked = (mask == 1) & (torch.rand(mask.shape) < 0.5) if wanted == "asked" else None
    weights = torch.randn(*mask.shape, config.hidden_size) * (mask if asked is None else asked)[..., None]
    with torch.autocast("cpu", torch.bfloat16, enabled=precision is torch.bfloat16):
        hidden = model(ids, mask, torch.zeros_like(ids), first_only=wanted == "first", asked_BS=asked)
    weights = weights[:, : hidden.shape[1]]
    (hidden.float() * weights).sum().backward()
    found = {name: parameter.grad for name, parameter in model.named_parameters() if parameter.grad is not None}
    return {"hidden": hidden.detach() * (weights != 0), **found}


def without_draws_for_each_row(config: ModelConfig) -> ModelConfig:
    """Dropout of probabilities alone: that of hidden states draws numbers for padding and for what is not asked."""
    return config.model_copy(update={"hidden_dropout_prob": 0.0})


def different(ours: dict[str, Tensor], theirs: dict[str, Tensor]) -> list[str]:
    """The names of what only one of them has, or of what is not alike."""
    alike = {name for name in ours.keys() & theirs.keys() if torch.allclose(ours[name], theirs[name], 1e-4, 1e-5)}
    return sorted((ours.keys() | theirs.keys()) - alike)


@pytest.mark.parametrize("wanted", ["all", "first"])
@pytest.mark.parametrize("activation", ["gelu", "gelu_new", "gelu_pytorch_tanh", "relu"])
def test_every_gradient_is_autograds(
    tiny_config: ModelConfig, monkeypatch: pytest.MonkeyPatch, activation: str, wanted: str
) -> None:
    config = tiny_config.model_copy(update={"hidden_act": activation})
    autograds, ours = (learnt(config, how, torch.float32, monkeypatch, wanted) for how in (False, True))
    assert different(ours, autograds) == []
    assert len(ours) > 16 * config.num_hidden_layers


@pytest.mark.parametrize("checkpointed", [False, True])
@pytest.mark.parametrize("wanted", ["all", "first", "asked"])
def test_of_ragged_rows_too(
    tiny_config: ModelConfig, monkeypatch: pytest.MonkeyPatch, wanted: str, checkpointed: bool
) -> None:
    """25 tokens, so that there are rows which are nobody's."""
    config, lengths = without_draws_for_each_row(tiny_config), (11, 1, 7, 6)
    modules = learnt(config, False, torch.float32, monkeypatch, wanted, lengths)
    ours = learnt(config, True, torch.float32, monkeypatch, wanted, lengths, checkpointed)
    assert different(ours, modules) == []
    assert len(ours) > 16 * config.num_hidden_layers


@pytest.mark.parametrize("wanted", ["all", "first", "asked"])
@pytest.mark.parametrize("lengths", [(8,), (24,), (64,), (11, 1, 7, 6)])
def test_in_bf16_gradients_stay_as_near_as_autocasts(
    tiny_config: ModelConfig, monkeypatch: pytest.MonkeyPatch, lengths: tuple[int, ...], wanted: str
) -> None:
    """The softmax is in bf16 or in fp32, by the number of keys."""
    config = without_draws_for_each_row(tiny_config) if len(lengths) > 1 or wanted == "asked" else tiny_config
    exact = learnt(config, False, torch.float32, monkeypatch, wanted, lengths)
    autocasts, ours = (learnt(config, how, torch.bfloat16, monkeypatch, wanted, lengths) for how in (False, True))

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
