"""The runtime of engines on a fake GPU, which holds it to the documented order. Nothing here has run on a real one."""

from __future__ import annotations

import ctypes
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import bertfast
from benchmarks.gpu import lengths
from bertfast import artifact
from bertfast.backends import backends_for, gpu, open_served, tensorrt
from bertfast.backends.cuda import Cuda
from bertfast.backends.engine_plan import EngineRecord, Library, PlanRecord
from bertfast.backends.predictor import Predictor
from bertfast.backends.served import ServedModel
from bertfast.backends.tensorrt import TensorRTBackend
from bertfast.config import ModelConfig, Precision, ShapeProfile
from bertfast.errors import BackendError, EngineError, ProfileError
from bertfast.export.export import export
from bertfast.text.batch import Batch
from bertfast.text.tokenizer import Tokenizer
from tests.backends.fake_gpu import GPU, CudaGraphStrategy, FakeDriver, FakeTensorRT
from tests.conftest import write_checkpoint

PLAN = b"a plan of nothing"
SMALL = ShapeProfile(batch=(1, 1, 2), length=(16, 16, 32))
LARGE = ShapeProfile(batch=(1, 4, 8), length=(16, 32, 48))
TEXTS = ["The river.", "The old bridge crosses the garden near a mountain.", "a", *["The lantern waits."] * 12]


def write_engine(
    path: Path, exported: Path, profiles: tuple[ShapeProfile, ...], library: Library, cuda_graphs: bool
) -> ServedModel:
    source = artifact.open_manifest(exported)
    with artifact.create(
        path, "engine", task=source.task, precision=source.precision, labels=source.labels, parents=source.parents
    ) as draft:
        shutil.copytree(exported, draft.path, dirs_exist_ok=True, ignore=shutil.ignore_patterns(artifact.MANIFEST))
        (draft.path / "SM89.plan").write_bytes(PLAN)
        record = EngineRecord(
            library=library,
            library_version=FakeTensorRT.__version__,
            cuda_version="13",
            gpu=GPU.name,
            onnx="model.onnx",
            onnx_sha256=source.files["model.onnx"].sha256,
            plans=(PlanRecord(file="SM89.plan", sha256=artifact.sha256_of(draft.path / "SM89.plan"), target="SM89"),),
            profiles=profiles,
            cuda_graphs=cuda_graphs,
            recipe={},
        )
        draft.settings = source.settings | {"engine": record.model_dump(mode="json")}
    return open_served(path)


class Bench:
    """An engine artefact, the fake GPU that it is loaded on, and what ONNX Runtime makes of the same graph."""

    def __init__(self, path: Path, exported: Path, patch: pytest.MonkeyPatch) -> None:
        self.path, self.exported, self.patch = path, exported, patch
        self.driver = FakeDriver()
        self.source = bertfast.load(exported, "onnxruntime")

    def model(
        self,
        *profiles: ShapeProfile,
        library: Library = "tensorrt",
        cuda_graphs: bool = False,
        output_type: type = np.float32,
    ) -> ServedModel:
        model = write_engine(self.path, self.exported, profiles, library, cuda_graphs)
        width = len(model.context.labels)
        shapes = {
            name: (lambda rows, length: (rows, length, width))
            if name in model.task.per_token
            else (lambda rows, length: (rows, width))
            for name in model.task.outputs
        }
        self.library = FakeTensorRT(self.driver, profiles, shapes, self.source.backend.run, output_type=output_type)
        self.patch.setattr(tensorrt, "load_library", lambda name: self.library)
        self.patch.setattr(tensorrt, "first_gpu", lambda: GPU)
        self.patch.setattr("bertfast.backends.library.first_gpu", lambda: GPU)
        self.patch.setattr("bertfast.backends.cuda.open_driver", lambda: self.driver)
        return model


@pytest.fixture
def bench(tmp_path: Path, exported: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Bench]:
    made = Bench(tmp_path / "engine", exported, monkeypatch)
    with made.source:
        yield made


def batch(rows: int, length: int) -> Batch:
    ones = np.ones((rows, length), np.int64)
    return Batch(ones * 5, ones, ones * 0)


