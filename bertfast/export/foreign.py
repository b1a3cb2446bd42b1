"""A graph that others have exported: our signature around it, and what it says of its precision."""

from __future__ import annotations

from collections.abc import Mapping
from math import prod
from pathlib import Path

import onnx
from onnx import TensorProto, ValueInfoProto, helper

from bertfast.config import Precision
from bertfast.errors import ArtifactError
from bertfast.export.storage import inferred
from bertfast.tasks import Task
from bertfast.text.batch import INPUTS

# Google's names, as converters of TensorFlow's graphs keep them, and that of sentence-transformers
_NAMES = {"input_mask": "attention_mask", "segment_ids": "token_type_ids", "sentence_embedding": "embedding"}
_IDS = (TensorProto.INT64, TensorProto.INT32)
_FORMATS = {
    TensorProto.FLOAT16: Precision.FP16,
    TensorProto.BFLOAT16: Precision.BF16,
    TensorProto.FLOAT: Precision.FP32,
}
_INTEGERS = (TensorProto.INT8, TensorProto.UINT8)
_INTEGER_PRODUCTS = ("MatMulInteger", "DynamicQuantizeMatMul", "QLinearMatMul")
_PRODUCTS = ("MatMul", "Gemm")
_THEIRS = "theirs/"

Values = Mapping[str, ValueInfoProto]


def with_our_signature(model: onnx.ModelProto, file: Path, task: Task, labels: int) -> onnx.ModelProto:
    """The same graph with int64 inputs [batch, sequence] under our names, and its task's outputs in float32.

    Args:
        file: where it comes from.
        labels: how many classes its logits have; 0 where the task has none.
    Raises:
        ArtifactError: an input or an output is none of these, or has a fixed shape.
    """
    inputs, outputs = _inputs(model.graph, file), _outputs(model.graph, file, task, labels)
    body = onnx.compose.add_prefix(model, _THEIRS)
    before = [_cast(name, _THEIRS + value.name, _kind(value)) for name, value in inputs.items()]
    after = [_cast(_THEIRS + value.name, name, TensorProto.FLOAT) for name, value in outputs.items()]
    graph = helper.make_graph(
        [*before, *body.graph.node, *after],
        body.graph.name,
        [helper.make_tensor_value_info(name, TensorProto.INT64, ["batch", "sequence"]) for name in INPUTS],
        [helper.make_tensor_value_info(name, TensorProto.FLOAT, _shape(value)) for name, value in outputs.items()],
        body.graph.initializer,
    )
    return helper.make_model(
        graph,
        opset_imports=body.opset_import,
        functions=body.functions,
        producer_name=model.producer_name,
        ir_version=model.ir_version,
    )


def _inputs(graph: onnx.GraphProto, file: Path) -> Values:
    """Its inputs by our names."""
    constants = {item.name for item in graph.initializer}
    found = {_our_name(value.name): value for value in graph.input if value.name not in constants}
    takes = ", ".join(f"{value.name} {_shape(value)}" for value in found.values())
    known = all(name in INPUTS and _kind(value) in _IDS for name, value in found.items())
    if not known or not {"input_ids", "attention_mask"} <= set(found):
        raise ArtifactError(
            f"{file} takes {takes}. A graph of a BERT takes integers {', '.join(INPUTS)} (the last may be missing). "
            "Export it again from its checkpoint."
        )
    if any(isinstance(size, int) for value in found.values() for size in _shape(value)):
        raise ArtifactError(f"{file} takes {takes} alone. Export it again with dynamic batch and sequence.")
    return found


def _outputs(graph: onnx.GraphProto, file: Path, task: Task, labels: int) -> Values:
    """Its outputs by our names: those that are so called or, where there are as many, all in their order."""
    called = {_our_name(value.name): value for value in graph.output}
    if len(graph.output) == len(task.outputs) and not set(task.outputs) <= set(called):
        called = dict(zip(task.outputs, graph.output, strict=True))
    found = {name: called[name] for name in task.outputs if name in called}
    if len(found) < len(task.outputs) or not all(_fits(name, value, task, labels) for name, value in found.items()):
        gives = ", ".join(f"{value.name} {_shape(value)}" for value in graph.output)
        classes = f" of {labels} classes" if labels else ""
        raise ArtifactError(
            f"{file} gives {gives}, and {task.name} wants {' and '.join(task.outputs)}{classes}. Export it from its "
            "checkpoint: bertfast export CHECKPOINT --out DIR"
        )
    return found


def _fits(name: str, value: ValueInfoProto, task: Task, labels: int) -> bool:
    """Whether an output has the axes that its task decodes: batch, tokens if it is per token, classes or features."""
    shape = _shape(value)
    of_spans = name in ("start_logits", "end_logits")
    rank = 1 + (name in task.per_token) + (not of_spans)
    return len(shape) == rank and (not labels or shape[-1] == labels or isinstance(shape[-1], str))


def precision_of(model: onnx.ModelProto) -> tuple[Precision, int]:
    """What a graph's matrix products are in, by its types, and how many weights they multiply in INT8."""
    graph = inferred(model)
    constants = {item.name: item for item in graph.initializer}
    products = [node for node in graph.node if any(word in node.op_type for word in _PRODUCTS)]
    read = {name for node in products for name in node.input}
    eight_bits = {
        node.input[0] for node in graph.node if node.op_type == "DequantizeLinear" and node.output[0] in read
    } | {name for node in products if node.op_type in _INTEGER_PRODUCTS for name in node.input}
    weights = [constants[name] for name in eight_bits if name in constants]
    counted = sum(prod(item.dims) for item in weights if item.data_type in _INTEGERS and len(item.dims) == 2)
    if counted:
        return Precision.INT8, counted
    kinds = {value.name: _kind(value) for value in graph.value_info}
    kinds |= {name: item.data_type for name, item in constants.items()}
    found = {kinds.get(name) for name in read}
    return next((precision for kind, precision in _FORMATS.items() if kind in found), Precision.FP32), 0


def _our_name(name: str) -> str:
    name = name.partition(":")[0]
    return _NAMES.get(name, name)


def _cast(source: str, target: str, kind: int) -> onnx.NodeProto:
    return helper.make_node("Cast", [source], [target], f"adopt/{target}", to=kind)


def _kind(value: ValueInfoProto) -> int:
    return value.type.tensor_type.elem_type


def _shape(value: ValueInfoProto) -> list[int | str]:
    """Sizes, or the names of dynamic axes."""
    dims = value.type.tensor_type.shape.dim
    return [dim.dim_value if dim.HasField("dim_value") else dim.dim_param or "?" for dim in dims]
