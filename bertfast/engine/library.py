"""The builder of TensorRT and of TensorRT for RTX behind a few functions: nothing else of the package calls it."""

from __future__ import annotations

import importlib.metadata
import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bertfast.backends.engine_plan import EngineRecord, Here, Library, check_loadable, read_plan
from bertfast.backends.gpu import first_gpu
from bertfast.backends.library import TensorRT, load_library, said, start
from bertfast.config import ShapeProfile
from bertfast.engine.recipe import Recipe
from bertfast.errors import EngineError

if TYPE_CHECKING:
    import tensorrt as trt


@dataclass(frozen=True)
class Network:
    """A graph as a library has read it; the parser owns the weights, so it lives as long.

    Attributes:
        library: the module.
        errors: what the library has logged as an error, as it goes on.
    """

    library: TensorRT
    builder: trt.Builder
    definition: trt.INetworkDefinition
    parser: trt.OnnxParser
    errors: list[str]

    @property
    def version(self) -> str:
        """That of the library."""
        return self.library.__version__  # type: ignore[no-any-return]


@dataclass(frozen=True)
class Product:
    """A matrix product of a network.

    Attributes:
        operands: the format of what it multiplies, such as `int8` where both operands are dequantised from it.
        around: the format of its result, such as `float`.
        weights: how many weights it multiplies by; 0 where both operands are computed.
    """

    name: str
    operands: str
    around: str
    weights: int


def cuda_version(name: Library) -> str | None:
    """The major version of CUDA that the installed wheels of a library are for, as their names tell it."""
    try:
        needed = importlib.metadata.requires(name) or []
    except importlib.metadata.PackageNotFoundError:
        return None
    found = re.search(r"_cu(\d+)", " ".join(needed))
    return found and found[1]


def read_network(name: Library, onnx: Path) -> Network:
    """Parse an ONNX file.

    Raises:
        BackendError: the library is missing, or finds no GPU where it wants one.
        EngineError: an operator is not supported, or the file is no ONNX; node and operator are named.
    """
    library, errors = load_library(name), list[str]()
    builder: trt.Builder = start(library, library.Builder, errors)
    # 10.13 types strongly when it is told to, 11 and RTX always
    typed = 1 << int(library.NetworkDefinitionCreationFlag.STRONGLY_TYPED)
    definition: trt.INetworkDefinition = builder.create_network(typed)
    parser: trt.OnnxParser = library.OnnxParser(definition, builder.logger)
    if not parser.parse_from_file(str(onnx)):
        raise EngineError(f"{onnx} is not built: {_parse_error(parser)}")
    return Network(library, builder, definition, parser, errors)


def _parse_error(parser: trt.OnnxParser) -> str:
    if not parser.num_errors:
        return "the parser says no more."
    error: trt.ParserError = parser.get_error(parser.num_errors - 1)
    where = f"node '{error.node_name()}' of operator {error.node_operator()}: " if error.node_operator() else ""
    return f"{where}{error.desc().strip()}"


def products(network: Network) -> list[Product]:
    """The matrix products of a network, in its order."""
    library, definition = network.library, network.definition
    layers: list[trt.ILayer] = [definition.get_layer(number) for number in range(definition.num_layers)]
    quantized: dict[str, str | None] = {}
    found = []
    for layer in layers:
        if layer.type == library.LayerType.DEQUANTIZE:
            quantized[layer.get_output(0).name] = layer.get_input(0).dtype.name.lower()
        if layer.type == library.LayerType.SHUFFLE:  # the parser gives weights the rank of their inputs
            quantized[layer.get_output(0).name] = quantized.get(layer.get_input(0).name)
        if layer.type == library.LayerType.MATRIX_MULTIPLY:
            left, right = layer.get_input(0), layer.get_input(1)
            around = left.dtype.name.lower()
            steps = {quantized.get(left.name), quantized.get(right.name)}
            operands = steps.pop() if len(steps) == 1 else None
            weights = math.prod(right.shape) if min(right.shape) > 0 else 0
            found.append(Product(layer.name, operands or around, around, weights))
    return found


