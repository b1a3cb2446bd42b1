"""Graphs in 16 bit and in FP8, and what of them stays in fp32."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper
from onnx.reference import ReferenceEvaluator
from safetensors.numpy import load_file, save_file

from bertfast import artifact
from bertfast.backends import open_backend, open_served
from bertfast.backends.predictor import load
from bertfast.config import ModelConfig, Precision
from bertfast.errors import AccuracyError
from bertfast.export.dev import DevRows, Loss
from bertfast.export.export import export
from bertfast.export.overflow import HEADROOM, extremes, overflows
from bertfast.export.plan import ExportPlan
from bertfast.export.typed import typed
from bertfast.text.tokenizer import Tokenizer
from tests.conftest import labelled_rows, write_checkpoint, write_rows

LAYER = "bert.encoder.layer.1"


@pytest.fixture(scope="module")
def texts(tmp_path_factory: pytest.TempPathFactory) -> Path:
    rows = [{"text": row["text"]} for row in labelled_rows(160, 4)]
    return write_rows(tmp_path_factory.mktemp("texts") / "texts.jsonl", rows)


@pytest.fixture
def overflowing(classifier: Path, tmp_path: Path) -> Path:
    """The same function, for a ReLU, with values between two Linears that fp16 cannot hold."""
    folder = tmp_path / "overflowing"
    folder.mkdir()
    for file in ("tokenizer.json", "vocab.txt"):
        if (classifier / file).is_file():
            (folder / file).write_bytes((classifier / file).read_bytes())
    config = (classifier / "config.json").read_text()
    (folder / "config.json").write_text(config.replace('"hidden_act": "gelu"', '"hidden_act": "relu"'))
    weights = load_file(classifier / "model.safetensors")
    weights[f"{LAYER}.intermediate.dense.weight"] *= 2.0**20
    weights[f"{LAYER}.intermediate.dense.bias"] *= 2.0**20
    weights[f"{LAYER}.output.dense.weight"] /= 2.0**20
    save_file(weights, folder / "model.safetensors", {"format": "pt"})
    return folder


def types_of(path: Path) -> dict[str, Counter[int]]:
    """How many constants of each type a graph's MatMuls multiply by, and the types of all others."""
    graph = onnx.load(path).graph
    products = {node.input[1] for node in graph.node if node.op_type == "MatMul"}
    return {
        "products": Counter(item.data_type for item in graph.initializer if item.name in products),
        "all": Counter(item.data_type for item in graph.initializer),
    }


@pytest.mark.parametrize(
    ("precision", "kind", "runtime"),
    [(Precision.FP16, TensorProto.FLOAT16, "onnxruntime"), (Precision.BF16, TensorProto.BFLOAT16, "openvino")],
)
def test_weights_are_in_16_bit_and_outputs_in_32(
    classifier: Path, tmp_path: Path, precision: Precision, kind: int, runtime: str
) -> None:
    exported = export(classifier, tmp_path / "onnx", precision=precision)
    assert set(exported.checks) == {runtime}
    assert 1e-5 < max(exported.checks[runtime].values()) < 2e-2  # an error of 0 would be fp32
    found = types_of(tmp_path / "onnx" / "model.onnx")
    assert set(found["products"]) == {kind}
    assert TensorProto.FLOAT not in found["all"]
    (output,) = onnx.load(tmp_path / "onnx" / "model.onnx").graph.output
    assert output.type.tensor_type.elem_type == TensorProto.FLOAT


def test_a_cpu_without_fp16_says_that_it_emulates(classifier: Path, tmp_path: Path) -> None:
    export(classifier, tmp_path / "onnx", precision=Precision.FP16)
    with open_backend(open_served(tmp_path / "onnx")) as backend:
        assert (backend.precision, backend.emulated) == (Precision.FP16, True)
    with open_backend(open_served(classifier)) as backend:
        assert not backend.emulated


def test_a_planted_overflow_is_named_and_mended(overflowing: Path, texts: Path, tmp_path: Path) -> None:
    exported = export(overflowing, tmp_path / "onnx", precision=Precision.FP16, plan=ExportPlan(calibration=texts))
    names = set(exported.kept_in_fp32)
    assert {f"{LAYER}.intermediate.dense/MatMul", f"{LAYER}.intermediate/Relu"} <= names
    assert all(name.startswith(f"{LAYER}.intermediate") for name in names)
    assert all(value * HEADROOM > 65504 for value in exported.kept_in_fp32.values())
    assert artifact.open_manifest(tmp_path / "onnx").settings["kept_in_fp32"] == exported.kept_in_fp32
    texts_of_it = [row["text"] for row in labelled_rows(20, 9)]
    with load(overflowing, "torch") as source, load(tmp_path / "onnx") as half:
        wanted, found = source.predict(texts_of_it), half.predict(texts_of_it)
    assert [a["label"] for a in found] == [a["label"] for a in wanted]
    assert max(abs(a["score"] - b["score"]) for a, b in zip(found, wanted, strict=True)) < 0.01


