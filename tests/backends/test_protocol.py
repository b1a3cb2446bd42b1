"""What every backend inherits: batches one after another, with the next made ready while one is computed."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pytest

from bertfast.backends.protocol import Arrays, Backend
from bertfast.text.batch import Batch


class Noting(Backend):
    """A backend that computes nothing, refuses what a real one does not bear, and notes the order of what is asked."""

    name = "noting"

    def __init__(self) -> None:
        self.order: list[str] = []
        self.held: int | None = None

    def upload(self, batch: Batch) -> int:
        self.order.append(f"upload {batch.input_ids[0, 0]}")
        return int(batch.input_ids[0, 0])

    def execute(self, inputs: int) -> int:
        self.order.append(f"execute {inputs}")
        self.held = inputs  # outputs hold until the next execution
        return inputs

    def download(self, outputs: int) -> Arrays:
        assert outputs == self.held
        self.order.append(f"download {outputs}")
        return {"number": np.array([outputs], np.float32)}


def batches(backend: Noting, count: int) -> Iterator[Batch]:
    for number in range(count):
        backend.order.append(f"make {number}")
        array = np.full((1, 1), number, np.int64)
        yield Batch(array, array, array)


@pytest.mark.parametrize("count", [0, 1, 2, 5])
def test_the_outputs_of_a_stream_come_whole_and_in_order(count: int) -> None:
    backend = Noting()
    assert [int(outputs["number"][0]) for outputs in backend.stream(batches(backend, count))] == list(range(count))


def test_the_next_batch_is_ready_and_the_last_is_used_while_one_is_computed() -> None:
    backend = Noting()
    for outputs in backend.stream(batches(backend, 3)):
        backend.order.append(f"use {int(outputs['number'][0])}")
    first, *others = (
        ["make 0", "upload 0", "execute 0"],
        ["make 1", "upload 1", "download 0", "execute 1", "use 0"],
        ["make 2", "upload 2", "download 1", "execute 2", "use 1"],
        ["download 2", "use 2"],
    )
    assert backend.order == [*first, *(step for steps in others for step in steps)]
