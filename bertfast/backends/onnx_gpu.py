"""ONNX Runtime on the first GPU, by its execution providers for CUDA and TensorRT.

ONNX Runtime goes on with the CPU where a provider's libraries do not load, and says so in its log alone: here that is
refused. So is a matrix product that a provider leaves to another one.
"""

from __future__ import annotations

import importlib.util
import io
from collections.abc import Mapping, Sequence
from contextlib import redirect_stdout
from dataclasses import dataclass, field
from typing import Any

import onnxruntime

from bertfast.backends.onnx_runtime import PRODUCTS, executed, start
from bertfast.backends.profiles import choose_profile
from bertfast.backends.protocol import Arrays, Backend
from bertfast.backends.served import ENGINE_FILE, ServedModel
from bertfast.config import Precision, ShapeProfile
from bertfast.errors import BackendError
from bertfast.text.batch import INPUTS, Batch

_CUDA = ("CUDAExecutionProvider", {"device_id": "0", "use_tf32": "0"})  # fp32 means fp32
_FLAGS = {
    Precision.FP16: ("trt_fp16_enable",),
    Precision.BF16: ("trt_bf16_enable",),
    Precision.INT8: ("trt_int8_enable", "trt_fp16_enable"),
}
_MOST_ROWS = 32


@dataclass(frozen=True)
class Provider:
    """How ONNX Runtime is told to compute.

    Attributes:
        backend: as in `--backend NAME`.
        name: ONNX Runtime's.
        options: ONNX Runtime's.
        others: providers for what this one does not take, besides the CPU.
        device: where inputs and outputs lie, in ONNX Runtime's word.
        profiles: the shapes that it takes; any, where there are none.
        fuses: whether it makes one kernel of the graph, of which the profile tells no types.
    """

    backend: str
    name: str
    options: Mapping[str, str] = field(default_factory=dict)
    others: tuple[tuple[str, dict[str, str]], ...] = ()
    device: str = "cuda"
    profiles: tuple[ShapeProfile, ...] = ()
    fuses: bool = False


def cuda() -> Provider:
    """CUDA kernels, node by node."""
    return Provider("onnxruntime-cuda", *_CUDA)


def tensorrt(model: ServedModel) -> Provider:
    """An engine that is built whenever the model is loaded, which may take minutes.

    Nothing is cached: ONNX Runtime would load a cached plan without a look at its hash, and a plan is code. What
    `bertfast build` makes is kept and checked.
    """
    longest = model.context.max_length
    profile = ShapeProfile(batch=(1, _MOST_ROWS // 4, _MOST_ROWS), length=(1, min(128, longest), longest))
    shapes = {
        f"trt_profile_{limit}_shapes": ",".join(f"{name}:{rows}x{length}" for name in INPUTS)
        for limit, rows, length in zip(("min", "opt", "max"), profile.batch, profile.length, strict=True)
    }
    flags = dict.fromkeys(_FLAGS[model.precision], "1")
    options = {"device_id": "0", **shapes, **flags}
    return Provider("onnxruntime-tensorrt", "TensorrtExecutionProvider", options, (_CUDA,), "cuda", (profile,), True)


class OnnxGpuBackend(Backend):
    """An exported graph with its inputs and outputs on the GPU. Outputs last until the next execution."""

    def __init__(self, model: ServedModel, provider: Provider) -> None:
        self.name, self.profiles, self.device = provider.backend, provider.profiles, provider.device
        self.outputs = list(model.task.outputs)
        unloaded = _load_libraries(provider)
        file = ENGINE_FILE if provider.fuses and model.precision is Precision.INT8 else model.file
        options = onnxruntime.SessionOptions()
        options.log_severity_level = 3
        providers = [(provider.name, dict(provider.options)), *provider.others]
        try:
            self.session, kernels = start(self.name, model.path / file, options, providers)
        except BackendError as error:
            raise BackendError(f"{error}. {_remedy(unloaded)}") from None
        got, *_ = self.session.get_providers()
        if got != provider.name:
            raise BackendError(
                f"{self.name} asked ONNX Runtime for {provider.name} and got {got}, at another speed than its label "
                f"says: it is not used. {_remedy(unloaded)}"
            )
        self._hold(kernels, provider, model.precision)
        self.binding = self.session.io_binding()

    def upload(self, batch: Batch) -> dict[str, onnxruntime.OrtValue]:
        """Bring a batch to the GPU.

        Raises:
            ProfileError: no profile holds it.
        """
        if self.profiles:
            choose_profile(self.profiles, *batch.input_ids.shape)
        return {
            name: onnxruntime.OrtValue.ortvalue_from_numpy(array, self.device, 0)
            for name, array in batch.arrays.items()
        }

    def execute(self, inputs: Mapping[str, onnxruntime.OrtValue]) -> onnxruntime.IOBinding:
        for name, value in inputs.items():
            self.binding.bind_ortvalue_input(name, value)
        for name in self.outputs:
            self.binding.bind_output(name, self.device, 0)
        self.session.run_with_iobinding(self.binding)
        return self.binding

    def download(self, outputs: onnxruntime.IOBinding) -> Arrays:
        return dict(zip(self.outputs, outputs.copy_outputs_to_cpu(), strict=True))

    def synchronize(self) -> None:
        self.binding.synchronize_outputs()

    def close(self) -> None:
        for name in ("binding", "session"):
            vars(self).pop(name, None)

    def _hold(self, kernels: Sequence[dict[str, Any]], provider: Provider, precision: Precision) -> None:
        """Set `precision`; raise BackendError unless this provider executes every matrix product in it.

        In a graph of 16 bit some may be in fp32: what leaves the range stays there, and the graph's types say so.
        """
        multiply = [kernel for kernel in kernels if any(word in kernel["op_name"] for word in (*PRODUCTS, "Attention"))]
        elsewhere = {kernel["provider"] for kernel in multiply} - {provider.name}
        if elsewhere:
            raise BackendError(
                f"{provider.name} left matrix products to {' and '.join(sorted(elsewhere))}: its speed would not be "
                "that of its label, so it is not used. Use another --backend, or export in another precision."
            )
        found = executed(kernels)
        if provider.fuses and not found and any(kernel["provider"] == provider.name for kernel in kernels):
            self.precision = precision
            return
        self.hold_precision([one for one in found if one.format != "fp32"] or found, precision)


def _load_libraries(provider: Provider) -> str:
    """Load what wheels hold of CUDA and TensorRT, which the system does not find by itself.

    Returns:
        What could not be loaded, in ONNX Runtime's words.
    """
    said = io.StringIO()
    with redirect_stdout(said):  # it prints, and standard output is for answers
        onnxruntime.preload_dlls()
    if provider.fuses and importlib.util.find_spec("tensorrt_libs"):
        importlib.import_module("tensorrt_libs")
    failed = [line for line in said.getvalue().splitlines() if line.startswith("Failed to load")]
    return failed[0].strip(" .") + ". " if failed else ""


def _remedy(unloaded: str) -> str:
    return (
        f"{unloaded}See 'bertfast doctor', or install the libraries of CUDA that this onnxruntime-gpu was built for: "
        "pip install 'onnxruntime-gpu[cuda,cudnn]'"
    )
