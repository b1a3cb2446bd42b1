"""OpenVINO on the CPU, told to keep fp32 where fp32 was promised (its own default is bf16 where the CPU has it)."""

from __future__ import annotations

import math

import numpy as np
import openvino

from bertfast.backends.protocol import Arrays, Backend, Executed
from bertfast.backends.served import ServedModel
from bertfast.config import Precision
from bertfast.errors import BackendError
from bertfast.text.batch import Batch

_FORMATS = {"f32": "fp32", "f16": "fp16", "bf16": "bf16", "i8": "int8", "u8": "int8"}
_INFO = ("layerType", "runtimePrecision")
_PRODUCTS = ("FullyConnected", "MatMul", "ScaledDotProductAttention")
_HINTS = {Precision.FP32: "f32", Precision.BF16: "bf16"}


class OpenVinoBackend(Backend):
    """An exported graph compiled by OpenVINO's CPU plugin."""

    name = "openvino"

    def __init__(self, model: ServedModel, threads: int | None) -> None:
        core = openvino.Core()
        settings = {
            "PERFORMANCE_HINT": "LATENCY",
            "INFERENCE_PRECISION_HINT": _HINTS.get(model.precision) or _around(core),
        }
        if threads:
            settings["INFERENCE_NUM_THREADS"] = str(threads)
        try:
            self.compiled = core.compile_model(model.path / model.file, "CPU", settings)
        except RuntimeError as error:
            raise BackendError(f"openvino cannot load {model.path / model.file}: {error}") from None
        self.request = self.compiled.create_infer_request()
        self.outputs = model.task.outputs
        self.hold_precision(_executed(self.compiled), model.precision, model.int8_weights)

    def upload(self, batch: Batch) -> dict[str, np.ndarray]:
        return dict(batch.graph_inputs)

    def execute(self, inputs: dict[str, np.ndarray]) -> openvino.InferRequest:
        self.request.infer(inputs, share_inputs=True)
        return self.request

    def download(self, outputs: openvino.InferRequest) -> Arrays:
        return {name: np.array(outputs.get_tensor(name).data, np.float32) for name in self.outputs}


def _around(core: openvino.Core) -> str:
    """What is computed in around INT8: bf16 where the CPU multiplies in it."""
    return "bf16" if "BF16" in core.get_property("CPU", "OPTIMIZATION_CAPABILITIES") else "f32"


def _executed(compiled: openvino.CompiledModel) -> list[Executed]:
    """The matrix products of the graph that the plugin executes; those with weights are called FullyConnected."""
    found = []
    for node in compiled.get_runtime_model().get_ops():
        info = {key: str(value.astype(str)) for key, value in node.get_rt_info().items() if key in _INFO}
        if any(word in info.get("layerType", "") for word in _PRODUCTS):
            name = info["runtimePrecision"]
            weights = math.prod(node.input(1).get_shape()) if info["layerType"] == "FullyConnected" else 0
            found.append(Executed(_FORMATS.get(name, name), weights))
    return found
