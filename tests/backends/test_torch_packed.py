"""The backend without padding gives what the padded one gives, for every task; a CPU runs its twin."""

from __future__ import annotations

import itertools
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch._dynamo.testing import CompileCounterWithBackend

from bertfast.backends import open_served, pytorch, relative_error, tolerance
from bertfast.backends.protocol import Arrays
from bertfast.backends.pytorch import TorchBackend
from bertfast.backends.served import ServedModel
from bertfast.backends.torch_eight_bits import to_eight_bits
from bertfast.backends.torch_graphs import MAX_GRAPHS, Replayed
from bertfast.backends.torch_packed import TorchPackedBackend, layout_for
from bertfast.config import ModelConfig, Precision
from bertfast.errors import BackendError
from bertfast.model import encoder as encoder_module
from bertfast.text.batch import Batch, pad
from bertfast.text.packing import without_padding
from bertfast.text.tokenizer import Encoded, Tokenizer
from tests.conftest import write_checkpoint
from tests.train.test_packed import attention_by_boundaries

LABELS = {"classify": ("a", "b", "c"), "tag": ("O", "B-X", "I-X"), "regress": ("LABEL_0",), "rerank": ("LABEL_0",)}
TASKS = ("classify", "regress", "tag", "qa", "embed", "rerank", "pretrain")
HALF = (Precision.FP16, Precision.BF16)


def ragged(vocabulary: int, lengths: list[int], seed: int = 0) -> Batch:
    rng = np.random.default_rng(seed)
    rows = [Encoded(rng.integers(5, vocabulary, n).tolist(), rng.integers(0, 2, n).tolist()) for n in lengths]
    return pad(rows, 0)


@pytest.fixture(params=TASKS)
def model(
    request: pytest.FixtureRequest, tiny_config: ModelConfig, tokenizer: Tokenizer, tmp_path: Path
) -> ServedModel:
    labels = LABELS.get(request.param, ())
    return open_served(write_checkpoint(tmp_path / "model", request.param, tiny_config, tokenizer, labels))


def real_part(model: ServedModel, batch: Batch, outputs: Arrays) -> Arrays:
    """What is said of real tokens and of sequences."""
    real = batch.attention_mask == 1
    return {name: array[real] if name in model.task.per_token else array for name, array in outputs.items()}


@pytest.mark.parametrize("lengths", [[1], [64], [9, 3, 30, 64, 2, 2], [5] * 33])
def test_without_padding_the_outputs_are_those_with_padding(model: ServedModel, lengths: list[int]) -> None:
    batch = ragged(model.context.tokenizer.vocab_size, lengths)
    with TorchBackend(model) as padded, TorchPackedBackend(model) as packed:
        expected, actual = (real_part(model, batch, backend.run(batch)) for backend in (padded, packed))
    assert actual.keys() == expected.keys() == set(model.task.outputs)
    for name, array in expected.items():
        assert actual[name].shape == array.shape
        assert relative_error(actual[name], array) <= tolerance("torch-packed", Precision.FP32)


@pytest.mark.parametrize(("precision", "emulated"), [(Precision.INT8, False), (Precision.FP8, True)])
def test_eight_bits_stay_close_and_fp8_is_emulated_on_a_cpu(
    model: ServedModel, precision: Precision, emulated: bool
) -> None:
    batch = ragged(model.context.tokenizer.vocab_size, [9, 3, 30, 64])
    with TorchBackend(model) as source, TorchPackedBackend(model, precision=precision) as packed:
        assert (packed.precision, packed.emulated) == (precision, emulated)
        expected, actual = (real_part(model, batch, each.run(batch)) for each in (source, packed))
    for name, array in expected.items():
        assert 1e-3 < relative_error(actual[name], array) <= tolerance("torch-packed", precision)


@pytest.mark.parametrize(
    ("precision", "message"),
    [
        (Precision.INT8, r"executes 8,192 weights in int8, and [\d,]+ were promised"),
        (Precision.FP8, "in fp8, and says that it executes bf16, fp32"),
    ],
)
def test_an_encoder_that_is_not_all_in_eight_bits_is_refused(
    classifier: Path, monkeypatch: pytest.MonkeyPatch, precision: Precision, message: str
) -> None:
    monkeypatch.setattr(pytorch, "to_eight_bits", lambda encoder, kind: to_eight_bits(encoder.layer[0], kind))
    with pytest.raises(BackendError, match=message):
        TorchPackedBackend(open_served(classifier), precision=precision)


