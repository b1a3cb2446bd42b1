"""Weights to eight bits: to the nearest step, or so that the errors of one input's weights undo those of the others.

Shapes: K inputs, N outputs, T tokens.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from bertfast.quantize.product import Format

_DAMPING = 0.01
_BLOCK = 128


@dataclass(frozen=True)
class Grid:
    """The numbers that a format has.

    Attributes:
        largest: the largest that weights use.
        weights: a tensor to the nearest of the numbers that weights use, in the tensor's own dtype.
        inputs: the same with those that inputs use.
    """

    largest: float
    weights: Callable[[Tensor], Tensor]
    inputs: Callable[[Tensor], Tensor]


def _to_e4m3(values: Tensor) -> Tensor:
    return values.clamp(-448, 448).to(torch.float8_e4m3fn).to(values.dtype)


GRIDS: dict[Format, Grid] = {
    "int8": Grid(127, lambda values: values.round().clamp(-127, 127), lambda values: values.round().clamp(-128, 127)),
    "fp8": Grid(448, _to_e4m3, _to_e4m3),
}


def scales(weight_NK: Tensor, grid: Grid) -> Tensor:
    """[N]: what a weight of 1 is worth for each output; 1 where all weights are 0."""
    largest = weight_NK.abs().amax(dim=1)
    return torch.where(largest > 0, largest / grid.largest, torch.ones_like(largest))


def to_steps(weight_NK: Tensor, scale_N: Tensor, grid: Grid) -> Tensor:
    """The nearest numbers of the grid, in float32."""
    return grid.weights(weight_NK / scale_N[:, None])


def covariance(inputs_TK: Tensor) -> Tensor:
    """[K, K] of the inputs, float64, with a little on its diagonal: directions that the text lacks stay as they are."""
    found = torch.mm(inputs_TK.double().T, inputs_TK.double())
    return found + _DAMPING * found.diagonal().mean().clamp(min=1e-12) * torch.eye(len(found), dtype=found.dtype)


def gptq(weight_NK: Tensor, scale_N: Tensor, covariance_KK: Tensor, grid: Grid) -> Tensor:
    """Numbers of the grid for which the outputs change least: weights are rounded one input after the other, and the
    error of each is taken out with the weights that are still to come (Frantar et al. 2023, algorithm 1).
    """
    weight, scale = weight_NK.double().clone(), scale_N.double()
    steps = torch.zeros_like(weight)
    order = covariance_KK.diagonal().argsort(descending=True)
    weight = weight[:, order]
    inverse = torch.cholesky_inverse(torch.linalg.cholesky(covariance_KK[order][:, order]))
    upper = torch.linalg.cholesky(inverse, upper=True)
    for start in range(0, weight.shape[1], _BLOCK):
        end = min(start + _BLOCK, weight.shape[1])
        errors = torch.zeros(len(weight), end - start, dtype=weight.dtype)
        for k in range(start, end):
            steps[:, k] = grid.weights(weight[:, k] / scale)
            errors[:, k - start] = (weight[:, k] - steps[:, k] * scale) / upper[k, k]
            weight[:, k:end] -= errors[:, k - start, None] * upper[k, k:end]
        weight[:, end:] -= errors @ upper[start:end, end:]
    return torch.empty_like(steps).index_copy_(1, order, steps).float()
