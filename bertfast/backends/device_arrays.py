"""Arrays that are on the GPU already, of any library: torch, CuPy, Numba and others tell where by one attribute.

https://numba.readthedocs.io/en/stable/cuda/cuda_array_interface.html (torch has version 2, which names no stream).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from bertfast.errors import BackendError

_DEFAULT_STREAM = 1


class DeviceArray(Protocol):
    """What torch's CUDA tensors and CuPy's arrays are."""

    @property
    def __cuda_array_interface__(self) -> Mapping[str, Any]: ...


@dataclass(frozen=True)
class Place:
    """Where an array lies.

    Attributes:
        stream: what is on it by now may still write the array; None where nothing does.
    """

    address: int
    shape: tuple[int, ...]
    stream: int | None


def find(name: str, array: DeviceArray, dtype: npt.DTypeLike) -> Place:
    """The place of an input on the GPU.

    Raises:
        BackendError: it is not on a GPU, of another type, or its rows do not follow each other.
    """
    said: Mapping[str, Any] | None = getattr(array, "__cuda_array_interface__", None)
    if said is None:
        raise BackendError(f"{name} is not on a GPU ({type(array).__name__}). Give batches of the host to upload.")
    wanted, found = np.dtype(dtype), np.dtype(said["typestr"])
    if found != wanted:
        raise BackendError(f"{name} is {found}, and the engine reads {wanted}. Convert it on the GPU first.")
    shape = tuple(said["shape"])
    strides = said.get("strides")
    if strides is not None and tuple(strides) != (shape[-1] * wanted.itemsize, wanted.itemsize):
        raise BackendError(f"{name} of shape {shape} is not contiguous. Give a copy that is, such as .contiguous().")
    return Place(said["data"][0], shape, said.get("stream", _DEFAULT_STREAM))
