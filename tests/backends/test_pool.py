"""One engine on a fake GPU, and several threads."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from threading import Barrier

import numpy as np
import pytest

from bertfast.backends import open_served
from bertfast.backends.pool import Pool
from bertfast.errors import BackendError
from bertfast.text.batch import Batch
from tests.backends.engine_bench import LARGE, PLAN, SMALL, Bench, batch


def numbered(number: int) -> Batch:
    ones = np.ones((1 + number % 3, 16 + number), np.int64)
    return Batch(ones * (5 + number), ones, ones * 0)


@pytest.mark.parametrize("cuda_graphs", [False, True])
def test_threads_get_the_answers_to_what_they_asked(bench: Bench, cuda_graphs: bool) -> None:
    model = bench.model(SMALL, LARGE, cuda_graphs=cuda_graphs)
    wanted = [bench.source.backend.run(numbered(number))["logits"] for number in range(16)]

    def ask(number: int) -> np.ndarray:
        with pool.predictor() as predictor:
            return predictor.backend.run(numbered(number))["logits"]

    with Pool(model, 3) as pool, ThreadPoolExecutor(8) as threads:
        found = list(threads.map(ask, [number % 16 for number in range(96)]))
    for number, answer in enumerate(found):
        assert np.allclose(answer, wanted[number % 16], atol=1e-4)
    assert bench.library.loaded == [PLAN]  # the weights are there once
    assert not bench.driver.streams
    assert not bench.driver.graphs
    assert not bench.driver.device


def test_as_many_batches_are_computed_at_a_time_as_there_are_predictors(bench: Bench) -> None:
    model = bench.model(SMALL)
    together, compute = Barrier(2, timeout=20), bench.library.compute

    def meeting(inputs: Batch) -> dict[str, np.ndarray]:
        together.wait()
        return compute(inputs)

    def ask(_: int) -> None:
        with pool.predictor() as predictor:
            predictor.backend.run(batch(1, 16))

    with Pool(model, 2) as pool, ThreadPoolExecutor(2) as threads:
        bench.library.compute = meeting
        asked = list(threads.map(ask, range(4)))
    assert len(asked) == 4
    assert not together.broken


def test_each_has_a_stream_and_memory_of_its_own(bench: Bench) -> None:
    with Pool(bench.model(SMALL, LARGE), 3):
        assert len(bench.driver.streams) == 3
        assert len(bench.driver.device) == 3 * 5  # activations, three inputs, one output
        assert len(bench.library.contexts) == 3 * 2


def test_what_does_not_fit_is_told_and_leaves_nothing(bench: Bench, exported: Path) -> None:
    model = bench.model(SMALL)
    bench.library.scratch_bytes = bench.driver.total // 2
    with pytest.raises(BackendError, match="the activations of the engine take 512.0 MiB on the GPU, and 5"):
        Pool(model, 3)
    assert not bench.driver.streams
    assert not bench.driver.device
    with pytest.raises(BackendError, match="is 'onnx', and a pool shares the weights of an engine. Build one first"):
        Pool(open_served(exported), 2)
    with pytest.raises(BackendError, match="a pool of 0 predictors answers nothing. Give 1 at least"):
        Pool(model, 0)


def test_a_pool_that_was_closed_gives_no_predictor(bench: Bench) -> None:
    with Pool(bench.model(SMALL), 1) as pool:
        pass
    with pytest.raises(BackendError, match="the pool was closed"), pool.predictor():
        pass
