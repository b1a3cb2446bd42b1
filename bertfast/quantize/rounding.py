"""Weights to INT8: to the nearest step, or so that the errors of one input's weights undo those of the others.

Shapes: K inputs, N outputs, T tokens.
"""

from __future__ import annotations

import torch
from torch import Tensor

from bertfast.quantize.product import INT8_MAX

_DAMPING = 0.01
_BLOCK = 128


def scales(weight_NK: Tensor) -> Tensor:
    """[N]: what a step of each output's weights is worth; 1 where all of them are 0."""
    largest = weight_NK.abs().amax(dim=1)
    return torch.where(largest > 0, largest / INT8_MAX, torch.ones_like(largest))


def to_steps(weight_NK: Tensor, scale_N: Tensor) -> Tensor:
    """The nearest steps, as whole numbers in float32."""
    return (weight_NK / scale_N[:, None]).round().clamp(-INT8_MAX, INT8_MAX)


def covariance(inputs_TK: Tensor) -> Tensor:
    """[K, K] of the inputs, float64, with a little on its diagonal: directions that the text lacks stay as they are."""
    found = torch.mm(inputs_TK.double().T, inputs_TK.double())
    return found + _DAMPING * found.diagonal().mean().clamp(min=1e-12) * torch.eye(len(found), dtype=found.dtype)


def gptq(weight_NK: Tensor, scale_N: Tensor, covariance_KK: Tensor) -> Tensor:
    """Steps for which the outputs change least: weights are rounded one input after the other, and the error of each
    is taken out with the weights that are still to come (Frantar et al. 2023, algorithm 1).
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
            steps[:, k] = (weight[:, k] / scale).round().clamp(-INT8_MAX, INT8_MAX)
            errors[:, k - start] = (weight[:, k] - steps[:, k] * scale) / upper[k, k]
            weight[:, k:end] -= errors[:, k - start, None] * upper[k, k:end]
        weight[:, end:] -= errors @ upper[start:end, end:]
    return torch.empty_like(steps).index_copy_(1, order, steps).float()
