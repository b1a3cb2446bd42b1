"""Which batches of an engine are captured in CUDA graphs, on a fake GPU."""

from __future__ import annotations

import numpy as np
import pytest

from benchmarks.gpu import lengths
from bertfast.backends import tensorrt
from bertfast.backends.tensorrt import TensorRTBackend
from bertfast.config import ShapeProfile
from tests.backends.engine_bench import LARGE, SMALL, Bench, batch


def test_a_graph_is_captured_once_a_shape_and_launched_after(bench: Bench) -> None:
    model = bench.model(SMALL, LARGE, cuda_graphs=True)
    with TensorRTBackend(model, "tensorrt") as backend:
        first = [backend.run(batch(2, 16))["logits"] for _ in range(4)]
        assert bench.driver.launched == 2
        assert len(bench.driver.graphs) == 1
        backend.run(batch(3, 16))  # a shape that does not come again has none
        again = backend.run(batch(2, 16))["logits"]
        assert bench.driver.launched == 3
        assert len(bench.driver.graphs) == 1
        assert all(np.array_equal(one, first[0]) for one in (*first, again))


def test_lengths_of_one_grain_share_a_graph(bench: Bench) -> None:
    model = bench.model(SMALL, cuda_graphs=True)
    with TensorRTBackend(model, "tensorrt") as backend:
        for length in (5, 9, 16, 17, 25, 32):
            found = backend.run(batch(1, length))["logits"]
            assert np.allclose(found, bench.source.backend.run(batch(1, length))["logits"], atol=1e-4)
        assert len(bench.driver.graphs) == 2
        assert bench.driver.launched == 2
        assert set(bench.library.computed) == {(1, 16), (1, 32)}


def test_large_batches_have_no_graph_and_are_not_rounded(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tensorrt, "GRAPH_TOKENS", 100)
    model = bench.model(LARGE, cuda_graphs=True)
    with TensorRTBackend(model, "tensorrt") as backend:
        for _ in range(3):
            backend.run(batch(8, 17))
        assert not bench.driver.graphs
        assert set(bench.library.computed) == {(8, 17)}


def test_the_graph_that_was_not_used_for_longest_goes(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tensorrt, "MAX_GRAPHS", 2)
    model = bench.model(LARGE, cuda_graphs=True)
    with TensorRTBackend(model, "tensorrt") as backend:
        for rows in (1, 1, 2, 2, 1, 3, 3):
            backend.run(batch(rows, 16))
        assert len(bench.driver.graphs) == 2
        assert bench.driver.launched == 1
        backend.run(batch(1, 16))
        assert bench.driver.launched == 2


@pytest.mark.parametrize(("most_rows", "share"), [(1, 0.95), (4, 0.8)])
def test_graphs_are_hit_in_the_lengths_of_squad(bench: Bench, most_rows: int, share: float) -> None:
    """One window at a time, or a few as a server gathers them: nearly every batch finds the graph of its shape."""
    profile = ShapeProfile(batch=(1, 1, 4), length=(1, 64, 512))
    model = bench.model(profile, cuda_graphs=True)
    bench.library.compute = lambda inputs: {"logits": np.zeros((len(inputs), 3), np.float32)}
    tokens = [len(sequence) for sequence in lengths.draw("squad", 2000, 300, 384)]
    rows = np.random.default_rng(0).integers(1, most_rows + 1, len(tokens)).tolist()
    with TensorRTBackend(model, "tensorrt") as backend:
        for count, length in zip(rows, tokens, strict=True):
            backend.run(batch(count, length))
        assert bench.driver.launched > share * len(tokens)
        assert len(bench.driver.graphs) <= tensorrt.MAX_GRAPHS
    computed = sum(count * length for count, length in bench.library.computed)
    assert computed < 1.05 * sum(count * length for count, length in zip(rows, tokens, strict=True))
