"""A fake GPU: a driver and a TensorRT that hold their callers to the documented order, and compute with ONNX Runtime.

They prove control flow and nothing else: which address holds what when, never that a GPU would do so. What is put on
the stream happens when the stream is waited for, so that memory which is used again too early shows.
"""

from __future__ import annotations

import ctypes
import enum
import itertools
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from bertfast.backends.gpu import Gpu
from bertfast.backends.protocol import Arrays
from bertfast.config import ShapeProfile
from bertfast.text.batch import Batch

GPU = Gpu("Fake GPU", "SM89", (13, 0))
FIRST_STREAM = 1000
Work = Callable[[], None]


class FakeDriver:
    """The functions of libcuda.so.1 that are used, with memory of the host."""

    def __init__(self, total: int = 2**30) -> None:
        self.total = total
        self.device: dict[int, Any] = {}
        self.pinned: dict[int, Any] = {}
        self.streams: dict[int, list[Work]] = {}
        self.capturing: dict[int, list[Work]] = {}
        self.graphs: dict[int, list[Work]] = {}
        self.events: dict[int, int] = {}  # how often each is on its stream
        self.recorded: dict[int, int] = {}  # the stream of each
        self.others: dict[int, list[Work]] = {}  # what is on other streams
        self.followed: dict[int, list[Work]] = {}  # of that, what comes before an event
        self.handles = itertools.count(100)
        self.current = False
        self.launched = 0
        self.elsewhere: dict[int, int] = {}  # the GPU of memory that is not the first one's
        self.most_pinned = 2**30
        self.void = False  # whether something forbidden was done during the capture

    def put(self, stream: int, work: Work) -> None:
        """What a library puts on a stream."""
        self.capturing.get(stream, self.streams[stream]).append(work)

    @property
    def at_work(self) -> bool:
        return any(self.streams.values())

    def cuInit(self, flags: Any) -> int:
        return 0

    def cuGetErrorString(self, error: int, text: Any) -> int:
        text._obj.value = {
            1: b"invalid argument",
            2: b"out of memory",
            901: b"operation failed due to a previous error during capture",
        }[error]
        return 0

    def cuDeviceGet(self, device: Any, number: Any) -> int:
        return 0

    def cuDevicePrimaryCtxRetain(self, context: Any, device: Any) -> int:
        context._obj.value = 1
        return 0

    def cuDevicePrimaryCtxRelease_v2(self, device: Any) -> int:
        return 0

    def cuCtxSetCurrent(self, context: Any) -> int:
        self.current = context.value == 1
        return 0

    def cuStreamCreate(self, stream: Any, flags: Any) -> int:
        assert self.current
        stream._obj.value = FIRST_STREAM + next(self.handles)
        self.streams[stream._obj.value] = []
        return 0

    def cuStreamDestroy_v2(self, stream: Any) -> int:
        assert not self.streams.pop(stream.value)
        return 0

    def cuStreamSynchronize(self, stream: Any) -> int:
        assert stream.value not in self.capturing, "a stream is not waited for while it is captured"
        while self.streams[stream.value]:
            self.streams[stream.value].pop(0)()
        return 0

    def cuEventCreate(self, event: Any, flags: Any) -> int:
        event._obj.value = next(self.handles)
        self.events[event._obj.value] = 0
        return 0

    def cuEventRecord(self, event: Any, stream: Any) -> int:
        if stream.value not in self.streams:
            self.followed[event.value] = self.others.pop(stream.value, [])
            return 0
        self.events[event.value] += 1
        self.recorded[event.value] = stream.value
        self.put(stream.value, lambda: self._pass(event.value))
        return 0

    def _pass(self, event: int) -> None:
        self.events[event] -= 1

    def cuEventSynchronize(self, event: Any) -> int:
        """What comes after the event stays on the stream."""
        while self.events[event.value]:
            self.streams[self.recorded[event.value]].pop(0)()
        return 0

    def cuStreamWaitEvent(self, stream: Any, event: Any, flags: Any) -> int:
        """What is waited for happens in time."""
        for work in self.followed.pop(event.value):
            self.put(stream.value, work)
        return 0

    def cuEventDestroy_v2(self, event: Any) -> int:
        del self.events[event.value]
        return 0

    def cuMemGetInfo_v2(self, free: Any, total: Any) -> int:
        free._obj.value = self.total - sum(len(memory) for memory in self.device.values())
        total._obj.value = self.total
        return 0

    def cuMemAlloc_v2(self, address: Any, size: Any) -> int:
        memory = ctypes.create_string_buffer(b"\xff" * size.value, size.value)  # whatever was there before
        address._obj.value = ctypes.addressof(memory)
        self.device[ctypes.addressof(memory)] = memory
        return 0

    def cuPointerGetAttribute(self, found: Any, attribute: Any, address: Any) -> int:
        assert attribute.value == 9
        if address.value not in self.device:
            return 1
        found._obj.value = self.elsewhere.get(address.value, 0)
        return 0

    def cuMemFree_v2(self, address: Any) -> int:
        assert not self.at_work, "what is on a stream needs its memory"
        del self.device[address.value]
        return 0

    def cuMemAllocHost_v2(self, address: Any, size: Any) -> int:
        if sum(map(len, self.pinned.values())) + size.value > self.most_pinned:
            return 2
        memory = ctypes.create_string_buffer(size.value)
        address._obj.value = ctypes.addressof(memory)
        self.pinned[ctypes.addressof(memory)] = memory
        return 0

    def cuMemFreeHost(self, address: Any) -> int:
        del self.pinned[address.value]
        return 0

    def cuMemcpyHtoDAsync_v2(self, target: Any, source: Any, size: Any, stream: Any) -> int:
        self._copy(target.value, self.device, source.value, self.pinned, size.value, stream)
        return 0

    def cuMemcpyDtoHAsync_v2(self, target: Any, source: Any, size: Any, stream: Any) -> int:
        self._copy(target.value, self.pinned, source.value, self.device, size.value, stream)
        return 0

    def _copy(self, target: int, to: dict[int, Any], source: int, of: dict[int, Any], size: int, stream: Any) -> None:
        assert size <= min(len(to[target]), len(of[source]))
        self.put(stream.value, lambda: ctypes.memmove(target, source, size) and None)

    def cuStreamBeginCapture_v2(self, stream: Any, mode: Any) -> int:
        assert not self.streams[stream.value], "what is on the stream is not part of the capture"
        self.capturing[stream.value] = []
        return 0

    def cuStreamEndCapture(self, stream: Any, graph: Any) -> int:
        work = self.capturing.pop(stream.value)
        if self.void:
            self.void = False
            return 901
        graph._obj.value = self._keep(work)
        return 0

    def cuGraphInstantiateWithFlags(self, executable: Any, graph: Any, flags: Any) -> int:
        executable._obj.value = self._keep(self.graphs[graph.value])
        return 0

    def _keep(self, work: list[Work]) -> int:
        handle = next(self.handles)
        self.graphs[handle] = work
        return handle

    def cuGraphDestroy(self, graph: Any) -> int:
        del self.graphs[graph.value]
        return 0

    def cuGraphExecDestroy(self, graph: Any) -> int:
        assert not self.at_work, "a graph may be at work"
        del self.graphs[graph.value]
        return 0

    def cuGraphLaunch(self, graph: Any, stream: Any) -> int:
        self.launched += 1
        for step in self.graphs[graph.value]:
            self.put(stream.value, step)
        return 0


