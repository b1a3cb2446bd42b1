from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import onnx
import pytest
from onnx import TensorProto

from bertfast import artifact
from bertfast.backends.engine_plan import read_engine
from bertfast.backends.gpu import Gpu
from bertfast.backends.library import load_library
from bertfast.config import Precision, ShapeProfile
from bertfast.engine.build import build, check_products, check_target, open_source
from bertfast.engine.library import Network, Product
from bertfast.engine.recipe import Recipe
from bertfast.errors import ArtifactError, BackendError, EngineError, ProfileError
from bertfast.export.export import export
from bertfast.export.plan import ExportPlan
from tests.conftest import labelled_rows, write_rows

SHORT = ShapeProfile(batch=(1, 2, 4), length=(1, 16, 64))
SINGLE = ShapeProfile(batch=(1, 1, 1), length=(1, 8, 32))


def recipe(*targets: str, **changes: Any) -> Recipe:
    values = {"library": "tensorrt-rtx", "profiles": (SHORT,), "targets": targets or ("SM86",)}
    return Recipe.model_validate(values | changes)


@pytest.fixture(scope="module")
def int8(classifier: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("int8")
    texts = write_rows(folder / "texts.jsonl", [{"text": row["text"]} for row in labelled_rows(160, 4)])
    export(classifier, folder / "onnx", precision=Precision.INT8, plan=ExportPlan(calibration=texts))
    return folder / "onnx"


def test_an_engine_carries_all_that_it_was_made_from(engine: Path, exported: Path) -> None:
    source, manifest = artifact.open_manifest(exported), artifact.open_manifest(engine, "engine")
    assert set(manifest.files) == set(source.files) | {"SM86.plan", "SM120.plan"}
    assert all(manifest.files[name] == source.files[name] for name in source.files)
    assert manifest.parents == {**source.parents, "onnx": source.sha256}
    assert {**source.settings, "engine": manifest.settings["engine"]} == manifest.settings
    _, record = read_engine(engine)
    assert (record.library, record.cuda_version, record.gpu) == ("tensorrt-rtx", "13", None)
    assert record.onnx_sha256 == source.files["model.onnx"].sha256
    assert record.profiles == (SHORT,)
    assert Recipe.model_validate(record.recipe) == recipe("SM86", "SM120")


def test_several_profiles_stand_in_one_plan_and_in_the_manifest(exported: Path, engine: Path, tmp_path: Path) -> None:
    built = build(open_source(exported), tmp_path / "two", recipe(profiles=(SHORT, SINGLE), cuda_graphs=True))
    assert (built.profiles, built.cuda_graphs) == ((SHORT, SINGLE), True)
    assert (tmp_path / "two" / "SM86.plan").stat().st_size > 1.5 * (engine / "SM86.plan").stat().st_size


def test_int8_is_built_as_it_was_promised(int8: Path, tmp_path: Path) -> None:
    built = build(open_source(int8), tmp_path / "engine", recipe("SM75", "SM86", "SM89", "SM120"))
    manifest = artifact.open_manifest(tmp_path / "engine")
    assert manifest.precision is Precision.INT8
    assert built.onnx == "model_fp16.onnx"
    assert built.calibration_sha256 == manifest.settings["text_sha256"]["calibration"]
    assert [plan.target for plan in built.plans] == ["SM75", "SM86", "SM89", "SM120"]


def promising(place: Path, source: Path, **changes: Any) -> Path:
    """A copy of an artefact whose manifest says something else."""
    shutil.copytree(source, place)
    manifest = json.loads((place / "manifest.json").read_text())
    for key, value in changes.items():
        (manifest if key in manifest else manifest["settings"])[key] = value
    (place / "manifest.json").write_text(json.dumps(manifest))
    return place


def test_an_artefact_that_promises_what_its_graph_does_not_do_is_refused(
    exported: Path, int8: Path, tmp_path: Path
) -> None:
    more = promising(tmp_path / "more", int8, quantization={"quantized_weights": 10**6})
    with pytest.raises(EngineError, match=r"multiplies [\d,]+ weights in int8, and its manifest promises 1,000,000"):
        build(open_source(more), tmp_path / "engine", recipe())
    for precision in ("bf16", "fp16"):
        other = promising(tmp_path / precision, exported, precision=precision)
        with pytest.raises(EngineError, match=f"is to execute in {precision}, and .* products .* are in fp32"):
            build(open_source(other), tmp_path / "engine", recipe())
    assert not (tmp_path / "engine").exists()


@pytest.mark.parametrize(
    ("operands", "around", "target", "message"),
    [
        ("float", "float", "SM75", "SM75 has no products in fp32 .*'query'.*the first is SM80"),
        ("int8", "float", "SM75", "SM75 has no products in fp32 .*'query'"),
        ("bf16", "bf16", "SM75", "SM75 has no products in bf16 .*the first is SM80"),
        ("fp8", "half", "SM86", "SM86 has no products in fp8 .*the first is SM89"),
    ],
)
def test_a_target_without_kernels_is_refused_before_the_library_is_asked(
    exported: Path, operands: str, around: str, target: str, message: str
) -> None:
    found = [Product("key", "half", "half", 1024), Product("query", operands, around, 1024)]
    with pytest.raises(EngineError, match=message):
        check_target(found, open_source(exported), target)
    check_target(found, open_source(exported), "SM120")


@pytest.mark.parametrize(
    ("precision", "formats", "held"),
    [
        ("fp32", ["float", "float"], True),
        ("fp32", ["float", "half"], False),
        ("fp16", ["half", "float"], True),
        ("fp16", ["float", "bf16"], False),
    ],
)
def test_a_product_may_be_in_a_wider_format_than_the_promised_one(
    exported: Path, tmp_path: Path, precision: str, formats: list[str], held: bool
) -> None:
    source = open_source(promising(tmp_path / "source", exported, precision=precision))
    found = [Product(str(number), name, name, 1024) for number, name in enumerate(formats)]
    if held:
        check_products(found, source)
    else:
        with pytest.raises(EngineError, match=f"is to execute in {precision}, and .* --precision {precision} --out"):
            check_products(found, source)


def test_the_graph_that_the_artefact_names_for_engines_is_built_and_alone_travels_along(
    exported: Path, tmp_path: Path
) -> None:
    with artifact.create(tmp_path / "onnx", "onnx", task="classify", precision=Precision.FP32) as draft:
        for name in ("model.onnx", "tokenizer.json"):
            shutil.copy(exported / name, draft.path / name)
        shutil.copy(exported / "model.onnx", draft.path / "engine.onnx")
        draft.settings = {"max_length": 64, "engine_onnx": "engine.onnx"}
    built = build(open_source(tmp_path / "onnx"), tmp_path / "engine", recipe())
    assert built.onnx == "engine.onnx"
    assert {file.name for file in (tmp_path / "engine").iterdir()} == {
        "manifest.json",
        "engine.onnx",
        "tokenizer.json",
        "SM86.plan",
    }
    missing = promising(tmp_path / "missing", tmp_path / "onnx", engine_onnx="other.onnx")
    with pytest.raises(ArtifactError, match=r"has no other.onnx"):
        open_source(missing)


def test_what_does_not_fit_is_refused_and_leaves_nothing(exported: Path, classifier: Path, tmp_path: Path) -> None:
    source, out = open_source(exported), tmp_path / "engine"
    with pytest.raises(
        EngineError, match=r"is in fp32, and the recipe wants fp16. .*export CHECKPOINT --precision fp16"
    ):
        build(source, out, recipe(precision="fp16"))
    with pytest.raises(ProfileError, match="takes sequences of 128 tokens, and the model takes 64"):
        build(source, out, recipe(profiles=(ShapeProfile(batch=(1, 1, 1), length=(1, 64, 128)),)))
    with pytest.raises(BackendError, match="tensorrt cannot be imported"):
        build(source, out, Recipe(library="tensorrt", profiles=(SHORT,)))
    with pytest.raises(EngineError, match="no plan for SM86 was built"):
        build(source, out, recipe(workspace_bytes=16))
    with pytest.raises(
        ArtifactError, match=r"is a 'checkpoint', and an engine is built .*bertfast export .*classifier"
    ):
        open_source(classifier)
    assert not list(tmp_path.iterdir())
    out.mkdir()
    (out / "mine").touch()
    with pytest.raises(ArtifactError, match="is already there"):
        build(source, out, recipe())
    with pytest.raises(ArtifactError, match="--overwrite replaces only a 'engine' of bertfast"):
        build(source, out, recipe(), overwrite=True)


def test_an_altered_engine_is_built_again_from_the_graph_inside_it(engine: Path, tmp_path: Path) -> None:
    copy = tmp_path / "engine"
    shutil.copytree(engine, copy)
    (copy / "SM86.plan").write_bytes(b"other code")
    with pytest.raises(EngineError):
        read_engine(copy)
    source = open_source(copy)
    assert source.engine is not None
    build(source, copy, Recipe.model_validate(source.engine.recipe | {"targets": ["SM89"]}), overwrite=True)
    manifest, record = read_engine(copy)
    assert [plan.file for plan in record.plans] == ["SM89.plan"]
    assert not (copy / "SM86.plan").exists()
    assert manifest.parents == artifact.open_manifest(engine).parents


def test_an_altered_graph_is_not_built(engine: Path, tmp_path: Path) -> None:
    copy = tmp_path / "engine"
    shutil.copytree(engine, copy)
    model = onnx.load(copy / "model.onnx")
    (constant,) = [item for item in model.graph.initializer if item.name == "bert.embeddings.LayerNorm.bias"]
    assert constant.data_type == TensorProto.FLOAT
    constant.raw_data = bytes(len(constant.raw_data))
    onnx.save(model, copy / "model.onnx")
    with pytest.raises(ArtifactError, match=r"model.onnx is not the file that its manifest names"):
        open_source(copy)


def test_tensorrt_builds_for_the_gpu_that_is_here_and_its_timings_travel_along(
    exported: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The way through the builder alone: TensorRT for RTX reads the graph in its place, and a fake makes the plan."""
    given: list[tuple[str | None, bytes]] = []

    def fake_plan(network: Network, recipe: Recipe, profiles: Any, target: str | None, cache: bytes) -> Any:
        given.append((target, cache))
        return b"plan", cache + b"timed "

    monkeypatch.setattr("bertfast.engine.library.load_library", lambda name: load_library("tensorrt-rtx"))
    monkeypatch.setattr("bertfast.engine.build.first_gpu", lambda: Gpu("NVIDIA H100", "SM90", (13, 0)))
    monkeypatch.setattr("bertfast.engine.build.build_plan", fake_plan)
    recipe = Recipe(library="tensorrt", profiles=(SHORT,), timing_cache=True)
    record = build(open_source(exported), tmp_path / "engine", recipe)
    assert record.gpu == "NVIDIA H100"
    assert [(plan.file, plan.target) for plan in record.plans] == [("SM90.plan", "SM90")]
    assert (tmp_path / "engine" / "timing.cache").read_bytes() == b"timed "
    build(open_source(tmp_path / "engine"), tmp_path / "engine", recipe, overwrite=True)
    assert given == [(None, b""), (None, b"timed ")]
    assert (tmp_path / "engine" / "timing.cache").read_bytes() == b"timed timed "
    assert read_engine(tmp_path / "engine")[1] == record
