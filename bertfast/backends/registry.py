"""Which runtimes there are, what this machine has of them, and how one is opened."""

from __future__ import annotations

import importlib.metadata
import importlib.util
from collections.abc import Callable
from dataclasses import dataclass

from bertfast.backends.gpu import has_gpu
from bertfast.backends.protocol import Backend, precisions
from bertfast.backends.served import ServedModel
from bertfast.errors import BackendError, did_you_mean

Opener = Callable[[ServedModel, int | None], Backend]


@dataclass(frozen=True)
class Availability:
    """Whether a runtime can be used here.

    Attributes:
        kind: the kind of artefact that it runs.
        version: the installed version, None where it is missing.
        remedy: what to install where it is missing.
    """

    name: str
    kind: str
    version: str | None
    remedy: str


@dataclass(frozen=True)
class _Runtime:
    """A runtime; one that is `for_gpus` opens elsewhere too, where tests want its numbers and nobody its speed."""

    kind: str
    package: str
    extra: str
    open: Opener
    for_gpus: bool = False


def _open_torch(model: ServedModel, threads: int | None) -> Backend:
    from bertfast.backends.pytorch import TorchBackend

    return TorchBackend(model, threads)


def _open_torch_packed(model: ServedModel, threads: int | None) -> Backend:
    from bertfast.backends.torch_packed import TorchPackedBackend

    return TorchPackedBackend(model, threads)


def _open_onnxruntime(model: ServedModel, threads: int | None) -> Backend:
    from bertfast.backends.onnx_runtime import OnnxRuntimeBackend

    return OnnxRuntimeBackend(model, threads)


def _open_openvino(model: ServedModel, threads: int | None) -> Backend:
    from bertfast.backends.open_vino import OpenVinoBackend

    return OpenVinoBackend(model, threads)


def _open_tensorrt(model: ServedModel, threads: int | None) -> Backend:
    from bertfast.backends.tensorrt import TensorRTBackend

    return TensorRTBackend(model, "tensorrt")


def _open_tensorrt_rtx(model: ServedModel, threads: int | None) -> Backend:
    from bertfast.backends.tensorrt import TensorRTBackend

    return TensorRTBackend(model, "tensorrt-rtx")


_RUNTIMES = {
    "torch": _Runtime("checkpoint", "torch", "train", _open_torch),
    "torch-packed": _Runtime("checkpoint", "torch", "train", _open_torch_packed, for_gpus=True),
    "onnxruntime": _Runtime("onnx", "onnxruntime", "cpu", _open_onnxruntime),
    "openvino": _Runtime("onnx", "openvino", "cpu", _open_openvino),
    "tensorrt": _Runtime("engine", "tensorrt", "gpu", _open_tensorrt),
    "tensorrt-rtx": _Runtime("engine", "tensorrt_rtx", "rtx", _open_tensorrt_rtx),
}


def available() -> list[Availability]:
    """Every runtime that bertfast knows, in order of preference, and what to install for those that are missing."""
    found = []
    for name, runtime in _RUNTIMES.items():
        present = importlib.util.find_spec(runtime.package) is not None
        version = installed_version(runtime.package) if present else None
        found.append(Availability(name, runtime.kind, version, f"pip install 'bertfast[{runtime.extra}]'"))
    return found


def backends_for(model: ServedModel) -> list[str]:
    """The names of the installed runtimes that run this artefact and are for this machine, the preferred one first."""
    installed = (item for item in available() if item.version is not None)
    able = [item.name for item in installed if _runs(item, model)]
    return [name for name in able if not _RUNTIMES[name].for_gpus or has_gpu()]


def _runs(runtime: Availability, model: ServedModel) -> bool:
    """Whether a runtime runs artefacts of this kind in this precision, and is the library of an engine."""
    built_by = model.engine.library if model.engine else runtime.name
    return runtime.kind == model.kind and built_by == runtime.name and model.precision in precisions(runtime.name)


def open_backend(model: ServedModel, name: str | None = None, *, threads: int | None = None) -> Backend:
    """Load a model into a runtime, by default the preferred one that is installed.

    Raises:
        BackendError: the runtime is unknown, missing, does not run this kind of artefact, or executes in another
            precision than the artefact's.
    """
    if name is None:
        name = next(iter(backends_for(model)), None)
        if name is None:
            remedies = " or ".join(sorted({item.remedy for item in available() if _runs(item, model)}))
            wanted = f"an artefact of kind '{model.kind}' in {model.precision.value}"
            raise BackendError(f"no runtime for {wanted} is installed: {remedies}")
    if name not in _RUNTIMES:
        raise BackendError(
            f"'{name}' is not a backend. There are {', '.join(_RUNTIMES)}.{did_you_mean(name, _RUNTIMES)}"
        )
    runtime = _RUNTIMES[name]
    if runtime.kind != model.kind:
        raise BackendError(
            f"{name} runs artefacts of kind '{runtime.kind}', and {model.path} is '{model.kind}'."
            f"{_next_step(model, runtime)}"
        )
    if model.precision not in precisions(name):
        able = " or ".join(precision.value for precision in precisions(name))
        raise BackendError(f"{name} executes {able}, and {model.path} is in {model.precision.value}.")
    if importlib.util.find_spec(runtime.package) is None:
        raise BackendError(f"{name} is not installed: pip install 'bertfast[{runtime.extra}]'")
    return runtime.open(model, threads)


def _next_step(model: ServedModel, runtime: _Runtime) -> str:
    """What makes of an artefact what a runtime takes, as far as that is one command."""
    if model.kind == "checkpoint":
        return f" Export it first: bertfast export {model.path} --out DIR"
    if runtime.kind == "engine":
        return f" Build an engine first: bertfast build {model.path} --recipe NAME --out DIR"
    return ""


def installed_version(package: str) -> str:
    """The version of an installed package, `unknown` where its metadata lies under another name."""
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return "unknown"  # such as onnxruntime's module installed by onnxruntime-gpu
