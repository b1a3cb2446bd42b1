"""What the installed ONNX Runtime has for a GPU, told without importing it or loading a library of CUDA."""

from __future__ import annotations

import ctypes
import importlib.metadata
import importlib.util
import re
from pathlib import Path

from bertfast.backends.gpu import first_gpu
from bertfast.errors import BackendError

DISTRIBUTIONS = ("onnxruntime", "onnxruntime-gpu")
CLASH = (
    "onnxruntime and onnxruntime-gpu install the same module, and the later one has overwritten the other: "
    "pip uninstall onnxruntime onnxruntime-gpu, then install one of them."
)
_LINKED = re.compile(rb"libnvinfer\.so\.\d+|nvinfer_\d+\.dll")


def missing_for_cuda() -> str | None:
    """What ONNX Runtime lacks here to compute by CUDA, and the remedy; None where nothing is known to be lacking."""
    installed = [name for name in DISTRIBUTIONS if any(importlib.metadata.Distribution.discover(name=name))]
    if len(installed) > 1:
        return CLASH
    if provider_library("cuda") is None:
        return (
            "the onnxruntime that is installed was built without it: pip uninstall onnxruntime, then "
            "pip install 'bertfast[gpu]'"
        )
    try:
        first_gpu()
    except BackendError as error:
        return str(error)
    return None


def missing_for_tensorrt() -> str | None:
    """The same for TensorRT, of which a build of ONNX Runtime takes one major version."""
    lacking = missing_for_cuda()
    library = provider_library("tensorrt")
    if lacking or library is None:
        return lacking or "the onnxruntime that is installed was built without it: pip install 'bertfast[gpu]'"
    linked = linked_tensorrt(library)
    if not _is_there(linked):
        major = re.sub(r"\D", "", linked)
        return (
            f"the onnxruntime that is installed is linked with TensorRT {major} ({linked}), which is not here: "
            f"pip install 'tensorrt=={major}.*'"
        )
    return None


def provider_library(provider: str) -> Path | None:
    """The library of a provider (`cuda`, `tensorrt`) in the installed onnxruntime, None where it has none."""
    folder = _folder("onnxruntime")
    return next(folder.glob(f"capi/*onnxruntime_providers_{provider}.*"), None) if folder else None


def linked_tensorrt(library: Path) -> str:
    """The file of TensorRT that a provider's library asks the system for, such as `libnvinfer.so.10`."""
    found = _LINKED.search(library.read_bytes())
    assert found, library
    return found[0].decode()


def _is_there(linked: str) -> bool:
    """Whether a library of TensorRT lies in its wheel, or else where the system looks."""
    wheel = _folder("tensorrt_libs")
    if wheel and (wheel / linked).is_file():
        return True
    try:
        ctypes.CDLL(linked)
    except OSError:
        return False
    return True


def _folder(module: str) -> Path | None:
    spec = importlib.util.find_spec(module)
    return Path(spec.submodule_search_locations[0]) if spec and spec.submodule_search_locations else None
