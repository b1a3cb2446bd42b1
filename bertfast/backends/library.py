"""TensorRT and TensorRT for RTX as modules: one API in two libraries, of which either may be missing."""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, TypeAlias, cast

from bertfast.backends.engine_plan import Library
from bertfast.errors import BackendError

if TYPE_CHECKING:
    import tensorrt as trt

TensorRT: TypeAlias = Any  # either module; a test types it by the real one and checks every use
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
