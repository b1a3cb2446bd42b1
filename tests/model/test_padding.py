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
from bertfast.model.padding import Places, round_up

STILL = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}


def ragged(lengths: list[int]) -> Tensor:
    """int64 [B, S], the mask of rows of these lengths."""
    return (torch.arange(max(lengths)) < torch.tensor(lengths)[:, None]).long()


@given(st.integers(1, 100_000))
def test_rows_are_rounded_up_a_little_to_few_sizes(tokens: int) -> None:
    rows = round_up(tokens)
    assert tokens <= rows <= max(tokens + 7, tokens * 17 / 16)
    assert round_up(rows) == rows


def test_between_two_powers_of_two_there_are_16_sizes() -> None:
    assert {round_up(tokens) for tokens in range(257, 513)} == set(range(272, 513, 16))


@given(st.lists(st.integers(1, 6), min_size=1, max_size=5), st.integers(1, 3), st.sampled_from([1, 3]))
def test_heads_go_to_their_places_and_back(lengths: list[int], heads: int, parts: int) -> None:
    mask, real = ragged(lengths), sum(lengths)
    places = Places(mask, heads)
    rows = torch.zeros(places.rows + 1, parts * heads * 2)
    rows[:-1] = torch.arange(1.0, rows[:-1].numel() + 1).view(places.rows, -1)
    found = places.to_heads(rows, parts)
    by_hand = torch.zeros(parts, len(mask), heads, mask.shape[1], 2)
    for row, (sequence, place) in enumerate(mask.nonzero().tolist()):
        by_hand[:, sequence, :, place] = rows[row].view(parts, heads, 2)
    assert torch.equal(found, by_hand.flatten(1, 2))
    back = places.to_rows(torch.cat([found.flatten(0, 2), torch.zeros(1, 2)]), parts)
    assert torch.equal(back[:real], rows[:real])
    assert not back[real:].any()


@given(st.lists(st.integers(1, 6), min_size=1, max_size=5))
def test_tokens_go_to_their_places_and_gradients_back(lengths: list[int]) -> None:
    mask = ragged(lengths)
    places = Places(mask, 2)
    ids = torch.randint(5, 99, mask.shape)
    assert torch.equal(ids.flatten()[places.taken_T][: sum(lengths)], ids[mask == 1])
    rows = torch.randn(places.rows, 4, dtype=torch.float64, requires_grad=True)
    padded = places.with_padding(rows)
    assert torch.equal(padded[mask == 1], rows[: sum(lengths)])
    assert not padded[mask == 0].any()
    back = places.from_padded(padded.detach())
    assert torch.equal(back[: sum(lengths)], rows[: sum(lengths)])
    assert not back[sum(lengths) :].any()
    assert torch.equal(rows[places.first_B], padded[:, 0])
    weights = torch.randn(*mask.shape, 4, dtype=torch.float64)
    (padded * weights).sum().backward()
    assert rows.grad is not None
    assert torch.equal(rows.grad[: sum(lengths)], weights[mask == 1])
    assert not rows.grad[sum(lengths) :].any()


@pytest.mark.parametrize("checkpointed", [False, True])
@pytest.mark.parametrize("wanted", ["everything", "first tokens", "some", "every token", "one", "none"])
def test_without_padding_a_model_has_the_gradients_that_it_has_with_it(
    tiny_config: ModelConfig, monkeypatch: pytest.MonkeyPatch, wanted: str, checkpointed: bool
) -> None:
    """And 0 for the hidden states that are not wanted."""
    torch.manual_seed(0)
    model = BertModel(tiny_config.model_copy(update=STILL)).train()
    checkpoint_gradients(model, checkpointed)
    mask = ragged([11, 1, 7])
    ids, types = torch.randint(5, tiny_config.vocab_size, mask.shape), torch.randint(0, 2, mask.shape)
    real = mask == 1
    shares = {"some": 0.5, "every token": 1.0, "one": 0.0, "none": 0.0}
    asked = real & (torch.rand(mask.shape) < shares[wanted]) if wanted in shares else None
    if asked is not None and wanted == "one":
        asked[2, 3] = True
    first_only = wanted == "first tokens"
    counted = (real if asked is None else asked)[:, : 1 if first_only else None]
    weights = torch.randn(*counted.shape, tiny_config.hidden_size) * counted[..., None]
    found = []
    for left_out in (False, True):
        monkeypatch.setattr(encoder, "leaves_padding_out", lambda *_, left_out=left_out: left_out)
        model.zero_grad()
        hidden = model(ids, mask, types, first_only=first_only, asked_BS=asked)
        (hidden * weights).sum().backward()
        gradients = {n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None}
        found.append((hidden.detach(), gradients))
    (beside, theirs), (alone, ours) = found
    assert torch.allclose(alone[counted], beside[counted], atol=1e-5)
    assert not alone[~counted].any()
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


def test_layers_see_real_tokens_and_few_rows_more_in_training(tiny_config: ModelConfig) -> None:
    model, mask = BertModel(tiny_config), ragged([19, 2, 4])
    ids = torch.randint(5, tiny_config.vocab_size, mask.shape)
    seen: list[int] = []
    model.encoder.layer[0].register_forward_pre_hook(lambda _, given: seen.append(given[0].shape[:-1].numel()))
    model.train()(ids, mask, torch.zeros_like(ids))
    model.eval()(ids, mask, torch.zeros_like(ids))
    assert seen == [round_up(25), 57]
