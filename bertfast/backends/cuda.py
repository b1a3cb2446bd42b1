"""Memory, copies and graphs of the first GPU through its driver alone: serving needs neither torch nor CUDA's packages.

Everything lies in the context that CUDA's runtime and torch share, and happens on one stream of its own.
"""

from __future__ import annotations

import ctypes
import os
from collections.abc import Callable
from contextlib import nullcontext, suppress
from ctypes import byref, c_int, c_size_t, c_uint, c_ulonglong, c_void_p

import numpy as np
import numpy.typing as npt

from bertfast.backends.gpu import ask, open_driver
from bertfast.errors import BackendError

_NON_BLOCKING, _THREAD_LOCAL, _WITHOUT_TIME = 1, 1, 2  # CUstream_flags, CUstreamCaptureMode, CUevent_flags in cuda.h
_DEVICE_ORDINAL = 9  # CUpointer_attribute
_MIB = 2**20

Bytes = npt.NDArray[np.uint8]


class Cuda:
    """The first GPU, a stream, and what was allocated through it.

    Attributes:
        stream: its handle, as libraries take it.
    """

    def __init__(self) -> None:
        self._driver = open_driver()
        self._device, self._context, stream = c_int(), c_void_p(), c_void_p()
        ask(self._driver, "cuInit", c_uint(0))
        ask(self._driver, "cuDeviceGet", byref(self._device), c_int(0))
        ask(self._driver, "cuDevicePrimaryCtxRetain", byref(self._context), self._device)
        self._ask("cuStreamCreate", byref(stream), c_uint(_NON_BLOCKING))
        self.stream = stream.value or 0
        self._memory: list[int] = []
        self._pinned: dict[int, int] = {}  # bytes by address
        self._events: list[int] = []
        self._followed = 0

    def _ask(self, function: str, *arguments: object) -> None:
        ask(self._driver, "cuCtxSetCurrent", self._context)  # the thread may be another than that of the last call
        ask(self._driver, function, *arguments)

    def memory_bytes(self) -> tuple[int, int]:
        """How much memory is free, and how much there is."""
        free, total = c_size_t(), c_size_t()
        self._ask("cuMemGetInfo_v2", byref(free), byref(total))
        return free.value, total.value

    def allocate(self, size: int, what: str) -> int:
        """The address of so many bytes on the GPU.

        Args:
            what: what they are for.
        Raises:
            BackendError: there are not so many.
        """
        free, total = self.memory_bytes()
        if size > free:
            raise BackendError(
                f"{what} take {size / _MIB:,.1f} MiB on the GPU, and {free / _MIB:,.1f} of its {total / _MIB:,.1f} MiB "
                "are free. End what else runs there, or build with profiles of fewer or shorter sequences."
            )
        address = c_ulonglong()
        self._ask("cuMemAlloc_v2", byref(address), c_size_t(max(size, 1)))
        self._memory.append(address.value)
        return address.value

    def allocate_pinned(self, size: int, what: str) -> Bytes:
        """So many bytes of the host, which copies reach without a detour. They last until `close`.

        Raises:
            BackendError: there are not so many, or they may not be pinned.
        """
        address = c_void_p()
        try:
            self._ask("cuMemAllocHost_v2", byref(address), c_size_t(size))
        except BackendError as error:
            raise BackendError(
                f"{what} take {size / _MIB:,.1f} MiB of pinned memory beside {sum(self._pinned.values()) / _MIB:,.1f} "
                f"that are pinned already, and {_free_memory()} of the host are free: {error} Give the process or "
                "container more memory, or build with profiles of fewer or shorter sequences."
            ) from None
        assert address.value
        self._pinned[address.value] = size
        return np.ctypeslib.as_array((ctypes.c_uint8 * size).from_address(address.value))

    def copy_in(self, address: int, source: Bytes) -> None:
        """Begin to copy pinned bytes to the GPU."""
        self._ask(
            "cuMemcpyHtoDAsync_v2",
            c_ulonglong(address),
            c_void_p(source.ctypes.data),
            c_size_t(source.nbytes),
            c_void_p(self.stream),
        )

    def copy_out(self, target: Bytes, address: int) -> None:
        """Begin to copy from the GPU into pinned bytes."""
        self._ask(
            "cuMemcpyDtoHAsync_v2",
            c_void_p(target.ctypes.data),
            c_ulonglong(address),
            c_size_t(target.nbytes),
            c_void_p(self.stream),
        )

    def gpu_of(self, address: int) -> int:
        """The number of the GPU whose memory this is; ours is 0.

        Raises:
            BackendError: it is the memory of none.
        """
        number = c_int()
        self._ask("cuPointerGetAttribute", byref(number), c_int(_DEVICE_ORDINAL), c_ulonglong(address))
        return number.value

    def synchronize(self) -> None:
        """Wait until the stream is done."""
        self._ask("cuStreamSynchronize", c_void_p(self.stream))

    def event(self) -> int:
        """An event, which is over as long as it was not recorded. It lasts until `close`."""
        event = c_void_p()
        self._ask("cuEventCreate", byref(event), c_uint(_WITHOUT_TIME))
        self._events.append(event.value or 0)
        return self._events[-1]

    def record(self, event: int) -> None:
        """Let an event be over when everything is done that is on the stream by now."""
        self._ask("cuEventRecord", c_void_p(event), c_void_p(self.stream))

    def wait(self, event: int) -> None:
        """Wait until an event is over."""
        self._ask("cuEventSynchronize", c_void_p(event))

    def follow(self, stream: int) -> None:
        """Let what comes on our stream wait for what is on another by now."""
        event = self._followed = self._followed or self.event()
        self._ask("cuEventRecord", c_void_p(event), c_void_p(stream))
        self._ask("cuStreamWaitEvent", c_void_p(self.stream), c_void_p(event), c_uint(0))

    def capture(self, work: Callable[[], bool]) -> int | None:
        """A graph of what `work` puts on the stream, or None where it answers no. Nothing is computed yet."""
        graph, executable = c_void_p(), c_void_p()
        self._ask("cuStreamBeginCapture_v2", c_void_p(self.stream), c_int(_THREAD_LOCAL))
        taken = False
        try:
            taken = work()
        finally:
            with nullcontext() if taken else suppress(BackendError):  # that a capture is void says not why
                self._ask("cuStreamEndCapture", c_void_p(self.stream), byref(graph))
        if not taken:
            return None
        self._ask("cuGraphInstantiateWithFlags", byref(executable), graph, c_ulonglong(0))
        self._ask("cuGraphDestroy", graph)
        return executable.value or 0

    def launch(self, graph: int) -> None:
        """Put a graph on the stream."""
        self._ask("cuGraphLaunch", c_void_p(graph), c_void_p(self.stream))

    def drop(self, graph: int) -> None:
        """Let go of a graph."""
        self._ask("cuGraphExecDestroy", c_void_p(graph))

    def close(self) -> None:
        """Let go of the stream, on which nothing is left to do, and of all memory."""
        while self._memory:
            self._ask("cuMemFree_v2", c_ulonglong(self._memory.pop()))
        while self._pinned:
            self._ask("cuMemFreeHost", c_void_p(self._pinned.popitem()[0]))
        while self._events:
            self._ask("cuEventDestroy_v2", c_void_p(self._events.pop()))
        self._ask("cuStreamDestroy_v2", c_void_p(self.stream))
        ask(self._driver, "cuDevicePrimaryCtxRelease_v2", self._device)
        self.stream = 0


def _free_memory() -> str:
    """How much memory of the host is free, for a message."""
    pages = os.sysconf("SC_AVPHYS_PAGES") if hasattr(os, "sysconf") else None
    return "an unknown part" if pages is None else f"{pages * os.sysconf('SC_PAGE_SIZE') / _MIB:,.1f} MiB"
