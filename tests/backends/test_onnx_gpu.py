"""ONNX Runtime's providers for a GPU, without one: what is chosen, what is refused, and IO binding on the CPU's memory.

The sessions are real but where a name says fake; kernels that a GPU would have run are made up.
"""

from __future__ import annotations

import importlib.metadata
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pytest

from bertfast.backends import available, backends_for, onnx_gpu, onnx_providers, open_backend, open_served
from bertfast.backends.gpu import Gpu
from bertfast.backends.onnx_gpu import OnnxGpuBackend, Provider, cuda, tensorrt
from bertfast.backends.onnx_providers import missing_for_cuda, missing_for_tensorrt
from bertfast.backends.protocol import precisions
from bertfast.config import Precision
from bertfast.doctor import examine
from bertfast.errors import BackendError, ProfileError
from bertfast.text.batch import Batch, pad

CPU = Provider("onnxruntime-cuda", "CPUExecutionProvider", device="cpu")
FUSED = replace(CPU, backend="onnxruntime-tensorrt", fuses=True)
NAMES = ("onnxruntime-cuda", "onnxruntime-tensorrt")
Kernels = list[dict[str, Any]]


def batch_of(path: Path, *texts: str) -> Batch:
    tokenizer = open_served(path).context.tokenizer
    return pad(tokenizer.encode([(text, None) for text in texts], 64), tokenizer.pad_id)


def kernel(name: str, kind: str = "float", provider: str = CPU.name) -> dict[str, Any]:
    """What a profile says of a kernel, made up."""
    return {
        "op_name": name,
        "provider": provider,
        "input_type_shape": [{kind: [1, 2, 32]}, {kind: [32, 32]}],
        "output_type_shape": [{kind: [1, 2, 32]}],
    }


