from __future__ import annotations

import numpy as np
import pytest

from bertfast.backends.protocol import Arrays, Backend
from bertfast.bench.scenarios import Scenario, spread, time_turns, workload
from bertfast.config import Precision
from bertfast.text.batch import Batch
from bertfast.text.tokenizer import Encoded


class Asynchronous(Backend):
    """A device of which every batch takes a second, and which answers before it is done, on a clock of its own."""

    name, precision = "asynchronous", Precision.FP32

    def __init__(self) -> None:
        self.now_s, self.busy_until_s = 0.0, 5.0

    def clock(self) -> float:
        return self.now_s

    def upload(self, batch: Batch) -> Batch:
        return batch

    def execute(self, inputs: Batch) -> Arrays:
        self.busy_until_s = max(self.now_s, self.busy_until_s) + 1.0
        return {"logits": np.zeros((len(inputs), 2), np.float32)}

    def download(self, outputs: Arrays) -> Arrays:
        return outputs

    def synchronize(self) -> None:
        self.now_s = max(self.now_s, self.busy_until_s)


ROWS = [[Encoded([1] * length, [0] * length)] for length in (3, 9, 1, 5, 7, 2)]


def test_a_latency_ends_when_the_work_is_done_and_leaves_out_what_was_before() -> None:
    backend = Asynchronous()
    load = workload(Scenario.SINGLE_STREAM, ROWS, 0, 3)
    assert time_turns(backend, load, backend.clock) == pytest.approx([1.0, 1.0, 1.0])


def test_offline_time_is_that_of_all_batches() -> None:
    backend = Asynchronous()
    load = workload(Scenario.OFFLINE, ROWS * 2000, 0, 3)
    (batches,) = load.turns
    assert len(batches) > 1
    assert time_turns(backend, load, backend.clock) == pytest.approx([len(batches)])


def test_a_request_is_timed_with_all_its_sequences() -> None:
    """The windows of a text that no batch holds at once make one latency, and requests are spread, not windows."""
    window = Encoded([1] * 512, [0] * 512)
    backend = Asynchronous()
    load = workload(Scenario.SINGLE_STREAM, [ROWS[0], [window] * 20, ROWS[1]], 0, 2)
    assert [sum(map(len, turn)) for turn in load.turns] == [1, 1]
    load = workload(Scenario.SINGLE_STREAM, [ROWS[0], [window] * 20], 0, 2)
    assert time_turns(backend, load, backend.clock) == pytest.approx([1.0, 3.0])
    assert load.sequences == 21


def test_tokens_are_real_tokens() -> None:
    load = workload(Scenario.OFFLINE, ROWS, 0, 3)
    assert (load.sequences, load.real_tokens, load.padded_tokens) == (6, 27, 54)
    single = workload(Scenario.SINGLE_STREAM, ROWS, 0, 3)
    assert (single.sequences, single.real_tokens, single.padded_tokens) == (3, 6, 6)


def test_a_part_of_the_rows_is_spread_over_all_of_them() -> None:
    assert spread(872, 500)[0] == 0
    assert spread(872, 500)[-1] == 871
    assert len(set(spread(872, 500))) == 500
    assert spread(3, 10) == [0, 1, 2]
