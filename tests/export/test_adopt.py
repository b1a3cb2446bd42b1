"""Graphs of others: what fits is adopted as it is, and what does not is refused by name."""

from __future__ import annotations

import json
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

import bertfast
from bertfast import artifact
from bertfast.backends import open_served
from bertfast.config import Precision
from bertfast.engine.build import build, open_source
from bertfast.engine.recipe import Recipe, ShapeProfile
from bertfast.errors import ArtifactError, CheckError
from bertfast.export import storage
from bertfast.export.adopt import adopt, foreign_graph
from bertfast.export.export import export
from bertfast.export.plan import ExportPlan
from tests.conftest import labelled_rows, write_rows

PYTHON = Path(__file__).parents[2] / "benchmarks" / "peers" / "optimum" / ".venv" / "bin" / "python"
REQUESTS = ["The river crosses the garden.", ("A lantern waits.", "Where does the bridge stand?"), "No."]

EXPORT = """
import sys
from optimum.onnxruntime import AutoQuantizationConfig, ORTModelForSequenceClassification, ORTQuantizer
from transformers import AutoTokenizer

checkpoint, plain, quantized = sys.argv[1:]
model = ORTModelForSequenceClassification.from_pretrained(checkpoint, export=True)
settings = AutoQuantizationConfig.avx512_vnni(is_static=False, per_channel=False)
ORTQuantizer.from_pretrained(model).quantize(settings, save_dir=quantized)
for folder in (plain, quantized):
    AutoTokenizer.from_pretrained(checkpoint).save_pretrained(folder)
model.save_pretrained(plain)
"""


def foreign(exported: Path, folder: Path, change: Callable[[onnx.ModelProto], object] = lambda model: None) -> Path:
    """What others would have left in a folder: a graph, config.json and a tokenizer, no manifest."""
    folder.mkdir()
    for name in ("config.json", "tokenizer.json", "tokenizer_config.json", "vocab.txt"):
        shutil.copy(exported / name, folder)
    model = onnx.load(exported / "model.onnx")
    change(model)
    onnx.save(model, folder / "theirs.onnx")
    return folder


def rename(model: onnx.ModelProto, old: str, new: str) -> None:
    for value in (*model.graph.input, *model.graph.output):
        value.name = new if value.name == old else value.name
    for node in model.graph.node:
        for names in (node.input, node.output):
            names[:] = [new if name == old else name for name in names]


def narrow(model: onnx.ModelProto) -> None:
    """TensorFlow's names in another order, as int32, without segments, and an output that nobody has named."""
    graph = model.graph
    rename(model, "attention_mask", "input_mask:0")
    rename(model, "logits", "Identity:0")
    types = next(value for value in graph.input if value.name == "token_type_ids")
    graph.input.remove(types)
    rename(model, "input_ids", "input_ids:0")
    graph.node.insert(0, helper.make_node("Sub", ["input_ids:0", "input_ids:0"], ["token_type_ids"], "no_segments"))
    for value in graph.input:
        value.type.tensor_type.elem_type = TensorProto.INT32
    graph.input.reverse()


def answers(path: Path, backend: str) -> np.ndarray:
    with bertfast.load(path, backend) as model:
        return np.array([list(answer["scores"].values()) for answer in model.predict(REQUESTS)])


@pytest.mark.parametrize("backend", ["onnxruntime", "openvino"])
def test_a_graph_of_others_answers_as_it_did(exported: Path, tmp_path: Path, backend: str) -> None:
    folder = foreign(exported, tmp_path / "theirs")
    adopted = adopt(foreign_graph(folder), tmp_path / "onnx")
    assert adopted.precision is Precision.FP32
    assert set(adopted.checks) == {"onnxruntime", "openvino"}
    np.testing.assert_allclose(answers(tmp_path / "onnx", backend), answers(exported, backend), rtol=1e-5)
    manifest = artifact.open_manifest(tmp_path / "onnx", "onnx")
    assert (manifest.task, manifest.labels) == ("classify", ("building", "nature", "tool"))
    assert manifest.parents == {"checkpoint": artifact.sha256_of(folder / "theirs.onnx")}


