"""Our engines in our own runtime on the card: their answers to real text beside fp32 on a CPU, and then their speed."""

from __future__ import annotations

import contextlib
import shutil
import tempfile
from functools import partial
from pathlib import Path
from unittest import mock

import numpy as np

import bertfast
from benchmarks.gpu import inference, lengths, models, timing
from benchmarks.gpu.run import ROOT
from benchmarks.gpu.step import Run
from bertfast import artifact
from bertfast.backends import ServedModel, open_served, relative_error, tolerance
from bertfast.backends.engine_plan import EngineRecord, PlanRecord
from bertfast.backends.gpu import Gpu, first_gpu
from bertfast.backends.library import load_library
from bertfast.backends.pytorch import TorchBackend
from bertfast.backends.tensorrt import TensorRTBackend
from bertfast.backends.torch_packed import TorchPackedBackend
from bertfast.config import Precision, ShapeProfile
from bertfast.engine.library import build_plan, read_network
from bertfast.engine.recipe import Recipe
from bertfast.export.export import export
from bertfast.text.batch import Batch, pad

LIBRARY = "tensorrt-rtx"
PROFILES = (ShapeProfile(batch=(1, 1, 4), length=(1, 128, 512)), ShapeProfile(batch=(5, 64, 128), length=(1, 128, 512)))
RTX = Recipe(library=LIBRARY, profiles=PROFILES, targets=("SM89",), cuda_graphs=True)


def engines(run: Run) -> None:
    """Engines of MiniLM's shape, or of the real weights that are given. What fails is a row.

    A dry run builds for the fake GPU of the tests, and computes there with ONNX Runtime.
    """
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        given = None if run.dry else run.model
        checkpoint = open_served(given or models.write_model(run, "minilm", "classify", folder))
        for precision in (Precision.FP32, Precision.FP16):
            with inference.survived(run, f"{LIBRARY} {precision}", checkpoint.name), contextlib.ExitStack() as faked:
                exported = folder / f"onnx-{precision}"
                export(checkpoint.path, exported, precision=precision)
                gpu = fake_gpu(faked, exported) if run.dry else first_gpu()
                engine = write_engine(folder / f"engine-{precision}", exported, gpu, "SM89" if run.dry else "CURRENT")
                with TensorRTBackend(engine, LIBRARY) as backend:
                    check(run, checkpoint, backend)
                    speed(run, checkpoint, backend)


def write_engine(path: Path, exported: Path, gpu: Gpu, target: str) -> ServedModel:
    """An engine for the card that is here, also where TensorRT for RTX does not list its compute capability."""
    source = artifact.open_manifest(exported)
    network = read_network(LIBRARY, exported / "model.onnx")
    plan, _ = build_plan(network, RTX, PROFILES, target, b"")
    with artifact.create(
        path, "engine", task=source.task, precision=source.precision, labels=source.labels, parents=source.parents
    ) as draft:
        shutil.copytree(exported, draft.path, dirs_exist_ok=True, ignore=shutil.ignore_patterns(artifact.MANIFEST))
        file = draft.path / f"{gpu.compute_capability}.plan"
        file.write_bytes(plan)
        record = EngineRecord(
            library=LIBRARY,
            library_version=network.version,
            cuda_version=None,
            gpu=gpu.name,
            onnx="model.onnx",
            onnx_sha256=source.files["model.onnx"].sha256,
            plans=(PlanRecord(file=file.name, sha256=artifact.sha256_of(file), target=gpu.compute_capability),),
            profiles=PROFILES,
            cuda_graphs=True,
            recipe={},
        )
        draft.settings = source.settings | {"engine": record.model_dump(mode="json")}
    return open_served(path)


def check(run: Run, checkpoint: ServedModel, backend: TensorRTBackend) -> None:
    """The largest error against fp32 on the CPU, for batches of real text of unequal lengths."""
    texts = [line for file in sorted(ROOT.glob("*.md")) for line in file.read_text(encoding="utf-8").split("\n\n")]
    texts = [text for text in texts if text.strip()][: 12 if run.dry else 96]
    encoded = checkpoint.task.encode([{"text": text} for text in texts], checkpoint.context)
    sequences = [sequence for windows in encoded for sequence in windows]
    errors = []
    with TorchBackend(checkpoint, device="cpu") as source:
        for group in backend.group([len(sequence) for sequence in sequences]):
            batch = pad([sequences[place] for place in group], checkpoint.context.tokenizer.pad_id)
            expected, real = source.run(batch), batch.attention_mask == 1
            for _ in range(3):  # computed, captured, launched
                actual = backend.run(batch)
            chosen = {name: real if name in checkpoint.task.per_token else slice(None) for name in expected}
            errors += [relative_error(actual[name][at], expected[name][at]) for name, at in chosen.items()]
    limit = tolerance(LIBRARY, backend.precision)
    run.found(
        what="correctness",
        contender=f"{LIBRARY} {backend.precision}",
        batches=len(errors),
        relative_error=max(errors),
        tolerance=limit,
        within=max(errors) <= limit,
    )


def speed(run: Run, checkpoint: ServedModel, backend: TensorRTBackend) -> None:
    """Latency of 1 x 128, seconds of 64 x 128 on the card, and SST-2's lengths beside torch without padding."""
    name = f"{LIBRARY} {backend.precision}"
    for rows in (1, 64):
        ones = np.ones((rows, 16 if run.dry else 128), np.int64)
        batch = Batch(ones * 5, ones, ones * 0)
        for _ in range(3):
            uploaded = backend.upload(batch)
            backend.download(backend.execute(uploaded))
        for part, call in {
            "compute": partial(computed, backend, uploaded),
            "whole": partial(backend.run, batch),
        }.items():
            samples = [timing.seconds(call, run) for _ in range(3 if run.dry else 100)]
            run.found(contender=name, part=part, rows=rows, **timing.summarize(samples))
    size = checkpoint.context.tokenizer.vocab_size
    sequences = lengths.draw("sst2", 24 if run.dry else 8192, size, 64 if run.dry else 512)
    beside = TorchPackedBackend(checkpoint, device=run.device.type, precision=Precision.BF16)
    contenders = {
        name: inference.streamed(backend, checkpoint, sequences),
        "torch-packed bf16": inference.streamed(beside, checkpoint, sequences),
    }
    for call in (*contenders.values(), *contenders.values()):
        call()
    for contender, samples in timing.take_turns(contenders, run, 5).items():
        run.found(contender=contender, part="stream", sequences=len(sequences), **timing.summarize(samples))


def computed(backend: TensorRTBackend, uploaded: object) -> None:
    backend.execute(uploaded)
    backend.synchronize()


def fake_gpu(faked: contextlib.ExitStack, exported: Path) -> Gpu:
    """The GPU of the tests, and a library on it that loads any plan and computes the graph with ONNX Runtime."""
    from tests.backends.fake_gpu import GPU, FakeDriver, FakeTensorRT

    source = faked.enter_context(bertfast.load(exported, "onnxruntime"))
    driver, classes = FakeDriver(), len(source.model.context.labels)
    library = FakeTensorRT(driver, PROFILES, {"logits": lambda rows, _: (rows, classes)}, source.backend.run)
    library.__version__ = load_library(LIBRARY).__version__
    for name, fake in {
        "tensorrt.load_library": lambda _: library,
        "tensorrt.first_gpu": lambda: GPU,
        "cuda.open_driver": lambda: driver,
    }.items():
        faked.enter_context(mock.patch(f"bertfast.backends.{name}", fake))
    return GPU
