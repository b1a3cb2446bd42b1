"""One product in INT8 or FP8, found by its own output error on calibration text.

Shapes: T tokens, K inputs, N outputs.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Any, Literal, cast

import ml_dtypes
import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from bertfast.quantize.product import Format, Product, QuantizedProduct
from bertfast.quantize.ranges import ranges
from bertfast.quantize.rounding import GRIDS, covariance, gptq, scales, to_steps

Rounding = Literal["gptq", "nearest"]
_DTYPES: dict[Format, Any] = {"int8": np.int8, "fp8": ml_dtypes.float8_e4m3fn}

_ALPHAS = (0.4, 0.5, 0.6, 0.7, 0.75, 0.8, 0.85, 0.9, 0.95, 1.0)
_SEARCHED_TOKENS = 1024
_WORTH_SMOOTHING = 0.97
_HELD_BACK = 4  # every fourth token
_ROOM = 1.5  # what other texts may reach beyond those seen, where nothing bounds them: see benchmarks/LOG.md


@dataclass(frozen=True, eq=False)
class Samples:
    """What goes into a product, what is to come out, and where that is judged.

    Attributes:
        inputs_TK: with the errors of the products before it, where these are in INT8.
        wanted_TN: the outputs of the source model, which never rounded anything.
        importance_T: what the error of a token counts: less, where a LayerNorm divides it by more.
        residual_TH: what is added before the next LayerNorm.
        judged_TH: what the source model has behind it.
        judge: from (outputs, residual) to what is compared with `judged_TH`.
    """

    inputs_TK: Tensor
    wanted_TN: Tensor
    importance_T: Tensor
    residual_TH: Tensor
    judged_TH: Tensor
    judge: Callable[[Tensor, Tensor], Tensor]

    def part(self, places: Tensor) -> Samples:
        chosen = {name: value[places] for name, value in vars(self).items() if isinstance(value, Tensor)}
        return replace(self, **cast(Any, chosen))

    def error(self, outputs_TN: Tensor) -> float:
        """The norm of what is wrong, by that of what is wanted, where it is judged."""
        wrong = self.judge(outputs_TN, self.residual_TH) - self.judged_TH
        return float(wrong.norm() / self.judged_TH.norm().clamp(min=1e-12))


def shuffled(count: int) -> Tensor:
    """All places in an order that is always the same, and knows nothing of where in its sequence a token stands."""
    return torch.randperm(count, generator=torch.Generator().manual_seed(0))


def round_inputs(inputs: Tensor, scale: float, kind: Format) -> Tensor:
    """To the numbers of a format, each worth `scale`."""
    return GRIDS[kind].inputs(inputs / scale) * scale


@dataclass(frozen=True, eq=False)
class _Form:
    """How inputs are rounded: divided by `smoothing_K`, then to steps of `scale`."""

    method: str
    kind: Format
    smoothing_K: Tensor | None
    scale: float

    def inputs(self, inputs_TK: Tensor) -> Tensor:
        smoothed = inputs_TK if self.smoothing_K is None else inputs_TK * (1 / self.smoothing_K)
        return round_inputs(smoothed, self.scale, self.kind)

    def weight(self, weight_NK: Tensor) -> Tensor:
        return weight_NK if self.smoothing_K is None else weight_NK * self.smoothing_K


def fit(
    product: Product, samples: Samples, weight_NK: Tensor, bias_N: Tensor, rounding: Rounding, kind: Format
) -> QuantizedProduct:
    """The product in the form, and with the weights, that give the least error.

    A quarter of the samples is held back for the error, and to see whether the bias should make up for the mean error:
    a few large tokens that are cut can falsify that mean for all others.
    """
    order = shuffled(len(samples.inputs_TK))
    border = -(-len(order) // _HELD_BACK)
    seen, unseen = samples.part(order[border:]), samples.part(order[:border])
    form = _best_form(seen, weight_NK, bias_N) if kind == "int8" else _plain_form(seen, kind)
    if product.unbounded:
        form = replace(form, scale=form.scale * _ROOM)
    weight = _round(form, seen, weight_NK, rounding)
    as_it_was = unseen.error(_outputs(form, unseen, weight, bias_N))
    corrected = unseen.error(_outputs(form, unseen, weight, bias_N + _missing(form, seen, weight, bias_N)))
    weight = _round(form, samples, weight_NK, rounding)
    bias = bias_N + _missing(form, samples, weight, bias_N) if corrected < as_it_was else bias_N
    return QuantizedProduct(
        product=product,
        format=kind,
        weight_KN=np.ascontiguousarray(weight.steps_NK.T.numpy().astype(_DTYPES[kind])),
        weight_scale_N=weight.scale_N.numpy(),
        bias_N=bias.numpy(),
        input_scale=form.scale,
        smoothing_K=None if form.smoothing_K is None else form.smoothing_K.numpy(),
        method=form.method,
        error=min(as_it_was, corrected),
    )


@dataclass(frozen=True)
class _Weight:
    """`steps_NK * scale_N` are the weights; steps are numbers of the grid, in float32."""

    steps_NK: Tensor
    scale_N: Tensor


def _round(form: _Form, samples: Samples, weight_NK: Tensor, rounding: Rounding) -> _Weight:
    weight = form.weight(weight_NK)
    grid = GRIDS[form.kind]
    scale_N = scales(weight, grid)
    if rounding == "nearest":
        return _Weight(to_steps(weight, scale_N, grid), scale_N)
    inputs_TK = form.inputs(samples.inputs_TK) * samples.importance_T[:, None]
    return _Weight(gptq(weight, scale_N, covariance(inputs_TK), grid), scale_N)


def _missing(form: _Form, samples: Samples, weight: _Weight, bias_N: Tensor) -> Tensor:
    """[N]: the mean of what the outputs lack."""
    missing_TN = samples.wanted_TN - _outputs(form, samples, weight, bias_N)
    return torch.einsum("t,tn->n", samples.importance_T**2 / (samples.importance_T**2).sum(), missing_TN)


def _best_form(samples: Samples, weight_NK: Tensor, bias_N: Tensor) -> _Form:
    """The form of least output error with weights rounded to the nearest; smoothing, which costs a pass over the
    inputs, only where it is worth something."""
    some = samples.part(torch.arange(len(samples.inputs_TK))[:_SEARCHED_TOKENS])
    plain: tuple[float, _Form] | None = None
    best: tuple[float, _Form] | None = None
    for form in _forms(samples, some, weight_NK):
        error = _form_error(form, some, weight_NK, bias_N)
        if best is None or error < best[0]:
            best = error, form
        if form.smoothing_K is None and (plain is None or error < plain[0]):
            plain = error, form
    assert best is not None
    assert plain is not None
    return (plain if plain[0] * _WORTH_SMOOTHING <= best[0] else best)[1]


def _forms(samples: Samples, some: Samples, weight_NK: Tensor) -> Iterator[_Form]:
    """Smoothing and ranges to choose from; the largest values are those of all samples."""
    largest_K = samples.inputs_TK.abs().amax(dim=0)
    for alpha in (None, *_ALPHAS):
        smoothing = None if alpha is None else _smoothing(largest_K, weight_NK, alpha)
        largest = largest_K if smoothing is None else largest_K / smoothing
        smoothed = some.inputs_TK if smoothing is None else some.inputs_TK / smoothing
        for method, reach in (ranges(smoothed) | {"max": float(largest.max())}).items():
            name = method if alpha is None else f"smooth {alpha:g}, {method}"
            yield _Form(name, "int8", smoothing, reach / GRIDS["int8"].largest or 1.0)


def _plain_form(samples: Samples, kind: Format) -> _Form:
    """For floats, whose steps are as fine as their values are small: outliers cost nothing, so nothing is cut."""
    return _Form("max", kind, None, float(samples.inputs_TK.abs().max()) / GRIDS[kind].largest or 1.0)


def _smoothing(largest_K: Tensor, weight_NK: Tensor, alpha: float) -> Tensor:
    """What inputs are divided by so that alpha of the difficulty of their outliers goes into the weights."""
    weights_K = weight_NK.abs().amax(dim=0)
    found = largest_K.clamp(min=1e-5) ** alpha / weights_K.clamp(min=1e-5) ** (1 - alpha)
    return found / found.log().mean().exp()


def _form_error(form: _Form, samples: Samples, weight_NK: Tensor, bias_N: Tensor) -> float:
    return samples.error(_outputs(form, samples, _round(form, samples, weight_NK, "nearest"), bias_N))


def _outputs(form: _Form, samples: Samples, weight: _Weight, bias_N: Tensor) -> Tensor:
    return functional.linear(form.inputs(samples.inputs_TK), weight.steps_NK * weight.scale_N[:, None], bias_N)
