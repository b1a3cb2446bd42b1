"""Packing: the sequences of a step laid into rows of a fixed number of tokens, none of them cut.

What a step learns from is the same packed and unpacked; packing decides only where in memory it lies. Every
micro-batch has the shapes of one `Layout`, whatever its sequences, so it is compiled once and fits a CUDA graph.

Krell et al. 2021, "Efficient Sequence Packing without Cross-contamination", is where the idea comes from.
"""

from __future__ import annotations

import math
from bisect import bisect_left, insort
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TypeVar

import numpy as np
import numpy.typing as npt

from bertfast.text.batch import IGNORE_INDEX, Batch, Int64, Packing, TrainingBatch
from bertfast.text.instances import Instance

Kind = TypeVar("Kind", bound=np.generic)

_ROW_GRAIN = 64
_MOST_TRIALS, _SIMULATED_SEQUENCES, _DRAWS = 64, 16384, 256
# What a micro-batch costs beside its tokens, as a share of the largest one: launches, casts of the weights.
_MICRO_BATCH_COST = 0.03


@dataclass(frozen=True)
class Layout:
    """The shapes of a packed micro-batch.

    Attributes:
        rows, row_tokens: B and S of the batch.
        sequences: slots for sequences.
        predictions: slots for masked tokens.
        max_length: tokens of the longest sequence.
    """

    rows: int
    row_tokens: int
    sequences: int
    predictions: int
    max_length: int

    @property
    def tokens(self) -> int:
        return self.rows * self.row_tokens

    @property
    def boundaries(self) -> int:
        """Places for `Packing.cu_seqlens`: 0, each sequence's end, and the ends of the padding's stretches."""
        return 1 + self.sequences + self.rows * math.ceil(self.row_tokens / self.max_length)


@dataclass(frozen=True)
class Sizes:
    """What packing needs to know of sequences: int64 [N] tokens and int64 [N] masked tokens of each."""

    tokens: Int64
    masked: Int64

    def __getitem__(self, chosen: Int64) -> Sizes:
        return Sizes(self.tokens[chosen], self.masked[chosen])

    def __len__(self) -> int:
        return len(self.tokens)


@dataclass(frozen=True)
class Limits:
    """What no sequence exceeds: tokens and masked tokens."""

    tokens: int
    masked: int


def sizes_of(instances: Sequence[Instance]) -> Sizes:
    return Sizes(
        np.array([len(instance.input_ids) for instance in instances], np.int64),
        np.array([len(instance.masked_positions) for instance in instances], np.int64),
    )