@pytest.fixture
def profiled(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Let a real session say that these kernels ran."""
    real = onnx_gpu.start

    def say(*kernels: dict[str, Any]) -> None:
        monkeypatch.setattr(onnx_gpu, "start", lambda *arguments: (real(*arguments)[0], list(kernels)))

    return say


@pytest.mark.parametrize("name", NAMES)
def test_what_the_installed_onnxruntime_was_built_without_is_named_with_its_remedy(exported: Path, name: str) -> None:
    assert "onnxruntime-gpu" not in {item.name for item in importlib.metadata.distributions()}
    model = replace(open_served(exported), precision=Precision.FP16)
    with pytest.raises(BackendError, match=f"{name} cannot be used here.*uninstall onnxruntime, then.*bertfast.gpu"):
        open_backend(model, name)
    assert name not in backends_for(model)
    (row,) = [row for row in examine()["backends"] if row["name"] == name]
    assert row["version"] is None
    assert "was built without it: pip uninstall onnxruntime" in row["remedy"]


def test_what_a_provider_does_not_execute_is_refused(exported: Path) -> None:
    assert precisions("onnxruntime-cuda") == (Precision.FP32, Precision.FP16, Precision.BF16)
    with pytest.raises(BackendError, match="onnxruntime-tensorrt executes fp16 or bf16 or int8, and .* is in fp32"):
        open_backend(open_served(exported), "onnxruntime-tensorrt")


def test_asking_what_is_there_loads_no_runtime() -> None:
    code = "import sys; from bertfast.backends import available; available(); sys.exit('onnxruntime' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_a_silent_fall_back_to_the_cpu_is_refused(
    exported: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The real onnxruntime goes on with the CPU here; what its build for GPUs prints is made up."""
    lost = "Failed to load libcublasLt.so.13: libcublasLt.so.13: cannot open shared object file"
    monkeypatch.setattr(onnxruntime, "preload_dlls", lambda: print(f"Hello\n{lost}\nPlease follow the guide."))
    with (
        pytest.warns(UserWarning, match="'CUDAExecutionProvider' is not in available provider names"),
        pytest.raises(BackendError) as refusal,
    ):
        OnnxGpuBackend(open_served(exported), cuda())
    said = str(refusal.value)
    assert said.startswith("onnxruntime-cuda asked ONNX Runtime for CUDAExecutionProvider and got CPUExecutionProvider")
    assert f" {lost}. See 'bertfast doctor', or install" in said
    assert said.endswith("pip install 'onnxruntime-gpu[cuda,cudnn]'")
    assert capsys.readouterr().out == ""


def test_a_provider_that_fails_is_refused_in_its_own_words(exported: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fake_session(*arguments: object, enable_fallback: int, **named: object) -> None:
        assert enable_fallback == 0  # else onnxruntime prints to standard output and goes on with another provider
        raise RuntimeError("Please install TensorRT libraries.\n")

    monkeypatch.setattr(onnxruntime, "InferenceSession", fake_session)
    model = replace(open_served(exported), precision=Precision.FP16)
    with pytest.raises(BackendError, match=r"onnxruntime-tensorrt cannot load .*Please install TensorRT libraries\. S"):
        OnnxGpuBackend(model, tensorrt(model))


def test_io_binding_gives_the_numbers_of_the_cpu_backend(exported: Path) -> None:
    """Batches that grow, shrink and come again, each with outputs of its own shape."""
    rows = (["a"], ["The river.", "lantern " * 40], ["a"], ["a bridge"] * 3)
    batches = [batch_of(exported, *texts) for texts in rows]
    model = open_served(exported)
    with OnnxGpuBackend(model, CPU) as bound, open_backend(model, "onnxruntime") as plain:
        uploaded = [bound.upload(batch) for batch in batches]
        for batch, inputs in zip(batches, uploaded, strict=True):
            outputs = bound.execute(inputs)
            bound.synchronize()
            found, expected = bound.download(outputs), plain.run(batch)
            assert found.keys() == expected.keys()
            assert all(np.array_equal(found[name], expected[name]) for name in expected)
        bound.close()


def test_precision_is_that_of_the_kernels_that_ran(exported: Path, profiled: Callable[..., None]) -> None:
    model = replace(open_served(exported), precision=Precision.FP16)
    profiled(kernel("MatMul", "float16"), kernel("Gather"), kernel("MatMul"))  # what leaves the range stays in fp32
    assert OnnxGpuBackend(model, CPU).precision is Precision.FP16
    for kernels in ([kernel("MatMul")], [kernel("MatMul", "float16"), kernel("Gemm", "bfloat16")]):
        profiled(*kernels)
        with pytest.raises(BackendError, match=r"in fp16, and says that it executes (fp32|bf16, fp16)\."):
            OnnxGpuBackend(model, CPU)
    profiled(kernel("Gather"))
    with pytest.raises(BackendError, match="no matrix product at all"):
        OnnxGpuBackend(model, CPU)


@pytest.mark.parametrize("provider", [CPU, FUSED])
@pytest.mark.parametrize("left", ["FusedMatMul", "Attention"])
def test_a_product_that_is_left_to_another_provider_is_refused(
    exported: Path, profiled: Callable[..., None], provider: Provider, left: str
) -> None:
    profiled(kernel("TRTKernel_graph_1"), kernel("MatMul"), kernel(left, provider="OtherProvider"))
    with pytest.raises(BackendError, match="CPUExecutionProvider left matrix products to OtherProvider"):
        OnnxGpuBackend(open_served(exported), provider)


def test_an_engine_made_of_the_whole_graph_has_the_graph_s_precision(
    exported: Path, profiled: Callable[..., None]
) -> None:
    profiled(kernel("TRTKernel_graph_1"), kernel("Shape", provider="OtherProvider"))
    model = replace(open_served(exported), precision=Precision.BF16)
    assert OnnxGpuBackend(model, FUSED).precision is Precision.BF16
    profiled(kernel("TRTKernel_graph_1", provider="OtherProvider"))
    with pytest.raises(BackendError, match="no matrix product at all"):
        OnnxGpuBackend(model, FUSED)


@pytest.mark.parametrize(
    ("precision", "file", "flags"),
    [
        (Precision.FP16, "model.onnx", {"trt_fp16_enable"}),
        (Precision.BF16, "model.onnx", {"trt_bf16_enable"}),
        (Precision.INT8, "model_fp16.onnx", {"trt_int8_enable", "trt_fp16_enable"}),
    ],
)
def test_tensorrt_gets_the_graph_for_engines_its_types_and_its_shapes(
    exported: Path, monkeypatch: pytest.MonkeyPatch, precision: Precision, file: str, flags: set[str]
) -> None:
    class FakeSession:
        def get_providers(self) -> list[str]:
            return ["TensorrtExecutionProvider", "CUDAExecutionProvider", "CPUExecutionProvider"]

        def io_binding(self) -> None:
            return None

    asked: list[Any] = []

    def fake_start(*arguments: Any) -> tuple[FakeSession, Kernels]:
        asked.extend(arguments)
        return FakeSession(), [kernel("TRTKernel_graph_1", provider="TensorrtExecutionProvider")]

    monkeypatch.setattr(onnx_gpu, "start", fake_start)
    model = replace(open_served(exported), precision=precision)
    backend = OnnxGpuBackend(model, tensorrt(model))
    _, graph, _, ((name, options), (fallback, fallback_options)) = asked
    assert (graph.name, name, fallback) == (file, "TensorrtExecutionProvider", "CUDAExecutionProvider")
    assert fallback_options["use_tf32"] == "0"
    assert {option for option in options if option.endswith("_enable")} == flags
    shapes = {limit: options[f"trt_profile_{limit}_shapes"] for limit in ("min", "opt", "max")}
    assert shapes["min"] == "input_ids:1x1,attention_mask:1x1,token_type_ids:1x1"
    assert (shapes["opt"].split(",")[0], shapes["max"].split(",")[0]) == ("input_ids:8x64", "input_ids:32x64")
    with pytest.raises(ProfileError, match=r"batch 33x3 exceeds the engine's profile 1\.\.32 x 1\.\.64\. Split it"):
        backend.upload(batch_of(exported, *["a"] * 33))


@pytest.fixture
def gpu_build(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A made-up onnxruntime-gpu beside a made-up card: the folders of its modules."""
    (tmp_path / "onnxruntime" / "capi").mkdir(parents=True)
    for name in ("cuda", "tensorrt", "shared"):
        library = tmp_path / "onnxruntime" / "capi" / f"libonnxruntime_providers_{name}.so"
        library.write_bytes(b"\x7fELF\0libcudart.so.13\0libnvinfer.so.10\0libnvonnxparser.so.10\0")
    monkeypatch.setattr(onnx_providers, "_folder", lambda name: tmp_path / name if (tmp_path / name).is_dir() else None)
    monkeypatch.setattr(onnx_providers, "first_gpu", lambda: Gpu("NVIDIA L4", "SM89", (13, 0)))
    return tmp_path


def test_a_build_for_gpus_beside_a_card_is_available(gpu_build: Path, exported: Path) -> None:
    (gpu_build / "tensorrt_libs").mkdir()
    (gpu_build / "tensorrt_libs" / "libnvinfer.so.10").touch()
    assert missing_for_cuda() is missing_for_tensorrt() is None
    assert all(item.version for item in available() if item.name in NAMES)
    assert backends_for(open_served(exported)) == ["onnxruntime-cuda", "onnxruntime", "openvino"]


def test_a_tensorrt_of_another_version_is_none(gpu_build: Path) -> None:
    (gpu_build / "tensorrt_libs").mkdir()
    (gpu_build / "tensorrt_libs" / "libnvinfer.so.11").touch()
    assert missing_for_cuda() is None
    assert missing_for_tensorrt() == (
        "the onnxruntime that is installed is linked with TensorRT 10 (libnvinfer.so.10), which is not here: "
        "pip install 'tensorrt==10.*'"
    )


def test_what_else_a_build_for_gpus_lacks_is_named(gpu_build: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def no_driver() -> Gpu:
        raise BackendError("there is no NVIDIA driver here")

    monkeypatch.setattr(onnx_providers, "first_gpu", no_driver)
    assert missing_for_cuda() == missing_for_tensorrt() == "there is no NVIDIA driver here"
    monkeypatch.setattr(importlib.metadata.Distribution, "discover", lambda name: iter([name]))
    assert str(missing_for_cuda()).startswith("onnxruntime and onnxruntime-gpu install the same module")
