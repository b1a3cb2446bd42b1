"""The scenarios, in MLPerf's words: what is timed, and from where to where.

Texts are tokenised beforehand, and that time is reported apart. The clock starts when a batch of token ids lies in
host memory and stops when its outputs do, after `synchronize()`.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from enum import StrEnum

import numpy as np

from bertfast.backends import Backend
from bertfast.backends.predictor import MAX_BATCH_SEQUENCES, MAX_BATCH_TOKENS
from bertfast.text.batch import Batch, group_by_budget, pad
from bertfast.text.tokenizer import Encoded

Clock = Callable[[], float]


class Scenario(StrEnum):
    """offline: all rows are there at once. single-stream: one row at a time, each when the last is answered."""

    OFFLINE = "offline"
    SINGLE_STREAM = "single-stream"


@dataclass(frozen=True)
class Workload:
    """The batches of a scenario.

    Attributes:
        batches: in the order in which they run.
        sequences: rows in all of them.
        real_tokens: tokens in all of them, padding left out.
        padded_tokens: the same with padding.
    """

    batches: Sequence[Batch]
    sequences: int
    real_tokens: int
    padded_tokens: int


def workload(scenario: Scenario, rows: Sequence[Encoded], pad_id: int, single_stream_rows: int) -> Workload:
    """Offline: all rows, grouped by length under a token budget. Single-stream: rows spread evenly over the file."""
    if scenario is Scenario.OFFLINE:
        lengths = [len(row) for row in rows]
        groups = group_by_budget(lengths, MAX_BATCH_TOKENS, MAX_BATCH_SEQUENCES)
        batches = [pad([rows[i] for i in group], pad_id) for group in groups]
    else:
        batches = [pad([rows[i]], pad_id) for i in spread(len(rows), single_stream_rows)]
    return Workload(
        batches,
        sum(len(batch) for batch in batches),
        sum(batch.real_tokens for batch in batches),
        sum(batch.input_ids.size for batch in batches),
    )


def spread(count: int, most: int) -> list[int]:
    """At most `most` of `count` places, evenly from the first to the last."""
    return [int(place) for place in np.linspace(0, count - 1, min(count, most)).round()]


def time_offline(backend: Backend, load: Workload, clock: Clock = time.perf_counter) -> float:
    """Seconds for all batches, one after the other."""
    backend.synchronize()
    start_s = clock()
    for batch in load.batches:
        backend.run(batch)
    backend.synchronize()
    return clock() - start_s


def time_single_stream(backend: Backend, load: Workload, clock: Clock = time.perf_counter) -> list[float]:
    """Milliseconds from one sequence's ids to its outputs, for each batch of one."""
    latencies_ms = []
    for batch in load.batches:
        backend.synchronize()
        start_s = clock()
        backend.run(batch)
        backend.synchronize()
        latencies_ms.append((clock() - start_s) * 1e3)
    return latencies_ms
