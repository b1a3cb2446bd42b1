"""Graphs in files and in the hands of onnx's own passes, whatever they weigh.

A protobuf ends at 2 GB. Weights beyond that lie in a file beside the graph, as ONNX's external data; every runtime
finds them by the graph's own path.
"""

from __future__ import annotations

from pathlib import Path

import onnx
from onnx import TensorProto

MOST_BYTES = 2_000_000_000  # of weights within a graph's file: nodes want room too below protobuf's 2**31
_SMALL = 1024  # constants that shapes are inferred from stay in the graph, in bytes


def save(model: onnx.ModelProto, file: Path) -> None:
    """Write a graph; where its weights are too many for one file, they go to one beside it, called FILE.data."""
    if sum(len(item.raw_data) for item in model.graph.initializer) <= MOST_BYTES:
        onnx.save(model, file)
        return
    beside = file.with_name(f"{file.name}.data")
    emptied = _copy(model)  # which saving takes the weights out of
    beside.unlink(missing_ok=True)  # onnx would add to it
    onnx.save(emptied, file, save_as_external_data=True, location=beside.name, size_threshold=_SMALL)
    beside.chmod(file.stat().st_mode)  # onnx lets nobody but the owner read it


def files_of(file: Path) -> list[Path]:
    """The file of a graph and those that its weights lie in, whether they are there or not.

    Raises:
        google.protobuf.message.DecodeError: it is no ONNX, or a part of one.
    """
    initializers = onnx.load(file, load_external_data=False).graph.initializer
    entries = (entry for item in initializers for entry in item.external_data if entry.key == "location")
    return [file, *(file.parent / name for name in sorted({entry.value for entry in entries}))]


def inferred(model: onnx.ModelProto) -> onnx.GraphProto:
    """The graph with the type and shape of every value, and without its weights."""
    light = _copy(model)
    for item in light.graph.initializer:
        if len(item.raw_data) >= _SMALL:
            item.ClearField("raw_data")
            item.data_location = TensorProto.EXTERNAL
    return onnx.shape_inference.infer_shapes(light).graph


def float_values(model: onnx.ModelProto) -> list[str]:
    """The values of a graph that are in float32, neither inputs nor constants."""
    graph = inferred(model)
    values = (*graph.value_info, *graph.output)
    return [value.name for value in values if value.type.tensor_type.elem_type == TensorProto.FLOAT]


def _copy(model: onnx.ModelProto) -> onnx.ModelProto:
    copied = onnx.ModelProto()
    copied.CopyFrom(model)
    return copied
