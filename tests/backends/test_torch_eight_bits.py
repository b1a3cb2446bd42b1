"""INT8 and FP8 Linears: the numbers of the formats, and what a product of them is."""

from __future__ import annotations

from copy import deepcopy

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from bertfast.backends.torch_eight_bits import LARGEST, EightBitLinear, Format, quantize_rows, to_eight_bits

FORMATS: list[Format] = ["int8", "fp8"]
ROWS = st.lists(st.floats(-1e4, 1e4, width=32), min_size=1, max_size=40)


@given(ROWS)
def test_a_row_keeps_its_numbers_to_three_bits_of_mantissa(row: list[float]) -> None:
    values = torch.tensor([row])
    rounded, scales = quantize_rows(values, "fp8")
    assert rounded.dtype == torch.float8_e4m3fn
    back = rounded.float() * scales
    largest = values.abs().max()
    assert back.isfinite().all()
    # half a step: 2^-4 of a number, and below the smallest normal number (2^-6) 2^-10 of the scale
    assert ((back - values).abs() <= values.abs() / 16 + largest / LARGEST["fp8"] / 1024 + 1e-12).all()


@given(ROWS)
def test_a_row_keeps_its_numbers_to_half_a_step_of_127(row: list[float]) -> None:
    values = torch.tensor([row])
    rounded, scales = quantize_rows(values, "int8")
    assert rounded.dtype == torch.int8
    assert ((rounded.float() * scales - values).abs() <= values.abs().max() / 127 * 0.5001 + 1e-12).all()


@pytest.mark.parametrize("kind", FORMATS)
def test_each_row_reaches_to_the_end_of_the_format(kind: Format) -> None:
    rounded, scales = quantize_rows(torch.tensor([[1e-3, -2e-3], [500.0, 4000.0], [0.0, 0.0]]), kind)
    assert rounded.float().abs().amax(1).tolist() == [LARGEST[kind], LARGEST[kind], 0.0]
    assert scales.shape == (3, 1)


def linear_and_source(
    kind: Format, device: str = "cpu", tokens: int = 5
) -> tuple[EightBitLinear, nn.Linear, torch.Tensor]:
    torch.manual_seed(0)
    linear = nn.Linear(64, 48).bfloat16()
    inputs = torch.randn(2, tokens, 64) * torch.logspace(-2, 2, tokens)[:, None]  # tokens of very unequal sizes
    return EightBitLinear(deepcopy(linear).to(device), kind), linear.float(), inputs.bfloat16()


@pytest.mark.parametrize("tokens", [1, 5, 8, 9, 40])
@pytest.mark.parametrize(("kind", "error"), [("int8", 3e-2), ("fp8", 6e-2)])
def test_the_product_is_near_that_of_fp32_for_small_tokens_too(kind: Format, error: float, tokens: int) -> None:
    eight, linear, inputs = linear_and_source(kind, tokens=tokens)
    product, expected = eight(inputs).float(), linear(inputs.float())
    assert product.shape == expected.shape
    found = (product - expected).norm(dim=-1) / (expected - linear.bias).norm(dim=-1)
    assert 1e-3 < found.max() < error


@pytest.mark.parametrize("kind", FORMATS)
def test_only_linears_give_way(kind: Format) -> None:
    module = nn.Sequential(nn.LayerNorm(4), nn.Sequential(nn.Linear(4, 4), nn.GELU()))
    to_eight_bits(module, kind)
    found = [type(part).__name__ for part in module.modules()][1:]
    assert found == ["LayerNorm", "Sequential", "EightBitLinear", "GELU"]


@pytest.mark.gpu
@pytest.mark.parametrize("kind", FORMATS)
@pytest.mark.parametrize("tokens", [1, 40])
@pytest.mark.skipif(not torch.cuda.is_available(), reason="torch sees no CUDA device")
def test_the_product_of_the_gpu_is_that_of_its_twin(kind: Format, tokens: int) -> None:
    twin, _, inputs = linear_and_source(kind, tokens=tokens)
    eight, *_ = linear_and_source(kind, "cuda", tokens)
    torch.testing.assert_close(eight(inputs.cuda()).cpu(), twin(inputs), rtol=1e-2, atol=1e-2)
