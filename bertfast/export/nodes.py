"""The nodes and constants of an ONNX graph, as they are added."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import onnx
from onnx import helper, numpy_helper

from bertfast.quantize.product import QuantizedProduct

Attention = Literal["plain", "operator"]
Weights = Mapping[str, npt.NDArray[np.float32]]


@dataclass
class Graph:
    """Nodes and constants as they are added; every method returns the name of the value it adds.

    Attributes:
        quantized: the products that are in INT8 or FP8, by name.
        attention: its form.
    """

    weights: Weights
    quantized: Mapping[str, QuantizedProduct] = field(default_factory=dict)
    attention: Attention = "plain"
    nodes: list[onnx.NodeProto] = field(default_factory=list)
    constants: dict[str, onnx.TensorProto] = field(default_factory=dict)

    def op(self, kind: str, inputs: list[str], name: str, **attributes: Any) -> str:
        """Add a node; its output carries the node's name."""
        self.nodes.append(helper.make_node(kind, inputs, [name], name=name, **attributes))
        return name

    def constant(self, name: str, value: npt.ArrayLike, dtype: npt.DTypeLike = np.float32) -> str:
        """Add a constant once; the same name is the same value."""
        if name not in self.constants:
            self.constants[name] = numpy_helper.from_array(np.asarray(value, dtype), name)
        return name

    def parameter(self, name: str, *, transposed: bool = False) -> str:
        """Add a parameter of the model under its own name; `transposed` as the [in, out] operand of a MatMul."""
        value = self.weights[name]
        return self.constant(name, np.ascontiguousarray(value.T) if transposed else value)

    def linear(self, hidden: str, name: str) -> str:
        product = self.op("MatMul", [hidden, self.parameter(f"{name}.weight", transposed=True)], f"{name}/MatMul")
        return self.op("Add", [product, self.parameter(f"{name}.bias")], f"{name}/Add")

    def split(self, value: str, names: Sequence[str]) -> list[str]:
        """Equal parts of the last dimension."""
        parts = [f"{name}/Split" for name in names]
        self.nodes.append(helper.make_node("Split", [value], parts, parts[0], axis=-1, num_outputs=len(parts)))
        return parts

    def product(self, hidden: str, name: str, linears: Sequence[str] = ()) -> str:
        """A product of the encoder, or that part of it which belongs to some of its Linears; by default a product of
        one Linear, which has its name."""
        linears = linears or (name,)
        found = self.quantized.get(name)
        if found is None:
            return self.linear(hidden, name)
        if found.smoothing_K is not None:
            smoothing = self.constant(f"{name}.smoothing", 1 / found.smoothing_K)
            hidden = self.op("Mul", [hidden, smoothing], f"{linears[0]}/smoothed")
        part = slice(found.places[linears[0]].start, found.places[linears[-1]].stop)
        scale = self.constant(f"{name}.input_scale", found.input_scale)
        zero = self.constant(f"zero_{found.format}", 0, found.weight_KN.dtype)
        steps = self.op("QuantizeLinear", [hidden, scale, zero], f"{linears[0]}/QuantizeLinear")
        inputs = self.op("DequantizeLinear", [steps, scale, zero], f"{linears[0]}/DequantizeLinear")
        weight = self.constant(f"{linears[0]}.steps", found.weight_KN[:, part], found.weight_KN.dtype)
        of_weight = [weight, self.constant(f"{linears[0]}.scale", found.weight_scale_N[part])]
        weight = self.op("DequantizeLinear", of_weight, f"{linears[0]}.steps/DequantizeLinear", axis=1)
        product = self.op("MatMul", [inputs, weight], f"{linears[0]}/MatMul")
        return self.op("Add", [product, self.constant(f"{linears[0]}.bias", found.bias_N[part])], f"{linears[0]}/Add")

    def layer_norm(self, hidden: str, name: str, epsilon: float) -> str:
        inputs = [hidden, self.parameter(f"{name}.weight"), self.parameter(f"{name}.bias")]
        return self.op("LayerNormalization", inputs, f"{name}/LayerNormalization", axis=-1, epsilon=epsilon)

    def activation(self, hidden: str, name: str, kind: str) -> str:
        if kind == "relu":
            return self.op("Relu", [hidden], f"{name}/Relu")
        return self.op("Gelu", [hidden], f"{name}/Gelu", approximate="none" if kind == "gelu" else "tanh")