def test_what_is_compiled_serves_many_layouts(classifier: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What torch.compile traces, without its C++ or Triton: whole, and not anew for each layout."""
    traced = CompileCounterWithBackend("aot_eager")
    monkeypatch.setattr(torch, "compile", partial(torch.compile, backend=traced, fullgraph=True))
    model = open_served(classifier)
    with TorchBackend(model) as padded, TorchPackedBackend(model, compiled=True) as packed:
        for lengths in ([9, 3, 30], [5] * 20, [64, 2, 2, 2, 2, 2], [7], [64], [9] * 40, [64] * 9, [30] * 5):
            batch = ragged(model.context.tokenizer.vocab_size, lengths)
            assert relative_error(packed.run(batch)["logits"], padded.run(batch)["logits"]) <= 1e-5
    assert traced.frame_count <= 3  # one sequence, equal sizes, and all others


@pytest.mark.parametrize("backend", [TorchBackend, TorchPackedBackend])
@pytest.mark.parametrize("precision", HALF)
def test_half_precision_is_what_it_says_and_stays_close(
    model: ServedModel, backend: type[TorchBackend], precision: Precision
) -> None:
    batch = ragged(model.context.tokenizer.vocab_size, [9, 3, 30, 64])
    with TorchBackend(model) as source, backend(model, precision=precision) as half:
        assert half.precision is precision
        expected, actual = (real_part(model, batch, each.run(batch)) for each in (source, half))
    for name, array in expected.items():
        error = relative_error(actual[name], array)
        assert 0 < error <= tolerance(half.name, precision)


def test_the_kernel_for_unequal_lengths_is_given_the_boundaries_of_the_sequences(
    classifier: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The way that CUDA takes, with its kernel replaced."""
    model = open_served(classifier)
    batch = ragged(model.context.tokenizer.vocab_size, [9, 3, 30, 64, 2])
    with TorchBackend(model) as padded, TorchPackedBackend(model) as packed:
        expected = padded.run(batch)["logits"]
        monkeypatch.setattr(encoder_module, "varlen_attn", attention_by_boundaries)
        monkeypatch.setattr(encoder_module, "takes_boundaries", lambda *_: True)
        assert relative_error(packed.run(batch)["logits"], expected) <= 1e-5


def test_settings_of_the_vector_hold_without_padding(encoder: Path) -> None:
    for pooling, normalize in itertools.product(("mean", "cls"), (True, False)):
        model = open_served(encoder, {"pooling": pooling, "normalize": normalize})
        batch = ragged(model.context.tokenizer.vocab_size, [9, 3, 30, 64, 2])
        with TorchBackend(model) as padded, TorchPackedBackend(model) as packed:
            assert relative_error(packed.run(batch)["embedding"], padded.run(batch)["embedding"]) <= 1e-5


@given(st.lists(st.integers(1, 64), min_size=1, max_size=80))
def test_a_row_without_padding_holds_every_token_once(lengths: list[int]) -> None:
    batch = ragged(1000, lengths)
    layout = layout_for(batch)
    row = without_padding(batch, layout)
    packing = row.packing
    assert packing is not None
    assert layout.tokens < batch.real_tokens * 1.125 + 64
    assert row.input_ids.shape == (1, layout.tokens)
    assert row.real_tokens == batch.real_tokens
    bounds = packing.cu_seqlens
    assert (bounds[0], bounds[-1]) == (0, layout.tokens)
    assert 0 <= np.diff(bounds).min() <= np.diff(bounds).max() <= packing.max_seqlen
    for number, (start, length) in enumerate(zip(packing.sequence_starts[: len(lengths)], lengths, strict=True)):
        assert (bounds[number], bounds[number + 1]) == (start, start + length)
        here = slice(start, start + length)
        assert np.array_equal(row.input_ids[0, here], batch.input_ids[number, :length])
        assert np.array_equal(row.token_type_ids[0, here], batch.token_type_ids[number, :length])
        assert np.array_equal(packing.position_ids[0, here], np.arange(length))


def test_a_layout_is_recorded_once_and_reads_what_was_uploaded_last() -> None:
    seen: list[tuple[int, int]] = []

    def double(values: torch.Tensor, shape: int) -> dict[str, torch.Tensor]:
        seen.append((shape, values.data_ptr()))
        return {"doubled": values * 2}

    replayed = Replayed(double)
    for number in (1, 2, 3):
        assert replayed(torch.full((3,), number), 3)["doubled"].tolist() == [2 * number] * 3
        assert replayed(torch.full((4,), number), 4)["doubled"].tolist() == [2 * number] * 4
    assert len(set(seen[2:])) == 2  # from the second time on a shape's tensor stays where it is
    for shape in range(10, 10 + MAX_GRAPHS):
        for _ in range(2):
            replayed(torch.zeros(shape), shape)
        replayed(torch.zeros(4), 4)
    assert len({place for shape, place in seen[2:] if shape == 4}) == 1  # it was used all the time
    assert replayed(torch.ones(3), 3)["doubled"].tolist() == [2] * 3


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="torch sees no CUDA device")
@pytest.mark.parametrize("precision", [*HALF, Precision.INT8, Precision.FP8])
def test_graphs_on_the_gpu_give_what_a_cpu_gives(model: ServedModel, precision: Precision) -> None:
    batches = [ragged(model.context.tokenizer.vocab_size, [9, 3, 30, 64], seed) for seed in range(3)]
    with TorchBackend(model, device="cpu") as source, TorchPackedBackend(model, precision=precision) as packed:
        for batch in batches:  # the second records a graph and replays it, as the third does
            expected, actual = (real_part(model, batch, each.run(batch)) for each in (source, packed))
            for name, array in expected.items():
                assert relative_error(actual[name], array) <= tolerance("torch-packed", precision)
