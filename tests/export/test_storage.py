"""Weights beside the graph, with a limit that a tiny model exceeds."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import numpy_helper

import bertfast
from bertfast import artifact
from bertfast.config import Precision, ShapeProfile
from bertfast.engine.build import build, open_source
from bertfast.engine.inspect import read_graph
from bertfast.engine.recipe import Recipe
from bertfast.errors import ArtifactError
from bertfast.export import storage
from bertfast.export.export import export
from bertfast.export.plan import ExportPlan
from tests.conftest import labelled_rows, write_rows

REQUESTS = ["The river crosses the garden.", ("A lantern waits.", "Where does the bridge stand?")]
RECIPE = Recipe(
    library="tensorrt-rtx", profiles=(ShapeProfile(batch=(1, 2, 4), length=(1, 16, 64)),), targets=("SM86",)
)


@pytest.fixture
def crowded(monkeypatch: pytest.MonkeyPatch) -> None:
    """No weights fit into the file of a graph, nor any graph into the protobuf that onnx's passes take."""
    monkeypatch.setattr(storage, "MOST_BYTES", 20_000)
    real = onnx.ModelProto.SerializeToString

    def limited(model: onnx.ModelProto, **options: bool) -> bytes:
        data = real(model, **options)
        assert len(data) < 90_000, "a graph with its weights in one protobuf"
        return data

    monkeypatch.setattr(onnx.ModelProto, "SerializeToString", limited)


def scores(path: Path, backend: str) -> np.ndarray:
    with bertfast.load(path, backend) as model:
        return np.array([list(answer["scores"].values()) for answer in model.predict(REQUESTS)])


@pytest.mark.usefixtures("crowded")
@pytest.mark.parametrize("backend", ["onnxruntime", "openvino"])
def test_weights_beside_the_graph_give_the_same_numbers(
    classifier: Path, exported: Path, tmp_path: Path, backend: str
) -> None:
    assert set(export(classifier, tmp_path / "onnx").checks) == {"onnxruntime", "openvino"}
    files = artifact.open_manifest(tmp_path / "onnx", "onnx").files
    assert files["model.onnx"].bytes < 60_000 < files["model.onnx.data"].bytes
    np.testing.assert_array_equal(scores(tmp_path / "onnx", backend), scores(exported, backend))


@pytest.mark.usefixtures("crowded")
def test_an_engine_takes_the_weights_of_its_own_graph_along(classifier: Path, tmp_path: Path) -> None:
    texts = write_rows(tmp_path / "texts.jsonl", [{"text": row["text"]} for row in labelled_rows(160, 4)])
    export(classifier, tmp_path / "onnx", precision=Precision.INT8, plan=ExportPlan(calibration=texts))
    assert {"model.onnx.data", "model_fp16.onnx.data"} <= {file.name for file in (tmp_path / "onnx").iterdir()}
    build(open_source(tmp_path / "onnx"), tmp_path / "engine", RECIPE)
    build(open_source(tmp_path / "engine"), tmp_path / "again", RECIPE)
    graphs = {file.name for file in (tmp_path / "again").iterdir() if ".onnx" in file.name}
    assert graphs == {"model_fp16.onnx", "model_fp16.onnx.data"}
    assert read_graph(tmp_path / "again" / "model_fp16.onnx").weights_bytes["int8"] > 0


@pytest.mark.usefixtures("crowded")
def test_weights_that_were_cut_short_are_refused(classifier: Path, tmp_path: Path) -> None:
    export(classifier, tmp_path / "onnx", precision=Precision.FP16)
    file = tmp_path / "onnx" / "model.onnx.data"
    file.write_bytes(file.read_bytes()[:-1])
    with pytest.raises(ArtifactError, match=r"model\.onnx\.data has .* bytes and its manifest says"):
        bertfast.load(tmp_path / "onnx", "onnxruntime")


def test_saving_leaves_a_graph_as_it_was(exported: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = onnx.load(exported / "model.onnx")
    before = model.SerializeToString()
    monkeypatch.setattr(storage, "MOST_BYTES", 0)
    storage.save(model, tmp_path / "model.onnx")
    assert model.SerializeToString() == before
    found = onnx.load(tmp_path / "model.onnx").graph
    assert found.node == model.graph.node
    for one, other in zip(found.initializer, model.graph.initializer, strict=True):
        np.testing.assert_array_equal(numpy_helper.to_array(one), numpy_helper.to_array(other))
    assert storage.files_of(tmp_path / "model.onnx") == [tmp_path / "model.onnx", tmp_path / "model.onnx.data"]
    assert storage.files_of(exported / "model.onnx") == [exported / "model.onnx"]
    assert len({file.stat().st_mode for file in storage.files_of(tmp_path / "model.onnx")}) == 1
