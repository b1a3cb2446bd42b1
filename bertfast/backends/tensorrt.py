"""An engine in TensorRT or TensorRT for RTX, whichever built it."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from threading import Lock
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np
import numpy.typing as npt

from bertfast.backends.cuda import Bytes, Cuda
from bertfast.backends.device_arrays import DeviceArray, find
from bertfast.backends.engine_plan import Here, Library, check_loadable, read_plan
from bertfast.backends.gpu import first_gpu
from bertfast.backends.library import TensorRT, load_library, said, start
from bertfast.backends.profiles import choose_profile
from bertfast.backends.protocol import Arrays, Backend
from bertfast.backends.served import ServedModel
from bertfast.errors import BackendError, ProfileError
from bertfast.text.batch import Batch

if TYPE_CHECKING:
    import tensorrt as trt

MAX_GRAPHS = 64
GRAPH_TOKENS = 2048  # of a batch; the kernels of larger ones are launched while others compute. Not measured on a GPU
GRAPH_GRAIN = 16  # tokens that lengths are rounded up to, so that shapes come again
_MIB = 2**20
_OURS: Mapping[str, int] = MappingProxyType({})
_Answer = TypeVar("_Answer")


@dataclass(frozen=True)
class Shape:
    """The shape of the batch that is on the GPU.

    Attributes:
        profile: the place of the profile that computes it.
        length: tokens of a row as it is computed; at least the profile's shortest, and rounded up for a CUDA graph.
        real_length: tokens of a row as it came; it makes no other shape.
    """

    profile: int
    rows: int
    length: int
    real_length: int = field(compare=False)

    @property
    def has_graph(self) -> bool:
        """Whether a CUDA graph pays for it: whether it computes faster than its kernels are launched."""
        return self.rows * self.length <= GRAPH_TOKENS


@dataclass(frozen=True)
class Bound:
    """Inputs that stay where others put them on the GPU.

    Attributes:
        arrays: kept, so that their memory is.
    """

    shape: Shape
    addresses: Mapping[str, int]
    arrays: Mapping[str, DeviceArray]


@dataclass(frozen=True)
class _Tensor:
    """An input or output of the engine, with room for its largest shape on the GPU and in pinned memory.

    Attributes:
        stagings: in pinned memory; inputs have two, which take turns.
    """

    dtype: np.dtype[Any]
    address: int
    stagings: tuple[Bytes, ...]

    def staged(self, shape: tuple[int, ...], turn: int = 0) -> npt.NDArray[Any]:
        """The pinned memory as an array."""
        return self.stagings[turn][: math.prod(shape) * self.dtype.itemsize].view(self.dtype).reshape(shape)


@dataclass(frozen=True)
class _Captured:
    """A CUDA graph and the context that it was captured from, which takes no other shape (TensorRT's advice)."""

    graph: int
    context: trt.IExecutionContext


class TensorRTBackend(Backend):
    """An engine on the first GPU. What was uploaded stays until the next upload, and outputs until the next execution.

    The precision is the artefact's: TensorRT computes in the types of the graph, which the builder has checked.

    Args:
        beside: one of the same model that has loaded the engine already, for another thread: they share its weights.
    """

    def __init__(self, model: ServedModel, name: Library, beside: TensorRTBackend | None = None) -> None:
        record = model.engine
        assert record is not None
        self.name, self.precision, self.profiles = name, model.precision, record.profiles
        self.outputs, self.per_token = model.task.outputs, model.task.per_token
        library, gpu = load_library(name), first_gpu()
        here = Here(name, library.__version__, gpu.name, gpu.compute_capability)
        plan = check_loadable(model.path, record, here)
        self.errors: list[str] = beside.errors if beside else []
        self.lock: Lock = beside.lock if beside else Lock()
        self.contexts: list[trt.IExecutionContext] = []
        self.graphs = record.cuda_graphs
        self.seen: set[Shape] = set()
        self.captured: dict[Shape, _Captured] = {}  # the one that was used last comes last
        self.cuda = Cuda()
        self.turn = 0
        try:
            self.copied = self.cuda.event(), self.cuda.event()
            self.engine: trt.ICudaEngine = (
                beside.engine if beside else self._deserialize(library, read_plan(model.path, plan))
            )
            self._prepare(library)
            self._allocate(library)
        except BaseException:
            self.close()
            raise

    def upload(self, batch: Batch) -> Shape:
        """Bring a batch to the GPU, padded to the shortest length that its profile takes or, if small, to a graph's.

        It waits for the upload before the last one, and not for what is being computed.

        Raises:
            ProfileError: no profile holds it.
        """
        rows, real_length = batch.input_ids.shape
        place = choose_profile(self.profiles, rows, real_length)
        shape = self._shape(place, rows, real_length)
        self.turn = 1 - self.turn
        self.cuda.wait(self.copied[self.turn])  # the staging may still be read
        for name, array in batch.arrays.items():
            tensor = self.tensors[name]
            staged = tensor.staged((rows, shape.length), self.turn)
            staged[:, :real_length], staged[:, real_length:] = array, 0
            self.cuda.copy_in(tensor.address, staged.view(np.uint8))
        self.cuda.record(self.copied[self.turn])
        return shape

    def bind(self, arrays: Mapping[str, DeviceArray]) -> Bound:
        """Take inputs that are on the GPU already, in the place of `upload`: nothing is copied or padded.

        Args:
            arrays: int64 [B, S] by the input's name, contiguous, such as torch's CUDA tensors. What is by now on the
                stream that they name (CUDA's default stream where they name none) is waited for on the GPU; what is on
                others must be done. They may change once the outputs were downloaded.
        Raises:
            BackendError: one is missing, not on the engine's GPU, not contiguous, or of another type or shape than the
                others.
            ProfileError: no profile holds them as they are.
        """
        if set(arrays) != set(self.inputs):
            raise BackendError(f"the engine reads {', '.join(self.inputs)}, and got {', '.join(arrays) or 'nothing'}.")
        places = {name: find(name, arrays[name], self.tensors[name].dtype) for name in self.inputs}
        shapes = {place.shape for place in places.values()}
        if len(shapes) > 1 or len(min(shapes)) != 2:
            raise BackendError(f"the inputs are of shapes {', '.join(map(str, sorted(shapes)))}, and not one [B, S].")
        rows, length = min(shapes)
        profile = choose_profile(self.profiles, rows, length)
        least = self.profiles[profile].length[0]
        if length < least:
            raise ProfileError(
                f"batch {rows}x{length} is shorter than the {least} tokens that the engine's profiles begin with, and "
                f"what is on the GPU is not padded. Pad it to {least}, or give it to upload."
            )
        for name, place in places.items():
            if (gpu := self.cuda.gpu_of(place.address)) != 0:
                raise BackendError(f"{name} is on GPU {gpu}, and the engine on GPU 0. Copy it there first.")
        for stream in {place.stream for place in places.values() if place.stream is not None}:
            self.cuda.follow(stream)
        addresses = {name: place.address for name, place in places.items()}
        return Bound(Shape(profile, rows, length, length), addresses, dict(arrays))

    def execute(self, inputs: Shape | Bound) -> Shape:
        if isinstance(inputs, Bound):  # a graph reads what it was captured with
            self.last, self.bound = self.contexts[inputs.shape.profile], inputs
            self._compute(self.last, inputs.shape, inputs.addresses)
            return inputs.shape
        if inputs in self.captured:
            self.captured[inputs] = captured = self.captured.pop(inputs)
            self.cuda.launch(captured.graph)
            self.last = captured.context
        elif self.captures and inputs.has_graph and inputs in self.seen:
            self.last = self._context(inputs.profile)
            self._compute(self.last, inputs)
            self._capture(self.last, inputs)
        else:
            if inputs.has_graph:
                self.seen.add(inputs)
            self.last = self.contexts[inputs.profile]
            self._compute(self.last, inputs)
        return inputs

    def download(self, outputs: Shape) -> Arrays:
        shapes = {name: tuple(self.last.get_tensor_shape(name)) for name in self.outputs}
        staged = {name: self.tensors[name].staged(shapes[name]) for name in self.outputs}
        for name, array in staged.items():
            self.cuda.copy_out(array.view(np.uint8), self.tensors[name].address)
        self.cuda.synchronize()
        return {name: self._real(name, array, outputs).astype(np.float32) for name, array in staged.items()}

    def synchronize(self) -> None:
        self.cuda.synchronize()

    def close(self) -> None:
        """Wait for the GPU and let go of all. A second call does nothing."""
        if not self.cuda.stream:
            return
        self.cuda.synchronize()
        while self.captured:
            self.cuda.drop(self.captured.popitem()[1].graph)
        self.contexts.clear()
        for name in ("last", "bound", "settings", "engine", "tensors"):  # after the contexts, before their memory
            vars(self).pop(name, None)
        self.cuda.close()

    def _shape(self, profile: int, rows: int, real_length: int) -> Shape:
        least, _, most = self.profiles[profile].length
        exact = Shape(profile, rows, max(real_length, least), real_length)
        rounded = replace(exact, length=min(-(-exact.length // GRAPH_GRAIN) * GRAPH_GRAIN, most))
        return rounded if self.graphs and rounded.has_graph else exact

    def _deserialize(self, library: TensorRT, plan: bytes) -> trt.ICudaEngine:
        """The engine; one with host code in it is refused, as long as nobody tells the runtime otherwise."""
        runtime: trt.Runtime = start(library, library.Runtime, self.errors)
        return self._got(runtime.deserialize_cuda_engine(plan), f"a plan of {len(plan) / _MIB:,.1f} MiB")

    def _prepare(self, library: TensorRT) -> None:
        """Memory for the activations of the engine, and a context for each profile."""
        self.settings = self.engine.create_runtime_config()
        self.settings.set_execution_context_allocation_strategy(library.ExecutionContextAllocationStrategy.USER_MANAGED)
        self.captures = self.graphs and self.name == "tensorrt"
        if self.graphs and not self.captures:  # TensorRT for RTX captures by itself
            self.settings.cuda_graph_strategy = library.CudaGraphStrategy.WHOLE_GRAPH_CAPTURE
        self.scratch_bytes = self.engine.device_memory_size_v2
        self.scratch = self.cuda.allocate(self.scratch_bytes, "the activations of the engine")
        self.contexts += [self._context(place) for place in range(len(self.profiles))]

    def _context(self, profile: int) -> trt.IExecutionContext:
        """A context for a profile; all share the scratch memory, as one at a time is at work."""
        what = f"a context for profile {self.profiles[profile]}"
        with self.lock:  # TensorRT: what several threads share is used by one at a time
            context = self._got(self.engine.create_execution_context(runtime_config=self.settings), what)
        context.set_device_memory(self.scratch, self.scratch_bytes)
        self._got(context.set_optimization_profile_async(profile, self.cuda.stream), what)
        self.cuda.synchronize()
        return context

    def _allocate(self, library: TensorRT) -> None:
        """Memory for the largest shape that each input and output has in any profile."""
        names = [self.engine.get_tensor_name(number) for number in range(self.engine.num_io_tensors)]
        modes = {name: self.engine.get_tensor_mode(name) for name in names}
        self.inputs = [name for name, mode in modes.items() if mode == library.TensorIOMode.INPUT]
        sizes = dict.fromkeys(names, 0)
        for place, profile in enumerate(self.profiles):
            self._set_shape(self.contexts[place], Shape(place, profile.batch[2], profile.length[2], profile.length[2]))
            for name in names:
                sizes[name] = max(sizes[name], math.prod(self.contexts[place].get_tensor_shape(name)))
        types = {name: np.dtype(library.nptype(self.engine.get_tensor_dtype(name))) for name in names}
        self.tensors = {
            name: self._tensor(types[name], sizes[name] * types[name].itemsize, 1 + (name in self.inputs))
            for name in names
        }

    def _tensor(self, dtype: np.dtype[Any], size: int, stagings: int) -> _Tensor:
        what = "the inputs and outputs of the engine"
        pinned = tuple(self.cuda.allocate_pinned(size, what) for _ in range(stagings))
        return _Tensor(dtype, self.cuda.allocate(size, what), pinned)

    def _set_shape(self, context: trt.IExecutionContext, shape: Shape) -> None:
        for name in self.inputs:
            self._got(
                context.set_input_shape(name, (shape.rows, shape.length)), f"{name} of {shape.rows}x{shape.length}"
            )
        unknown = context.infer_shapes()
        assert not unknown, unknown

    def _compute(self, context: trt.IExecutionContext, shape: Shape, addresses: Mapping[str, int] = _OURS) -> None:
        """Compute from our own memory for inputs, or from these addresses."""
        self._set_shape(context, shape)
        for name, tensor in self.tensors.items():
            address = addresses.get(name, tensor.address)
            self._got(context.set_tensor_address(name, address), f"the address of {name}")
        self._got(context.execute_async_v3(self.cuda.stream), "the batch")

    def _capture(self, context: trt.IExecutionContext, shape: Shape) -> None:
        """Capture for later what the context has computed last, which settled what the engine does for this shape."""
        self.cuda.synchronize()
        if len(self.captured) == MAX_GRAPHS:
            self.cuda.drop(self.captured.pop(next(iter(self.captured))).graph)
        graph = self.cuda.capture(lambda: context.execute_async_v3(self.cuda.stream))
        self.captured[shape] = _Captured(self._got(graph, f"{shape.rows}x{shape.length} in a CUDA graph"), context)

    def _real(self, name: str, array: npt.NDArray[Any], shape: Shape) -> npt.NDArray[Any]:
        return array[:, : shape.real_length] if name in self.per_token else array

    def _got(self, answer: _Answer | None, what: str) -> _Answer:
        """What TensorRT answers; BackendError where that is nothing or no."""
        if answer is None or answer is False:
            free, total = self.cuda.memory_bytes()
            raise BackendError(
                f"{self.name} does not take {what}: {said(self.errors)}. {free / _MIB:,.1f} of the GPU's "
                f"{total / _MIB:,.1f} MiB are free. Where that is little, end what else runs there; else build the "
                "engine again with other profiles, or without cuda_graphs."
            )
        return answer
