"""The GPU of this machine as its driver tells it, without torch and without CUDA's own packages."""

from __future__ import annotations

import ctypes
import sys
from dataclasses import dataclass

from bertfast.errors import BackendError

_CAPABILITY_MAJOR, _CAPABILITY_MINOR = 75, 76  # CUdevice_attribute in cuda.h


@dataclass(frozen=True)
class Gpu:
    """A GPU.

    Attributes:
        name: such as `NVIDIA L4`.
        compute_capability: such as `SM89`.
        driver_cuda: the newest CUDA that its driver runs, as (major, minor).
    """

    name: str
    compute_capability: str
    driver_cuda: tuple[int, int]


def first_gpu() -> Gpu:
    """The first GPU that this process may see (CUDA_VISIBLE_DEVICES).

    Raises:
        BackendError: there is no driver, or it sees no GPU.
    """
    driver = open_driver()
    ask(driver, "cuInit", ctypes.c_uint(0))
    device, version = ctypes.c_int(), ctypes.c_int()
    major, minor = ctypes.c_int(), ctypes.c_int()
    name = ctypes.create_string_buffer(256)
    ask(driver, "cuDriverGetVersion", ctypes.byref(version))
    ask(driver, "cuDeviceGet", ctypes.byref(device), ctypes.c_int(0))
    ask(driver, "cuDeviceGetName", name, ctypes.c_int(len(name)), device)
    ask(driver, "cuDeviceGetAttribute", ctypes.byref(major), ctypes.c_int(_CAPABILITY_MAJOR), device)
    ask(driver, "cuDeviceGetAttribute", ctypes.byref(minor), ctypes.c_int(_CAPABILITY_MINOR), device)
    cuda = (version.value // 1000, version.value % 1000 // 10)
    return Gpu(name.value.decode(), f"SM{major.value}{minor.value}", cuda)


def has_gpu() -> bool:
    try:
        first_gpu()
    except BackendError:
        return False
    return True


def open_driver() -> ctypes.CDLL:
    """The driver's library.

    Raises:
        BackendError: there is none.
    """
    name = "nvcuda.dll" if sys.platform == "win32" else "libcuda.so.1"
    try:
        return ctypes.CDLL(name)
    except OSError:
        raise BackendError(
            f"there is no NVIDIA driver here ({name} was not found), and an engine runs on an NVIDIA GPU. Install the "
            "driver, or start the container with --gpus all."
        ) from None


def ask(driver: ctypes.CDLL, function: str, *arguments: object) -> None:
    """Call a function of the driver; BackendError where it answers with an error."""
    status = getattr(driver, function)(*arguments)
    if status:
        text = ctypes.c_char_p()
        driver.cuGetErrorString(status, ctypes.byref(text))
        said = text.value.decode() if text.value else "unknown error"
        raise BackendError(
            f"the NVIDIA driver answers {function} with error {status} ({said}). See that nvidia-smi lists a GPU and "
            "that CUDA_VISIBLE_DEVICES names it."
        )
