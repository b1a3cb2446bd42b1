from __future__ import annotations

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from bertfast.errors import CheckError
from bertfast.export.rules import check_rules

GOOD = {
    "scale": np.float32(0.1),
    "zero": np.int8(0),
    "steps": np.ones((16, 16), np.int8),
    "weight_scale": np.ones(16, np.float32),
}


def graph(axis: int = 1, reader: str = "MatMul", **constants: object) -> onnx.ModelProto:
    """A product in INT8; square, so that nothing but the axis tells outputs from inputs."""
    nodes = [
        helper.make_node("QuantizeLinear", ["x", "scale", "zero"], ["q"], name="inputs/Q"),
        helper.make_node("DequantizeLinear", ["q", "scale", "zero"], ["dq"], name="inputs/DQ"),
        helper.make_node("DequantizeLinear", ["steps", "weight_scale"], ["w"], name="weights/DQ", axis=axis),
        helper.make_node(reader, ["dq", "w"], ["y"], name="product"),
    ]
    values = {name: numpy_helper.from_array(np.asarray(value), name) for name, value in (GOOD | constants).items()}
    x, y = (helper.make_tensor_value_info(name, TensorProto.FLOAT, [None, 16]) for name in "xy")
    return helper.make_model(helper.make_graph(nodes, "product", [x], [y], list(values.values())))


def test_a_product_by_the_rules_passes() -> None:
    check_rules(graph())


@pytest.mark.parametrize(
    ("broken", "message"),
    [
        ({"axis": 0}, r"'weights/DQ': weights of shape \(16, 16\) have 16 scales along axis 0"),
        ({"weight_scale": np.float32(1)}, "'weights/DQ': .* have 1 scales along axis 1"),
        ({"zero": np.int8(3)}, "'inputs/Q': its zero-point is not the 0 of int8"),
        ({"zero": np.uint8(0)}, "'inputs/Q': its zero-point is not the 0 of int8"),
        ({"scale": np.float32(0)}, "'inputs/Q': a scale is not above 0"),
        ({"scale": np.float32("nan")}, "'inputs/Q': a scale is not above 0"),
        ({"scale": np.ones(16, np.float32)}, "'inputs/Q': inputs have 16 scales"),
        ({"steps": np.ones((8, 16), np.int8)}, r"'weights/DQ': weights of shape \(8, 16\) are narrower than the 16"),
        ({"reader": "Add"}, "'inputs/DQ': it feeds Add, and must feed a MatMul alone"),
    ],
)
def test_a_broken_rule_is_named_with_its_node(broken: dict[str, object], message: str) -> None:
    with pytest.raises(CheckError, match=message):
        check_rules(graph(**broken))  # type: ignore[arg-type]
