"""Training computes nothing for padding and learns what it would have learnt beside it."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from bertfast.config import ModelConfig
from bertfast.model import encoder
from bertfast.model.encoder import BertModel, checkpoint_gradients
from bertfast.model.padding import Places

STILL = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}


def ragged(lengths: list[int]) -> Tensor:
    """int64 [B, S], the mask of rows of these lengths."""
    return (torch.arange(max(lengths)) < torch.tensor(lengths)[:, None]).long()


@given(st.lists(st.integers(1, 6), min_size=1, max_size=5), st.integers(1, 3))
def test_tokens_and_heads_go_to_their_places_and_back(lengths: list[int], heads: int) -> None:
    mask = ragged(lengths)
    places = Places(mask, heads)
    tokens = torch.arange(1.0, sum(lengths) * heads * 2 + 1).view(1, sum(lengths), heads * 2)
    padded = places.with_padding(tokens)
    assert torch.equal(padded[mask == 1], tokens[0])
    assert not padded[mask == 0].any()
    (in_heads,) = places.heads_with_padding(tokens)
    assert torch.equal(in_heads, padded.view(*mask.shape, heads, 2).transpose(1, 2))
    assert torch.equal(places.heads_of_tokens(in_heads), tokens)
    assert torch.equal(tokens[0, places.first_B], padded[:, 0])


def test_gradients_go_the_same_ways() -> None:
    places = Places(ragged([3, 1, 2]), 2)
    tokens = torch.randn(1, 6, 4, dtype=torch.float64, requires_grad=True)
    heads = torch.randn(3, 2, 3, 2, dtype=torch.float64, requires_grad=True)
    for function, values in (
        (places.with_padding, tokens),
        (places.heads_with_padding, tokens),
        (places.heads_of_tokens, heads),
    ):
        assert torch.autograd.gradcheck(function, values)  # type: ignore[no-untyped-call]


@pytest.mark.parametrize("checkpointed", [False, True])
@pytest.mark.parametrize("first_only", [False, True])
def test_without_padding_a_model_has_the_gradients_that_it_has_with_it(
    tiny_config: ModelConfig, monkeypatch: pytest.MonkeyPatch, first_only: bool, checkpointed: bool
) -> None:
    torch.manual_seed(0)
    model = BertModel(tiny_config.model_copy(update=STILL)).train()
    checkpoint_gradients(model, checkpointed)
    mask = ragged([11, 1, 7])
    ids, types = torch.randint(5, tiny_config.vocab_size, mask.shape), torch.randint(0, 2, mask.shape)
    weights = torch.randn(*mask.shape, tiny_config.hidden_size) * mask[..., None]
    asked = slice(0, 1) if first_only else slice(None)
    found = []
    for left_out in (False, True):
        monkeypatch.setattr(encoder, "leaves_padding_out", lambda mask, left_out=left_out: left_out)
        model.zero_grad()
        hidden = model(ids, mask, types, first_only=first_only)
        (hidden * weights[:, asked]).sum().backward()
        real = hidden[mask[:, asked] == 1].detach()
        found.append((real, {n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None}))
    (beside, theirs), (alone, ours) = found
    assert torch.allclose(alone, beside, atol=1e-5)
    assert ours.keys() == theirs.keys()
    for name, gradient in theirs.items():
        assert torch.allclose(ours[name], gradient, rtol=1e-4, atol=1e-5), name


@pytest.mark.parametrize("empty", [1, 2])
def test_a_row_of_nothing_but_padding_is_computed_beside_the_others(tiny_config: ModelConfig, empty: int) -> None:
    model, mask = BertModel(tiny_config.model_copy(update=STILL)), ragged([3, 4, 2])
    mask[empty] = 0
    ids = torch.randint(5, tiny_config.vocab_size, mask.shape)
    inputs, full = (ids, mask, torch.zeros_like(ids)), mask.any(1)
    learning, serving = (model.train(training)(*inputs, first_only=True) for training in (True, False))
    assert learning.shape == (3, 1, tiny_config.hidden_size)
    assert learning.isfinite().all()
    assert torch.allclose(learning[full], serving[full], atol=1e-5)


def test_linear_layers_see_real_tokens_alone_in_training(tiny_config: ModelConfig) -> None:
    model, mask = BertModel(tiny_config), ragged([9, 2, 4])
    ids = torch.randint(5, tiny_config.vocab_size, mask.shape)
    seen: list[int] = []
    model.encoder.layer[0].intermediate.dense.register_forward_pre_hook(
        lambda _, given: seen.append(given[0].shape[:-1].numel())
    )
    model.train()(ids, mask, torch.zeros_like(ids))
    model.eval()(ids, mask, torch.zeros_like(ids))
    assert seen == [15, 27]
