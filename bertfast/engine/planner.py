"""The shapes that an engine is built for, from the lengths of the user's own texts."""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import accumulate, pairwise
from pathlib import Path

import numpy as np

from bertfast.backends import ServedModel
from bertfast.backends.engine_plan import Bucket, Padded, ShapePlan
from bertfast.backends.profiles import by_length
from bertfast.config import ShapeProfile
from bertfast.text.labelled import Columns

LENGTH_STEP = 8  # tokens: what tensor cores multiply at a time


def sequence_lengths(served: ServedModel, texts: Path, columns: Columns) -> list[int]:
    """Tokens of each sequence that the texts become, as the model gets them; right answers are not needed.

    Raises:
        DataError: the file cannot be read as what this task takes.
    """
    examples = served.task.read(texts, columns, served.context.settings, False)
    encoded = served.task.encode([example.request for example in examples], served.context)
    return [len(sequence) for windows in encoded for sequence in windows]


def plan_shapes(
    lengths: Sequence[int], max_length: int, *, buckets: int, batch_tokens: int, max_batch: int
) -> ShapePlan:
    """The buckets that leave the least padding, and a profile for each.

    A bucket's profile has its one length, which a backend pads to. Texts longer than all of these may come: they have
    one more profile, up to the model's limit.

    Args:
        lengths: tokens of each sequence, none above `max_length`.
        max_length: tokens of the longest sequence that the model takes.
        buckets: how many there may be; there are fewer where so many lengths do not occur.
        batch_tokens: tokens of a batch, padding included.
        max_batch: rows of a batch.
    """
    found = _fill(lengths, max_length, buckets)
    batches = ([lengths[place] for place in places] for places in by_length(lengths))
    padded = Padded(
        one_profile=len(lengths) * found[-1].length,
        sorted_batches=sum(len(batch) * max(batch) for batch in batches),
        buckets=sum(bucket.sequences * bucket.length for bucket in found),
    )
    profiles = [_profile(bucket.length, bucket.length, batch_tokens, max_batch) for bucket in found]
    if found[-1].length < max_length:
        profiles.append(_profile(found[-1].length + 1, max_length, batch_tokens, max_batch))
    return ShapePlan(buckets=tuple(found), padded=padded, profiles=tuple(profiles))


def _profile(shortest: int, longest: int, batch_tokens: int, max_batch: int) -> ShapeProfile:
    rows = max(1, min(max_batch, batch_tokens // longest))
    return ShapeProfile(batch=(1, rows, rows), length=(shortest, longest, longest))


def _fill(lengths: Sequence[int], max_length: int, buckets: int) -> list[Bucket]:
    tokens = np.asarray(lengths, np.int64)
    padded, counts = np.unique(np.minimum(-(-tokens // LENGTH_STEP) * LENGTH_STEP, max_length), return_counts=True)
    ends = bucket_lengths(padded.tolist(), counts.tolist(), buckets)
    held = [tokens[(tokens > start) & (tokens <= end)] for start, end in pairwise((0, *ends))]
    return [
        Bucket(length=end, sequences=len(inside), real_tokens=int(inside.sum()))
        for end, inside in zip(ends, held, strict=True)
    ]


def bucket_lengths(lengths: Sequence[int], counts: Sequence[int], buckets: int) -> tuple[int, ...]:
    """The lengths to pad to, ascending: no other choice leaves less padding (dynamic programming).

    Args:
        lengths: those that occur, ascending.
        counts: sequences of each.
        buckets: how many; every length is one where there are no more of them.
    """
    before = [0, *accumulate(counts)]
    # of the lengths before a place: the least tokens with padding, and the buckets that leave them
    best: list[tuple[float, tuple[int, ...]]] = [(0, ()), *[(math.inf, ())] * len(lengths)]
    for _ in range(min(buckets, len(lengths))):
        best = [
            (math.inf, ()),
            *(
                min(
                    (best[start][0] + length * (before[end] - before[start]), (*best[start][1], length))
                    for start in range(end)
                )
                for end, length in enumerate(lengths, 1)
            ),
        ]
    return best[-1][1]