@pytest.mark.parametrize("backend", ["onnxruntime", "openvino"])
def test_other_names_types_and_orders_are_made_ours(exported: Path, tmp_path: Path, backend: str) -> None:
    adopt(foreign_graph(foreign(exported, tmp_path / "theirs", narrow)), tmp_path / "onnx")
    single = [request for request in REQUESTS if isinstance(request, str)]
    with bertfast.load(tmp_path / "onnx", backend) as found, bertfast.load(exported, backend) as expected:
        for ours, theirs in zip(found.predict(single), expected.predict(single), strict=True):
            assert ours["scores"] == pytest.approx(theirs["scores"], rel=1e-4)


def test_an_engine_is_built_from_it(exported: Path, tmp_path: Path) -> None:
    adopt(foreign_graph(foreign(exported, tmp_path / "theirs", narrow)), tmp_path / "onnx")
    profile = ShapeProfile(batch=(1, 2, 4), length=(1, 16, 64))
    record = build(
        open_source(tmp_path / "onnx"),
        tmp_path / "engine",
        Recipe(library="tensorrt-rtx", profiles=(profile,), targets=("SM86",)),
    )
    assert [plan.target for plan in record.plans] == ["SM86"]


@pytest.fixture
def beside(exported: Path, tmp_path: Path) -> Path:
    """The graph of others with its weights in a file of their own, as those over 2 GB have them."""
    folder = foreign(exported, tmp_path / "beside")
    model = onnx.load(folder / "theirs.onnx")
    onnx.save(model, folder / "theirs.onnx", save_as_external_data=True, location="theirs.onnx_data")
    return folder


@pytest.mark.parametrize("most", [0, 10**9])
def test_weights_beside_the_graph_are_read_and_count(
    exported: Path, beside: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, most: int
) -> None:
    monkeypatch.setattr(storage, "MOST_BYTES", most)
    adopt(foreign_graph(beside), tmp_path / "onnx")
    np.testing.assert_allclose(answers(tmp_path / "onnx", "onnxruntime"), answers(exported, "onnxruntime"), rtol=1e-5)
    manifest = artifact.open_manifest(tmp_path / "onnx", "onnx")
    assert ("model.onnx.data" in manifest.files) == (most == 0)
    both = [beside / "theirs.onnx", beside / "theirs.onnx_data"]
    assert manifest.parents == {"checkpoint": artifact.sha256_of_all(both)}
    assert artifact.sha256_of_all(both[:1]) == artifact.sha256_of(both[0])


@pytest.mark.parametrize(
    ("torn", "length", "message"),
    [
        ("theirs.onnx", 80, r"theirs\.onnx cannot be read: .*Copy it again, with the files of its weights"),
        ("theirs.onnx_data", 5000, r"theirs\.onnx cannot be read: External data length .* exceeds available data"),
        ("theirs.onnx_data", None, r"theirs\.onnx cannot be read: .*theirs\.onnx_data, but it "),
    ],
)
def test_a_torn_graph_is_named(beside: Path, tmp_path: Path, torn: str, length: int | None, message: str) -> None:
    file = beside / torn
    data = file.read_bytes()
    file.unlink()
    if length is not None:
        file.write_bytes(data[:length])
    with pytest.raises(ArtifactError, match=message):
        adopt(foreign_graph(beside), tmp_path / "onnx")


@pytest.mark.parametrize("precision", [Precision.FP16, Precision.BF16, Precision.INT8])
def test_the_precision_is_that_of_the_graph(classifier: Path, tmp_path: Path, precision: Precision) -> None:
    texts = write_rows(tmp_path / "texts.jsonl", [{"text": row["text"]} for row in labelled_rows(160, 4)])
    plan = ExportPlan(calibration=texts if precision is Precision.INT8 else None)
    export(classifier, tmp_path / "ours", precision=precision, plan=plan)
    adopted = adopt(foreign_graph(foreign(tmp_path / "ours", tmp_path / "theirs")), tmp_path / "onnx")
    assert adopted.precision is precision
    assert open_served(tmp_path / "onnx").int8_weights == open_served(tmp_path / "ours").int8_weights


def without_mask(model: onnx.ModelProto) -> None:
    rename(model, "attention_mask", "weights")


def of_one_shape(model: onnx.ModelProto) -> None:
    for value in model.graph.input:
        value.type.tensor_type.shape.dim[1].dim_value = 128


def of_other_classes(model: onnx.ModelProto) -> None:
    model.graph.output[0].type.tensor_type.shape.dim[1].dim_value = 7


