"""The scenarios, in MLPerf's words: what is timed, and from where to where.

A request is one sequence, or several: the windows of a long text, the two texts of a pair. Texts are tokenised
beforehand, and that time is reported apart. The clock starts when batches of token ids lie in host memory and stops
when their outputs do, after `synchronize()`.
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
    """offline: all requests are there at once. single-stream: one at a time, each when the last is answered."""

    OFFLINE = "offline"
    SINGLE_STREAM = "single-stream"


@dataclass(frozen=True)
class Workload:
    """The batches of a scenario.

    Attributes:
        turns: the batches that are timed together, in the order in which they run: offline all of them,
            single-stream those of one request.
        sequences: how many are in all of them; a request may have several.
        real_tokens: tokens in all of them, padding left out.
        padded_tokens: the same with padding.
    """

    turns: Sequence[Sequence[Batch]]
    sequences: int
    real_tokens: int
    padded_tokens: int


def workload(
    scenario: Scenario, encoded: Sequence[Sequence[Encoded]], pad_id: int, single_stream_rows: int
) -> Workload:
    """Offline: all requests at once. Single-stream: `single_stream_rows` of them, spread evenly over the file.

    Args:
        encoded: the sequences of each request. Those of a turn are grouped by length under a token budget.
    """
    if scenario is Scenario.OFFLINE:
        turns = [_batches([sequence for sequences in encoded for sequence in sequences], pad_id)]
    else:
        turns = [_batches(encoded[i], pad_id) for i in spread(len(encoded), single_stream_rows)]
    batches = [batch for turn in turns for batch in turn]
    return Workload(
        turns,
        sum(len(batch) for batch in batches),
        sum(batch.real_tokens for batch in batches),
        sum(batch.input_ids.size for batch in batches),
    )


def _batches(sequences: Sequence[Encoded], pad_id: int) -> list[Batch]:
    groups = group_by_budget([len(sequence) for sequence in sequences], MAX_BATCH_TOKENS, MAX_BATCH_SEQUENCES)
    return [pad([sequences[i] for i in group], pad_id) for group in groups]


def spread(count: int, most: int) -> list[int]:
    """At most `most` of `count` places, evenly from the first to the last."""
    return [int(place) for place in np.linspace(0, count - 1, min(count, most)).round()]


def time_turns(backend: Backend, load: Workload, clock: Clock = time.perf_counter) -> list[float]:
    """Seconds of each turn, from its token ids to the outputs of the last of them."""
    elapsed_s = []
    for turn in load.turns:
        backend.synchronize()
        start_s = clock()
        for batch in turn:
            backend.run(batch)
        backend.synchronize()
        elapsed_s.append(clock() - start_s)
    return elapsed_s
