"""A model with products in INT8 or FP8, in torch's fp32: the numbers of the exported graph, without its speed."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from bertfast.quantize.fit import round_inputs
from bertfast.quantize.product import QuantizedProduct


class SimulatedLinear(nn.Module):
    """One Linear of a quantised product: rounds its inputs, and multiplies by rounded weights."""

    def __init__(self, quantized: QuantizedProduct, name: str) -> None:
        super().__init__()
        place = quantized.places[name]
        steps_KN = torch.from_numpy(quantized.weight_KN[:, place].astype(np.float32))
        self.weight = (steps_KN * torch.from_numpy(quantized.weight_scale_N[place])).T.contiguous()
        self.bias = torch.from_numpy(quantized.bias_N[place])
        self.factor = None if quantized.smoothing_K is None else torch.from_numpy(1 / quantized.smoothing_K)
        self.input_scale = quantized.input_scale
        self.format = quantized.format

    def forward(self, inputs: Tensor) -> Tensor:
        smoothed = inputs if self.factor is None else inputs * self.factor
        return functional.linear(round_inputs(smoothed, self.input_scale, self.format), self.weight, self.bias)


@contextmanager
def simulated(model: nn.Module, quantized: Sequence[QuantizedProduct]) -> Iterator[nn.Module]:
    """The model with these products in INT8, inside the block."""
    there = {name: model.get_submodule(name) for one in quantized for name in one.product.linears}
    try:
        for one in quantized:
            for name in one.product.linears:
                model.set_submodule(name, SimulatedLinear(one, name))
        yield model
    finally:
        for name, linear in there.items():
            model.set_submodule(name, linear)
