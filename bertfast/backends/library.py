"""TensorRT and TensorRT for RTX as modules: one API in two libraries, of which either may be missing."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, TypeAlias, TypeVar, cast

from bertfast.backends.engine_plan import Library
from bertfast.backends.gpu import first_gpu
from bertfast.errors import BackendError

if TYPE_CHECKING:
    import tensorrt as trt

TensorRT: TypeAlias = Any  # either module; a test types it by the real one and checks every use
_Made = TypeVar("_Made")
MODULES: Mapping[Library, str] = {"tensorrt": "tensorrt", "tensorrt-rtx": "tensorrt_rtx"}
EXTRAS: Mapping[Library, str] = {"tensorrt": "gpu", "tensorrt-rtx": "rtx"}


def load_library(name: Library) -> TensorRT:
    """The module of a library.

    Raises:
        BackendError: it is not installed, or is too old to build typed networks.
    """
    try:
        library = cast(TensorRT, importlib.import_module(MODULES[name]))
    except ImportError as error:
        raise BackendError(f"{name} cannot be imported ({error}): pip install 'bertfast[{EXTRAS[name]}]'") from None
    if not hasattr(library.NetworkDefinitionCreationFlag, "STRONGLY_TYPED"):
        raise BackendError(f"{name} {library.__version__} is too old: pip install 'bertfast[{EXTRAS[name]}]'")
    return library


def start(library: TensorRT, make: Callable[[trt.ILogger], _Made], errors: list[str]) -> _Made:
    """A builder or a runtime of a library, which looks for CUDA.

    Args:
        make: its class.
        errors: where the library's errors go.
    Raises:
        BackendError: there is no driver, it sees no GPU, or it is too old.
    """
    try:
        return make(make_logger(library, errors))
    except TypeError:  # of the bindings, where the library makes none
        gpu = first_gpu()
        raise BackendError(
            f"{library.__name__} {library.__version__} does not start on {gpu.name}: {said(errors)}. The driver goes "
            f"up to CUDA {gpu.driver_cuda[0]}.{gpu.driver_cuda[1]}: install a newer one if that is the reason."
        ) from None


def said(errors: list[str]) -> str:
    """What a library said last."""
    return errors[-1].strip().rstrip(".") if errors else "it says no more"


def make_logger(library: TensorRT, errors: list[str]) -> trt.ILogger:
    """A logger that keeps errors for the message that names them, and drops the rest."""

    base: Any = library.ILogger

    class Log(base):  # type: ignore[misc]
        def __init__(self) -> None:
            base.__init__(self)

        def log(self, severity: trt.ILogger.Severity, msg: str) -> None:
            if severity <= library.ILogger.ERROR:
                errors.append(msg)

    return Log()
