"""OpenVINO on the CPU, told to keep fp32 where fp32 was promised (its own default is bf16 where the CPU has it).

Batches that come in a stream are computed beside each other, as many as OpenVINO thinks best: threads that share a
small batch wait for each other after every product (benchmarks/LOG.md).
"""

from __future__ import annotations

import math
import threading
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from functools import cached_property
from itertools import chain, islice

import numpy as np
import openvino

from bertfast import artifact
from bertfast.backends.protocol import Arrays, Backend, Executed
from bertfast.backends.served import ServedModel
from bertfast.config import Precision
from bertfast.errors import BackendError
from bertfast.text.batch import Batch
from bertfast.workers import in_order

_FORMATS = {"f32": "fp32", "f16": "fp16", "bf16": "bf16", "i8": "int8", "u8": "int8"}
_INFO = ("layerType", "runtimePrecision")
_PRODUCTS = ("FullyConnected", "MatMul", "ScaledDotProductAttention")
_HINTS = {Precision.FP32: "f32", Precision.BF16: "bf16"}


Run = Callable[[Batch], Arrays]
_FEW = 2  # times as many batches as are computed at a time, less are few


class OpenVinoBackend(Backend):
    """An exported graph compiled by OpenVINO's CPU plugin: for a single batch on all threads and, when it is first
    asked for a stream of them, once more for batches beside each other."""

    name = "openvino"

    def __init__(self, model: ServedModel, threads: int | None) -> None:
        self.model, self.threads, self.outputs = model, threads, model.task.outputs
        self.overlaps = (threads or int(artifact.hardware()["cores"])) > 1
        self.core, self.file = openvino.Core(), model.path / model.file
        _convert_an_array()
        with self._loading():
            self.graph = self.core.read_model(self.file)  # once: the file may be another one later
        self.request = self._compiled("LATENCY").create_infer_request()

    @contextmanager
    def _loading(self) -> Iterator[None]:
        try:
            yield
        except RuntimeError as error:
            raise BackendError(f"openvino cannot load {self.file}: {error}") from None

    def _compiled(self, hint: str) -> openvino.CompiledModel:
        precision = _HINTS.get(self.model.precision) or _around(self.core)
        settings = {"PERFORMANCE_HINT": hint, "INFERENCE_PRECISION_HINT": precision}
        if self.threads:
            settings["INFERENCE_NUM_THREADS"] = str(self.threads)
        with self._loading():
            compiled = self.core.compile_model(self.graph, "CPU", settings)
        self.hold_precision(_executed(compiled), self.model.precision, self.model.int8_weights)
        return compiled

    def make_ready(self) -> None:
        if self.overlaps:
            self._beside  # noqa: B018 (it loads)

    def stream(self, batches: Iterable[Batch]) -> Iterator[Arrays]:
        """Few batches have all threads one after the other: beside each other the longest would be waited for."""
        source = iter(batches)
        first = list(islice(source, _FEW * 2))  # less are few for any number of workers
        if len(first) == _FEW * 2 and self.overlaps:
            run, workers = self._beside
            first += islice(source, max(0, _FEW * workers - len(first)))
            if len(first) >= _FEW * workers:
                with ThreadPoolExecutor(workers) as pool:
                    yield from in_order(pool, run, chain(first, source), workers + 1)
                return
        yield from map(self.run, chain(first, source))

    @cached_property
    def _beside(self) -> tuple[Run, int]:
        """`run` for several threads at a time, and for how many."""
        compiled = self._compiled("THROUGHPUT")
        of_thread = threading.local()

        def run(batch: Batch) -> Arrays:
            if not hasattr(of_thread, "request"):
                of_thread.request = compiled.create_infer_request()
            of_thread.request.infer(self.upload(batch), share_inputs=True)
            return self.download(of_thread.request)

        return run, int(compiled.get_property("OPTIMAL_NUMBER_OF_INFER_REQUESTS"))

    def upload(self, batch: Batch) -> dict[str, np.ndarray]:
        return dict(batch.graph_inputs)

    def execute(self, inputs: dict[str, np.ndarray]) -> openvino.InferRequest:
        self.request.infer(inputs, share_inputs=True)
        return self.request

    def download(self, outputs: openvino.InferRequest) -> Arrays:
        return {name: np.array(outputs.get_tensor(name).data, np.float32) for name in self.outputs}


def _convert_an_array() -> None:
    """Once, before threads do it: two that convert the first array at the same time wait for each other for ever.

    One waits for Python's lock within a C++ initialisation, the other has the lock and waits for the initialisation
    (openvino 2026.4.1, seen in 1 of 15 processes; benchmarks/LOG.md).
    """
    np.array(openvino.Tensor(np.zeros((1, 1), np.int64), shared_memory=True).data)


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
