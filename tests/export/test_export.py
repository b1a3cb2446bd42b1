from __future__ import annotations

import shutil
from collections import Counter
from pathlib import Path

import numpy as np
import onnx
import pytest
from safetensors.numpy import load_file, save_file

from bertfast import artifact
from bertfast.backends import open_backend, open_served
from bertfast.backends.protocol import Arrays, Backend
from bertfast.config import ModelConfig, Precision
from bertfast.errors import ArtifactError, BackendError, CheckError
from bertfast.export import export as exporting
from bertfast.export.check import awkward_texts, check_export
from bertfast.export.export import export
from bertfast.text.batch import Batch
from bertfast.text.tokenizer import Tokenizer
from tests.conftest import write_checkpoint


def test_the_graph_is_plain_and_holds_nothing_that_it_does_not_need(exported: Path) -> None:
    model = onnx.load(exported / "model.onnx")
    layers = 2
    assert [item.version for item in model.opset_import] == [21]
    assert Counter(node.op_type for node in model.graph.node) == {
        "Gather": 4,
        "Shape": 1,
        "Slice": 1,
        "Cast": 1,
        "Sub": 1,
        "Unsqueeze": 1,
        "Tanh": 1,
        "Mul": 1 + layers,
        "MatMul": 2 + 8 * layers,
        "Add": 4 + 9 * layers,
        "LayerNormalization": 1 + 2 * layers,
        "Gelu": layers,
        "Softmax": layers,
        "Reshape": 4 * layers,
        "Transpose": 4 * layers,
    }


def test_the_signature_is_dynamic_in_batch_and_sequence(exported: Path) -> None:
    graph = onnx.load(exported / "model.onnx").graph

    def shapes(values: object) -> dict[str, list[object]]:
        return {v.name: [d.dim_param or d.dim_value for d in v.type.tensor_type.shape.dim] for v in values}  # type: ignore[attr-defined]

    assert shapes(graph.input) == {
        name: ["batch", "sequence"] for name in ("input_ids", "attention_mask", "token_type_ids")
    }
    assert shapes(graph.output) == {"logits": ["batch", 3]}


def test_a_tagger_has_a_row_for_each_token_and_no_pooler(
    tiny_config: ModelConfig, tokenizer: Tokenizer, tmp_path: Path
) -> None:
    tagger = write_checkpoint(tmp_path / "tagger", "tag", tiny_config, tokenizer, ("O", "B-a", "I-a"))
    checks = export(tagger, tmp_path / "onnx").checks
    assert all(error < 1e-4 for errors in checks.values() for error in errors.values())
    graph = onnx.load(tmp_path / "onnx" / "model.onnx").graph
    (output,) = graph.output
    shape = [d.dim_param or d.dim_value for d in output.type.tensor_type.shape.dim]
    assert (output.name, shape) == ("logits", ["batch", "sequence", 3])
    assert not [constant.name for constant in graph.initializer if "pooler" in constant.name]
    assert artifact.open_manifest(tmp_path / "onnx").labels == ("O", "B-a", "I-a")


def test_the_manifest_says_what_was_checked_and_where_it_comes_from(exported: Path, classifier: Path) -> None:
    manifest = artifact.open_manifest(exported, "onnx")
    assert (manifest.task, manifest.precision, manifest.labels) == ("classify", "fp32", ("building", "nature", "tool"))
    assert manifest.parents == {"checkpoint": artifact.open_manifest(classifier).sha256}
    for errors in manifest.settings["checks"].values():
        assert {"ragged batch, both segments", "length 1", "length 64", "padding invariance", "batch order"} <= set(
            errors
        )
        assert all(error <= 1e-5 for error in errors.values())


def test_exporting_twice_gives_the_same_bytes(exported: Path, classifier: Path, tmp_path: Path) -> None:
    export(classifier, tmp_path / "again")
    first, again = ((folder / "model.onnx").read_bytes() for folder in (exported, tmp_path / "again"))
    assert first == again


def test_pretraining_heads_are_exported_too(pretrained: Path, tmp_path: Path) -> None:
    checks = export(pretrained, tmp_path / "onnx").checks
    assert checks
    assert max(max(errors.values()) for errors in checks.values()) <= 1e-5


