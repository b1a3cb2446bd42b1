"""`bertfast doctor`: what this machine has, what is missing, and what to install."""

from __future__ import annotations

import importlib.metadata
import importlib.util
from collections.abc import Iterator, Set
from pathlib import Path
from typing import Any

from bertfast import artifact
from bertfast.backends import Availability, available, installed_version
from bertfast.backends.gpu import Gpu, first_gpu
from bertfast.backends.onnx_providers import CLASH, DISTRIBUTIONS
from bertfast.engine.library import cuda_version
from bertfast.errors import BackendError
from bertfast.train.compiler import cpp_compiler

_PACKAGES = {
    "train": ("torch", "safetensors", "onnx", "ml_dtypes", "pyarrow", "datasets", "tensorboard"),
    "bench": ("sklearn", "matplotlib"),
    "ray": ("ray",),
}
_ON_GPUS_ALONE = ("onnxruntime-cuda", "onnxruntime-tensorrt", "tensorrt")


def examine() -> dict[str, Any]:
    """Facts by section: machine, backends, packages, tools, and problems, which are what is there and does not go
    together; each missing thing comes with its remedy."""
    return {
        "bertfast": artifact.version(),
        "machine": artifact.hardware() | {"gpu": _gpu()},
        "backends": [
            {"name": item.name, "version": item.version, "runs": item.kind, "remedy": _remedy(item)}
            for item in available()
        ],
        "packages": [_package(module, extra) for extra, modules in _PACKAGES.items() for module in modules],
        "tools": [_compiler()],
        "problems": _problems(),
    }


def _remedy(item: Availability) -> str | None:
    if item.version:
        return None
    if item.name in _ON_GPUS_ALONE and _gpu() is None:
        return f"not for this machine, which has no NVIDIA GPU. On one: {item.remedy}"
    return item.remedy


def _problems() -> list[str]:
    installed = {item.name.lower().replace("_", "-") for item in importlib.metadata.distributions()}
    found = list(clashes(installed))
    try:
        gpu = first_gpu()
    except BackendError as error:
        return [*found, str(error)] if _gpu() else found
    return [
        *found,
        *old_drivers(gpu, {"tensorrt": cuda_version("tensorrt"), "tensorrt-rtx": cuda_version("tensorrt-rtx")}),
    ]


def clashes(installed: Set[str]) -> Iterator[str]:
    """What is wrong with these packages beside each other.

    Args:
        installed: names of distributions, lower case, with hyphens.
    """
    if installed >= set(DISTRIBUTIONS):
        yield CLASH
    for library in ("tensorrt", "tensorrt-rtx"):
        variants = [name for name in (f"{library}-cu12", f"{library}-cu13") if name in installed]
        if len(variants) > 1:
            yield (
                f"{variants[0]} and {variants[1]} install the same module for different versions of CUDA: "
                f"pip uninstall {' '.join(variants)}, then install {library}."
            )


def old_drivers(gpu: Gpu, built_for: dict[str, str | None]) -> Iterator[str]:
    """Which libraries want a newer driver than this GPU's.

    Args:
        built_for: the major version of CUDA that each library's wheels are for, None where it is not installed.
    """
    for library, cuda in built_for.items():
        if cuda is not None and gpu.driver_cuda[0] < int(cuda):
            yield (
                f"{library} is built for CUDA {cuda}, and the driver of {gpu.name} runs CUDA "
                f"{gpu.driver_cuda[0]}.{gpu.driver_cuda[1]} at the most: install a newer driver."
            )


def _package(module: str, extra: str) -> dict[str, str | None]:
    name = {"sklearn": "scikit-learn"}.get(module, module)
    present = importlib.util.find_spec(module) is not None
    version = installed_version(name) if present else None
    return {"name": name, "version": version, "remedy": None if present else f"pip install 'bertfast[{extra}]'"}


def _compiler() -> dict[str, str | None]:
    found = cpp_compiler()
    remedy = None if found else "install g++ or clang++: without one, training runs eagerly, which is slower"
    return {"name": "C++ compiler", "version": found, "remedy": remedy}


def _gpu() -> str | None:
    """The GPU's name as its driver tells it, without loading torch."""
    cards = sorted(Path("/proc/driver/nvidia/gpus").glob("*/information"))
    models = [line for card in cards for line in card.read_text().splitlines() if line.startswith("Model")]
    return models[0].partition(":")[2].strip() if models else None
