"""Dropout on a CPU: its own random numbers, the usual arithmetic."""

from __future__ import annotations

import pytest
import torch
from torch.nn import functional

from bertfast.model.dropout import Dropout, attention_with_dropout, keep_scaled


@pytest.mark.parametrize("dropout", [0.1, 0.5])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_share_that_is_dropped_and_the_scale_of_the_rest(dropout: float, dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    values = Dropout(dropout).train()(torch.ones(1000, 999, dtype=dtype))
    assert (values == 0).float().mean().item() == pytest.approx(dropout, abs=2e-3)
    assert values[values != 0].unique().item() == pytest.approx(1 / (1 - dropout), rel=1e-2)


@pytest.mark.parametrize("dropout", [1e-9, 1 - 1e-9])
def test_a_share_at_either_end(dropout: float) -> None:
    kept = (keep_scaled(torch.empty(1000, 300), dropout) > 0).float().mean().item()
    assert kept == pytest.approx(1 - dropout, abs=1e-3)


def test_values_in_64_bits_are_dropped_by_torch() -> None:
    values = torch.ones(100, 100, dtype=torch.float64)
    assert set(Dropout(0.5).train()(values).unique().tolist()) == {0.0, 2.0}


def test_every_place_is_drawn_anew_and_alone() -> None:
    torch.manual_seed(0)
    dropped = torch.stack([keep_scaled(torch.empty(4096), 0.25) == 0 for _ in range(200)]).double()
    assert dropped.mean(0).sub(0.25).abs().max() < 0.15  # five deviations of one place
    together = (dropped[:, :-1] * dropped[:, 1:]).mean() - dropped.mean() ** 2
    assert abs(together) < 2e-3


def test_the_gradient_passes_where_the_value_did() -> None:
    values = torch.randn(64, 65, requires_grad=True)
    dropped = Dropout(0.5).train()(values)
    dropped.sum().backward()
    assert values.grad is not None
    assert torch.equal(values.grad, (dropped != 0) * 2.0)


def test_a_transposed_gradient_is_dropped_in_its_places() -> None:
    values = torch.randn(5, 8, requires_grad=True)
    dropped = Dropout(0.5).train()(values)
    weights = torch.randn(8, 5)
    (dropped.T * weights).sum().backward()
    assert torch.equal(values.grad, torch.where(dropped != 0, 2 * weights.T, 0))


def test_the_seed_decides_and_evaluation_drops_nothing() -> None:
    module, values = Dropout(0.1).train(), torch.randn(33, 7)
    results = []
    for seed in (1, 1, 2):
        torch.manual_seed(seed)
        results.append(module(values))
    assert torch.equal(results[0], results[1])
    assert not torch.equal(results[0], results[2])
    assert torch.equal(module.eval()(values), values)


def test_attention_is_torchs_own_but_for_what_is_dropped() -> None:
    query, key, value = torch.randn(3, 2, 4, 17, 8).unbind()
    scores = torch.zeros(2, 1, 1, 17)
    scores[1, ..., 11:] = -1e4
    expected = functional.scaled_dot_product_attention(query, key, value, scores)
    assert torch.allclose(attention_with_dropout(query, key, value, scores, 1e-9), expected, atol=1e-6)
    torch.manual_seed(0)
    mean = torch.stack([attention_with_dropout(query, key, value, scores, 0.2) for _ in range(4000)]).mean(0)
    assert torch.allclose(mean, expected, atol=0.1)


def test_attention_drops_a_share_of_its_probabilities_and_scales_the_rest() -> None:
    """With the unit matrix for values the output is the probabilities themselves."""
    torch.manual_seed(0)
    query, key = torch.randn(2, 8, 4, 64, 64).unbind()
    scores, value = torch.zeros(8, 1, 1, 64), torch.eye(64).expand(8, 4, 64, 64)
    whole = functional.scaled_dot_product_attention(query, key, value, scores)
    kept = attention_with_dropout(query, key, value, scores, 0.2)
    assert (kept == 0).float().mean().item() == pytest.approx(0.2, abs=5e-3)
    assert torch.allclose(kept[kept != 0], whole[kept != 0] / 0.8, rtol=1e-3)
