"""Inputs that other libraries have put on the GPU, on a fake one."""

from __future__ import annotations

import ctypes
from typing import Any

import numpy as np
import pytest

from bertfast.backends.tensorrt import TensorRTBackend
from bertfast.errors import BackendError, ProfileError
from bertfast.text.batch import Batch
from tests.backends.engine_bench import LARGE, SMALL, Bench, batch


class OnTheGpu:
    """An array that another library has on the fake GPU."""

    def __init__(self, bench: Bench, array: np.ndarray, **changes: Any) -> None:
        address = ctypes.c_ulonglong()
        bench.driver.cuMemAlloc_v2(ctypes.byref(address), ctypes.c_size_t(array.nbytes))
        self.write = lambda: ctypes.memmove(address.value, array.ctypes.data, array.nbytes) and None
        said = {"shape": array.shape, "typestr": array.dtype.str, "data": (address.value, False), "version": 2}
        self.__cuda_array_interface__ = said | changes


@pytest.mark.parametrize("stream", [1, 99, None])
def test_inputs_that_are_on_the_gpu_are_read_where_they_lie(bench: Bench, stream: int | None) -> None:
    """After what another stream still writes into them, without a copy, and between batches of the host."""
    model = bench.model(SMALL, LARGE, cuda_graphs=True)
    ones = np.ones((2, 20), np.int64)
    wanted = Batch(ones * 7, ones, ones * 0)
    arrays = {name: OnTheGpu(bench, array, stream=stream) for name, array in wanted.arrays.items()}
    writes = [array.write for array in arrays.values()]
    if stream is None:
        for write in writes:
            write()
    else:
        bench.driver.others[stream] = writes
    with TensorRTBackend(model, "tensorrt") as backend:
        for _ in range(3):
            backend.run(batch(2, 20))
        copied, copy = [], bench.driver.cuMemcpyHtoDAsync_v2
        bench.patch.setattr(bench.driver, "cuMemcpyHtoDAsync_v2", lambda *given: copied.append(given) or copy(*given))
        found = backend.download(backend.execute(backend.bind(arrays)))["logits"]
        assert not copied
        assert np.allclose(found, bench.source.backend.run(wanted)["logits"], atol=1e-4)
        again = backend.run(batch(2, 20))["logits"]
        assert np.allclose(again, bench.source.backend.run(batch(2, 20))["logits"], atol=1e-4)


@pytest.mark.parametrize(
    ("array", "changes", "message"),
    [
        (np.ones((1, 16), np.int32), {}, "input_ids is int32, and the engine reads int64. Convert it"),
        (np.ones((1, 16), np.int64), {"strides": (8, 16)}, r"input_ids of shape \(1, 16\) is not contiguous"),
        (np.ones((1, 17), np.int64), {}, r"shapes \(1, 16\), \(1, 17\), and not one"),
        (None, {}, r"input_ids is not on a GPU \(ndarray\)\. Give batches of the host to upload"),
    ],
)
def test_inputs_that_the_engine_cannot_read_are_refused_by_name(
    bench: Bench, array: np.ndarray | None, changes: dict[str, Any], message: str
) -> None:
    model = bench.model(SMALL)
    ones = np.ones((1, 16), np.int64)
    arrays: dict[str, Any] = {name: OnTheGpu(bench, ones) for name in batch(1, 16).arrays}
    arrays["input_ids"] = ones if array is None else OnTheGpu(bench, array, **changes)
    with TensorRTBackend(model, "tensorrt") as backend, pytest.raises(BackendError, match=message):
        backend.bind(arrays)


def test_inputs_on_the_gpu_are_whole_and_long_enough(bench: Bench) -> None:
    model = bench.model(SMALL)
    short = {name: OnTheGpu(bench, np.ones((1, 5), np.int64)) for name in batch(1, 5).arrays}
    with TensorRTBackend(model, "tensorrt") as backend:
        with pytest.raises(ProfileError, match="batch 1x5 is shorter than the 16 tokens .* Pad it to 16, or"):
            backend.bind(short)
        with pytest.raises(BackendError, match=r"the engine reads input_ids, .*, and got input_ids\."):
            backend.bind({"input_ids": short["input_ids"]})


def test_inputs_of_another_gpu_are_refused(bench: Bench) -> None:
    arrays = {name: OnTheGpu(bench, np.ones((1, 16), np.int64)) for name in batch(1, 16).arrays}
    address = arrays["attention_mask"].__cuda_array_interface__["data"][0]
    with TensorRTBackend(bench.model(SMALL), "tensorrt") as backend:
        bench.driver.elsewhere[address] = 1
        with pytest.raises(BackendError, match="attention_mask is on GPU 1, and the engine on GPU 0. Copy it there"):
            backend.bind(arrays)
        bench.driver.elsewhere.clear()
        backend.bind(arrays)
        bench.driver.cuMemFree_v2(ctypes.c_ulonglong(address))
        with pytest.raises(BackendError, match="invalid argument"):
            backend.bind(arrays)