class TensorIOMode(enum.Enum):
    INPUT = 0
    OUTPUT = 1


class ExecutionContextAllocationStrategy(enum.Enum):
    STATIC = 0
    USER_MANAGED = 2


class CudaGraphStrategy(enum.Enum):
    DISABLED = 0
    WHOLE_GRAPH_CAPTURE = 1


class ILogger(ABC):
    ERROR = 1

    @abstractmethod
    def log(self, severity: int, msg: str) -> None: ...


class IRuntimeConfig:
    def __init__(self) -> None:
        self.cuda_graph_strategy = CudaGraphStrategy.DISABLED
        self._strategy = ExecutionContextAllocationStrategy.STATIC

    def set_execution_context_allocation_strategy(self, strategy: ExecutionContextAllocationStrategy) -> None:
        self._strategy = strategy


class ICudaEngine:
    """An engine of known profiles whose products are made by `compute`."""

    def __init__(self, fake: FakeTensorRT) -> None:
        self._fake = fake
        self.device_memory_size_v2 = fake.scratch_bytes

    @property
    def num_io_tensors(self) -> int:
        return len(self._fake.types)

    def get_tensor_name(self, index: int) -> str:
        return list(self._fake.types)[index]

    def get_tensor_mode(self, name: str) -> TensorIOMode:
        return TensorIOMode.OUTPUT if name in self._fake.outputs else TensorIOMode.INPUT

    def get_tensor_dtype(self, name: str) -> type:
        return self._fake.types[name]

    def create_runtime_config(self) -> IRuntimeConfig:
        return IRuntimeConfig()

    def create_execution_context(self, runtime_config: IRuntimeConfig) -> IExecutionContext | None:
        if len(self._fake.contexts) == self._fake.most_contexts:
            self._fake.log("out of memory")
            return None
        context = IExecutionContext(self._fake, runtime_config)
        self._fake.contexts.append(context)
        return context


