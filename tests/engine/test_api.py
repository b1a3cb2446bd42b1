"""Every class, member and call of TensorRT in the code exists in the real 11.4 bindings and in TensorRT for RTX.

TensorRT itself is not to be had here. Its Python bindings are, and load over stub libraries that export what they link
to. `stubgen` writes down what the bindings show, and `mypy` holds the code to that: names, arguments and their types.
"""

from __future__ import annotations

import ast
import importlib.metadata
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import pytest

import bertfast
from tests.backends import fake_gpu

PACKAGE = Path(bertfast.__file__).parent
IMPORT = re.compile(r"^\s*(import tensorrt|from bertfast.backends.library import)", re.MULTILINE)
SEAM = "TensorRT: TypeAlias = Any"
BINDINGS = {"tensorrt": ("tensorrt_bindings", "tensorrt"), "tensorrt-rtx": ("tensorrt_rtx_bindings", "tensorrt_rtx")}
STUB_LIBRARIES = ("nvinfer", "nvinfer_plugin", "nvonnxparser")
ENTRY_POINTS = (
    "createInferBuilder_INTERNAL",
    "createInferRefitter_INTERNAL",
    "createInferRuntime_INTERNAL",
    "createNvOnnxParserRefitter_INTERNAL",
    "createNvOnnxParser_INTERNAL",
    "getBuilderPluginRegistry",
    "getNvOnnxParserVersion",
    "getPluginRegistry",
    "initLibNvInferPlugins",
)
# What the code uses and one of the libraries lacks: it is asked only of the other.
LACKING = {
    "tensorrt": {
        "ComputeCapability",
        "CudaGraphStrategy",
        "cuda_graph_strategy",
        "num_compute_capabilities",
        "set_compute_capability",
    },
    "tensorrt-rtx": set(),
}
GONE = {
    "BuilderFlag": ["FP16", "INT8", "BF16", "FP8", "OBEY_PRECISION_CONSTRAINTS", "PREFER_PRECISION_CONSTRAINTS"],
    "Builder": ["platform_has_fast_fp16", "platform_has_fast_int8", "build_engine", "build_cuda_engine"],
    "IBuilderConfig": ["max_workspace_size", "int8_calibrator", "set_calibration_profile"],
    "ICudaEngine": ["device_memory_size", "num_bindings", "get_binding_shape", "get_binding_name"],
    "IExecutionContext": ["execute_async", "execute_async_v2", "set_binding_shape"],
    "tensorrt": ["IInt8EntropyCalibrator2", "IInt8MinMaxCalibrator", "UffParser", "CaffeParser"],
}


SETTINGS = """[mypy]
plugins = pydantic.mypy
follow_imports = silent
ignore_missing_imports = true
[mypy-torch.*]
follow_imports = skip
"""


class Use(NamedTuple):
    """An attribute in a file, with the line and the byte where it ends."""

    file: Path
    name: str
    line: int
    end: int


class Complaint(NamedTuple):
    """What mypy says of a line."""

    file: Path
    line: int
    text: str


@pytest.fixture(scope="module")
def stubs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """By library the folder of a package `tensorrt` as its bindings show it."""
    assert importlib.metadata.version("tensorrt_cu13_bindings").startswith("11.4.")
    folder = tmp_path_factory.mktemp("stubs")
    source = folder / "entry_points.c"
    source.write_text("".join(f"void *{name}(void) {{ return 0; }}\n" for name in ENTRY_POINTS))
    for library in STUB_LIBRARIES:
        subprocess.run(["cc", "-shared", "-fPIC", "-o", folder / f"lib{library}.so.11", source], check=True)
    for library, (package, extension) in BINDINGS.items():
        write_stubs(package, extension, folder / library, {"LD_LIBRARY_PATH": str(folder)})
    return {library: folder / library for library in BINDINGS}


