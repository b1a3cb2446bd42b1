"""The shape of the house: imports point back only, the import is light, files stay short."""

from __future__ import annotations

import ast
import json
import re
import subprocess
import sys
import tomllib
from importlib.metadata import packages_distributions
from pathlib import Path

import pytest

import bertfast

PACKAGE = Path(bertfast.__file__).parent
ORDER = [
    "errors",
    "config",
    "artifact",
    "workers",
    "text",
    "model",
    "tasks",
    "backends",
    "quantize",
    "train",
    "export",
    "engine",
    "bench",
]
MAY_SEE_EVERYTHING = {"cli", "console", "quickstart", "doctor", "__init__", "__main__"}
HEAVY = (
    "torch",
    "onnxruntime",
    "openvino",
    "onnx",
    "tensorrt",
    "tensorrt_rtx",
    "transformers",
    "sklearn",
    "seqeval",
    "matplotlib",
    "datasets",
)


def room_of(path: Path) -> str:
    return path.relative_to(PACKAGE).parts[0].removesuffix(".py")


def imported_rooms(path: Path) -> set[str]:
    rooms = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and node.module and node.module.startswith("bertfast"):
            parts = node.module.split(".")
            rooms |= {parts[1]} if len(parts) > 1 else {alias.name for alias in node.names}
        if isinstance(node, ast.Import):
            rooms |= {alias.name.split(".")[1] for alias in node.names if alias.name.startswith("bertfast.")}
    return rooms


@pytest.mark.parametrize("path", sorted(PACKAGE.rglob("*.py")), ids=lambda path: str(path.relative_to(PACKAGE)))
def test_imports_point_back_only(path: Path) -> None:
    room = room_of(path)
    if room in MAY_SEE_EVERYTHING:
        return
    allowed = set(ORDER[: ORDER.index(room) + 1])
    assert imported_rooms(path) <= allowed


@pytest.mark.parametrize("path", sorted(PACKAGE.rglob("*.py")), ids=lambda path: str(path.relative_to(PACKAGE)))
def test_a_file_is_read_in_one_sitting_and_a_function_on_one_screen(path: Path) -> None:
    text = path.read_text()
    assert text.count("\n") <= 450
    functions = [node for node in ast.walk(ast.parse(text)) if isinstance(node, ast.FunctionDef)]
    assert all((node.end_lineno or 0) - node.lineno < 80 for node in functions)


def test_what_is_imported_is_declared() -> None:
    """What another package brings along today, it may not bring tomorrow; pynvml is used where it is there."""
    project = tomllib.loads((PACKAGE.parent / "pyproject.toml").read_text())["project"]
    declared = [line for lines in project["optional-dependencies"].values() for line in lines] + project["dependencies"]
    of_module = packages_distributions()
    imported = {name for path in PACKAGE.rglob("*.py") for name in imported_packages(path)}
    others = imported - set(sys.stdlib_module_names) - {"bertfast", "google", "pynvml"}  # onnx is made of google's
    found = {plain(of_module.get(name, [name])[0]) for name in others}
    assert found - {plain(re.split(r"[\[<>=]", line)[0]) for line in declared} == set()


def plain(distribution: str) -> str:
    return distribution.lower().replace("_", "-")


def imported_packages(path: Path) -> set[str]:
    nodes = list(ast.walk(ast.parse(path.read_text())))
    names = [alias.name for node in nodes if isinstance(node, ast.Import) for alias in node.names]
    names += [node.module for node in nodes if isinstance(node, ast.ImportFrom) and node.module]
    return {name.partition(".")[0] for name in names}


def run_python(code: str) -> str:
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout


def test_import_is_light() -> None:
    code = f"import sys, json, bertfast; print(json.dumps([m for m in {HEAVY!r} if m in sys.modules]))"
    assert json.loads(run_python(code)) == []


def test_predicting_needs_neither_torch_nor_transformers_nor_sklearn(exported: Path) -> None:
    code = f"""
import sys
for name in ("torch", "transformers", "sklearn", "onnx", "safetensors"):
    sys.modules[name] = None
import bertfast
with bertfast.load({str(exported)!r}) as model:
    print(model.predict(["The river"])[0]["label"])
"""
    assert run_python(code).strip() in ("building", "nature", "tool")
