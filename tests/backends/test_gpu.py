"""What the driver tells, with a stand-in for the driver that is compiled here."""

from __future__ import annotations

import ctypes
import os
import subprocess
import sys
from pathlib import Path

import pytest

from bertfast.backends.gpu import first_gpu
from bertfast.errors import BackendError

STAND_IN = r"""
#include <stdlib.h>
#include <string.h>
int cuInit(unsigned flags) { return getenv("NO_GPU") ? 100 : 0; }
int cuDriverGetVersion(int *version) { *version = 13010; return 0; }
int cuDeviceGet(int *device, int ordinal) { *device = 7; return ordinal; }
int cuDeviceGetName(char *name, int length, int device) { strncpy(name, "Stand-in GPU", length); return device != 7; }
int cuDeviceGetAttribute(int *value, int attribute, int device) {
    *value = attribute == 75 ? 12 : attribute == 76 ? 0 : -1;
    return device != 7;
}
int cuGetErrorString(int error, const char **text) { *text = "no CUDA-capable device is detected"; return 0; }
"""
ASK = """
from bertfast.backends.gpu import first_gpu
from bertfast.errors import BackendError
try:
    print(first_gpu())
except BackendError as error:
    print(error)
"""


@pytest.fixture(scope="module")
def driver(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("driver")
    (folder / "cuda.c").write_text(STAND_IN)
    command = ["cc", "-shared", "-fPIC", "-o", folder / "libcuda.so.1", folder / "cuda.c"]
    subprocess.run(command, check=True)
    return folder


def ask(driver: Path, **more: str) -> str:
    environment = {**os.environ, "LD_LIBRARY_PATH": str(driver), **more}
    return subprocess.run([sys.executable, "-c", ASK], capture_output=True, text=True, env=environment).stdout


def test_name_capability_and_cuda_are_the_driver_s(driver: Path) -> None:
    expected = "Gpu(name='Stand-in GPU', compute_capability='SM120', driver_cuda=(13, 1))\n"
    assert ask(driver) == expected


def test_a_driver_that_sees_no_gpu_is_quoted(driver: Path) -> None:
    said = ask(driver, NO_GPU="1")
    assert said.startswith("the NVIDIA driver answers cuInit with error 100 (no CUDA-capable device is detected). See")


def test_without_a_driver_there_is_a_remedy(monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(name: str) -> None:
        raise OSError(f"{name}: cannot open shared object file")

    monkeypatch.setattr(ctypes, "CDLL", missing)
    with pytest.raises(BackendError, match=r"there is no NVIDIA driver here \(.*\).* Install the driver"):
        first_gpu()