def write_stubs(package: str, extension: str, folder: Path, environment: dict[str, str]) -> None:
    """The stubs of a package `tensorrt`, and its module as a class, so that a value can be of that type."""
    stubgen = Path(sys.executable).with_name("stubgen")
    command = [stubgen, "--inspect-mode", "-m", package, "-m", f"{package}.{extension}", "-o", folder]
    subprocess.run(command, check=True, capture_output=True, env=os.environ | environment)
    (folder / package).rename(folder / "tensorrt")
    for stub in (folder / "tensorrt").iterdir():
        text = re.sub(rf"\b{package}\b", "tensorrt", stub.read_text())
        text = re.sub(r"^bool: .*\n|, bool as bool", "", text, flags=re.MULTILINE)  # it would hide Python's
        # what the bindings do not show: shapes are sequences, any sequence is taken for one, and plans are buffers
        buffer = "    def __buffer__(self, flags: int, /) -> memoryview: ..."
        text = text.replace("class IHostMemory:", f"class IHostMemory:\n{buffer}")
        text = text.replace("class Dims:", "class Dims(collections.abc.Sequence[int]):")
        text = re.sub(r": Dims(?=[,)])", ": collections.abc.Sequence[int]", text)
        stub.write_text("".join(map(parseable, text.splitlines(keepends=True))))
    classes = members(folder)["tensorrt"] & members(folder).keys()
    module = [
        "import tensorrt",
        "class TensorRT:",
        "    __name__: str",
        "    __version__: str",
        "    def nptype(self, trt_type: tensorrt.DataType) -> type: ...",
        *(f"    {name}: type[tensorrt.{name}]" for name in sorted(classes)),
    ]
    (folder / "tensorrt_module.pyi").write_text("\n".join(module) + "\n")


def parseable(line: str) -> str:
    """A signature that Python does not have, such as one with defaults in the middle, without its arguments."""
    if line.lstrip().startswith("def "):
        try:
            ast.parse(line.strip())
        except SyntaxError:
            return re.sub(r"\(.*", "(self, *args, **kwargs): ...\n", line)
    return line


def members(folder: Path) -> dict[str, set[str]]:
    """The names in each class of the stubs, and those of the module under `tensorrt`."""
    found: dict[str, set[str]] = {}
    for stub in (folder / "tensorrt").iterdir():
        tree = ast.parse(stub.read_text())
        found.setdefault("tensorrt", set()).update(names_in(tree))
        for node in ast.walk(tree):
            if isinstance(node, ast.ClassDef):
                found.setdefault(node.name, set()).update(names_in(node))
    return found


def names_in(node: ast.Module | ast.ClassDef) -> set[str]:
    named = {part.name for part in node.body if isinstance(part, ast.FunctionDef | ast.ClassDef)}
    return named | {
        part.target.id for part in node.body if isinstance(part, ast.AnnAssign) and isinstance(part.target, ast.Name)
    }


@pytest.fixture
def package(tmp_path: Path) -> Path:
    """A copy of the package in which TensorRT's module is of the type that the stubs give it."""
    copy = tmp_path / "bertfast"
    shutil.copytree(PACKAGE, copy, ignore=shutil.ignore_patterns("__pycache__"))
    seam = copy / "backends" / "library.py"
    assert SEAM in seam.read_text()
    seam.write_text(seam.read_text().replace(SEAM, "from tensorrt_module import TensorRT"))
    return copy


def files_of(package: Path) -> list[Path]:
    """The files that can get at a library."""
    files = [*(package / "engine").glob("*.py"), *(package / "backends").glob("*.py")]
    found = sorted(file for file in files if IMPORT.search(file.read_text()))
    assert {file.name for file in found} >= {"library.py", "tensorrt.py"}
    return found