@pytest.mark.parametrize("cuda_graphs", [False, True])
@pytest.mark.parametrize("library", ["tensorrt", "tensorrt-rtx"])
def test_answers_are_those_of_the_graph(bench: Bench, library: Library, cuda_graphs: bool) -> None:
    """Padding to a profile, splitting into its batches and going through pinned memory change no answer."""
    model = bench.model(SMALL, LARGE, library=library, cuda_graphs=cuda_graphs)
    wanted = bench.source.predict(TEXTS)
    with Predictor(model, TensorRTBackend(model, library)) as predictor:
        for _ in range(2):
            found = predictor.predict(TEXTS)
            assert [answer["label"] for answer in found] == [answer["label"] for answer in wanted]
            assert [answer["score"] for answer in found] == pytest.approx(
                [answer["score"] for answer in wanted], rel=1e-4
            )
    assert bench.library.loaded == [PLAN]
    assert max(rows for rows, _ in bench.library.computed) <= 8
    assert min(length for _, length in bench.library.computed) >= 16


def test_what_was_allocated_is_freed(bench: Bench) -> None:
    model = bench.model(SMALL, LARGE, cuda_graphs=True)
    with TensorRTBackend(model, "tensorrt") as backend:
        for _ in range(2):
            backend.run(batch(2, 16))
        assert len(bench.driver.device) == 5  # activations, three inputs, one output
        assert bench.driver.graphs
        backend.close()
    assert not bench.driver.device
    assert not bench.driver.pinned
    assert not bench.driver.graphs
    assert bench.driver.stream is None


@pytest.mark.parametrize("cuda_graphs", [False, True])
def test_what_is_being_computed_is_waited_for_before_its_memory_goes(bench: Bench, cuda_graphs: bool) -> None:
    model = bench.model(SMALL, cuda_graphs=cuda_graphs)
    with TensorRTBackend(model, "tensorrt") as backend:
        for _ in range(3):
            backend.execute(backend.upload(batch(2, 16)))
        assert bench.driver.stream
    assert not bench.driver.device
    assert vars(backend).keys().isdisjoint({"engine", "settings", "tensors"})  # views of memory that is gone


def test_a_graph_is_captured_once_a_shape_and_launched_after(bench: Bench) -> None:
    model = bench.model(SMALL, LARGE, cuda_graphs=True)
    with TensorRTBackend(model, "tensorrt") as backend:
        first = [backend.run(batch(2, 16))["logits"] for _ in range(4)]
        assert bench.driver.launched == 2
        assert len(bench.driver.graphs) == 1
        backend.run(batch(3, 16))  # a shape that does not come again has none
        again = backend.run(batch(2, 16))["logits"]
        assert bench.driver.launched == 3
        assert len(bench.driver.graphs) == 1
        assert all(np.array_equal(one, first[0]) for one in (*first, again))


def test_lengths_of_one_grain_share_a_graph(bench: Bench) -> None:
    model = bench.model(SMALL, cuda_graphs=True)
    with TensorRTBackend(model, "tensorrt") as backend:
        for length in (5, 9, 16, 17, 25, 32):
            found = backend.run(batch(1, length))["logits"]
            assert np.allclose(found, bench.source.backend.run(batch(1, length))["logits"], atol=1e-4)
        assert len(bench.driver.graphs) == 2
        assert bench.driver.launched == 2
        assert set(bench.library.computed) == {(1, 16), (1, 32)}


def test_large_batches_have_no_graph_and_are_not_rounded(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tensorrt, "GRAPH_TOKENS", 100)
    model = bench.model(LARGE, cuda_graphs=True)
    with TensorRTBackend(model, "tensorrt") as backend:
        for _ in range(3):
            backend.run(batch(8, 17))
        assert not bench.driver.graphs
        assert set(bench.library.computed) == {(8, 17)}


def test_the_graph_that_was_not_used_for_longest_goes(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tensorrt, "MAX_GRAPHS", 2)
    model = bench.model(LARGE, cuda_graphs=True)
    with TensorRTBackend(model, "tensorrt") as backend:
        for rows in (1, 1, 2, 2, 1, 3, 3):
            backend.run(batch(rows, 16))
        assert len(bench.driver.graphs) == 2
        assert bench.driver.launched == 1
        backend.run(batch(1, 16))
        assert bench.driver.launched == 2


