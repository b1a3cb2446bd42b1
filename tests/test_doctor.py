from __future__ import annotations

import re
import tomllib
from pathlib import Path

import pytest

from bertfast import doctor
from bertfast.backends import Availability
from bertfast.backends.gpu import Gpu
from bertfast.doctor import clashes, examine, old_drivers
from bertfast.errors import BackendError

OLD = Gpu("NVIDIA A10", "SM86", (12, 4))


def test_variants_that_overwrite_each_other_are_named() -> None:
    assert not list(clashes({"onnxruntime-gpu", "tensorrt", "tensorrt-cu13", "tensorrt-rtx", "tensorrt-rtx-cu13"}))
    (runtimes,) = clashes({"onnxruntime", "onnxruntime-gpu", "tensorrt-cu13"})
    assert runtimes.startswith("onnxruntime and onnxruntime-gpu install the same module")
    (variants,) = clashes({"onnxruntime", "tensorrt-cu12", "tensorrt-cu13"})
    assert "pip uninstall tensorrt-cu12 tensorrt-cu13, then install tensorrt." in variants


def test_packages_come_with_the_extra_that_brings_them() -> None:
    """The command line sends here who lacks one."""
    project = tomllib.loads((Path(__file__).parents[1] / "pyproject.toml").read_text())["project"]
    for extra, modules in doctor._PACKAGES.items():
        names = {re.split(r"[\[<>=]", line)[0] for line in project["optional-dependencies"][extra]}
        assert {{"sklearn": "scikit-learn"}.get(module, module) for module in modules} <= names
    assert "ml_dtypes" in doctor._PACKAGES["train"]


def test_a_driver_that_is_too_old_is_named_with_both_versions() -> None:
    (problem,) = old_drivers(OLD, {"tensorrt": None, "tensorrt-rtx": "13"})
    assert problem.startswith("tensorrt-rtx is built for CUDA 13, and the driver of NVIDIA A10 runs CUDA 12.4 at the")
    assert not list(old_drivers(OLD, {"tensorrt": "12"}))


def test_problems_are_those_of_this_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor, "first_gpu", lambda: OLD)
    assert [problem for problem in examine()["problems"] if "CUDA 12.4" in problem]

    def broken() -> Gpu:
        raise BackendError("the NVIDIA driver answers cuInit with error 803")

    monkeypatch.setattr(doctor, "first_gpu", broken)
    monkeypatch.setattr(doctor, "_gpu", lambda: "NVIDIA A10")
    assert "the NVIDIA driver answers cuInit with error 803" in examine()["problems"]
    monkeypatch.setattr(doctor, "_gpu", lambda: None)  # no card: no driver is no problem
    assert not [problem for problem in examine()["problems"] if "driver" in problem]


@pytest.mark.parametrize("gpu", [None, "NVIDIA A10"])
def test_what_wants_a_gpu_is_not_advised_where_there_is_none(monkeypatch: pytest.MonkeyPatch, gpu: str | None) -> None:
    missing = [
        Availability("tensorrt", "engine", None, "pip install 'bertfast[gpu]'"),
        Availability("tensorrt-rtx", "engine", None, "pip install 'bertfast[rtx]'"),  # it builds without one
    ]
    monkeypatch.setattr(doctor, "available", lambda: missing)
    monkeypatch.setattr(doctor, "_gpu", lambda: gpu)
    tensorrt, for_rtx = (item["remedy"] for item in examine()["backends"])
    assert tensorrt.startswith("not for this machine") == (gpu is None)
    assert for_rtx == "pip install 'bertfast[rtx]'"
