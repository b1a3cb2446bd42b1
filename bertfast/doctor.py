"""`bertfast doctor`: what this machine has, what is missing, and what to install."""

from __future__ import annotations

import importlib.metadata
import importlib.util
import os
import shutil
from typing import Any

from bertfast import artifact
from bertfast.backends import available

_TRAINING = {"torch": "train", "safetensors": "train", "onnx": "train", "pyarrow": "train", "tensorboard": "train"}
_REPORTS = {"sklearn": "bench", "matplotlib": "bench", "psutil": "bench"}


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
        "packages": [_package(module, extra) for module, extra in (_TRAINING | _REPORTS).items()],
        "tools": [_compiler()],
    }


def _package(module: str, extra: str) -> dict[str, str | None]:
    name = {"sklearn": "scikit-learn"}.get(module, module)
    present = importlib.util.find_spec(module) is not None
    version = importlib.metadata.version(name) if present else None
    return {"name": name, "version": version, "remedy": None if present else f"pip install 'bertfast[{extra}]'"}


def _compiler() -> dict[str, str | None]:
    candidates = (os.environ.get("CXX"), "c++", "g++", "clang++")
    found = next((path for name in candidates if name and (path := shutil.which(name))), None)
    remedy = None if found else "install g++ or clang++: without one, training runs eagerly, at about half the speed"
    return {"name": "C++ compiler", "version": found, "remedy": remedy}


def _gpu() -> str | None:
    """The GPU's name as its driver tells it, without loading torch."""
    from pathlib import Path

    cards = sorted(Path("/proc/driver/nvidia/gpus").glob("*/information"))
    models = [line for card in cards for line in card.read_text().splitlines() if line.startswith("Model")]
    return models[0].partition(":")[2].strip() if models else None
