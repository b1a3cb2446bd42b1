"""Runtimes that are tried on the card once: TensorRT for RTX, and ONNX Runtime with CUDA. What they say is a row."""

from __future__ import annotations

import tempfile
from pathlib import Path

import numpy as np

from benchmarks.gpu import models, timing
from benchmarks.gpu.inference import survived
from benchmarks.gpu.step import Run
from bertfast.backends.library import load_library, make_logger
from bertfast.config import Precision, ShapeProfile
from bertfast.engine.library import build_plan, read_network
from bertfast.engine.recipe import Recipe
from bertfast.export.export import export

LIBRARY = "tensorrt-rtx"


def graph(run: Run, folder: Path, precision: Precision) -> Path:
    """A classifier of MiniLM's shape as ONNX."""
    export(models.write_model(run, "minilm", "classify", folder), folder / "onnx", precision=precision)
    return folder / "onnx" / "model.onnx"


def rtx(run: Run) -> None:
    """Whether plans for this card (CURRENT), SM80 and SM89 are built and loaded here, whatever the documents say."""
    profile = ShapeProfile(batch=(1, 1, 8), length=(1, 128, 128))
    recipe = Recipe(library=LIBRARY, profiles=(profile,), targets=("SM89",))
    with tempfile.TemporaryDirectory() as folder:
        onnx = graph(run, Path(folder), Precision.FP16)
        for target in ("CURRENT", "SM80", "SM89"):
            with survived(run, LIBRARY, target):
                network = read_network(LIBRARY, onnx)
                plan, _ = build_plan(network, recipe, [profile], target, b"")
                run.found(target=target, built_bytes=len(plan))
                errors: list[str] = []
                library = load_library(LIBRARY)
                runtime = library.Runtime(make_logger(library, errors))
                engine = runtime.deserialize_cuda_engine(plan)
                context = engine.create_execution_context() if engine else None
                run.found(target=target, loaded=engine is not None, context=context is not None, errors=errors)


def onnxruntime_cuda(run: Run) -> None:
    """Latency of 1 x 128 and throughput of 64 x 128 in fp16 through ONNX Runtime's CUDA provider, where it is there."""
    import onnxruntime

    wanted = "CPUExecutionProvider" if run.dry else "CUDAExecutionProvider"
    if wanted not in onnxruntime.get_available_providers():
        run.found(what="onnxruntime", missing=wanted, has=onnxruntime.get_available_providers())
        return
    with tempfile.TemporaryDirectory() as folder:
        session = onnxruntime.InferenceSession(graph(run, Path(folder), Precision.FP16), providers=[wanted])
        assert session.get_providers()[0] == wanted, session.get_providers()
    for rows in (1, 64):
        ones = np.ones((rows, 16 if run.dry else 128), np.int64)
        inputs = {"input_ids": ones, "attention_mask": ones, "token_type_ids": ones * 0}
        session.run(None, inputs)
        samples = [timing.seconds(lambda: session.run(None, inputs), run) for _ in range(3 if run.dry else 200)]  # noqa: B023
        run.found(contender="onnxruntime CUDA fp16", rows=rows, **timing.summarize(samples))
