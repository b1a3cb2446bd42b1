"""`bertfast doctor`: what this machine has, what is missing, and what to install."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Any

from bertfast import artifact
from bertfast.backends import available, installed_version
from bertfast.train.compiler import cpp_compiler

_PACKAGES = {
    "train": ("torch", "safetensors", "onnx", "pyarrow", "datasets", "tensorboard"),
    "bench": ("sklearn", "matplotlib"),
    "ray": ("ray",),
}


def examine() -> dict[str, Any]:
    """Facts by section: machine, backends, packages, tools; each missing thing comes with its remedy."""
    return {
        "bertfast": artifact.version(),
        "machine": artifact.hardware() | {"gpu": _gpu()},
        "backends": [
            {
                "name": item.name,
                "version": item.version,
                "runs": item.kind,
                "remedy": None if item.version else item.remedy,
            }
            for item in available()
        ],
        "packages": [_package(module, extra) for extra, modules in _PACKAGES.items() for module in modules],
        "tools": [_compiler()],
    }


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