@pytest.mark.parametrize(("most_rows", "share"), [(1, 0.95), (4, 0.8)])
def test_graphs_are_hit_in_the_lengths_of_squad(bench: Bench, most_rows: int, share: float) -> None:
    """One window at a time, or a few as a server gathers them: nearly every batch finds the graph of its shape."""
    profile = ShapeProfile(batch=(1, 1, 4), length=(1, 64, 512))
    model = bench.model(profile, cuda_graphs=True)
    bench.library.compute = lambda inputs: {"logits": np.zeros((len(inputs), 3), np.float32)}
    tokens = [len(sequence) for sequence in lengths.draw("squad", 2000, 300, 384)]
    rows = np.random.default_rng(0).integers(1, most_rows + 1, len(tokens)).tolist()
    with TensorRTBackend(model, "tensorrt") as backend:
        for count, length in zip(rows, tokens, strict=True):
            backend.run(batch(count, length))
        assert bench.driver.launched > share * len(tokens)
        assert len(bench.driver.graphs) <= tensorrt.MAX_GRAPHS
    computed = sum(count * length for count, length in bench.library.computed)
    assert computed < 1.05 * sum(count * length for count, length in zip(rows, tokens, strict=True))


def test_tensorrt_for_rtx_captures_by_itself(bench: Bench) -> None:
    model = bench.model(SMALL, library="tensorrt-rtx", cuda_graphs=True)
    with TensorRTBackend(model, "tensorrt-rtx") as backend:
        backend.run(batch(2, 16))
    assert not bench.driver.launched
    assert {context._config.cuda_graph_strategy for context in bench.library.contexts} == {
        CudaGraphStrategy.WHOLE_GRAPH_CAPTURE
    }


def test_outputs_are_float32_and_computed_where_the_inputs_lie(bench: Bench) -> None:
    model = bench.model(SMALL, output_type=np.float16)
    with TensorRTBackend(model, "tensorrt") as backend:
        assert backend.precision is Precision.FP32
        inputs = backend.upload(batch(2, 20))
        for _ in range(2):
            outputs = backend.execute(inputs)
        backend.synchronize()
        found = backend.download(outputs)["logits"]
        assert found.dtype == np.float32
        assert np.allclose(found, bench.source.backend.run(batch(2, 20))["logits"], rtol=1e-2, atol=1e-3)
        assert bench.library.computed == [(2, 20), (2, 20)]


def test_an_upload_waits_until_the_last_one_has_left_the_pinned_memory(bench: Bench) -> None:
    model = bench.model(SMALL)
    compute, seen = bench.library.compute, []
    bench.library.compute = lambda inputs: (seen.append(int(inputs.input_ids[0, 0])), compute(inputs))[1]
    with TensorRTBackend(model, "tensorrt") as backend:
        for value in range(5, 10):
            ones = np.ones((1, 16), np.int64)
            backend.execute(backend.upload(Batch(ones * value, ones, ones * 0)))
        backend.synchronize()
    assert seen == [5, 6, 7, 8, 9]


def test_an_upload_does_not_wait_for_what_is_being_computed(bench: Bench) -> None:
    model = bench.model(SMALL)
    with TensorRTBackend(model, "tensorrt") as backend:
        first = backend.execute(backend.upload(batch(2, 16)))
        second = backend.upload(batch(1, 20))
        assert not bench.library.computed
        assert np.array_equal(backend.download(first)["logits"], bench.source.backend.run(batch(2, 16))["logits"])
        backend.execute(second)
        backend.upload(batch(2, 32))  # into the memory of the first
        assert bench.library.computed == [(2, 16)]
    assert not bench.driver.events


class OnTheGpu:
    """An array that another library has on the fake GPU."""

    def __init__(self, bench: Bench, array: np.ndarray, **changes: Any) -> None:
        address = ctypes.c_ulonglong()
        bench.driver.cuMemAlloc_v2(ctypes.byref(address), ctypes.c_size_t(array.nbytes))
        self.write = lambda: ctypes.memmove(address.value, array.ctypes.data, array.nbytes) and None
        said = {"shape": array.shape, "typestr": array.dtype.str, "data": (address.value, False), "version": 2}
        self.__cuda_array_interface__ = said | changes


