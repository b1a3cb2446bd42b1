"""ONNX Runtime on the CPU."""

from __future__ import annotations

import json
import re
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime

from bertfast.backends.protocol import Arrays, Backend, Executed
from bertfast.backends.rows import smallest_row
from bertfast.backends.served import ServedModel
from bertfast.config import Precision
from bertfast.errors import BackendError
from bertfast.text.batch import Batch

_FORMATS = {"float": "fp32", "float16": "fp16", "bfloat16": "bf16", "int8": "int8", "uint8": "int8"}
PRODUCTS = ("MatMul", "Gemm")
_CPU = Path("/proc/cpuinfo")
_INTEGER_PRODUCTS = ("MatMulIntegerToFloat", "QLinearMatMul", "QGemm")  # by scales in float
_ROUNDS_ITS_INPUTS = "DynamicQuantizeMatMul"  # takes floats, and multiplies integers all the same


class OnnxRuntimeBackend(Backend):
    """An exported graph in an ONNX Runtime session."""

    name = "onnxruntime"

    def __init__(self, model: ServedModel, threads: int | None) -> None:
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads or 0
        options.log_severity_level = 3
        if not _adds_in_32_bits(_CPU):
            options.add_session_config_entry("session.x64quantprecision", "1")
        if model.precision in (Precision.FP16, Precision.FP8):
            # emulated: node by node as an engine would round; a fusion of INT8 in fp16 also makes a graph that fails
            options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_BASIC
        self.outputs = list(model.task.outputs)
        self.session, kernels = start(
            self.name, model.path / model.file, options, ["CPUExecutionProvider"], packed=model.packed
        )
        self.hold_precision(executed(kernels), model.precision, model.int8_weights)

    def upload(self, batch: Batch) -> dict[str, np.ndarray]:
        return dict(batch.graph_inputs)

    def execute(self, inputs: dict[str, np.ndarray]) -> list[np.ndarray]:
        return self.session.run(self.outputs, inputs)  # type: ignore[no-any-return]

    def download(self, outputs: list[np.ndarray]) -> Arrays:
        return dict(zip(self.outputs, outputs, strict=True))


def _adds_in_32_bits(cpu: Path) -> bool:
    """Whether the CPU has VNNI. Without it ONNX Runtime's faster kernels for INT8 add in 16 bits, which overflow; its
    exact ones take 1.7 times as long where there is VNNI. Where nothing tells, they are taken.

    Args:
        cpu: Linux's description of it.
    """
    return cpu.is_file() and bool(re.search(r"\b(avx512_vnni|avx_vnni)\b", cpu.read_text(encoding="utf-8")))


def start(
    name: str,
    file: Path,
    options: onnxruntime.SessionOptions,
    providers: Sequence[str | tuple[str, dict[str, str]]],
    *,
    packed: bool = False,
) -> tuple[onnxruntime.InferenceSession, list[dict[str, Any]]]:
    """Load a graph and compute two tokens.

    Args:
        name: of the backend.
        packed: whether the graph takes packed rows.
    Returns:
        The session, and what its profile says of each kernel that ran.
    Raises:
        BackendError: ONNX Runtime refuses the graph or a provider; it is told not to go on with others by itself.
    """
    ones = np.ones((1, 2), np.int64)
    batch = smallest_row() if packed else Batch(ones, ones, ones * 0)
    with tempfile.TemporaryDirectory() as folder:
        options.enable_profiling = True
        options.profile_file_prefix = str(Path(folder) / "profile")
        try:
            session = onnxruntime.InferenceSession(file, options, providers=providers, enable_fallback=0)
            session.run(None, batch.graph_inputs)
        except Exception as error:  # the classes of onnxruntime's errors have no common public base
            said = str(error).strip(" .\n")
            raise BackendError(f"{name} cannot load {file}: {said}") from None
        events = json.loads(Path(session.end_profiling()).read_text(encoding="utf-8"))
    return session, [event["args"] for event in events if event.get("name", "").endswith("_kernel_time")]


def executed(kernels: Sequence[dict[str, Any]]) -> list[Executed]:
    """The profiled matrix products.

    Weights that a kernel has packed for itself are missing among its inputs: they are counted from what is multiplied
    and what comes out.
    """
    return [_product(kernel) for kernel in kernels if any(word in kernel["op_name"] for word in PRODUCTS)]


def _product(kernel: dict[str, Any]) -> Executed:
    inputs, (output, *_) = kernel["input_type_shape"], kernel["output_type_shape"]
    ((_, shape),) = inputs[0].items()
    ((_, result),) = output.items()
    formats = {_FORMATS.get(kind, kind) for operand in inputs[:2] for kind in operand}
    if kernel["op_name"] in _INTEGER_PRODUCTS:
        formats = {_FORMATS[kind] for kind in inputs[0]}
    if kernel["op_name"] == _ROUNDS_ITS_INPUTS:
        formats = {"int8"}
    return Executed(" and ".join(sorted(formats)), shape[-1] * result[-1] if len(shape) <= 3 else 0)
