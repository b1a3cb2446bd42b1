"""The wheel, installed outside the clone with the `cpu` extra only."""

from __future__ import annotations

import json
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

pytestmark = pytest.mark.slow
ROOT = Path(__file__).parents[1]


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("wheel")
    subprocess.run([sys.executable, "-m", "pip", "wheel", "-q", "--no-deps", "-w", folder, ROOT], check=True)
    (found,) = folder.glob("bertfast-*.whl")
    return found


def test_the_wheel_holds_the_package_and_nothing_else(wheel: Path) -> None:
    names = zipfile.ZipFile(wheel).namelist()
    assert all(name.startswith("bertfast") for name in names)
    assert {"bertfast/cli/__init__.py", "bertfast/recipes/pretrain-base.toml"} <= set(names)


def test_the_wheel_holds_the_build_recipes_themselves_not_links_to_them(wheel: Path) -> None:
    files = {file.stem: file.read_bytes() for file in (ROOT / "engines").glob("*.toml")}
    held = zipfile.ZipFile(wheel)
    assert len(files) == 7
    assert all(held.read(f"bertfast/recipes/build-{name}.toml") == text for name, text in files.items())


@pytest.mark.timeout(900)
def test_it_predicts_without_torch(wheel: Path, exported: Path, tmp_path: Path) -> None:
    subprocess.run([sys.executable, "-m", "venv", tmp_path / "venv"], check=True)
    python, command = tmp_path / "venv" / "bin" / "python", tmp_path / "venv" / "bin" / "bertfast"
    install = [python, "-m", "pip", "install", "-q", "-c", ROOT / "constraints.txt", f"{wheel}[cpu]"]
    subprocess.run(install, check=True, cwd=tmp_path)

    def run(*arguments: str, stdin: str = "") -> str:
        done = subprocess.run(
            [command, *arguments], cwd=tmp_path, input=stdin, capture_output=True, text=True, check=True
        )
        return done.stdout

    found = {item["name"]: item["version"] for item in json.loads(run("doctor", "--json"))["backends"]}
    assert found["torch"] is None
    assert found["onnxruntime"]
    assert found["openvino"]
    for backend in ("onnxruntime", "openvino"):
        answer = json.loads(run("predict", str(exported), "--backend", backend, stdin='{"text": "The river."}\n'))
        assert answer["label"] in ("building", "nature", "tool")