def test_bf16_is_executed_by_the_runtime_that_has_it_and_refused_by_the_other(
    classifier: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    openvino = pytest.importorskip("openvino")
    if "BF16" not in openvino.Core().get_property("CPU", "OPTIMIZATION_CAPABILITIES"):
        pytest.skip("this CPU has no bf16")
    checks = export(classifier, tmp_path / "onnx", precision=Precision.BF16).checks
    assert set(checks) == {"openvino"}
    assert 1e-4 < max(checks["openvino"].values()) < 2e-2  # an error of 0 would be fp32
    served = open_served(tmp_path / "onnx")
    with open_backend(served) as backend:
        assert (backend.name, backend.precision) == ("openvino", Precision.BF16)
    with pytest.raises(BackendError, match="onnxruntime executes fp32 or fp16 or int8 or fp8, and .*onnx is in bf16"):
        open_backend(served, "onnxruntime")
    monkeypatch.setattr("bertfast.export.export.backends_for", lambda model: [])
    with pytest.raises(BackendError, match="no runtime for bf16 is here: pip install"):
        export(classifier, tmp_path / "none", precision=Precision.BF16)


class Broken(Backend):
    """A backend whose outputs go through `change`."""

    name, precision = "onnxruntime", Precision.FP32

    def __init__(self, inner: Backend, change: object) -> None:
        self.inner, self.change = inner, change

    def upload(self, batch: Batch) -> Batch:
        return batch

    def execute(self, inputs: Batch) -> Arrays:
        return {name: self.change(values, inputs) for name, values in self.inner.run(inputs).items()}  # type: ignore[operator]

    def download(self, outputs: Arrays) -> Arrays:
        return outputs


@pytest.mark.parametrize(
    ("change", "check"),
    [
        (lambda values, batch: values * 1.001, ".*"),
        (lambda values, batch: np.where(batch.lengths[:, None] == 1, np.nan, values), "length 1"),
        (lambda values, batch: values + 0.1 * (batch.token_type_ids.max(axis=1, keepdims=True)), ".*"),
        (lambda values, batch: values + 0.01 * (batch.attention_mask == 0).sum(axis=1, keepdims=True), ".*"),
        (lambda values, batch: values[::-1] if len(values) == 8 else values, "ragged batch, both segments|batch order"),
        (lambda values, batch: values * (1.1 if batch.input_ids.shape[1] == 64 else 1), ".*"),
    ],
)
def test_a_graph_that_differs_is_not_published(classifier: Path, change: object, check: str) -> None:
    model = open_served(classifier)
    with open_backend(model) as source, pytest.raises(CheckError, match=f"differs from the source on '({check})'"):
        check_export(model, source, Broken(source, change))


def test_in_eight_bits_one_text_may_be_farther_than_all_may_together(classifier: Path) -> None:
    model = open_served(classifier)

    text = sum(awkward_texts(model)[4].input_ids)

    def one_text_off(values: np.ndarray, batch: Batch) -> np.ndarray:
        here = (batch.input_ids * batch.attention_mask).sum(axis=1) == text
        return values + 0.03 * here[:, None]  # an eleventh of the largest logit

    def other_orders_off(values: np.ndarray, batch: Batch) -> np.ndarray:
        return values + 0.03 * (np.arange(len(values)) == 4)[:, None]

    with open_backend(model) as source:
        off = Broken(source, one_text_off)
        assert check_export(model, source, off, Precision.INT8)["ragged batch, both segments"] > 0.05
        with pytest.raises(CheckError, match="source on '.*' by"):
            check_export(model, source, off, Precision.FP16)
        with pytest.raises(CheckError, match="differs from the source on 'batch order' by"):
            check_export(model, source, Broken(source, other_orders_off), Precision.INT8)
        with pytest.raises(CheckError, match="differs from the source on '.*' by inf"):
            check_export(model, source, Broken(source, lambda values, batch: values * np.nan), Precision.INT8)


def test_what_cannot_be_quantised_closely_is_told_what_to_do(classifier: Path) -> None:
    model = open_served(classifier)
    far = Broken(open_backend(model), lambda values, batch: values * 1.2)
    with open_backend(model) as source, pytest.raises(CheckError) as refused:
        check_export(model, source, far, Precision.INT8)
    assert "and 5e-02 is allowed in int8" in str(refused.value)
    assert "Calibrate on more texts" in str(refused.value)


def test_nothing_is_published_when_a_check_fails(
    classifier: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = exporting.build_graph

    def wrong(architecture: str, weights: dict[str, np.ndarray], *rest: object) -> onnx.ModelProto:
        name = "bert.embeddings.position_embeddings.weight"
        return real(architecture, dict(weights) | {name: np.roll(weights[name], 1, axis=0)}, *rest)  # type: ignore[arg-type]

    monkeypatch.setattr(exporting, "build_graph", wrong)
    with pytest.raises(CheckError, match="Nothing was published"):
        export(classifier, tmp_path / "onnx")
    assert list(tmp_path.iterdir()) == []


def test_weights_that_are_no_numbers_are_named(classifier: Path, tmp_path: Path) -> None:
    shutil.copytree(classifier, tmp_path / "broken")
    (tmp_path / "broken" / "manifest.json").unlink()
    weights = load_file(tmp_path / "broken" / "model.safetensors")
    weights["bert.pooler.dense.bias"][:3] = np.nan
    save_file(weights, tmp_path / "broken" / "model.safetensors", {"format": "pt"})
    with pytest.raises(ArtifactError, match=r"3 of the 32 numbers of bert\.pooler\.dense\.bias are NaN"):
        export(tmp_path / "broken", tmp_path / "onnx")


def test_what_is_exported_is_not_exported_again(exported: Path, tmp_path: Path) -> None:
    with pytest.raises(ArtifactError, match="already exported"):
        export(exported, tmp_path / "onnx")
