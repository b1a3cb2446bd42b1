"""TensorRT for RTX itself, without a GPU: what it parses and what it builds for whom."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path
from typing import Any
from unittest.mock import Mock

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

from bertfast.backends.engine_plan import read_engine
from bertfast.backends.gpu import Gpu
from bertfast.backends.library import load_library
from bertfast.config import ShapeProfile
from bertfast.engine.build import _FIRST_TARGET, _FORMATS, build, open_source
from bertfast.engine.inspect import read_graph
from bertfast.engine.library import Product, _configure, build_plan, cuda_version, describe_plan, products, read_network
from bertfast.engine.recipe import TARGETS, Recipe
from bertfast.errors import BackendError, EngineError

WIDTH = 32
PROFILE = ShapeProfile(batch=(1, 2, 4), length=(WIDTH, WIDTH, WIDTH))
FORMATS = {"float": TensorProto.FLOAT, "half": TensorProto.FLOAT16, "bf16": TensorProto.BFLOAT16}
QUANTIZED = {"int8": TensorProto.INT8, "fp8": TensorProto.FLOAT8E4M3FN}


def product(operands: str, around: str, file: Path) -> Path:
    """A graph of one product, with Q/DQ around it where its operands are another format than its result."""
    kind, shape = FORMATS[around], (WIDTH, WIDTH)
    ones = np.ones(WIDTH * WIDTH).tolist()
    nodes = [helper.make_node("Cast", ["x"], ["left"], to=kind)]
    constants = [helper.make_tensor("right", kind, shape, ones)]
    if operands != around:
        step = QUANTIZED[operands]
        constants = [
            helper.make_tensor("scale", kind, (), [0.5]),
            helper.make_tensor("zero", step, (), [0]),
            helper.make_tensor("steps", step, shape, ones),
            helper.make_tensor("scales", kind, (WIDTH,), [0.5] * WIDTH),
            helper.make_tensor("zeros", step, (WIDTH,), [0] * WIDTH),
        ]
        nodes += [
            helper.make_node("QuantizeLinear", ["left", "scale", "zero"], ["q"]),
            helper.make_node("DequantizeLinear", ["q", "scale", "zero"], ["dq"]),
            helper.make_node("DequantizeLinear", ["steps", "scales", "zeros"], ["right"], axis=1),
        ]
    left = "left" if operands == around else "dq"
    nodes.append(helper.make_node("MatMul", [left, "right"], ["product"], name="the/MatMul"))
    nodes.append(helper.make_node("Cast", ["product"], ["y"], to=TensorProto.FLOAT))
    x, y = (helper.make_tensor_value_info(name, TensorProto.FLOAT, ["batch", WIDTH]) for name in "xy")
    graph = helper.make_graph(nodes, "product", [x], [y], constants)
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10), file)
    return file


@pytest.mark.parametrize(
    ("operands", "around"),
    [("float", "float"), ("half", "half"), ("bf16", "bf16"), ("int8", "half"), ("int8", "float"), ("fp8", "half")],
)
def test_the_first_target_of_each_format_is_what_the_library_builds_for(
    operands: str, around: str, tmp_path: Path
) -> None:
    network = read_network("tensorrt-rtx", product(operands, around, tmp_path / "product.onnx"))
    (found,) = products(network)
    assert found == Product(found.name, operands, around, WIDTH * WIDTH)
    assert found.name.startswith("the/MatMul")
    first = max(_FIRST_TARGET[_FORMATS[format_]] for format_ in (operands, around))
    for target in TARGETS:
        recipe = Recipe(library="tensorrt-rtx", profiles=(PROFILE,), targets=(target,))
        if int(target.removeprefix("SM")) >= first:
            assert build_plan(network, recipe, recipe.profiles, target, b"")[0]
        else:
            with pytest.raises(EngineError, match=f"no plan for {target} was built: .*Error"):
                build_plan(network, recipe, recipe.profiles, target, b"")


@pytest.mark.parametrize("plain", [0, 1])
def test_a_product_with_one_plain_operand_is_not_in_eight_bits(plain: int, tmp_path: Path) -> None:
    """Weights in INT8 whose inputs are not quantised are stored in INT8 and multiplied in fp16."""
    file = product("int8", "half", tmp_path / "product.onnx")
    model = onnx.load(file)
    (matmul,) = [node for node in model.graph.node if node.op_type == "MatMul"]
    model.graph.initializer.append(helper.make_tensor("plain", FORMATS["half"], (WIDTH, WIDTH), np.ones(WIDTH * WIDTH)))
    matmul.input[plain] = ("left", "plain")[plain]
    onnx.save(model, file)
    (found,) = products(read_network("tensorrt-rtx", file))
    assert (found.operands, found.around) == ("half", "half")
    assert read_graph(file).products == {"plain": 1}


def test_an_operator_that_is_not_known_is_named_with_its_node(tmp_path: Path) -> None:
    node = helper.make_node("Antigravity", ["x"], ["y"], name="layer.3/lift", domain="elsewhere")
    x, y = (helper.make_tensor_value_info(name, TensorProto.FLOAT, [1]) for name in "xy")
    opsets = [helper.make_opsetid("", 21), helper.make_opsetid("elsewhere", 1)]
    model = helper.make_model(helper.make_graph([node], "graph", [x], [y]), opset_imports=opsets, ir_version=10)
    onnx.save(model, tmp_path / "model.onnx")
    with pytest.raises(EngineError, match=r"model.onnx is not built: node 'layer.3/lift' of operator Antigravity: .+"):
        read_network("tensorrt-rtx", tmp_path / "model.onnx")


def test_a_file_that_is_no_onnx_is_named(tmp_path: Path) -> None:
    (tmp_path / "model.onnx").write_bytes(b"no graph")
    with pytest.raises(EngineError, match=r"model.onnx is not built: .+"):
        read_network("tensorrt-rtx", tmp_path / "model.onnx")


def test_a_workspace_that_is_too_small_is_told_in_the_library_s_words(tmp_path: Path, exported: Path) -> None:
    network = read_network("tensorrt-rtx", exported / "model.onnx")
    profile = ShapeProfile(batch=(1, 2, 4), length=(1, 16, 64))
    recipe = Recipe(library="tensorrt-rtx", profiles=(profile,), targets=("SM86",), workspace_bytes=16)
    with pytest.raises(EngineError, match="no plan for SM86 was built: .*workspace"):
        build_plan(network, recipe, recipe.profiles, "SM86", b"")


def test_a_library_that_is_missing_comes_with_its_extra() -> None:
    """TensorRT itself is in no extra that a developer has: its wheels lie outside PyPI."""
    with pytest.raises(BackendError, match=re.escape("pip install 'bertfast[gpu]'")):
        load_library("tensorrt")


def test_a_builder_that_finds_no_cuda_says_what_is_missing(
    exported: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """TensorRT's bindings raise TypeError where the library makes no builder."""
    library = load_library("tensorrt-rtx")

    def builder(logger: Any) -> None:
        logger.log(library.ILogger.ERROR, "CUDA initialization failure with error: 35.")
        raise TypeError("pybind11::init(): factory function returned nullptr")

    def no_driver() -> Gpu:
        raise BackendError("there is no NVIDIA driver here")

    monkeypatch.setattr("bertfast.engine.library.load_library", lambda name: library)
    monkeypatch.setattr(library, "Builder", builder)
    recipe = Recipe(library="tensorrt", profiles=(ShapeProfile(batch=(1, 1, 1), length=(1, 8, 64)),))
    monkeypatch.setattr("bertfast.backends.library.first_gpu", no_driver)
    with pytest.raises(BackendError, match="there is no NVIDIA driver here"):
        build(open_source(exported), tmp_path / "engine", recipe)
    monkeypatch.setattr("bertfast.backends.library.first_gpu", lambda: Gpu("NVIDIA H100", "SM90", (12, 4)))
    with pytest.raises(
        BackendError, match=r"does not start on NVIDIA H100: .* error: 35\. The driver goes up to CUDA 12"
    ):
        build(open_source(exported), tmp_path / "engine", recipe)


