from __future__ import annotations

import numpy as np
import pytest

from bertfast.config import ModelConfig
from bertfast.quantize.product import QuantizedProduct, fold_smoothing, products_of, products_of_layer


def quantized(place: int, smoothing: np.ndarray | None = None, *, outputs: int = 4) -> QuantizedProduct:
    """A product of a layer of hidden size 4 with random steps."""
    rng = np.random.default_rng(place)
    return QuantizedProduct(
        format="int8",
        product=products_of_layer(0)[place],
        weight_KN=rng.integers(-127, 128, (4, outputs), dtype=np.int8),
        weight_scale_N=rng.random(outputs, dtype=np.float32) + 0.1,
        bias_N=rng.random(outputs, dtype=np.float32),
        input_scale=0.1,
        smoothing_K=smoothing,
        method="max",
        error=0.0,
    )


def real_weights(one: QuantizedProduct) -> np.ndarray:
    return one.weight_KN * one.weight_scale_N


def test_the_products_hold_every_linear_of_the_encoder_once() -> None:
    linears = [name for product in products_of(ModelConfig(num_hidden_layers=2)) for name in product.linears]
    assert len(linears) == len(set(linears)) == 12
    assert [name.removeprefix("bert.encoder.layer.1.") for name in linears[6:]] == [
        *(f"attention.self.{kind}" for kind in ("query", "key", "value")),
        "attention.output.dense",
        "intermediate.dense",
        "output.dense",
    ]


def test_the_outputs_of_each_linear_are_found_in_the_product() -> None:
    assert list(quantized(0, outputs=12).places.values()) == [slice(0, 4), slice(4, 8), slice(8, 12)]


def test_what_divides_the_context_is_divided_out_of_the_quantised_values_already() -> None:
    smoothing = np.array([0.5, 1, 2, 4], np.float32)
    before, after = quantized(0, outputs=12), quantized(1, smoothing)
    (folded, freed), weights = fold_smoothing([before, after], {})
    assert freed.smoothing_K is None
    assert weights == {}
    assert np.array_equal(folded.weight_KN, before.weight_KN)
    divisor = np.concatenate([np.ones(8, np.float32), smoothing])
    assert real_weights(folded) == pytest.approx(real_weights(before) / divisor)
    assert folded.bias_N == pytest.approx(before.bias_N / divisor)


def test_what_divides_the_context_is_divided_out_of_values_that_stay_in_fp32() -> None:
    smoothing = np.array([0.5, 1, 2, 4], np.float32)
    name = "bert.encoder.layer.0.attention.self.value"
    given = {f"{name}.weight": np.ones((4, 3), np.float32), f"{name}.bias": np.ones(4, np.float32)}
    (freed,), weights = fold_smoothing([quantized(1, smoothing)], given)
    assert freed.smoothing_K is None
    assert weights[f"{name}.weight"][:, 0].tolist() == weights[f"{name}.bias"].tolist() == [2, 1, 0.5, 0.25]
    assert given[f"{name}.bias"].tolist() == [1, 1, 1, 1]


def test_other_smoothing_stays() -> None:
    smoothing = np.full(4, 2, np.float32)
    (one,), _ = fold_smoothing([quantized(3, smoothing)], {})
    assert one.smoothing_K is smoothing
