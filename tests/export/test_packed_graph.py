"""Graphs that take one row of real tokens give what graphs with padding give, in every task and precision."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import pytest
from hypothesis import given
from hypothesis import strategies as st
from typer.testing import CliRunner

from bertfast import artifact, load
from bertfast.backends import open_backend, open_served, relative_error, tolerance
from bertfast.backends.protocol import Arrays, Backend
from bertfast.backends.pytorch import TorchBackend
from bertfast.backends.registry import backends_for
from bertfast.backends.rows import InRows, rows_of
from bertfast.backends.served import ENGINE_FILE, ServedModel
from bertfast.cli import app
from bertfast.config import ModelConfig, Precision
from bertfast.engine.build import open_source
from bertfast.engine.library import read_network
from bertfast.errors import ArtifactError, BackendError, CheckError
from bertfast.export.export import Exported, export
from bertfast.export.plan import ExportPlan
from bertfast.text.batch import PACKED_INPUTS, pad
from bertfast.text.packing import with_padding
from bertfast.text.tokenizer import Tokenizer
from tests.backends.test_torch_packed import LABELS, TASKS, ragged, real_part
from tests.conftest import labelled_rows, write_checkpoint, write_rows
from tests.export.test_quantized import calibration_of

RUNTIMES = ("onnxruntime", "openvino")
LENGTHS = [9, 3, 30, 64, 2, 2, 41, 17, 64, 64, 5]
SHARED = {"neighbours in a row", "rows of nothing but padding", "padding invariance", "batch order", "length 1"}


@pytest.fixture(scope="module")
def texts(tmp_path_factory: pytest.TempPathFactory) -> Path:
    rows = [{"text": row["text"]} for row in labelled_rows(160, 4)]
    return write_rows(tmp_path_factory.mktemp("texts") / "texts.jsonl", rows)


@pytest.fixture(scope="module")
def packed(classifier: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("packed") / "onnx"
    export(classifier, out, packed=True)
    return out


@pytest.fixture(scope="module")
def int8(classifier: Path, texts: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Exported]:
    out = tmp_path_factory.mktemp("packed") / "int8"
    plan = ExportPlan(calibration=texts, rounding="nearest")
    return out, export(classifier, out, precision=Precision.INT8, plan=plan, packed=True)


@contextmanager
def opened(model: ServedModel, name: str, row_tokens: int) -> Iterator[Backend]:
    """A packed graph in rows of so many tokens."""
    with open_backend(model, name) as backend:
        assert isinstance(backend, InRows)
        backend.row_tokens = row_tokens
        yield backend


def worst(actual: Arrays, expected: Arrays) -> float:
    assert {name: array.shape for name, array in actual.items()} == {
        name: array.shape for name, array in expected.items()
    }
    return max(relative_error(actual[name], array) for name, array in expected.items())


@pytest.mark.parametrize("task", TASKS)
def test_without_padding_the_outputs_are_those_with_padding(
    task: str, tiny_config: ModelConfig, tokenizer: Tokenizer, tmp_path: Path
) -> None:
    checkpoint = write_checkpoint(tmp_path / "checkpoint", task, tiny_config, tokenizer, LABELS.get(task, ()))
    checks = export(checkpoint, tmp_path / "onnx", packed=True).checks
    assert set(checks) == set(RUNTIMES)
    assert all(set(errors) >= SHARED for errors in checks.values())
    model, exported = open_served(checkpoint), open_served(tmp_path / "onnx")
    batch = ragged(tokenizer.vocab_size, LENGTHS)
    with TorchBackend(model, device="cpu") as source:
        expected = real_part(model, batch, source.run(batch))
    for name in RUNTIMES:
        for row_tokens in (1, 70, 512):
            with opened(exported, name, row_tokens) as backend:
                actual = real_part(model, batch, backend.run(batch))
            assert worst(actual, expected) <= tolerance(name, Precision.FP32)


@pytest.mark.parametrize("pooling", ["mean", "cls"])
@pytest.mark.parametrize("normalize", [True, False])
def test_settings_of_the_vector_hold_without_padding(
    encoder: Path, tmp_path: Path, pooling: str, normalize: bool
) -> None:
    own = {"pooling": pooling, "normalize": normalize}
    checks = export(encoder, tmp_path / "onnx", settings=own, packed=True).checks
    assert max(max(errors.values()) for errors in checks.values()) <= 1e-5


def test_the_signature_is_a_row_of_tokens_and_where_its_sequences_begin(packed: Path) -> None:
    graph = onnx.load(packed / "model.onnx").graph
    shapes = {
        value.name: [dim.dim_param or dim.dim_value for dim in value.type.tensor_type.shape.dim]
        for value in (*graph.input, *graph.output)
    }
    assert tuple(shapes)[:-1] == PACKED_INPUTS
    assert shapes == {name: [1, "tokens"] for name in PACKED_INPUTS[:-1]} | {
        "sequence_starts": ["sequences"],
        "logits": ["sequences", 3],
    }


def test_the_manifest_says_that_it_is_packed(packed: Path, exported: Path) -> None:
    assert artifact.open_manifest(packed).settings["packed"] is True
    assert artifact.open_manifest(exported).settings["packed"] is False
    assert open_served(packed).packed
    assert not open_served(exported).packed


def test_answers_come_in_the_order_of_the_inputs(packed: Path, classifier: Path) -> None:
    inputs = [row["text"] for row in labelled_rows(60, 9)]
    with load(classifier, "torch") as source:
        wanted = source.predict(inputs)
    for name in RUNTIMES:
        with load(packed, name, threads=1) as model:
            assert [answer["label"] for answer in model.predict(inputs)] == [answer["label"] for answer in wanted]


@given(st.lists(st.integers(0, 64), min_size=1, max_size=40), st.integers(1, 200))
def test_rows_hold_every_token_once_and_keep_to_their_size(lengths: list[int], row_tokens: int) -> None:
    batch = ragged(1000, lengths)
    rows = list(rows_of(batch, row_tokens))
    assert sorted(place for places, _ in rows for place in places) == list(range(len(lengths)))
    for places, row in rows:
        assert len(places) == 1 or row.real_tokens <= row_tokens
        arrays = row.graph_inputs
        assert tuple(arrays) == PACKED_INPUTS
        assert all(array.dtype == np.int64 for array in arrays.values())
        assert arrays["sequence_starts"].max() < arrays["input_ids"].size
        numbers = arrays["sequence_ids"][0]
        for place, start in zip(places, arrays["sequence_starts"], strict=True):
            if length := lengths[place]:
                here = numbers == numbers[start]
                assert here.sum() == length
                assert np.array_equal(arrays["input_ids"][0, here], batch.input_ids[place, :length])
                assert np.array_equal(arrays["position_ids"][0, here], np.arange(length))


@given(st.lists(st.integers(0, 64), min_size=1, max_size=40))
def test_padding_comes_back_where_it_was(lengths: list[int]) -> None:
    batch = ragged(1000, lengths)
    real, found = batch.attention_mask == 1, np.zeros_like(batch.input_ids)
    for places, row in rows_of(batch, 100):
        found[places] = with_padding(row.input_ids, real[places])
    assert np.array_equal(found, batch.input_ids * real)


@pytest.mark.parametrize("attention", ["plain", "operator"])
@pytest.mark.parametrize("precision", [Precision.FP16, Precision.BF16])
def test_16_bit_is_what_it_says(
    classifier: Path, encoder: Path, tmp_path: Path, precision: Precision, attention: str
) -> None:
    for checkpoint in (classifier, encoder):
        out = tmp_path / checkpoint.name
        (errors,) = export(checkpoint, out, precision=precision, attention=attention, packed=True).checks.values()  # type: ignore[arg-type]
        assert set(errors) >= SHARED
        assert max(errors.values()) > 1e-4  # an error of 0 would be fp32
        assert ("Attention" in {node.op_type for node in onnx.load(out / "model.onnx").graph.node}) is (
            attention == "operator"
        )


def test_int8_is_executed_as_promised(int8: tuple[Path, Exported]) -> None:
    out, exported = int8
    served = open_served(out)
    assert set(exported.checks) == {*RUNTIMES, "fp16 around INT8"}
    assert exported.quantization is not None
    assert served.int8_weights == exported.quantization.quantized_weights > 0.9 * exported.quantization.weights
    many = 10 * served.int8_weights
    for name in RUNTIMES:
        with open_backend(served, name) as backend:
            assert backend.precision is Precision.INT8
        with pytest.raises(BackendError, match=f"in int8, and {many:,} were promised"):
            open_backend(replace(served, int8_weights=many), name)


@pytest.mark.slow
@pytest.mark.parametrize(("task", "precision"), [("embed", Precision.INT8), ("tag", Precision.FP8)])
def test_other_tasks_are_quantised_too(
    task: str, precision: Precision, tiny_config: ModelConfig, tokenizer: Tokenizer, tmp_path: Path
) -> None:
    checkpoint = write_checkpoint(tmp_path / "checkpoint", task, tiny_config, tokenizer, LABELS.get(task, ()))
    plan = ExportPlan(calibration=calibration_of(task, tmp_path / "texts.jsonl"), rounding="nearest")
    exported = export(checkpoint, tmp_path / "onnx", precision=precision, plan=plan, packed=True)
    assert exported.quantization is not None
    assert exported.quantization.share > 0.9
    assert set(exported.checks["onnxruntime"]) >= SHARED


def test_what_leaves_fp16_is_seen_in_packed_rows(
    classifier: Path, texts: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("bertfast.export.overflow.HEADROOM", 7.0)  # 65,504 is less than 7 masked scores
    kept = export(
        classifier, tmp_path / "onnx", precision=Precision.FP16, plan=ExportPlan(calibration=texts), packed=True
    ).kept_in_fp32
    assert "mask/Where" in kept
    assert artifact.open_manifest(tmp_path / "onnx").settings["kept_in_fp32"] == dict(kept)


def test_a_graph_that_sees_its_neighbours_is_not_published(
    classifier: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("bertfast.export.inputs.MASKED_SCORE", 0.0)
    with pytest.raises(CheckError, match="differs from the source .* Nothing was published"):
        export(classifier, tmp_path / "onnx", packed=True)
    assert not (tmp_path / "onnx").exists()


def test_padding_is_not_counted_where_it_is_not_computed(packed: Path, exported: Path) -> None:
    encoded = open_served(packed).context.tokenizer.encode([("a", None), ("The old bridge crosses a river.", None)], 32)
    batch = pad(encoded, 0)
    counted = []
    for artefact in (exported, packed):
        with open_backend(open_served(artefact), "onnxruntime") as backend:
            counted.append(backend.computed_tokens(batch))
    assert counted == [batch.input_ids.size, batch.real_tokens]
    assert counted[0] > counted[1]


def test_runtimes_that_take_padding_refuse_it_by_name(packed: Path) -> None:
    assert backends_for(open_served(packed)) == list(RUNTIMES)
    for name in ("tensorrt-rtx", "onnxruntime-tensorrt"):
        with pytest.raises(BackendError, match=f"{name} takes rows with padding, and the graph of .* is packed"):
            open_backend(open_served(packed), name)
    with pytest.raises(
        BackendError, match=r"onnxruntime-cuda takes rows with padding, .*--backend onnxruntime or openvino, or export"
    ):
        open_backend(open_served(packed), "onnxruntime-cuda")


def test_no_engine_is_built_of_it_yet(packed: Path) -> None:
    with pytest.raises(ArtifactError, match=r"is packed, .*profiles.*Export it without --packed"):
        open_source(packed)


def test_the_command_line_exports_and_predicts(classifier: Path, tmp_path: Path) -> None:
    result = CliRunner().invoke(app, ["export", str(classifier), "--out", str(tmp_path / "onnx"), "--packed"])
    assert result.exit_code == 0, result.output
    assert set(json.loads(result.stdout)["largest_relative_error"]) == set(RUNTIMES)
    result = CliRunner().invoke(app, ["predict", str(tmp_path / "onnx")], input='{"text": "The river."}\n')
    assert result.exit_code == 0, result.output
    assert json.loads(result.stdout)["label"] in ("building", "nature", "tool")


@pytest.mark.parametrize("form", ["fp32", "int8", "fp16"])
def test_tensorrt_for_rtx_builds_it(
    form: str, packed: Path, int8: tuple[Path, Exported], encoder: Path, tmp_path: Path
) -> None:
    """Without a GPU; no backend of ours runs such a plan yet."""
    pytest.importorskip("tensorrt_rtx")
    file = {"fp32": packed / "model.onnx", "int8": int8[0] / ENGINE_FILE}.get(form, tmp_path / "onnx" / "model.onnx")
    if form == "fp16":
        export(encoder, tmp_path / "onnx", precision=Precision.FP16, packed=True)
    network = read_network("tensorrt-rtx", file)
    config = network.builder.create_builder_config()
    config.num_compute_capabilities = 1
    config.set_compute_capability(network.library.ComputeCapability.SM86, 0)
    profile = network.builder.create_optimization_profile()
    for name in PACKED_INPUTS[:-1]:
        profile.set_shape(name, (1, 1), (1, 256), (1, 512))
    profile.set_shape(PACKED_INPUTS[-1], (1,), (8,), (32,))
    config.add_optimization_profile(profile)
    assert network.builder.build_serialized_network(network.definition, config) is not None, network.errors