@pytest.mark.parametrize("stream", [1, 99, None])
def test_inputs_that_are_on_the_gpu_are_read_where_they_lie(bench: Bench, stream: int | None) -> None:
    """After what another stream still writes into them, without a copy, and between batches of the host."""
    model = bench.model(SMALL, LARGE, cuda_graphs=True)
    ones = np.ones((2, 20), np.int64)
    wanted = Batch(ones * 7, ones, ones * 0)
    arrays = {name: OnTheGpu(bench, array, stream=stream) for name, array in wanted.arrays.items()}
    writes = [array.write for array in arrays.values()]
    if stream is None:
        for write in writes:
            write()
    else:
        bench.driver.others[stream] = writes
    with TensorRTBackend(model, "tensorrt") as backend:
        for _ in range(3):
            backend.run(batch(2, 20))
        copied, copy = [], bench.driver.cuMemcpyHtoDAsync_v2
        bench.patch.setattr(bench.driver, "cuMemcpyHtoDAsync_v2", lambda *given: copied.append(given) or copy(*given))
        found = backend.download(backend.execute(backend.bind(arrays)))["logits"]
        assert not copied
        assert np.allclose(found, bench.source.backend.run(wanted)["logits"], atol=1e-4)
        again = backend.run(batch(2, 20))["logits"]
        assert np.allclose(again, bench.source.backend.run(batch(2, 20))["logits"], atol=1e-4)


@pytest.mark.parametrize(
    ("array", "changes", "message"),
    [
        (np.ones((1, 16), np.int32), {}, "input_ids is int32, and the engine reads int64. Convert it"),
        (np.ones((1, 16), np.int64), {"strides": (8, 16)}, r"input_ids of shape \(1, 16\) is not contiguous"),
        (np.ones((1, 17), np.int64), {}, r"shapes \(1, 16\), \(1, 17\), and not one"),
        (None, {}, r"input_ids is not on a GPU \(ndarray\)\. Give batches of the host to upload"),
    ],
)
def test_inputs_that_the_engine_cannot_read_are_refused_by_name(
    bench: Bench, array: np.ndarray | None, changes: dict[str, Any], message: str
) -> None:
    model = bench.model(SMALL)
    ones = np.ones((1, 16), np.int64)
    arrays: dict[str, Any] = {name: OnTheGpu(bench, ones) for name in batch(1, 16).arrays}
    arrays["input_ids"] = ones if array is None else OnTheGpu(bench, array, **changes)
    with TensorRTBackend(model, "tensorrt") as backend, pytest.raises(BackendError, match=message):
        backend.bind(arrays)


def test_inputs_on_the_gpu_are_whole_and_long_enough(bench: Bench) -> None:
    model = bench.model(SMALL)
    short = {name: OnTheGpu(bench, np.ones((1, 5), np.int64)) for name in batch(1, 5).arrays}
    with TensorRTBackend(model, "tensorrt") as backend:
        with pytest.raises(ProfileError, match="batch 1x5 is shorter than the 16 tokens .* Pad it to 16, or"):
            backend.bind(short)
        with pytest.raises(BackendError, match=r"the engine reads input_ids, .*, and got input_ids\."):
            backend.bind({"input_ids": short["input_ids"]})


@pytest.mark.parametrize(
    ("rows", "length", "message"),
    [
        (64, 48, r"batch 64x48 exceeds the engine's profiles 1\.\.2 x 16\.\.32, 1\.\.8 x 16\.\.48\. Split it to 8, or"),
        (1, 49, r"batch 1x49 exceeds .* Cut its texts to 48 tokens, or raise length and run 'bertfast build' again"),
        (0, 16, r"a batch of no sequences \(0x16\)"),
    ],
)
def test_a_shape_that_no_profile_holds_is_refused(bench: Bench, rows: int, length: int, message: str) -> None:
    model = bench.model(SMALL, LARGE)
    with TensorRTBackend(model, "tensorrt") as backend:
        with pytest.raises(ProfileError, match=message):
            backend.run(batch(rows, length))
        assert backend.run(batch(1, 5))["logits"].shape == (1, 3)


def test_nothing_is_deserialised_that_is_of_another_version(bench: Bench) -> None:
    model = bench.model(SMALL)
    bench.library.__version__ = "11.5.0.1"  # type: ignore[misc]
    with pytest.raises(EngineError, match=r"11\.4\.0\.106.*11\.5\.0\.1"):
        TensorRTBackend(model, "tensorrt")
    assert not bench.library.loaded
    assert not bench.driver.device


def test_nothing_is_deserialised_that_changed_since_it_was_opened(bench: Bench) -> None:
    model = bench.model(SMALL)
    (bench.path / "SM89.plan").write_bytes(PLAN[:-1] + b"!")
    with pytest.raises(EngineError, match="--rebuild"):
        TensorRTBackend(model, "tensorrt")
    assert not bench.library.loaded


