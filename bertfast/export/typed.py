"""A graph in 16 bit: the same nodes with half the bytes, and fp32 left where 16 bit would not do.

TensorRT takes precision from the graph's own types, so an engine in fp16 is a graph in fp16. What stays in fp32 is
named: a tensor that leaves the range of fp16 on calibration text, the nodes that make and read it, and nodes whose
constants 16 bit cannot hold.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field

import ml_dtypes
import numpy as np
import numpy.typing as npt
import onnx
from onnx import TensorProto, helper, numpy_helper

from bertfast.config import Precision
from bertfast.export.storage import float_values

FLOAT_TYPES = {
    Precision.FP16: (TensorProto.FLOAT16, np.dtype(np.float16)),
    Precision.BF16: (TensorProto.BFLOAT16, np.dtype(ml_dtypes.bfloat16)),
}
# Pooling sums over all tokens and divides by lengths that may be tiny; it costs nothing beside the encoder.
KEPT_IN_FP32 = ("pooling/",)
WORST_CONSTANT = 0.01

Array = npt.NDArray[np.generic]


def typed(model: onnx.ModelProto, precision: Precision, islands: Collection[str] = ()) -> onnx.ModelProto:
    """The float32 graph in fp16 or bf16; its outputs stay float32.

    Args:
        model: as `build_graph` makes it, INT8 or FP8 products included: what is around them is retyped.
        islands: tensors that stay in float32, with the nodes that make or read them.
    """
    kind, dtype = FLOAT_TYPES[precision]
    constants = {item.name: numpy_helper.to_array(item) for item in model.graph.initializer}
    wide = _wide_nodes(model.graph, constants, dtype, frozenset(islands))
    types = _Types(constants, kind, dtype, frozenset(float_values(model)))
    outputs = {value.name for value in model.graph.output}
    for node in model.graph.node:
        types.add(node, TensorProto.FLOAT if node.name in wide else kind, outputs)
    graph = helper.make_graph(
        types.nodes, model.graph.name, model.graph.input, model.graph.output, list(types.initializers.values())
    )
    return helper.make_model(
        graph, opset_imports=model.opset_import, producer_name=model.producer_name, ir_version=model.ir_version
    )


@dataclass
class _Types:
    """The graph as it grows: each value in the type or types that its readers want.

    Attributes:
        floats: the values that are float32 in the source graph.
        made: the names under which a value is there, by type.
    """

    constants: Mapping[str, Array]
    kind: int
    dtype: np.dtype[np.generic]
    floats: frozenset[str]
    nodes: list[onnx.NodeProto] = field(default_factory=list)
    initializers: dict[str, onnx.TensorProto] = field(default_factory=dict)
    made: dict[str, dict[int, str]] = field(default_factory=dict)

    def add(self, source: onnx.NodeProto, kind: int, outputs: Collection[str]) -> None:
        """Add a node that computes in a type, and what turns its inputs to it."""
        inputs = [self.value(name, kind) for name in source.input]
        node = onnx.NodeProto()
        node.CopyFrom(source)
        del node.input[:]
        node.input.extend(inputs)
        for attribute in node.attribute:
            if node.op_type == "Cast" and attribute.name == "to" and attribute.i == TensorProto.FLOAT:
                attribute.i = kind
        self.nodes.append(node)
        for place, name in enumerate(source.output):
            if name in self.floats:
                self.made[name] = {kind: name}
            if name in outputs and kind != TensorProto.FLOAT:
                node.output[place] = f"{name}/{_name_of(kind)}"
                self.made[name] = {kind: node.output[place]}
                self._cast(name, kind, TensorProto.FLOAT, name)

    def value(self, name: str, kind: int) -> str:
        """The name of a value in a type."""
        if name in self.constants:
            return self._constant(name, kind)
        if name not in self.floats or kind in self.made[name]:
            return self.made.get(name, {}).get(kind, name)
        ((there, _),) = self.made[name].items()
        return self._cast(name, there, kind, f"{name}/{_name_of(kind)}")

    def _cast(self, name: str, there: int, kind: int, result: str) -> str:
        self.nodes.append(helper.make_node("Cast", [self.made[name][there]], [result], f"{result}/Cast", to=kind))
        self.made[name][kind] = result
        return result

    def _constant(self, name: str, kind: int) -> str:
        value = self.constants[name]
        wide = value.dtype == np.float32 and kind == TensorProto.FLOAT
        own = f"{name}/fp32" if wide else name
        if own not in self.initializers:
            narrow = value.dtype == np.float32 and not wide
            self.initializers[own] = numpy_helper.from_array(value.astype(self.dtype) if narrow else value, own)
        return own


_NAMES: dict[int, str] = {TensorProto.FLOAT: "fp32", TensorProto.FLOAT16: "fp16", TensorProto.BFLOAT16: "bf16"}


def _name_of(kind: int) -> str:
    return _NAMES[kind]


def _wide_nodes(
    graph: onnx.GraphProto, constants: Mapping[str, Array], dtype: np.dtype[np.generic], islands: frozenset[str]
) -> set[str]:
    """The names of the nodes that compute in float32."""
    unfit = {name for name, value in constants.items() if value.dtype == np.float32 and not _fits(value, dtype)}
    wide = {
        node.name
        for node in graph.node
        if node.name.startswith(KEPT_IN_FP32) or not (islands | unfit).isdisjoint((*node.input, *node.output))
    }
    before = -1
    while before != len(wide):
        before = len(wide)
        for node in graph.node:
            if node.op_type in ("QuantizeLinear", "DequantizeLinear"):
                _keep_together(node, list(_readers(graph, node)), wide)
    return wide


def _keep_together(node: onnx.NodeProto, readers: Sequence[onnx.NodeProto], wide: set[str]) -> None:
    """Nothing may stand between dequantising and product, so both have one type; scales are of that type too."""
    group = {node.name, *(reader.name for reader in readers)}
    if not wide.isdisjoint(group):
        wide |= group


def _readers(graph: onnx.GraphProto, node: onnx.NodeProto) -> Iterator[onnx.NodeProto]:
    return (reader for reader in graph.node if not set(node.output).isdisjoint(reader.input))


def _fits(value: Array, dtype: np.dtype[np.generic]) -> bool:
    """Whether 16 bit holds a constant: neither infinite nor, on the whole, lost below the smallest number."""
    exact = value.astype(np.float64)
    with np.errstate(over="ignore"):
        wrong = value.astype(dtype).astype(np.float64) - exact
    return bool(np.linalg.norm(wrong) <= WORST_CONSTANT * np.linalg.norm(exact))