def test_the_cuda_of_the_wheels_is_told() -> None:
    assert cuda_version("tensorrt-rtx") == "13"
    assert cuda_version("tensorrt") is None


def test_a_plan_that_the_library_does_not_load_is_told_in_its_words(
    engine: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A GPU that is not here: the library finds none when it loads the plan."""
    monkeypatch.setattr("bertfast.engine.library.first_gpu", lambda: Gpu("NVIDIA RTX 5090", "SM120", (13, 0)))
    _, record = read_engine(engine)
    with pytest.raises(EngineError, match=f"{engine} is not loaded: .+"):
        describe_plan(engine, record)
    monkeypatch.setattr("bertfast.engine.library.first_gpu", lambda: Gpu("NVIDIA L4", "SM89", (13, 0)))
    with pytest.raises(EngineError, match="built for SM86, SM120, and NVIDIA L4 has compute capability SM89"):
        describe_plan(engine, record)


def test_every_option_of_a_recipe_reaches_the_library(exported: Path) -> None:
    """What is for TensorRT is read back from the configuration of TensorRT for RTX, which has the same one."""
    network = read_network("tensorrt-rtx", exported / "model.onnx")
    trt = network.library
    short, long = (ShapeProfile(batch=(1, 2, 4), length=lengths) for lengths in ((1, 16, 32), (33, 48, 64)))
    options = {"optimization_level": 5, "workspace_bytes": 2**28, "timing_cache": True}
    recipe = Recipe(library="tensorrt", profiles=(short, long), **options)
    config = _configure(network, recipe, recipe.profiles, None)
    assert (config.builder_optimization_level, config.num_optimization_profiles) == (5, 2)
    assert config.get_memory_pool_limit(trt.MemoryPoolType.WORKSPACE) == 2**28
    plain = _configure(network, Recipe(library="tensorrt", profiles=(short,)), (short,), "SM89")
    assert not plain.get_flag(trt.BuilderFlag.TF32)  # fp32 is no 19 bit format
    assert plain.profiling_verbosity == trt.ProfilingVerbosity.DETAILED
    assert (plain.num_compute_capabilities, plain.get_compute_capability(0)) == (1, trt.ComputeCapability.SM89)


@pytest.mark.parametrize("level", ["ampere_plus", "same_compute_capability"])
def test_hardware_compatibility_is_asked_for(exported: Path, level: str) -> None:
    """TensorRT for RTX drops it without a word, so the builder is a stand-in."""
    network = replace(read_network("tensorrt-rtx", exported / "model.onnx"), builder=Mock())
    recipe = Recipe.model_validate({"library": "tensorrt", "profiles": [PROFILE], "hardware_compatibility": level})
    config = _configure(network, recipe, recipe.profiles, None)
    assert config.hardware_compatibility_level.name == level.upper()