def of_states(model: onnx.ModelProto) -> None:
    model.graph.output[0].type.tensor_type.shape.dim.add().dim_value = 3


def that_counts_padding(model: onnx.ModelProto) -> None:
    """The mask is read and has no effect."""
    model.graph.node.insert(0, helper.make_node("Equal", ["attention_mask", "attention_mask"], ["everything"], "all"))
    model.graph.node.insert(1, helper.make_node("Cast", ["everything"], ["all_ones"], "ones", to=TensorProto.INT64))
    for node in model.graph.node[2:]:
        node.input[:] = ["all_ones" if name == "attention_mask" else name for name in node.input]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (without_mask, r"takes input_ids .*, weights .*A graph of a BERT takes integers input_ids, attention_mask, "),
        (of_one_shape, r"takes input_ids \['batch', 128\].* alone\. Export it again with dynamic batch and sequence"),
        (of_other_classes, r"gives logits \['batch', 7\], and classify wants logits of 3 classes"),
        (of_states, r"gives logits \['batch', 3, 3\], and classify wants logits"),
    ],
)
def test_a_signature_that_does_not_fit_is_refused(
    exported: Path, tmp_path: Path, change: Callable[[onnx.ModelProto], object], message: str
) -> None:
    with pytest.raises(ArtifactError, match=message):
        adopt(foreign_graph(foreign(exported, tmp_path / "theirs", change)), tmp_path / "onnx")
    assert not (tmp_path / "onnx").exists()


def test_a_graph_that_computes_padding_is_refused(exported: Path, tmp_path: Path) -> None:
    with pytest.raises(CheckError, match="padding invariance"):
        adopt(foreign_graph(foreign(exported, tmp_path / "theirs", that_counts_padding)), tmp_path / "onnx")
    assert not (tmp_path / "onnx").exists()


def test_the_folder_must_hold_one_graph_and_be_another_s(exported: Path, classifier: Path, tmp_path: Path) -> None:
    folder = foreign(exported, tmp_path / "theirs")
    with pytest.raises(ArtifactError, match=r"holds a graph without its checkpoint.*bertfast adopt .*theirs --out DIR"):
        export(folder, tmp_path / "onnx", precision=Precision.BF16)
    with pytest.raises(ArtifactError, match=r"no manifest.json.* Adopt the graph first: bertfast adopt .*theirs --out"):
        open_source(folder)
    shutil.copy(folder / "theirs.onnx", folder / "other.onnx")
    with pytest.raises(ArtifactError, match=r"holds other.onnx, theirs.onnx. Give a folder with one"):
        foreign_graph(folder)
    (folder / "other.onnx").rename(folder / "model.onnx")
    assert foreign_graph(folder).name == "model.onnx"
    with pytest.raises(ArtifactError, match="is an artefact of bertfast already"):
        foreign_graph(exported)
    with pytest.raises(ArtifactError, match=r"holds no \.onnx file"):
        foreign_graph(tmp_path)


@pytest.mark.slow
@pytest.mark.peers
@pytest.mark.timeout(900)
def test_what_optimum_exports_is_adopted_run_and_built(classifier: Path, tmp_path: Path) -> None:
    if not PYTHON.exists():
        pytest.skip("optimum has no environment: make peer-optimum")
    plain, quantized = tmp_path / "plain", tmp_path / "quantized"
    done = subprocess.run(
        [PYTHON, "-c", EXPORT, classifier, plain, quantized], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert adopt(foreign_graph(plain), tmp_path / "onnx").precision is Precision.FP32
    np.testing.assert_allclose(answers(tmp_path / "onnx", "openvino"), answers(classifier, "torch"), atol=1e-5)
    with pytest.warns(UserWarning, match="openvino executes 0 weights in int8, and .* The graph is not checked in it"):
        int8 = adopt(foreign_graph(quantized), tmp_path / "int8")
    assert int8.precision is Precision.INT8
    np.testing.assert_allclose(answers(tmp_path / "int8", "onnxruntime"), answers(classifier, "torch"), atol=0.02)
    profile = ShapeProfile(batch=(1, 2, 4), length=(1, 16, 64))
    recipe = Recipe(library="tensorrt-rtx", profiles=(profile,), targets=("SM86",))
    assert build(open_source(tmp_path / "onnx"), tmp_path / "engine", recipe).plans
    assert json.loads((tmp_path / "engine" / "config.json").read_text())["model_type"] == "bert"
