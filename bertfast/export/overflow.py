"""Which tensors leave the range of fp16, seen on real text."""

from __future__ import annotations

import tempfile
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
from onnx import TensorProto, helper

from bertfast.export.storage import float_values, save
from bertfast.text.batch import Int64

Inputs = Mapping[str, Int64]

FP16_LARGEST = 65504.0
# Other texts may reach further than those that were seen.
HEADROOM = 4.0
_SUFFIX = "/extreme"


def overflows(model: onnx.ModelProto, batches: Iterable[Inputs]) -> dict[str, float]:
    """The largest magnitude of every tensor of a float32 graph that comes too near to what fp16 can hold."""
    return {name: value for name, value in extremes(model, batches).items() if not value * HEADROOM <= FP16_LARGEST}


def extremes(model: onnx.ModelProto, batches: Iterable[Inputs]) -> dict[str, float]:
    """The largest magnitude of every float32 tensor between inputs and outputs, node by node as the graph has them.

    Args:
        batches: the graph's inputs, without padding, since padding is computed too and means nothing.
    """
    names = float_values(model)
    session = _watched(model, names)
    found = dict.fromkeys(names, 0.0)
    for batch in batches:
        values = session.run([f"{name}{_SUFFIX}" for name in names], dict(batch))
        found = {name: float(np.maximum(found[name], value)) for name, value in zip(names, values, strict=True)}
    return found


def _watched(model: onnx.ModelProto, names: Sequence[str]) -> onnxruntime.InferenceSession:
    """The graph as it stands, with the largest magnitudes as its outputs."""
    watched = onnx.ModelProto()
    watched.CopyFrom(model)
    del watched.graph.output[:]
    for name in names:
        watched.graph.node.append(helper.make_node("Abs", [name], [f"{name}/magnitude"]))
        watched.graph.node.append(helper.make_node("ReduceMax", [f"{name}/magnitude"], [name + _SUFFIX], keepdims=0))
        watched.graph.output.append(helper.make_tensor_value_info(name + _SUFFIX, TensorProto.FLOAT, []))
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.log_severity_level = 3
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "watched.onnx"
        save(watched, file)
        return onnxruntime.InferenceSession(file, options, providers=["CPUExecutionProvider"])
