"""FP8 Linears: the numbers of the format, and what a product of them is."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from bertfast.backends.torch_fp8 import LARGEST, Fp8Linear, quantize_rows, to_fp8


@given(st.lists(st.floats(-1e4, 1e4, width=32), min_size=1, max_size=40))
def test_a_row_keeps_its_numbers_to_three_bits_of_mantissa(row: list[float]) -> None:
    values = torch.tensor([row])
    rounded, scales = quantize_rows(values)
    assert rounded.dtype == torch.float8_e4m3fn
    back = rounded.float() * scales
    largest = values.abs().max()
    assert back.isfinite().all()
    # half a step: 2^-4 of a number, and below the smallest normal number (2^-6) 2^-10 of the scale
    assert ((back - values).abs() <= values.abs() / 16 + largest / LARGEST / 1024 + 1e-12).all()


def test_each_row_reaches_to_the_end_of_the_format() -> None:
    rounded, scales = quantize_rows(torch.tensor([[1e-3, -2e-3], [500.0, 4000.0], [0.0, 0.0]]))
    assert rounded.float().abs().amax(1).tolist() == [LARGEST, LARGEST, 0.0]
    assert scales.shape == (3, 1)


def fp8_and_source(device: str = "cpu") -> tuple[Fp8Linear, nn.Linear, torch.Tensor]:
    torch.manual_seed(0)
    linear = nn.Linear(64, 48)
    inputs = torch.randn(2, 5, 64) * torch.logspace(-2, 2, 5)[:, None]  # tokens of very unequal sizes
    return Fp8Linear(linear.to(device, torch.bfloat16)), linear.float().cpu(), inputs.bfloat16()


def test_the_product_is_near_that_of_fp32_for_small_tokens_too() -> None:
    fp8, linear, inputs = fp8_and_source()
    product, expected = fp8(inputs).float(), linear(inputs.float())
    assert product.shape == expected.shape
    error = (product - expected).norm(dim=-1) / (expected - linear.bias).norm(dim=-1)
    assert 1e-3 < error.max() < 6e-2


def test_only_linears_give_way() -> None:
    module = nn.Sequential(nn.LayerNorm(4), nn.Sequential(nn.Linear(4, 4), nn.GELU()))
    to_fp8(module)
    assert [type(part).__name__ for part in module.modules()][1:] == ["LayerNorm", "Sequential", "Fp8Linear", "GELU"]


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="torch sees no CUDA device")
def test_the_product_of_the_gpu_is_that_of_its_twin() -> None:
    twin, _, inputs = fp8_and_source()
    fp8, *_ = fp8_and_source("cuda")
    torch.testing.assert_close(fp8(inputs.cuda()).cpu(), twin(inputs), rtol=1e-2, atol=1e-2)