def complaints(files: Sequence[Path], stubs: Path) -> list[Complaint]:
    """What mypy says of files of a copied package."""
    root = next(parent.parent for parent in files[0].parents if parent.name == "bertfast")
    (root / "mypy.ini").write_text(SETTINGS)
    command = [sys.executable, "-m", "mypy", "--config-file", "mypy.ini", *files]
    environment = os.environ | {"MYPYPATH": f"{root}{os.pathsep}{stubs}"}
    found = subprocess.run(command, capture_output=True, text=True, cwd=root, env=environment)
    assert found.returncode in (0, 1), found.stdout + found.stderr
    lines = (re.fullmatch(r"(bertfast/.+?):(\d+): error: (.+)", line) for line in found.stdout.splitlines())
    return [Complaint(root / match[1], int(match[2]), match[3]) for match in lines if match]


def uses(file: Path, names: set[str]) -> list[Use]:
    """The attributes in a file that have a name of TensorRT, but for the file's own of `self`."""
    return [
        Use(file, node.attr, node.end_lineno or 0, node.end_col_offset or 0)
        for node in ast.walk(ast.parse(file.read_text()))
        if isinstance(node, ast.Attribute)
        and node.attr in names
        and not (isinstance(node.value, ast.Name) and node.value.id == "self")
    ]


def misspell(use: Use, number: int) -> Path:
    """A copy beside the file in which this one use is misspelt."""
    lines = use.file.read_bytes().splitlines(keepends=True)
    line = lines[use.line - 1]
    lines[use.line - 1] = line[: use.end] + b"_" + line[use.end :]
    copy = use.file.with_name(f"{use.file.stem}_{number}.py")
    copy.write_bytes(b"".join(lines))
    return copy


@pytest.mark.parametrize("library", BINDINGS)
def test_the_code_uses_what_the_library_has(library: str, package: Path, stubs: dict[str, Path]) -> None:
    found = complaints(files_of(package), stubs[library])
    lacking = [(re.search(r'has no attribute "(\w+)"', complaint.text), complaint) for complaint in found]
    assert not [complaint for match, complaint in lacking if not match]
    assert {match[1] for match, _ in lacking if match} == LACKING[library]


@pytest.mark.parametrize("library", BINDINGS)
def test_no_use_can_be_misspelt_unseen(library: str, package: Path, stubs: dict[str, Path]) -> None:
    """Each use in turn is misspelt in a copy of its file: an object whose type is unknown would hide it."""
    names = {name for inside in members(stubs[library]).values() for name in inside if name != "__init__"}
    found = [use for file in files_of(package) for use in uses(file, names)]
    assert {"Runtime", "deserialize_cuda_engine", "set_input_shape", "execute_async_v3"} <= {use.name for use in found}
    copies = {misspell(use, number): use for number, use in enumerate(found)}
    seen = {(complaint.file, complaint.line) for complaint in complaints(list(copies), stubs[library])}
    assert not [use for copy, use in copies.items() if (copy, use.line) not in seen]


def test_what_is_gone_is_gone_and_not_used(stubs: dict[str, Path]) -> None:
    known = members(stubs["tensorrt"])
    assert not [name for owner, names in GONE.items() for name in names if name in known[owner]]
    gone = {name for names in GONE.values() for name in names} - {"FP16", "INT8", "BF16", "FP8"}
    assert not [use for file in files_of(PACKAGE) for use in uses(file, gone)]


@pytest.mark.parametrize("library", BINDINGS)
def test_the_fake_has_nothing_that_the_library_lacks(library: str, stubs: dict[str, Path]) -> None:
    known = members(stubs[library])
    fakes = [getattr(fake_gpu, name) for name in dir(fake_gpu) if name in known]
    assert {fake.__name__ for fake in fakes} >= {
        "Runtime",
        "ICudaEngine",
        "IExecutionContext",
        "IRuntimeConfig",
    } - LACKING[library]
    for fake in fakes:
        own = {name for name in vars(fake) if not name.startswith("_")}
        assert own <= known[fake.__name__], fake