def choose_layout(
    sample: Sizes, limits: Limits, *, batch_size: int, row_tokens: int | None, micro_batch_tokens: int, ranks: int = 1
) -> Layout:
    """The layout that computes the fewest tokens for steps of `batch_size` sequences like those of the sample.

    Steps are drawn from the sample, always the same ones, and packed in trial.

    Args:
        sample: sizes of some sequences.
        limits: what no sequence exceeds.
        row_tokens: tokens of a row, or None for one row that holds the whole micro-batch (for kernels that take
            boundaries and not a mask).
        micro_batch_tokens: the most tokens of a micro-batch, but at least one row.
        ranks: processes that pack a step each and wait for the one that has most to do.
    """
    rng = np.random.default_rng(0)
    trials = max(2, min(_MOST_TRIALS, _SIMULATED_SEQUENCES // batch_size))
    steps = [sample[rng.integers(0, len(sample), batch_size)] for _ in range(trials)]
    grain = row_tokens or _ROW_GRAIN
    least = -(-limits.tokens // grain)
    most = max(least, micro_batch_tokens // grain)
    needed = np.array([_grains(step, row_tokens) for step in steps])
    fewest = math.ceil(needed.mean() / most)
    costs: dict[Layout, float] = {}
    for micro_batches in range(fewest, fewest + 3):
        for safety in (0.0, 1.0, 2.0, 3.0):
            share = math.ceil((needed.mean() + safety * needed.std()) / micro_batches)
            grains = min(most, max(least, share))
            rows, length = (1, grains * grain) if row_tokens is None else (min(grains, batch_size), grain)
            layout = _with_slots(rows, length, steps, limits, batch_size)
            counts = np.array([len(assign(step, layout)) for step in steps])
            count = float(rng.choice(counts, (_DRAWS, ranks)).max(axis=1).mean())
            costs[layout] = count * (layout.tokens + _MICRO_BATCH_COST * most * grain)
    return min(costs, key=lambda layout: costs[layout])


def assign(sizes: Sizes, layout: Layout) -> list[list[list[int]]]:
    """Lay sequences into micro-batches: a list of rows each, a list of sequences each.

    Best fit, the longest first (in one row: as they come), so that few rows are needed; rows are dealt out so that
    micro-batches are alike. What exceeds the slots of a micro-batch goes into a further one.
    """
    rows = _rows(sizes.tokens, layout.row_tokens, longest_first=layout.rows > 1)
    piles = math.ceil(len(rows) / layout.rows)
    return [batch for pile in range(piles) for batch in _within_slots(rows[pile::piles], sizes, layout)]


def pack(instances: Sequence[Instance], layout: Layout, pad_id: int) -> list[TrainingBatch]:
    """The micro-batches of a step.

    Targets: `masked_positions` and `masked_labels` [predictions], `next_sentence_labels` [sequences]; slots that
    hold nothing carry IGNORE_INDEX.
    """
    return [_fill(rows, instances, layout, pad_id) for rows in assign(sizes_of(instances), layout)]


def without_padding(batch: Batch, layout: Layout) -> Batch:
    """A padded batch's real tokens one after another in a row, which the layout has one of."""
    lengths, real = batch.lengths, batch.attention_mask == 1
    tokens = int(lengths.sum())
    assert layout.rows == 1
    assert tokens <= layout.tokens
    assert len(lengths) <= layout.sequences
    ends = np.concatenate([[0], lengths.cumsum()])
    starts = np.zeros(layout.sequences, np.int64)
    starts[: len(lengths)] = np.where(lengths > 0, ends[:-1], 0)
    cu_seqlens = np.full(layout.boundaries, layout.tokens, np.int32)
    cu_seqlens[: len(ends)] = ends
    padding = np.arange(tokens + layout.max_length, layout.tokens, layout.max_length)
    cu_seqlens[len(ends) : len(ends) + len(padding)] = padding
    position_ids = np.broadcast_to(np.arange(real.shape[1]), real.shape)

    def row(values: Int64) -> Int64:
        return np.pad(values[real], (0, layout.tokens - tokens))[None]

    packing = Packing(row(position_ids), starts, cu_seqlens, layout.max_length)
    return Batch(row(batch.input_ids), row(batch.attention_mask), row(batch.token_type_ids), packing)


def with_padding(values: npt.NDArray[Kind], real: npt.NDArray[np.bool_]) -> npt.NDArray[Kind]:
    """What was computed of each token of `without_padding`, where the tokens of the padded batch lie.

    Args:
        values: [1, T, ...].
        real: bool [B, S], where those are real.
    Returns:
        [B, S, ...], with 0 for padding.
    """
    padded = np.zeros((*real.shape, *values.shape[2:]), values.dtype)
    padded[real] = values[0, : real.sum()]
    return padded


def _fill(rows: list[list[int]], instances: Sequence[Instance], layout: Layout, pad_id: int) -> TrainingBatch:
    input_ids = np.full(layout.tokens, pad_id, np.int64)
    attention_mask, token_type_ids, position_ids = (np.zeros(layout.tokens, np.int64) for _ in range(3))
    starts = np.zeros(layout.sequences, np.int64)
    next_sentence = np.full(layout.sequences, IGNORE_INDEX, np.int64)
    positions = np.zeros(layout.predictions, np.int64)
    labels = np.full(layout.predictions, IGNORE_INDEX, np.int64)
    ends = [0]
    slot = prediction = 0
    for number in range(layout.rows):
        place = number * layout.row_tokens
        for index in rows[number] if number < len(rows) else ():
            instance = instances[index]
            size, masked = len(instance.input_ids), len(instance.masked_positions)
            here = slice(place, place + size)
            input_ids[here] = instance.input_ids
            attention_mask[here] = 1
            token_type_ids[here] = instance.token_type_ids
            position_ids[here] = np.arange(size)
            starts[slot], next_sentence[slot] = place, instance.next_sentence_label
            positions[prediction : prediction + masked] = place + instance.masked_positions
            labels[prediction : prediction + masked] = instance.masked_labels
            place, slot, prediction = place + size, slot + 1, prediction + masked
            ends.append(place)
        row_end = (number + 1) * layout.row_tokens
        ends.extend(range(place + layout.max_length, row_end, layout.max_length))
        if place < row_end:
            ends.append(row_end)
    cu_seqlens = np.full(layout.boundaries, layout.tokens, np.int32)
    cu_seqlens[: len(ends)] = ends
    shape = (layout.rows, layout.row_tokens)
    packing = Packing(position_ids.reshape(shape), starts, cu_seqlens, layout.max_length)
    return TrainingBatch(
        Batch(input_ids.reshape(shape), attention_mask.reshape(shape), token_type_ids.reshape(shape), packing),
        {"masked_positions": positions, "masked_labels": labels, "next_sentence_labels": next_sentence},
    )


def _rows(lengths: Int64, row_tokens: int, *, longest_first: bool) -> list[list[int]]:
    """Best fit: each sequence goes into the fullest row that has room for it."""
    order = np.argsort(-lengths, kind="stable") if longest_first else np.arange(len(lengths))
    assert lengths.max(initial=0) <= row_tokens
    rows: list[list[int]] = []
    room: list[tuple[int, int]] = []  # (tokens left, row), ascending
    for index, length in zip(order.tolist(), lengths[order].tolist(), strict=True):
        place = bisect_left(room, (length, 0))
        if place == len(room):
            rows.append([index])
            left, row = row_tokens - length, len(rows) - 1
        else:
            left, row = room.pop(place)
            rows[row].append(index)
            left -= length
        insort(room, (left, row))
    return rows


def _within_slots(rows: list[list[int]], sizes: Sizes, layout: Layout) -> Iterator[list[list[int]]]:
    """Rows in groups that fit into the slots of a micro-batch."""
    group: list[list[int]] = []
    sequences = masked = 0
    for row in rows:
        for part in _parts(row, sizes, layout):
            more, more_masked = len(part), int(sizes.masked[part].sum())
            full = len(group) == layout.rows or sequences + more > layout.sequences
            if full or masked + more_masked > layout.predictions:
                yield group
                group, sequences, masked = [], 0, 0
            group.append(part)
            sequences, masked = sequences + more, masked + more_masked
    if group:
        yield group


def _parts(row: list[int], sizes: Sizes, layout: Layout) -> list[list[int]]:
    """A row, cut where it alone exceeds the slots of a micro-batch (many short sequences)."""
    fits = len(row) <= layout.sequences and sizes.masked[row].sum() <= layout.predictions
    if fits or len(row) == 1:
        return [row]
    middle = len(row) // 2
    return _parts(row[:middle], sizes, layout) + _parts(row[middle:], sizes, layout)


def _grains(step: Sizes, row_tokens: int | None) -> int:
    """Rows, or grains of one long row, that a step's sequences take."""
    if row_tokens is None:
        return math.ceil(int(step.tokens.sum()) / _ROW_GRAIN)
    return len(_rows(step.tokens, row_tokens, longest_first=True))


def _with_slots(rows: int, row_tokens: int, steps: list[Sizes], longest: Limits, batch_size: int) -> Layout:
    """A layout with slots for a little more than the steps' micro-batches held at most."""
    unlimited = Layout(rows, row_tokens, 1 << 62, 1 << 62, longest.tokens)
    held = [(step, [i for row in batch for i in row]) for step in steps for batch in assign(step, unlimited)]
    sequences = max(len(members) for _, members in held)
    masked = max(longest.masked, *(int(step.masked[members].sum()) for step, members in held))
    slots = min(batch_size, math.ceil(1.05 * sequences))
    return Layout(rows, row_tokens, slots, math.ceil(1.02 * masked / 8) * 8, longest.tokens)
