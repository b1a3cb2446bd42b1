"""Linears of torch in INT8, or in FP8 (E4M3; Micikevicius et al. 2022, "FP8 Formats for Deep Learning").

Inputs have a scale for each token, found as they come, and weights one for each output. Shapes: T tokens, K inputs,
N outputs.
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional

Format = Literal["int8", "fp8"]

LARGEST: dict[Format, float] = {"int8": 127.0, "fp8": 448.0}
_TYPES: dict[Format, torch.dtype] = {"int8": torch.int8, "fp8": torch.float8_e4m3fn}
_SMALLEST_SCALE = 1e-12
_LEAST_ROWS = 17  # of what the kernel for integers takes on a GPU


def quantize_rows(values: Tensor, kind: Format) -> tuple[Tensor, Tensor]:
    """The numbers [..., K] of a format and fp32 scales [..., 1]: each row reaches to the format's largest."""
    values = values.float()
    scales = (values.abs().amax(-1, keepdim=True) / LARGEST[kind]).clamp(min=_SMALLEST_SCALE)
    steps = values / scales
    return (steps.round() if kind == "int8" else steps).to(_TYPES[kind]), scales


class EightBitLinear(nn.Module):
    """A Linear whose product is of numbers in eight bits, summed in 32. On a CPU FP8 is multiplied in fp32."""

    weight: Tensor
    scale: Tensor

    def __init__(self, linear: nn.Linear, kind: Format) -> None:
        super().__init__()
        weight_NK, scale_N1 = quantize_rows(linear.weight.detach(), kind)
        self.register_buffer("weight", weight_NK)
        self.register_buffer("scale", scale_N1.T.contiguous())
        self.bias = linear.bias
        self.kind = kind

    @property
    def format(self) -> str:
        """In what it multiplies."""
        return self.kind if self.kind == "int8" or self.weight.is_cuda else "fp32"

    def forward(self, inputs: Tensor) -> Tensor:
        """[..., N] in bf16, for inputs [..., K]."""
        values_TK, scale_T1 = quantize_rows(inputs.flatten(0, -2), self.kind)
        multiply = self._integers if self.kind == "int8" else self._floats
        return multiply(values_TK, scale_T1).view(*inputs.shape[:-1], -1)

    def _integers(self, values_TK: Tensor, scale_T1: Tensor) -> Tensor:
        missing = max(0, _LEAST_ROWS - len(values_TK))
        summed = torch._int_mm(functional.pad(values_TK, (0, 0, 0, missing)), self.weight.T)[: len(values_TK)]
        return (summed * scale_T1 * self.scale + self.bias).to(torch.bfloat16)

    def _floats(self, values_TK: Tensor, scale_T1: Tensor) -> Tensor:
        if self.weight.is_cuda:
            return torch._scaled_mm(
                values_TK, self.weight.T, scale_T1, self.scale, self.bias, out_dtype=torch.bfloat16, use_fast_accum=True
            )
        exact = functional.linear(values_TK.float(), self.weight.float()) * scale_T1 * self.scale
        return (exact + self.bias).to(torch.bfloat16)


def to_eight_bits(module: nn.Module, kind: Format) -> None:
    """Put an `EightBitLinear` in the place of every Linear inside."""
    for name, child in module.named_children():
        if isinstance(child, nn.Linear):
            setattr(module, name, EightBitLinear(child, kind))
        else:
            to_eight_bits(child, kind)
