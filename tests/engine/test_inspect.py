"""Inspection. The inspector's JSON in these tests is made up, in the forms of TensorRT 10 and 11: no GPU has told it.
What is read from an ONNX, and from an engine without a GPU, is real."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from bertfast.config import Precision
from bertfast.engine.build import build, open_source
from bertfast.engine.inspect import Graph, inspect, judge, read_graph, read_layers
from bertfast.engine.recipe import Recipe
from bertfast.errors import BackendError
from bertfast.export.export import export
from bertfast.export.plan import ExportPlan
from tests.conftest import labelled_rows, write_rows


def made_up_10(name: str, kind: str, format_: str, onnx: str = "", tactic: str = "") -> dict[str, Any]:
    """A layer in the form of TensorRT 10."""
    tensor = {"Name": "t", "Dimensions": [1, 8], "Format/Datatype": f"Row major linear {format_} format"}
    metadata = f"[ONNX Layer: {onnx}]" if onnx else ""
    return {
        "Name": name,
        "LayerType": kind,
        "Inputs": [tensor],
        "Outputs": [tensor],
        "TacticName": tactic,
        "Metadata": metadata,
    }


def made_up_11(name: str, kind: str, format_: str, onnx: str = "", tactic: str = "") -> dict[str, Any]:
    """A layer in the form of TensorRT 11, which tells the type of a tensor for itself."""
    tensor = {"Name": "t", "Dimensions": [1, 8], "DataType": format_, "Format": "Row major linear (kLINEAR)"}
    return made_up_10(name, kind, format_, onnx, tactic) | {"Inputs": [tensor], "Outputs": [tensor]}


GRAPH = Graph(
    products={"int8": 2, "plain": 2},
    quantized=("layer.0/query/MatMul", "layer.0/dense/MatMul"),
    attentions=1,
    casts=0,
    weights_bytes={},
)


@pytest.mark.parametrize("form", [made_up_10, made_up_11])
def test_a_plan_that_does_what_its_graph_asks_for_draws_no_warning(form: Any) -> None:
    layers = [
        form("Reformatting CopyNode for Input Tensor 0", "Reformat", "Float"),
        form("__myl_Quant_1", "gemm", "Int8", onnx="layer.0/query/MatMul"),
        form("_gemm_mha_v2_myl0_2", "kgen", "Half", onnx="layer.0/context"),
        form("layer.0/dense/MatMul_myl0_3", "gemm", "Int8"),
        form("cast", "Cast", "BFloat16"),
        form("ids", "shuffle", "Int64"),
    ]
    found = judge(read_layers(json.dumps({"Layers": layers, "Bindings": []})), GRAPH, [100, 200])
    assert found.warnings == ()
    assert found.layers == {"fp32": 1, "int8": 2, "fp16": 1, "bf16": 1, "other": 1}
    assert (found.fused_attentions, found.reformats, found.casts, found.memory_bytes) == (1, 1, 1, (100, 200))


def test_what_was_hoped_for_and_is_not_there_is_named() -> None:
    layers = [
        made_up_11("fallen back", "gemm", "Half", onnx="layer.0/query/MatMul"),
        made_up_11("softmax", "kgen", "Half"),
        made_up_11("dense", "gemm", "FP8", onnx="layer.0/dense/MatMul"),
    ]
    found = judge(read_layers(json.dumps({"Layers": layers})), GRAPH)
    attention, product = found.warnings
    assert attention.startswith("attention is one kernel in 0 of 1 layers")
    assert product == "'layer.0/query/MatMul' is quantised in the graph and reads fp16 in the plan"


def test_a_plan_that_tells_its_layers_names_alone_is_read() -> None:
    (layer,) = read_layers(json.dumps({"Layers": ["_gemm_mha_v2_myl0_2"]}))
    assert (layer.format, judge([layer], GRAPH).fused_attentions) == ("other", 1)


def test_a_kernel_that_is_named_by_its_tactic_counts() -> None:
    layer = made_up_10("attention", "kgen", "FP16", tactic="sm89_fmha_v2_flash_attention_fp16")
    assert judge(read_layers(json.dumps({"Layers": [layer]})), GRAPH).fused_attentions == 1


def test_the_graph_of_fp32_has_plain_products_alone(exported: Path) -> None:
    graph = read_graph(exported / "model.onnx")
    assert graph.products == {"plain": 2 + 8 * 2}
    assert (graph.attentions, graph.casts, graph.quantized) == (2, 1, ())
    assert graph.weights_bytes["fp32"] > 0.8 * (exported / "model.onnx").stat().st_size


def test_without_a_gpu_the_rest_is_told_and_why(
    classifier: Path, engine: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def no_driver() -> None:
        raise BackendError("there is no NVIDIA driver here")

    monkeypatch.setattr("bertfast.engine.library.first_gpu", no_driver)
    found = inspect(engine)
    assert found.plans == {target: (engine / f"{target}.plan").stat().st_size for target in ("SM86", "SM120")}
    assert (found.compiled, found.unseen) == (None, "there is no NVIDIA driver here")
    texts = write_rows(tmp_path / "texts.jsonl", [{"text": row["text"]} for row in labelled_rows(160, 4)])
    export(classifier, tmp_path / "int8", precision=Precision.INT8, plan=ExportPlan(calibration=texts))
    recipe = Recipe(library="tensorrt-rtx", profiles=found.engine.profiles, targets=("SM89",))
    source = open_source(tmp_path / "int8")
    build(source, tmp_path / "engine", recipe)
    graph = inspect(tmp_path / "engine").graph
    assert graph.products["int8"] == len(graph.quantized) > 0
    assert graph.weights_bytes["int8"] >= source.manifest.settings["quantization"]["quantized_weights"]
