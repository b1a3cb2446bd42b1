"""The runtime of engines on a fake GPU, which holds it to the documented order. Nothing here has run on a real one."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from bertfast.backends import backends_for, gpu
from bertfast.backends.cuda import Cuda
from bertfast.backends.engine_plan import Library
from bertfast.backends.predictor import Predictor
from bertfast.backends.tensorrt import TensorRTBackend
from bertfast.config import ModelConfig, Precision, ShapeProfile
from bertfast.errors import BackendError, EngineError, ProfileError
from bertfast.export.export import export
from bertfast.text.batch import Batch
from bertfast.text.tokenizer import Tokenizer
from tests.backends.engine_bench import LARGE, PLAN, SMALL, Bench, batch
from tests.backends.fake_gpu import CudaGraphStrategy
from tests.conftest import write_checkpoint

TEXTS = ["The river.", "The old bridge crosses the garden near a mountain.", "a", *["The lantern waits."] * 12]


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
    assert not bench.driver.streams


@pytest.mark.parametrize("cuda_graphs", [False, True])
def test_what_is_being_computed_is_waited_for_before_its_memory_goes(bench: Bench, cuda_graphs: bool) -> None:
    model = bench.model(SMALL, cuda_graphs=cuda_graphs)
    with TensorRTBackend(model, "tensorrt") as backend:
        for _ in range(3):
            backend.execute(backend.upload(batch(2, 16)))
        assert bench.driver.at_work
    assert not bench.driver.device
    assert vars(backend).keys().isdisjoint({"engine", "settings", "tensors"})  # views of memory that is gone


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
    assert not bench.driver.streams


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
