"""What is checked while a plan is still bytes: every refusal has a message of its own, and none needs a GPU."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from bertfast.backends import open_served
from bertfast.backends.engine_plan import EngineRecord, Here, PlanRecord, check_loadable, read_engine, read_plan
from bertfast.config import ShapeProfile
from bertfast.errors import ArtifactError, ConfigError, EngineError

PATH = Path("my-engine")
PROFILE = ShapeProfile(batch=(1, 1, 1), length=(1, 1, 1))


def record(**changes: Any) -> EngineRecord:
    plans = [PlanRecord(file=f"{target}.plan", sha256="0" * 64, target=target) for target in ("SM86", "SM120")]
    values = {
        "library": "tensorrt-rtx",
        "library_version": "1.7.1.116",
        "cuda_version": "13",
        "gpu": None,
        "onnx": "model.onnx",
        "onnx_sha256": "0" * 64,
        "plans": plans,
        "profiles": [PROFILE],
        "recipe": {},
    }
    return EngineRecord.model_validate(values | changes)


def on_one_gpu(**changes: Any) -> EngineRecord:
    plan = PlanRecord(file="SM90.plan", sha256="0" * 64, target="SM90")
    own = {"library": "tensorrt", "library_version": "11.4.0.106", "gpu": "NVIDIA H100", "plans": [plan]}
    return record(**(own | changes))


LAPTOP = Here("tensorrt-rtx", "1.7.1.116", "NVIDIA RTX 5090", "SM120")
SERVER = Here("tensorrt", "11.4.0.106", "NVIDIA H100", "SM90")


def test_the_plan_for_the_gpu_that_is_here_is_chosen() -> None:
    assert check_loadable(PATH, record(), LAPTOP).file == "SM120.plan"
    assert check_loadable(PATH, record(), replace(LAPTOP, compute_capability="SM86")).file == "SM86.plan"
    assert check_loadable(PATH, on_one_gpu(), SERVER).file == "SM90.plan"


@pytest.mark.parametrize(
    ("engine", "here", "message"),
    [
        (
            record(),
            SERVER,
            'built by tensorrt-rtx, and tensorrt is to load it. .* library = "tensorrt": bertfast build my-engine',
        ),
        (
            record(),
            replace(LAPTOP, version="1.8.0.1"),
            "built by tensorrt-rtx 1.7.1.116, and 1.8.0.1 is installed. .* pip install 'tensorrt-rtx==1.7.1.116'. "
            "Or: .* bertfast build my-engine --rebuild$",
        ),
        (
            record(),
            replace(LAPTOP, gpu="NVIDIA L4", compute_capability="SM89"),
            "built for SM86, SM120, and NVIDIA L4 has compute capability SM89. .*my-engine --rebuild --target SM89$",
        ),
        (
            on_one_gpu(),
            replace(SERVER, gpu="NVIDIA B200", compute_capability="SM100"),
            "built for SM90, and NVIDIA B200 has compute capability SM100. .*bertfast build my-engine --rebuild$",
        ),
        (
            on_one_gpu(),
            replace(SERVER, gpu="NVIDIA H200"),
            "built on NVIDIA H100, and this is NVIDIA H200. .*bertfast build my-engine --rebuild .*hardware_compatib",
        ),
        (
            on_one_gpu(),
            replace(SERVER, version="11.10.0.1"),
            "11.4.0.106, and 11.10.0.1 is installed. It loads in that version alone",
        ),
        (
            on_one_gpu(hardware_compatibility="same_compute_capability"),
            replace(SERVER, compute_capability="SM100"),
            "built for SM90, and .* has compute capability SM100",
        ),
        (
            on_one_gpu(hardware_compatibility="ampere_plus"),
            replace(SERVER, compute_capability="SM75"),
            "built for SM90, and .* has compute capability SM75",
        ),
    ],
)
def test_what_it_was_not_built_for_is_refused_by_both_names(engine: EngineRecord, here: Here, message: str) -> None:
    with pytest.raises(EngineError, match=f"(?s)my-engine was {message}" if message.startswith("built") else message):
        check_loadable(PATH, engine, here)


@pytest.mark.parametrize(
    ("changes", "here"),
    [
        ({"hardware_compatibility": "same_compute_capability"}, replace(SERVER, gpu="NVIDIA H200")),
        ({"hardware_compatibility": "ampere_plus"}, replace(SERVER, gpu="NVIDIA A10", compute_capability="SM86")),
    ],
)
def test_a_compatible_engine_goes_where_it_was_built_to_go(changes: dict[str, Any], here: Here) -> None:
    assert check_loadable(PATH, on_one_gpu(**changes), here).target == "SM90"


def test_an_engine_that_was_just_built_is_read_and_served(engine: Path, exported: Path) -> None:
    manifest, found = read_engine(engine)
    assert [plan.target for plan in found.plans] == ["SM86", "SM120"]
    assert all(plan.sha256 == manifest.files[plan.file].sha256 for plan in found.plans)
    served, source = open_served(engine), open_served(exported)
    assert (served.kind, served.task, served.precision) == ("engine", source.task, source.precision)
    assert (served.context.labels, served.context.max_length) == (source.context.labels, source.context.max_length)
    assert (served.source_sha256, served.engine) == (source.source_sha256, found)


def cut(file: Path) -> None:
    file.write_bytes(file.read_bytes()[:-1])


def flip(file: Path) -> None:
    data = bytearray(file.read_bytes())
    data[len(data) // 2] ^= 1
    file.write_bytes(data)


@pytest.mark.parametrize(("damage", "said"), [(flip, "SHA-256 differs"), (cut, "cut short or changed")])
def test_a_plan_that_differs_by_a_byte_is_not_loaded(
    engine: Path, tmp_path: Path, damage: Callable[[Path], None], said: str
) -> None:
    copy = tmp_path / "copy"
    shutil.copytree(engine, copy)
    damage(copy / "SM120.plan")
    _, found = read_engine(engine)
    for refused in (lambda: read_engine(copy), lambda: open_served(copy)):
        with pytest.raises(
            EngineError, match=f"SM120.plan .*{said}.* is not loaded. .*bertfast build {copy} --rebuild"
        ):
            refused()
    assert read_plan(copy, found.plans[0]) == (engine / "SM86.plan").read_bytes()
    with pytest.raises(EngineError, match=f"SM120.plan has SHA-256 .* its manifest says {found.plans[1].sha256[:12]}"):
        read_plan(copy, found.plans[1])


def test_a_byte_of_the_graph_is_not_mended_by_a_rebuild(engine: Path, tmp_path: Path) -> None:
    copy = tmp_path / "copy"
    shutil.copytree(engine, copy)
    flip(copy / "model.onnx")
    with pytest.raises(ArtifactError, match=r"model.onnx is not the file that its manifest names"):
        read_engine(copy)


def edited(engine: Path, place: Path, **changes: Any) -> Path:
    shutil.copytree(engine, place)
    manifest = json.loads((place / "manifest.json").read_text())
    manifest["settings"]["engine"] |= changes
    (place / "manifest.json").write_text(json.dumps(manifest))
    return place


def test_a_manifest_that_names_another_plan_is_refused(engine: Path, tmp_path: Path) -> None:
    other = [{"file": "SM86.plan", "sha256": "0" * 64, "target": "SM86"}]
    with pytest.raises(EngineError, match=r"names two hashes for SM86.plan"):
        read_engine(edited(engine, tmp_path / "one", plans=other))
    missing = [{"file": "../SM86.plan", "sha256": "0" * 64, "target": "SM86"}]
    with pytest.raises(EngineError, match=r"names two hashes for ../SM86.plan"):
        read_engine(edited(engine, tmp_path / "two", plans=missing))
    with pytest.raises(ConfigError, match="manifest.json: engine: library = 'tensorflow'"):
        read_engine(edited(engine, tmp_path / "three", library="tensorflow"))


def test_an_engine_of_before_is_read_unless_its_plan_has_host_code(engine: Path, tmp_path: Path) -> None:
    assert read_engine(edited(engine, tmp_path / "one", version_compatible=False))[1] == read_engine(engine)[1]
    with pytest.raises(ConfigError, match="engine: version_compatible = True"):
        read_engine(edited(engine, tmp_path / "two", version_compatible=True))