def test_too_little_memory_says_what_was_asked_and_what_is_free(bench: Bench) -> None:
    model = bench.model(SMALL)
    bench.driver.total = 2**20
    bench.library.scratch_bytes = 3 * 2**20
    message = r"the activations of the engine take 3\.0 MiB on the GPU, and 1\.0 of its 1\.0 MiB are free"
    with pytest.raises(BackendError, match=message):
        TensorRTBackend(model, "tensorrt")
    assert not bench.driver.device
    assert bench.driver.stream is None


def test_too_little_pinned_memory_says_what_was_asked_and_what_is_free(bench: Bench) -> None:
    model = bench.model(ShapeProfile(batch=(1, 1, 512), length=(1, 16, 512)))
    bench.driver.most_pinned = 5 * 2**20
    message = (
        r"take 2\.0 MiB of pinned memory beside 4\.0 that .* [\d,.]+ MiB of the host are free: .*\(out of memory\)"
    )
    with pytest.raises(BackendError, match=message):
        TensorRTBackend(model, "tensorrt")
    assert not bench.driver.device
    assert not bench.driver.pinned


def test_what_goes_wrong_in_a_capture_is_not_hidden_by_its_end(bench: Bench) -> None:
    model = bench.model(SMALL, cuda_graphs=True)
    bench.library.captures = False
    with TensorRTBackend(model, "tensorrt") as backend:
        with pytest.raises(BackendError, match="does not take 2x16 in a CUDA graph: operation not permitted when the"):
            for _ in range(2):
                backend.run(batch(2, 16))
        backend.synchronize()  # the capture has ended


def test_a_context_that_is_not_made_is_reported_with_the_reason(bench: Bench) -> None:
    model = bench.model(SMALL, LARGE)
    bench.library.most_contexts = 1
    with pytest.raises(BackendError, match=r"a context for profile 1\.\.8 x 16\.\.48: out of memory\. .* MiB are free"):
        TensorRTBackend(model, "tensorrt")
    assert not bench.driver.device


def test_a_plan_that_is_not_taken_is_reported_with_the_reason(bench: Bench) -> None:
    model = bench.model(SMALL)
    bench.library.loads = False
    with pytest.raises(BackendError, match=r"tensorrt does not take a plan of 0\.0 MiB: the plan is not understood"):
        TensorRTBackend(model, "tensorrt")


def test_a_driver_that_is_too_old_is_named(bench: Bench) -> None:
    model = bench.model(SMALL)
    bench.library.starts = False
    message = r"11\.4\.0\.106 does not start on Fake GPU: CUDA initialization failure with error: 35\. .* CUDA 13\.0"
    with pytest.raises(BackendError, match=message):
        TensorRTBackend(model, "tensorrt")


def test_an_engine_goes_to_the_library_that_built_it(bench: Bench) -> None:
    model = bench.model(SMALL, library="tensorrt-rtx")
    assert backends_for(model) == ["tensorrt-rtx"]
    with pytest.raises(EngineError, match="was built by tensorrt-rtx, and tensorrt is to load it"):
        TensorRTBackend(model, "tensorrt")
    assert not bench.library.loaded


def test_padding_is_cut_from_outputs_by_token(
    tmp_path: Path, tiny_config: ModelConfig, tokenizer: Tokenizer, monkeypatch: pytest.MonkeyPatch
) -> None:
    tagger = write_checkpoint(tmp_path / "tagger", "tag", tiny_config, tokenizer, ("O", "B-a", "I-a"))
    export(tagger, tmp_path / "onnx")
    made = Bench(tmp_path / "engine", tmp_path / "onnx", monkeypatch)
    with made.source, TensorRTBackend(made.model(SMALL), "tensorrt") as backend:
        found, wanted = backend.run(batch(2, 5))["logits"], made.source.backend.run(batch(2, 5))["logits"]
    assert found.shape == wanted.shape == (2, 5, 3)
    assert np.allclose(found, wanted, atol=1e-4)


def test_without_a_driver_there_is_a_remedy(monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(name: str) -> None:
        raise OSError(name)

    monkeypatch.setattr(gpu.ctypes, "CDLL", missing)
    with pytest.raises(BackendError, match="no NVIDIA driver here .* Install the driver"):
        Cuda()
