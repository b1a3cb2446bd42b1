"""The rules that TensorRT sets for INT8 and FP8, held to a graph before any runtime sees it.

A wrong axis builds without complaint and gives wrong numbers, and a zero-point is refused with a message that names
neither the node nor the reason.
"""

from __future__ import annotations

import ml_dtypes
import numpy as np
import onnx
from onnx import numpy_helper

from bertfast.errors import CheckError

LEAST_WIDTH = 16
_FORMATS = (np.dtype(np.int8), np.dtype(ml_dtypes.float8_e4m3fn))


def check_rules(model: onnx.ModelProto) -> None:
    """Check every QuantizeLinear and DequantizeLinear of a graph.

    Symmetric: zero-points are 0, of int8 or E4M3. Inputs have one scale; weights [K, N] have N along axis 1, and K and
    N are at least 16. Scales are above 0, and what is dequantised goes into MatMuls and nowhere else.

    Raises:
        CheckError: a node breaks a rule.
    """
    graph = model.graph
    constants = {item.name: numpy_helper.to_array(item) for item in graph.initializer}
    for node in graph.node:
        if node.op_type not in ("QuantizeLinear", "DequantizeLinear"):
            continue
        scale = constants[node.input[1]]
        if not (np.isfinite(scale) & (scale > 0)).all():
            raise _broken(node, "a scale is not above 0")
        zero = constants[node.input[2]] if len(node.input) > 2 else np.int8(0)
        if zero.dtype not in _FORMATS or zero.astype(np.float32).any():
            raise _broken(node, "its zero-point is not the 0 of int8 or E4M3, and only symmetric ranges are built")
        if node.input[0] in constants:
            _check_weights(node, constants[node.input[0]], scale)
        elif scale.shape:
            raise _broken(node, f"inputs have {scale.size} scales, and only one for the whole tensor is built")
        readers = [reader.op_type for reader in graph.node if node.output[0] in reader.input]
        if node.op_type == "DequantizeLinear" and set(readers) != {"MatMul"}:
            raise _broken(node, f"it feeds {', '.join(readers) or 'nothing'}, and must feed a MatMul alone")


def _check_weights(node: onnx.NodeProto, steps_KN: np.ndarray, scale: np.ndarray) -> None:
    axis = next((attribute.i for attribute in node.attribute if attribute.name == "axis"), 1)
    if axis != 1 or scale.shape != steps_KN.shape[1:]:
        raise _broken(
            node,
            f"weights of shape {steps_KN.shape} have {scale.size} scales along axis {axis}, and each output wants its "
            "own, along axis 1",
        )
    if min(steps_KN.shape) < LEAST_WIDTH:
        raise _broken(node, f"weights of shape {steps_KN.shape} are narrower than the {LEAST_WIDTH} that products want")


def _broken(node: onnx.NodeProto, why: str) -> CheckError:
    return CheckError(f"{node.op_type} '{node.name}': {why}. Nothing was published.")
