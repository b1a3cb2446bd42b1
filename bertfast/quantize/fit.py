"""One product in INT8, found by its own output error on calibration text.

Shapes: T tokens, K inputs, N outputs.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional

from bertfast.quantize.product import INT8_MAX, Product, QuantizedProduct
from bertfast.quantize.ranges import ranges
from bertfast.quantize.rounding import compensate, covariance, gptq, scales, to_steps

Rounding = Literal["gptq", "nearest"]

_ALPHAS = (0.4, 0.5, 0.6, 0.7, 0.75, 0.8, 0.85, 0.9, 0.95, 1.0)
_SEARCHED_TOKENS = 1024
_WORTH_SMOOTHING = 0.97
_HELD_BACK = 4


@dataclass(frozen=True)
class Samples:
    """What goes into a product and what is to come out.

    Attributes:
        inputs_TK: with the errors of the products before it, where these are in INT8.
        wanted_TN: the outputs of the source model, which never rounded anything.
        importance_T: what the error of a token counts: less, where a LayerNorm divides it by more.
    """

    inputs_TK: Tensor
    wanted_TN: Tensor
    importance_T: Tensor

    def part(self, places: Tensor) -> Samples:
        return Samples(self.inputs_TK[places], self.wanted_TN[places], self.importance_T[places])

    def error(self, outputs_TN: Tensor) -> float:
        """The norm of what is wrong with the outputs, by that of the outputs."""
        weighted = self.wanted_TN * self.importance_T[:, None]
        wrong = outputs_TN * self.importance_T[:, None] - weighted
        return float(wrong.norm() / weighted.norm().clamp(min=1e-12))


@dataclass(frozen=True)
class _Form:
    """How inputs are rounded: divided by `smoothing_K`, then to steps of `scale`."""

    method: str
    smoothing_K: Tensor | None
    scale: float

    def inputs(self, inputs_TK: Tensor) -> Tensor:
        smoothed = inputs_TK if self.smoothing_K is None else inputs_TK / self.smoothing_K
        return (smoothed / self.scale).round().clamp(-INT8_MAX - 1, INT8_MAX) * self.scale

    def weight(self, weight_NK: Tensor) -> Tensor:
        return weight_NK if self.smoothing_K is None else weight_NK * self.smoothing_K


def fit(product: Product, samples: Samples, weight_NK: Tensor, bias_N: Tensor, rounding: Rounding) -> QuantizedProduct:
    """The product in the form, and with the weights, that give the least error.

    A quarter of the samples is held back: it decides between the weights, which are fitted to the rest.
    """
    held_back = torch.arange(len(samples.inputs_TK)) % _HELD_BACK == 0
    seen, unseen = samples.part(~held_back), samples.part(held_back)
    form = _best_form(seen, weight_NK, bias_N)
    share_T = seen.importance_T**2 / (seen.importance_T**2).sum()
    best: tuple[float, str, Tensor, Tensor, Tensor] | None = None
    for name, steps, scale_N in _weights(form, seen, weight_NK, bias_N, rounding):
        missing = seen.wanted_TN - _outputs(form, seen, steps, scale_N, bias_N)
        bias = bias_N + torch.sum(missing * share_T[:, None], dim=0)
        error = unseen.error(_outputs(form, unseen, steps, scale_N, bias))
        if best is None or error < best[0]:
            best = error, name, steps, scale_N, bias
    assert best is not None
    error, name, steps, scale_N, bias = best
    return QuantizedProduct(
        product=product,
        weight_KN=steps.T.to(torch.int8).contiguous().numpy(),
        weight_scale_N=scale_N.numpy(),
        bias_N=bias.numpy(),
        input_scale=form.scale,
        smoothing_K=None if form.smoothing_K is None else form.smoothing_K.numpy(),
        method=f"{form.method}, {name}",
        error=error,
    )


def _best_form(samples: Samples, weight_NK: Tensor, bias_N: Tensor) -> _Form:
    """The form of least output error with weights rounded to the nearest; smoothing, which costs a pass over the
    inputs, only where it is worth something."""
    some = samples.part(torch.linspace(0, len(samples.inputs_TK) - 1, _SEARCHED_TOKENS).long().unique())
    errors = {form: _form_error(form, some, weight_NK, bias_N) for form in _forms(samples, some, weight_NK)}
    best = min(errors, key=lambda form: errors[form])
    plain = min((form for form in errors if form.smoothing_K is None), key=lambda form: errors[form])
    return plain if errors[plain] * _WORTH_SMOOTHING <= errors[best] else best


def _forms(samples: Samples, some: Samples, weight_NK: Tensor) -> Iterator[_Form]:
    """Smoothing and ranges to choose from; the largest values are those of all samples."""
    largest_K = samples.inputs_TK.abs().amax(dim=0)
    for alpha in (None, *_ALPHAS):
        smoothing = None if alpha is None else _smoothing(largest_K, weight_NK, alpha)
        largest = largest_K if smoothing is None else largest_K / smoothing
        smoothed = some.inputs_TK if smoothing is None else some.inputs_TK / smoothing
        for method, reach in (ranges(smoothed) | {"max": float(largest.max())}).items():
            name = method if alpha is None else f"smooth {alpha:g}, {method}"
            yield _Form(name, smoothing, reach / INT8_MAX or 1.0)


def _smoothing(largest_K: Tensor, weight_NK: Tensor, alpha: float) -> Tensor:
    """What inputs are divided by so that alpha of the difficulty of their outliers goes into the weights."""
    weights_K = weight_NK.abs().amax(dim=0)
    found = largest_K.clamp(min=1e-5) ** alpha / weights_K.clamp(min=1e-5) ** (1 - alpha)
    return found / found.log().mean().exp()


def _form_error(form: _Form, samples: Samples, weight_NK: Tensor, bias_N: Tensor) -> float:
    weight = form.weight(weight_NK)
    scale_N = scales(weight)
    return samples.error(_outputs(form, samples, to_steps(weight, scale_N), scale_N, bias_N))


def _weights(
    form: _Form, samples: Samples, weight_NK: Tensor, bias_N: Tensor, rounding: Rounding
) -> Iterator[tuple[str, Tensor, Tensor]]:
    """(method, steps, scales) of weights."""
    weight = form.weight(weight_NK)
    scale_N = scales(weight)
    yield "nearest", to_steps(weight, scale_N), scale_N
    if rounding == "nearest":
        return
    rounded = form.inputs(samples.inputs_TK)
    weighted = rounded * samples.importance_T[:, None]
    covariance_KK = covariance(weighted)
    yield "gptq", gptq(weight, scale_N, covariance_KK), scale_N
    missing = samples.wanted_TN - functional.linear(rounded, weight, bias_N)
    weight = compensate(weight, weighted, missing * samples.importance_T[:, None], covariance_KK)
    scale_N = scales(weight)
    yield "gptq, compensated", gptq(weight, scale_N, covariance_KK), scale_N


def _outputs(form: _Form, samples: Samples, steps: Tensor, scale_N: Tensor, bias_N: Tensor) -> Tensor:
    return functional.linear(form.inputs(samples.inputs_TK), steps * scale_N[:, None], bias_N)