class IExecutionContext:
    def __init__(self, fake: FakeTensorRT, config: IRuntimeConfig) -> None:
        self._fake, self._config = fake, config
        self._memory = config._strategy is not ExecutionContextAllocationStrategy.USER_MANAGED
        self._profile: ShapeProfile | None = None
        self._addresses: dict[str, int] = {}
        self._shapes: dict[str, tuple[int, ...]] = {}

    def set_device_memory(self, memory: int, size: int) -> None:
        assert len(self._fake.driver.device[memory]) >= size >= self._fake.scratch_bytes
        self._memory = True

    def set_optimization_profile_async(self, profile_index: int, stream_handle: int) -> bool:
        assert stream_handle in self._fake.driver.streams
        self._profile, self._shapes = self._fake.profiles[profile_index], {}
        return True

    def set_input_shape(self, name: str, shape: tuple[int, ...]) -> bool:
        assert self._profile is not None, "a profile comes before shapes"
        assert name not in self._fake.outputs
        if not self._profile.holds(*shape):
            return False
        self._shapes[name] = shape
        return True

    def infer_shapes(self) -> list[str]:
        return [name for name in self._fake.types if name not in self._fake.outputs and name not in self._shapes]

    def get_tensor_shape(self, name: str) -> tuple[int, ...]:
        assert not self.infer_shapes(), "outputs have a shape once inputs have"
        shape = next(iter(self._shapes.values()))
        return self._shapes[name] if name in self._shapes else self._fake.outputs[name](*shape)

    def set_tensor_address(self, name: str, memory: int) -> bool:
        self._addresses[name] = memory
        return memory in self._fake.driver.device

    def execute_async_v3(self, stream_handle: int) -> bool:
        assert stream_handle in self._fake.driver.streams, "the default stream is slow"
        assert self._memory, "the context has no memory to work in"
        if self.infer_shapes() or self._addresses.keys() != self._fake.types.keys():
            return False
        if stream_handle in self._fake.driver.capturing and not self._fake.captures:
            self._fake.log("operation not permitted when the stream is capturing")
            self._fake.driver.void = True
            return False
        shapes = {name: self.get_tensor_shape(name) for name in self._fake.types}
        addresses = dict(self._addresses)
        self._fake.driver.put(stream_handle, lambda: self._compute(shapes, addresses))
        return True

    def _compute(self, shapes: dict[str, tuple[int, ...]], addresses: dict[str, int]) -> None:
        arrays = {name: self._at(name, shapes[name], addresses[name]) for name in shapes}
        inputs = (arrays[name].copy() for name in ("input_ids", "attention_mask", "token_type_ids"))
        for name, computed in self._fake.compute(Batch(*inputs)).items():
            arrays[name][...] = computed
        self._fake.computed.append(arrays["input_ids"].shape)

    def _at(self, name: str, shape: tuple[int, ...], address: int) -> np.ndarray:
        dtype = np.dtype(self._fake.types[name])
        size = int(np.prod(shape)) * dtype.itemsize
        assert size <= len(self._fake.driver.device[address])
        return np.frombuffer((ctypes.c_uint8 * size).from_address(address), dtype).reshape(shape)


class FakeTensorRT:
    """A module, and what its only engine is.

    Attributes:
        outputs: the shape of each by rows and length.
        loaded: the plans that were deserialised.
        computed: the shapes that were computed.
        starts: whether CUDA starts.
        loads: whether plans are taken.
        captures: whether its kernels can be captured.
    """

    __name__ = "tensorrt"
    __version__ = "11.4.0.106"
    TensorIOMode = TensorIOMode
    ExecutionContextAllocationStrategy = ExecutionContextAllocationStrategy
    CudaGraphStrategy = CudaGraphStrategy
    ILogger = ILogger

    def __init__(
        self,
        driver: FakeDriver,
        profiles: Sequence[ShapeProfile],
        outputs: dict[str, Callable[[int, int], tuple[int, ...]]],
        compute: Callable[[Batch], Arrays],
        *,
        output_type: type = np.float32,
    ) -> None:
        self.driver, self.profiles, self.outputs, self.compute = driver, profiles, outputs, compute
        names = ("input_ids", "attention_mask", "token_type_ids")
        self.types: dict[str, type] = dict.fromkeys(names, np.int64) | dict.fromkeys(outputs, output_type)
        self.scratch_bytes = 1000
        self.most_contexts = 1000
        self.starts = self.loads = self.captures = True
        self.loaded: list[bytes] = []
        self.computed: list[tuple[int, ...]] = []
        self.contexts: list[IExecutionContext] = []

    def nptype(self, trt_type: type) -> type:
        return trt_type

    def log(self, message: str) -> None:
        self.logger.log(ILogger.ERROR, message)

    def Runtime(self, logger: ILogger) -> Runtime:
        self.logger = logger
        if not self.starts:
            self.log("CUDA initialization failure with error: 35.")
            raise TypeError("factory function returned nullptr")
        return Runtime(self)


class Runtime:
    def __init__(self, fake: FakeTensorRT) -> None:
        self._fake = fake
        self.engine_host_code_allowed = False

    def deserialize_cuda_engine(self, serialized_engine: bytes) -> ICudaEngine | None:
        assert not self.engine_host_code_allowed
        self._fake.loaded.append(serialized_engine)
        if not self._fake.loads:
            self._fake.log("the plan is not understood")
        return ICudaEngine(self._fake) if self._fake.loads else None
