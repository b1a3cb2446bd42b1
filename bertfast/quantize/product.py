"""The encoder's matrix products, and one of them in INT8 or FP8.

Shapes: T tokens, K inputs, N outputs of a product.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from bertfast.config import ModelConfig

Format = Literal["int8", "fp8"]
Float32 = npt.NDArray[np.float32]


@dataclass(frozen=True)
class Product:
    """Linears that multiply the same input, and so are one product with their weights side by side.

    Attributes:
        name: as in the exported graph.
        linears: their names in the checkpoint.
        follows: the Linear whose outputs, weighted, are the input; what its outputs are divided by divides the input.
        unbounded: whether nothing normalises or averages the input: other texts reach further than those seen.
    """

    name: str
    linears: tuple[str, ...]
    follows: str | None = None
    unbounded: bool = False


def products_of_layer(number: int) -> tuple[Product, ...]:
    """Those of an encoder layer, in the order of computation."""
    layer = f"bert.encoder.layer.{number}"
    attention = f"{layer}.attention.self"
    attended, wide, narrow = (f"{layer}.{name}.dense" for name in ("attention.output", "intermediate", "output"))
    return (
        Product(f"{attention}.query_key_value", tuple(f"{attention}.{kind}" for kind in ("query", "key", "value"))),
        Product(attended, (attended,), follows=f"{attention}.value"),
        Product(wide, (wide,)),
        Product(narrow, (narrow,), unbounded=True),
    )


def products_of(config: ModelConfig) -> tuple[Product, ...]:
    """Those of all layers."""
    return tuple(product for number in range(config.num_hidden_layers) for product in products_of_layer(number))


@dataclass(frozen=True, eq=False)
class QuantizedProduct:
    """A product in eight bits: inputs with one scale, weights with one scale an output, all symmetric.

    Attributes:
        format: int8, or fp8 with four bits of exponent and three of mantissa (E4M3).
        weight_KN: int8, never -128; or ml_dtypes.float8_e4m3fn.
        weight_scale_N: float32; `weight_KN * weight_scale_N` are the weights for inputs divided by `smoothing_K`.
        bias_N: float32, with the mean error taken out.
        input_scale: what an input of 1 is worth.
        smoothing_K: float32, what inputs are divided by before they are rounded; None for nothing (Xiao et al. 2023).
        method: how the ranges were found, in words.
        error: relative, on tokens that were held back, of weights fitted to the others: of the outputs of query, key
            and value, and for the other products of what stands behind the LayerNorm that they reach next.
    """

    product: Product
    format: Format
    weight_KN: npt.NDArray[Any]
    weight_scale_N: Float32
    bias_N: Float32
    input_scale: float
    smoothing_K: Float32 | None
    method: str
    error: float

    @property
    def weights(self) -> int:
        return self.weight_KN.size

    @cached_property
    def places(self) -> dict[str, slice]:
        """Where the outputs of each of its Linears are."""
        width = len(self.bias_N) // len(self.product.linears)
        return {name: slice(i * width, (i + 1) * width) for i, name in enumerate(self.product.linears)}


def fold_smoothing(
    quantized: Sequence[QuantizedProduct], weights: Mapping[str, Float32]
) -> tuple[list[QuantizedProduct], Mapping[str, Float32]]:
    """The same function with fewer divisions: where inputs are another Linear's outputs, that one divides.

    Args:
        weights: the parameters in float32 by name; those that divide are others in what is returned.
    """
    folded = {one.product.name: one for one in quantized}
    weights = dict(weights)
    for one in quantized:
        source, smoothing = one.product.follows, one.smoothing_K
        if source is None or smoothing is None:
            continue
        folded[one.product.name] = replace(one, smoothing_K=None)
        before = next((other for other in quantized if source in other.product.linears), None)
        if before is None:
            weights[f"{source}.weight"] = weights[f"{source}.weight"] / smoothing[:, None]
            weights[f"{source}.bias"] = weights[f"{source}.bias"] / smoothing
            continue
        divisor = np.ones_like(before.bias_N)
        divisor[before.places[source]] = smoothing
        folded[before.product.name] = replace(
            before, weight_scale_N=before.weight_scale_N / divisor, bias_N=before.bias_N / divisor
        )
    return list(folded.values()), weights
