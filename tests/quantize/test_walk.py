from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from bertfast.backends import ServedModel, open_served
from bertfast.backends.pytorch import TorchBackend
from bertfast.quantize.fit import shuffled
from bertfast.quantize.product import QuantizedProduct
from bertfast.quantize.search import outputs_of
from bertfast.quantize.simulate import SimulatedLinear, simulated
from bertfast.quantize.walk import equal_lengths, quantize
from bertfast.text.batch import Batch, pad
from tests.conftest import labelled_rows


@pytest.fixture(scope="module")
def served(classifier: Path) -> ServedModel:
    return open_served(classifier)


@pytest.fixture(scope="module")
def model(served: ServedModel) -> nn.Module:
    return TorchBackend(served, device="cpu").module


@pytest.fixture(scope="module")
def batches(served: ServedModel) -> list[Batch]:
    rows = [(row["text"], None) for row in labelled_rows(80, 3)]
    encoded = served.context.tokenizer.encode(rows, served.context.max_length)
    return list(equal_lengths(encoded, served.context.tokenizer.pad_id))


@pytest.fixture(scope="module")
def quantized(model: nn.Module, batches: list[Batch]) -> list[QuantizedProduct]:
    return quantize(model, batches, "gptq", "int8", lambda *_: None)


def error(model: nn.Module, quantized: list[QuantizedProduct], batches: list[Batch]) -> float:
    wanted = np.concatenate(list(outputs_of(model, batches)))
    with simulated(model, quantized):
        found = np.concatenate(list(outputs_of(model, batches)))
    return float(np.linalg.norm(found - wanted) / np.linalg.norm(wanted))


def test_batches_of_one_length_hold_every_sequence_and_no_padding(served: ServedModel, batches: list[Batch]) -> None:
    assert all(batch.attention_mask.all() for batch in batches)
    assert len({batch.input_ids.shape[1] for batch in batches}) == len(batches) > 1
    assert sum(map(len, batches)) == 80


def test_every_product_is_quantised_and_the_model_stays_as_it_was(
    model: nn.Module, batches: list[Batch], quantized: list[QuantizedProduct]
) -> None:
    assert [one.product.name.split(".")[3] for one in quantized] == ["0"] * 4 + ["1"] * 4
    assert not [part for part in model.modules() if isinstance(part, SimulatedLinear)]
    assert all(np.abs(one.weight_KN.astype(int)).max() <= 127 for one in quantized)
    assert 1e-4 < error(model, quantized, batches) < 0.05


def test_two_runs_give_the_same_bytes(
    model: nn.Module, batches: list[Batch], quantized: list[QuantizedProduct]
) -> None:
    again = quantize(model, batches, "gptq", "int8", lambda *_: None)
    for one, other in zip(quantized, again, strict=True):
        assert one.weight_KN.tobytes() == other.weight_KN.tobytes()
        assert (one.input_scale, one.method) == (other.input_scale, other.method)


def test_what_is_simulated_is_integer_arithmetic(quantized: list[QuantizedProduct]) -> None:
    one = quantized[0]
    inputs = torch.randn(5, len(one.weight_KN))
    smoothed = inputs.numpy() if one.smoothing_K is None else inputs.numpy() / one.smoothing_K
    steps = np.clip(np.round(smoothed / np.float32(one.input_scale)), -128, 127).astype(np.int32)
    outputs = steps @ one.weight_KN.astype(np.int32) * (one.input_scale * one.weight_scale_N) + one.bias_N
    for name, place in one.places.items():
        assert SimulatedLinear(one, name)(inputs).numpy() == pytest.approx(outputs[:, place], abs=1e-4)


def outliers(model: nn.Module, factor: float) -> Callable[[], None]:
    """Make one channel of the feed-forward's inputs large, and the weights that read it small: the same function.

    Returns:
        What undoes it.
    """
    norm = model.get_submodule("bert.encoder.layer.0.attention.output.LayerNorm")
    reader = model.get_submodule("bert.encoder.layer.0.intermediate.dense")

    def scale(by: float) -> None:
        with torch.no_grad():
            norm.weight[0] *= by  # type: ignore[index, operator]
            norm.bias[0] *= by  # type: ignore[index, operator]
            reader.weight[:, 0] /= by  # type: ignore[index, operator]

    scale(factor)
    return lambda: scale(1 / factor)


def test_outliers_of_a_channel_move_into_the_weights(model: nn.Module, batches: list[Batch]) -> None:
    undo = outliers(model, 100)
    try:
        quantized = quantize(model, batches, "nearest", "int8", lambda *_: None)
    finally:
        undo()
    wide = quantized[2]
    assert wide.smoothing_K is not None
    assert wide.smoothing_K[0] > 10 * np.median(wide.smoothing_K)
    assert wide.error < 0.05


def test_padding_would_have_changed_nothing(served: ServedModel, model: nn.Module, batches: list[Batch]) -> None:
    """The simulated model is as blind to padding as the source."""
    rows = served.context.tokenizer.encode([("The river waits.", None)], served.context.max_length)
    quantized = quantize(model, batches, "nearest", "int8", lambda *_: None)
    with simulated(model, quantized):
        short, long = (next(outputs_of(model, [pad(rows, 0, width)])) for width in (len(rows[0]), 40))
    assert long == pytest.approx(short, rel=1e-4)


def test_a_token_that_is_first_in_every_text_is_seen() -> None:
    """Texts of one length put all first tokens at equal distances, where a regular choice may miss every one."""
    places = shuffled(64 * 8)
    seen = places[len(places) // 4 :]
    assert 0.6 < float((seen % 8 == 0).sum()) / 64 < 0.9
    assert torch.equal(places, shuffled(64 * 8))
    assert sorted(places.tolist()) == list(range(64 * 8))


def test_activations_that_are_all_zero_do_not_stop_it(model: nn.Module, batches: list[Batch]) -> None:
    layer = model.get_submodule("bert.encoder.layer.1.intermediate.dense")
    kept = {name: value.clone() for name, value in layer.state_dict().items()}
    with torch.no_grad():
        for value in layer.parameters():
            value.zero_()
    try:
        quantized = quantize(model, batches, "gptq", "int8", lambda *_: None)
    finally:
        layer.load_state_dict(kept)
    assert all(np.isfinite(one.weight_scale_N).all() and one.input_scale > 0 for one in quantized)
    assert not quantized[6].weight_KN.any()
