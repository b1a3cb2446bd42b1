"""TensorRT and TensorRT for RTX behind a few functions: the only place of the builder that calls either.

They have one API. What differs is asked for by feature: TensorRT 10.13 types strongly when told to, 11 and RTX always.
"""

from __future__ import annotations

import importlib
import importlib.metadata
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bertfast.backends.engine_plan import Library
from bertfast.config import ShapeProfile
from bertfast.engine.recipe import Recipe
from bertfast.errors import BackendError, EngineError

if TYPE_CHECKING:
    import tensorrt as trt

_MODULES: Mapping[Library, str] = {"tensorrt": "tensorrt", "tensorrt-rtx": "tensorrt_rtx"}
_EXTRAS: Mapping[Library, str] = {"tensorrt": "gpu", "tensorrt-rtx": "rtx"}


@dataclass(frozen=True)
class Network:
    """A graph as a library has read it; the parser owns the weights, so it lives as long.

    Attributes:
        library: the module.
        errors: what the library has logged as an error, as it goes on.
    """

    library: Any
    builder: trt.Builder
    definition: trt.INetworkDefinition
    parser: trt.OnnxParser
    errors: list[str]


@dataclass(frozen=True)
class Product:
    """A matrix product of a network.

    Attributes:
        operands: the format of what it multiplies, such as `int8` where both operands are dequantised.
        around: the format of its result, such as `float`.
        weights: how many weights it multiplies by; 0 where both operands are computed.
    """

    name: str
    operands: str
    around: str
    weights: int


def load_library(name: Library) -> Any:
    """The module of a library.

    Raises:
        BackendError: it is not installed, or is too old to build typed networks.
    """
    try:
        library = importlib.import_module(_MODULES[name])
    except ImportError as error:
        raise BackendError(f"{name} cannot be imported ({error}): pip install 'bertfast[{_EXTRAS[name]}]'") from None
    if not hasattr(library.NetworkDefinitionCreationFlag, "STRONGLY_TYPED"):
        raise BackendError(f"{name} {library.__version__} is too old: pip install 'bertfast[{_EXTRAS[name]}]'")
    return library


def cuda_version(name: Library) -> str | None:
    """The major version of CUDA that the installed wheels of a library are for, as their names tell it."""
    try:
        needed = importlib.metadata.requires(name) or []
    except importlib.metadata.PackageNotFoundError:
        return None
    found = re.search(r"_cu(\d+)", " ".join(needed))
    return found and found[1]


def make_logger(library: Any, errors: list[str]) -> trt.ILogger:
    """A logger that keeps errors for the message that names them, and drops the rest."""

    class Log(library.ILogger):  # type: ignore[misc]
        def __init__(self) -> None:
            library.ILogger.__init__(self)

        def log(self, severity: trt.ILogger.Severity, msg: str) -> None:
            if severity <= library.ILogger.ERROR:
                errors.append(msg)

    return Log()


def read_network(library: Any, onnx: Path) -> Network:
    """Parse an ONNX file.

    Raises:
        EngineError: an operator is not supported, or the file is no ONNX; node and operator are named.
    """
    errors: list[str] = []
    logger = make_logger(library, errors)
    builder: trt.Builder = library.Builder(logger)
    typed = 1 << int(library.NetworkDefinitionCreationFlag.STRONGLY_TYPED)
    definition: trt.INetworkDefinition = builder.create_network(typed)
    parser: trt.OnnxParser = library.OnnxParser(definition, logger)
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
    quantized = {
        layer.get_output(0).name: layer.get_input(0).dtype.name.lower()
        for layer in layers
        if layer.type == library.LayerType.DEQUANTIZE
    }
    found = []
    for layer in layers:
        if layer.type == library.LayerType.MATRIX_MULTIPLY:
            left, right = layer.get_input(0), layer.get_input(1)
            around = left.dtype.name.lower()
            weights = math.prod(right.shape) if min(right.shape) > 0 else 0
            found.append(Product(layer.name, quantized.get(left.name, around), around, weights))
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
    if recipe.timing_cache:
        config.set_timing_cache(config.create_timing_cache(cache), False)
    network.errors.clear()
    plan: trt.IHostMemory | None = network.builder.build_serialized_network(network.definition, config)
    if plan is None:
        said = network.errors[-1] if network.errors else "it says no more"
        raise EngineError(f"no plan for {target or 'the GPU that is here'} was built: {said}")
    timed = bytes(config.get_timing_cache().serialize()) if recipe.timing_cache else b""
    return bytes(plan), timed


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
    if recipe.version_compatible:
        config.set_flag(library.BuilderFlag.VERSION_COMPATIBLE)
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
        profile.set_shape(name, *zip(shapes.batch, shapes.length, strict=True))
    return profile