def build_plan(
    network: Network, recipe: Recipe, profiles: Sequence[ShapeProfile], target: str | None, cache: bytes
) -> tuple[bytes, bytes]:
    """Build a plan.

    Args:
        target: a compute capability (TensorRT for RTX); the GPU that is here when None.
        cache: a timing cache of an earlier build, or nothing.
    Returns:
        The plan, and the timing cache as it is now, empty where the recipe wants none.
    Raises:
        EngineError: the library refuses; its own words are given.
    """
    config = _configure(network, recipe, profiles, target)
    if recipe.timing_cache and not config.set_timing_cache(config.create_timing_cache(cache), False):
        config.set_timing_cache(config.create_timing_cache(b""), False)  # that one was of another GPU or version
    network.errors.clear()
    plan: Any = network.builder.build_serialized_network(network.definition, config)
    if plan is None:
        raise EngineError(f"no plan for {target or 'the GPU that is here'} was built: {said(network.errors)}")
    timed: Any = config.get_timing_cache().serialize() if recipe.timing_cache else b""
    return bytes(plan), bytes(timed)


def _configure(
    network: Network, recipe: Recipe, profiles: Sequence[ShapeProfile], target: str | None
) -> trt.IBuilderConfig:
    library = network.library
    config: trt.IBuilderConfig = network.builder.create_builder_config()
    config.profiling_verbosity = library.ProfilingVerbosity.DETAILED
    config.clear_flag(library.BuilderFlag.TF32)  # fp32 means fp32
    if recipe.optimization_level is not None:
        config.builder_optimization_level = recipe.optimization_level
    if recipe.workspace_bytes is not None:
        config.set_memory_pool_limit(library.MemoryPoolType.WORKSPACE, recipe.workspace_bytes)
    if recipe.hardware_compatibility == "ampere_plus":
        config.hardware_compatibility_level = library.HardwareCompatibilityLevel.AMPERE_PLUS
    if recipe.hardware_compatibility == "same_compute_capability":
        config.hardware_compatibility_level = library.HardwareCompatibilityLevel.SAME_COMPUTE_CAPABILITY
    if target is not None:
        config.num_compute_capabilities = 1
        config.set_compute_capability(library.ComputeCapability.__members__[target], 0)
    for profile in profiles:
        config.add_optimization_profile(_profile(network, profile))
    return config


def _profile(network: Network, shapes: ShapeProfile) -> trt.IOptimizationProfile:
    """The same shape for every input: they are all [batch, length]."""
    profile: trt.IOptimizationProfile = network.builder.create_optimization_profile()
    for number in range(network.definition.num_inputs):
        name = network.definition.get_input(number).name
        least, best, most = (
            network.library.Dims2(batch, length) for batch, length in zip(shapes.batch, shapes.length, strict=True)
        )
        profile.set_shape(name, least, best, most)
    return profile


@dataclass(frozen=True)
class Described:
    """What a library says of a plan that it has loaded.

    Attributes:
        layers: the inspector's JSON.
        memory_bytes: of the activations, for each profile.
    """

    layers: str
    memory_bytes: tuple[int, ...]


def describe_plan(path: Path, record: EngineRecord) -> Described:
    """Load the plan of an engine for the GPU that is here, and ask the inspector about it.

    Raises:
        BackendError: the library is missing, or there is no GPU.
        EngineError: the engine was not built for this library and this GPU, or is not loaded.
    """
    library, gpu = load_library(record.library), first_gpu()
    here = Here(record.library, library.__version__, gpu.name, gpu.compute_capability)
    plan = read_plan(path, check_loadable(path, record, here))
    errors: list[str] = []
    runtime: trt.Runtime = start(library, library.Runtime, errors)
    engine: trt.ICudaEngine | None = runtime.deserialize_cuda_engine(plan)
    if engine is None:
        raise EngineError(f"{path} is not loaded: {said(errors)}")
    inspector: trt.EngineInspector = engine.create_engine_inspector()
    memory = (engine.get_device_memory_size_for_profile_v2(place) for place in range(engine.num_optimization_profiles))
    return Described(inspector.get_engine_information(library.LayerInformationFormat.JSON), tuple(memory))
