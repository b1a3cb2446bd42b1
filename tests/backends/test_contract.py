"""One set of tests over every backend that is present; what is absent is named."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

import bertfast
from bertfast.backends import available, backends_for, open_backend, open_served, relative_error, tolerance
from bertfast.backends.gpu import first_gpu
from bertfast.backends.protocol import Arrays, precisions
from bertfast.config import Precision
from bertfast.engine.build import build, open_source
from bertfast.engine.recipe import read_recipe
from bertfast.errors import ArtifactError, BackendError, ConfigError, DataError
from bertfast.export.export import export
from bertfast.text.batch import Batch, pad

NAMES = [item.name for item in available()]


@pytest.fixture(params=NAMES)
def name(request: pytest.FixtureRequest) -> str:
    found = next(item for item in available() if item.name == request.param)
    if found.version is None:
        pytest.skip(f"{found.name} is absent: {found.remedy}")
    if Precision.FP32 not in precisions(found.name):
        pytest.skip(f"{found.name} does not execute fp32, which these tests are in")
    if found.kind == "engine":
        try:
            first_gpu()
        except BackendError as refusal:
            pytest.skip(f"{found.name} runs nothing here: {refusal}")
    return found.name


@pytest.fixture
def artefact(name: str, classifier: Path, exported: Path, tmp_path: Path) -> Path:
    if name.startswith("torch"):
        return classifier
    if name.startswith("tensorrt"):
        recipe = read_recipe(Path("mixed"))
        if name == "tensorrt-rtx":
            recipe = read_recipe(Path("rtx-ahead-of-time"), targets=[first_gpu().compute_capability])
        build(open_source(exported), tmp_path / "engine", recipe)
        return tmp_path / "engine"
    return exported


TEXTS = ["The river.", "The old bridge crosses the garden near a mountain.", "a", "lantern " * 40]


def test_outputs_follow_the_source_within_the_tolerance(name: str, artefact: Path, classifier: Path) -> None:
    model = open_served(artefact)
    encoded = model.context.tokenizer.encode([(text, None) for text in TEXTS] + [(TEXTS[0], TEXTS[1])], 64)
    batch = pad(encoded, model.context.tokenizer.pad_id)
    with open_backend(model, name) as backend, open_backend(open_served(classifier), "torch") as source:
        actual, expected = backend.run(batch)["logits"], source.run(batch)["logits"]
        assert backend.precision is Precision.FP32
        assert actual.dtype == np.float32
        assert relative_error(actual, expected) <= tolerance(name, Precision.FP32)
        parts = backend.download(backend.execute(backend.upload(batch)))
        backend.synchronize()
        assert np.array_equal(parts["logits"], actual)


def test_answers_come_in_the_order_of_the_inputs(name: str, artefact: Path) -> None:
    with bertfast.load(artefact, name, threads=2) as model:
        together = model.predict(TEXTS)
        alone = [model.predict([text])[0] for text in TEXTS]
        assert [answer["label"] for answer in together] == [answer["label"] for answer in alone]
        scores = [[answer["score"] for answer in answers] for answers in (together, alone)]
        assert scores[0] == pytest.approx(scores[1], rel=1e-4)
        assert model.predict([]) == []


def test_what_is_cut_is_said(name: str, artefact: Path) -> None:
    with bertfast.load(artefact, name) as model:
        short, long = model.predict(["The river.", "The river waits. " * 100])
    assert "truncated" not in short
    assert long["truncated"] is True


@pytest.mark.parametrize(
    ("request_", "message"),
    [({"txt": "a"}, "a request needs 'text'; this one has txt"), ({"text": 3}, "'text' is int")],
)
def test_a_malformed_request_is_named(exported: Path, request_: dict[str, object], message: str) -> None:
    with bertfast.load(exported) as model, pytest.raises(DataError, match=message):
        model.predict([request_])


@pytest.mark.parametrize("inputs", ["hello", {"text": "a"}, [3], [("a",)], [("a", "b", "c")]])
def test_what_is_no_list_of_requests_is_named(exported: Path, inputs: object) -> None:
    with bertfast.load(exported) as model, pytest.raises(DataError, match="put the one into a list|neither a text"):
        model.predict(inputs)  # type: ignore[arg-type]


def test_the_precision_that_is_executed_is_read_back_from_openvino(
    exported: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    open_vino = pytest.importorskip("bertfast.backends.open_vino")
    import openvino

    if "BF16" not in openvino.Core().get_property("CPU", "OPTIMIZATION_CAPABILITIES"):
        pytest.skip("this CPU has no bf16, so OpenVINO cannot be made to execute it")
    monkeypatch.setitem(open_vino._HINTS, Precision.FP32, "bf16")
    with pytest.raises(
        BackendError, match="was to execute the matrix products in fp32, and says that it executes.*bf16"
    ):
        open_backend(open_served(exported), "openvino")


def test_the_precision_that_is_executed_is_read_back_from_onnxruntime(exported: Path, tmp_path: Path) -> None:
    """A graph that claims fp32 and multiplies in INT8 is refused."""
    quantization = pytest.importorskip("onnxruntime.quantization")
    quantization.quantize_dynamic(exported / "model.onnx", tmp_path / "model.onnx", op_types_to_quantize=["MatMul"])
    with pytest.raises(
        BackendError, match="was to execute the matrix products in fp32, and says that it executes.*int8"
    ):
        open_backend(replace(open_served(exported), path=tmp_path), "onnxruntime")


def test_the_precision_that_is_executed_is_read_back_from_torch(
    classifier: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import torch

    from bertfast.backends import pytorch

    monkeypatch.setattr(pytorch.torch, "set_float32_matmul_precision", lambda _: None)
    before = torch.get_float32_matmul_precision()
    torch._C._set_float32_matmul_precision("medium")
    try:
        with pytest.raises(BackendError, match="reduced fp32"):
            open_backend(open_served(classifier), "torch")
    finally:
        torch._C._set_float32_matmul_precision(before)


def test_a_backend_refuses_what_it_does_not_run(classifier: Path, exported: Path) -> None:
    with pytest.raises(BackendError, match="onnxruntime runs artefacts of kind 'onnx'.*bertfast export"):
        open_backend(open_served(classifier), "onnxruntime")
    with pytest.raises(BackendError, match="torch runs artefacts of kind 'checkpoint'"):
        open_backend(open_served(exported), "torch")
    with pytest.raises(BackendError, match="tensorrt-rtx runs artefacts of kind 'engine'.*bertfast build .* --recipe"):
        open_backend(open_served(exported), "tensorrt-rtx")
    with pytest.raises(BackendError, match="'onnxruntim' is not a backend.*Did you mean 'onnxruntime'"):
        open_backend(open_served(exported), "onnxruntim")


def test_what_is_for_gpus_is_chosen_where_there_is_one(classifier: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("bertfast.backends.registry.has_gpu", lambda: False)
    assert backends_for(open_served(classifier)) == ["torch"]
    monkeypatch.setattr("bertfast.backends.registry.has_gpu", lambda: True)
    assert backends_for(open_served(classifier)) == ["torch", "torch-packed"]


def test_an_artefact_of_another_kind_does_not_predict(corpus, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    with pytest.raises(ArtifactError, match="of kind 'corpus'"):
        bertfast.load(corpus.path)
    with pytest.raises(ArtifactError, match="no manifest"):
        bertfast.load(tmp_path)


def test_a_pretrained_model_fills_masks_and_judges_what_follows(pretrained: Path) -> None:
    with bertfast.load(pretrained) as model:
        one, two = model.predict([("The [MASK] waits near the [MASK].", "It is old."), "Nothing is masked."])
    assert [len(candidates) for candidates in one["masks"]] == [5, 5]
    assert one["masks"][0][0]["score"] >= one["masks"][0][1]["score"]
    assert 0 <= one["is_next"] <= 1
    assert two["masks"] == []


def test_the_first_nsp_logit_is_that_of_is_next(pretrained: Path) -> None:
    model = open_served(pretrained)
    (encoded,) = model.context.tokenizer.encode([("a", "b")], 16)
    outputs = {
        "prediction_logits": np.zeros((1, len(encoded), 5), np.float32),
        "seq_relationship_logits": np.array([[4.0, -4.0]], np.float32),
    }
    assert model.task.decode(outputs, [encoded], model.context)[0]["is_next"] > 0.99


def test_a_setting_that_an_export_has_fixed_is_refused(encoder: Path, tmp_path: Path) -> None:
    assert open_served(encoder, {"pooling": "cls"}).context.settings.pooling == "cls"  # type: ignore[attr-defined]
    export(encoder, tmp_path / "onnx", settings={"pooling": "cls"})
    assert open_served(tmp_path / "onnx").context.settings.pooling == "cls"  # type: ignore[attr-defined]
    with pytest.raises(ConfigError, match=r"task\.pooling is fixed in .* Give it to 'bertfast export'"):
        bertfast.load(tmp_path / "onnx", settings={"pooling": "mean"})


def test_an_answer_is_never_made_of_what_is_no_number(classifier: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with bertfast.load(classifier, "torch") as model:
        assert len(model.predict(["a river", "a bridge"])) == 2
        stream = model.backend.stream

        def overflowing(batches: Iterable[Batch]) -> Iterator[Arrays]:
            for outputs in stream(batches):
                outputs["logits"][-1, 0] = np.inf
                yield outputs

        monkeypatch.setattr(model.backend, "stream", overflowing)
        with pytest.raises(BackendError, match=r"torch computed logits that are NaN or infinite, in fp32\. Export in"):
            model.predict(["a river", "a bridge"])
