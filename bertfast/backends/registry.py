"""Which runtimes there are, what this machine has of them, and how one is opened."""

from __future__ import annotations

import contextlib
import importlib.metadata
import importlib.util
from collections.abc import Callable
from dataclasses import dataclass

from bertfast.backends.gpu import has_gpu
from bertfast.backends.onnx_providers import missing_for_cuda, missing_for_tensorrt
from bertfast.backends.protocol import Backend, precisions
from bertfast.backends.rows import InRows
from bertfast.backends.served import ServedModel
from bertfast.errors import BackendError, did_you_mean

Opener = Callable[[ServedModel, int | None], Backend]


@dataclass(frozen=True)
class Availability:
    """Whether a runtime can be used here.

    Attributes:
        kind: the kind of artefact that it runs.
        version: the installed version, None where it is missing or cannot run.
        remedy: why, where that is not plain, and what to install.
    """

    name: str
    kind: str
    version: str | None
    remedy: str


def _nothing() -> None:
    return None


@dataclass(frozen=True)
class _Runtime:
    """A runtime; one that is `for_gpus` opens elsewhere too, where tests want its numbers and nobody its speed.
    One that `takes_rows` runs packed graphs."""

    kind: str
    package: str
    extra: str
    open: Opener
    for_gpus: bool = False
    takes_rows: bool = False
    missing: Callable[[], str | None] = _nothing


def _open_torch(model: ServedModel, threads: int | None) -> Backend:
    from bertfast.backends.pytorch import TorchBackend

    return TorchBackend(model, threads)


def _open_torch_packed(model: ServedModel, threads: int | None) -> Backend:
    from bertfast.backends.torch_packed import TorchPackedBackend

    return TorchPackedBackend(model, threads)


def _open_onnxruntime(model: ServedModel, threads: int | None) -> Backend:
    from bertfast.backends.onnx_runtime import OnnxRuntimeBackend

    return OnnxRuntimeBackend(model, threads)


def _open_onnxruntime_cuda(model: ServedModel, threads: int | None) -> Backend:
    from bertfast.backends.onnx_gpu import OnnxGpuBackend, cuda

    return OnnxGpuBackend(model, cuda())


def _open_onnxruntime_tensorrt(model: ServedModel, threads: int | None) -> Backend:
    from bertfast.backends.onnx_gpu import OnnxGpuBackend, tensorrt

    return OnnxGpuBackend(model, tensorrt(model))


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
    "onnxruntime-cuda": _Runtime("onnx", "onnxruntime", "gpu", _open_onnxruntime_cuda, missing=missing_for_cuda),
    "onnxruntime": _Runtime("onnx", "onnxruntime", "cpu", _open_onnxruntime, takes_rows=True),
    "openvino": _Runtime("onnx", "openvino", "cpu", _open_openvino, takes_rows=True),
    "onnxruntime-tensorrt": _Runtime(
        "onnx", "onnxruntime", "gpu", _open_onnxruntime_tensorrt, missing=missing_for_tensorrt
    ),
    "tensorrt": _Runtime("engine", "tensorrt", "gpu", _open_tensorrt),
    "tensorrt-rtx": _Runtime("engine", "tensorrt_rtx", "rtx", _open_tensorrt_rtx),
}


def available() -> list[Availability]:
    """Every runtime that bertfast knows, in order of preference, and what to install for those that are missing."""
    return [_look(name) for name in _RUNTIMES]


def _look(name: str) -> Availability:
    runtime = _RUNTIMES[name]
    install = f"pip install 'bertfast[{runtime.extra}]'"
    if importlib.util.find_spec(runtime.package) is None:
        return Availability(name, runtime.kind, None, install)
    missing = runtime.missing()
    version = None if missing else installed_version(runtime.package)
    return Availability(name, runtime.kind, version, missing or install)


def backends_for(model: ServedModel) -> list[str]:
    """The names of the installed runtimes that run this artefact and are for this machine, the preferred one first."""
    installed = (item for item in available() if item.version is not None)
    able = [item.name for item in installed if _runs(item, model)]
    return [name for name in able if not _RUNTIMES[name].for_gpus or has_gpu()]


def _runs(runtime: Availability, model: ServedModel) -> bool:
    """Whether a runtime runs artefacts of this kind with these inputs in this precision, and is the library of an
    engine."""
    if model.packed and not _RUNTIMES[runtime.name].takes_rows:
        return False
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
    if model.packed and not runtime.takes_rows and runtime.kind != "checkpoint":
        able = " or ".join(name for name, other in _RUNTIMES.items() if other.takes_rows)
        raise BackendError(
            f"{name} takes rows with padding, and the graph of {model.path} is packed. Use --backend {able}, or export "
            "without --packed."
        )
    if runtime.kind != model.kind:
        raise BackendError(
            f"{name} runs artefacts of kind '{runtime.kind}', and {model.path} is '{model.kind}'."
            f"{_next_step(model, runtime)}"
        )
    if model.precision not in precisions(name):
        able = " or ".join(precision.value for precision in precisions(name))
        others = " or ".join(backends_for(model))
        remedy = f" Use --backend {others}, or export" if others else " Export"
        raise BackendError(
            f"{name} executes {able}, and {model.path} is in {model.precision.value}.{remedy} it in another precision."
        )
    here = _look(name)
    if here.version is None:
        raise BackendError(f"{name} cannot be used here: {here.remedy}")
    opened = runtime.open(model, threads)
    return InRows(opened, model.task.per_token) if model.packed else opened


def _next_step(model: ServedModel, runtime: _Runtime) -> str:
    """What makes of an artefact what a runtime takes, as far as that is one command."""
    if model.kind == "checkpoint":
        return f" Export it first: bertfast export {model.path} --out DIR"
    if runtime.kind == "engine":
        return f" Build an engine first: bertfast build {model.path} --recipe NAME --out DIR"
    return " Give the artefact that it was made from."


def installed_version(package: str) -> str:
    """The version of an installed package or its build for GPUs; `unknown` where its metadata has another name."""
    for name in (package, f"{package}-gpu"):
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            return importlib.metadata.version(name)
    return "unknown"