def test_without_the_guard_the_planted_overflow_breaks_the_numbers(overflowing: Path, tmp_path: Path) -> None:
    export(overflowing, tmp_path / "fp32")
    graph = onnx.load(tmp_path / "fp32" / "model.onnx")
    ids = np.arange(5, 13, dtype=np.int64)[None]
    inputs = {"input_ids": ids, "attention_mask": ids * 0 + 1, "token_type_ids": ids * 0}
    kept = overflows(graph, [inputs])
    with np.errstate(all="ignore"):  # onnxruntime would leave out the rounding between nodes that it computes in fp32
        plain, mended = (
            ReferenceEvaluator(typed(graph, Precision.FP16, islands)).run(None, inputs)[0] for islands in ((), kept)
        )
    (wanted,) = ReferenceEvaluator(graph).run(None, inputs)
    assert not np.isfinite(plain).all()
    assert mended == pytest.approx(wanted, abs=1e-2)


def test_extremes_are_those_of_each_tensor() -> None:
    nodes = [helper.make_node("Mul", ["x", "ten"], ["m"], "m"), helper.make_node("Sub", ["m", "ten"], ["y"], "y")]
    x, y = (helper.make_tensor_value_info(name, TensorProto.FLOAT, ["n"]) for name in "xy")
    ten = numpy_helper.from_array(np.float32(10), "ten")
    opset = [helper.make_opsetid("", 21)]
    model = helper.make_model(helper.make_graph(nodes, "g", [x], [y], [ten]), opset_imports=opset, ir_version=10)

    def given(*values: float) -> dict[str, np.ndarray]:
        return {"x": np.array(values, np.float32)}

    assert extremes(model, [given(1, -3), given(2)]) == {"m": 30, "y": 40}
    assert overflows(model, [given(1637)]) == {}
    assert overflows(model, [given(1639)]) == {"m": 16390, "y": 16380}
    assert set(overflows(model, [given(float("nan")), given(1)])) == {"m", "y"}


def test_fp8_products_have_e4m3_weights_with_fp16_around(classifier: Path, texts: Path, tmp_path: Path) -> None:
    exported = export(classifier, tmp_path / "fp8", precision=Precision.FP8, plan=ExportPlan(calibration=texts))
    assert exported.quantization is not None
    assert exported.quantization.share >= 0.9
    assert {row.executed for row in exported.quantization.products} <= {"fp8", "restored"}
    assert 1e-4 < max(exported.checks["onnxruntime"].values()) < 0.05
    graph = onnx.load(tmp_path / "fp8" / "model.onnx").graph
    kinds = Counter(item.data_type for item in graph.initializer if item.name.endswith(".steps"))
    assert set(kinds) == {TensorProto.FLOAT8E4M3FN}
    scales = {item.data_type for item in graph.initializer if item.name.endswith(("scale",))}
    assert scales == {TensorProto.FLOAT16}
    with open_backend(open_served(tmp_path / "fp8")) as backend:
        assert (backend.precision, backend.emulated) == (Precision.FP8, True)


def test_pooling_stays_in_fp32(tiny_config: ModelConfig, tokenizer: Tokenizer, tmp_path: Path) -> None:
    checkpoint = write_checkpoint(tmp_path / "checkpoint", "embed", tiny_config, tokenizer, ())
    assert max(export(checkpoint, tmp_path / "onnx", precision=Precision.FP16).checks["onnxruntime"].values()) < 1e-2
    graph = onnx.load(tmp_path / "onnx" / "model.onnx").graph
    shortest = next(item for item in graph.initializer if item.name.startswith("shortest"))
    assert numpy_helper.to_array(shortest) > 0
    assert shortest.data_type == TensorProto.FLOAT


def test_rows_are_held_in_every_precision(classifier: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    dev = write_rows(tmp_path / "dev.jsonl", labelled_rows(40, 8))
    plan = ExportPlan(dev=dev, max_drop=1.0)
    assert set(export(classifier, tmp_path / "good", precision=Precision.FP16, plan=plan).losses) == {"onnxruntime"}
    monkeypatch.setattr(DevRows, "compare", lambda self, run: Loss(drop=1.5, flips=1))
    with pytest.raises(
        AccuracyError, match=r"fp16 loses 1\.50 points in onnxruntime on 40 rows, .*, and 1 is the limit"
    ):
        export(classifier, tmp_path / "bad", precision=Precision.FP16, plan=plan)
    assert not (tmp_path / "bad").exists()


def test_e4m3_is_rounded_as_torch_rounds_it_and_never_overflows() -> None:
    from bertfast.quantize.fit import round_inputs

    values = torch.tensor([0.0, 1.0, 1.06, 500.0, -1e6, 2.0**-9])
    assert round_inputs(values, 1.0, "fp8").tolist() == [0.0, 1.0, 1.0, 448.0, -448.0, 2.0**-9]
