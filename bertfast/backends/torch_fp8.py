"""Linears of torch in FP8 (E4M3; Micikevicius et al. 2022, "FP8 Formats for Deep Learning").

Inputs have a scale for each token, found as they come, and weights one for each output. Shapes: T tokens, K inputs,
N outputs.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional

E4M3 = torch.float8_e4m3fn
LARGEST = 448.0
_SMALLEST_SCALE = 1e-12


def quantize_rows(values: Tensor) -> tuple[Tensor, Tensor]:
    """E4M3 [..., K] and fp32 scales [..., 1]: each row reaches to the largest number of the format."""
    values = values.float()
    scales = (values.abs().amax(-1, keepdim=True) / LARGEST).clamp(min=_SMALLEST_SCALE)
    return (values / scales).to(E4M3), scales


class Fp8Linear(nn.Module):
    """A Linear whose product is of FP8 numbers, summed in fp32. On a CPU the same numbers are multiplied in fp32."""

    weight: Tensor
    scale: Tensor

    def __init__(self, linear: nn.Linear) -> None:
        super().__init__()
        weight_NK, scale_N1 = quantize_rows(linear.weight.detach())
        self.register_buffer("weight", weight_NK)
        self.register_buffer("scale", scale_N1.T.contiguous())
        self.bias = linear.bias

    @property
    def format(self) -> str:
        """In what it multiplies."""
        return "fp8" if self.weight.is_cuda else "fp32"

    def forward(self, inputs: Tensor) -> Tensor:
        """[..., N] in bf16, for inputs [..., K]."""
        values_TK, scale_T1 = quantize_rows(inputs.flatten(0, -2))
        if self.weight.is_cuda:
            product = torch._scaled_mm(
                values_TK, self.weight.T, scale_T1, self.scale, self.bias, out_dtype=torch.bfloat16, use_fast_accum=True
            )
        else:
            exact = functional.linear(values_TK.float(), self.weight.float()) * scale_T1 * self.scale
            product = (exact + self.bias).to(torch.bfloat16)
        return product.view(*inputs.shape[:-1], -1)


def to_fp8(module: nn.Module) -> None:
    """Put an `Fp8Linear` in the place of every Linear inside."""
    for name, child in module.named_children():
        if isinstance(child, nn.Linear):
            setattr(module, name, Fp8Linear(child))
        else:
            to_fp8(child)
