"""Batch, the only thing that a model or a backend takes, and the grouping of sequences into batches.

Shapes: B rows, S tokens of a row (padding included); in a packed batch, N sequences and K boundaries.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import numpy as np
import numpy.typing as npt

from bertfast.text.tokenizer import Encoded

Int64 = npt.NDArray[np.int64]
IGNORE_INDEX = -100
INPUTS = ("input_ids", "attention_mask", "token_type_ids")
PACKED_INPUTS = ("input_ids", "token_type_ids", "position_ids", "sequence_ids", "sequence_starts")


@dataclass(frozen=True)
class Packing:
    """Where the sequences of a packed batch lie among its B * S tokens, rows one after another.

    Attributes:
        position_ids: int64 [B, S], counted anew from each sequence's first token.
        sequence_starts: int64 [N], each sequence's first token; slots that hold no sequence point to token 0.
        cu_seqlens: int32 [K], ascending, from 0 to B * S: attention stays between two neighbours. Padding lies in
            stretches of its own, and what is left of the K places repeats the last.
        max_seqlen: no stretch is longer.
    """

    position_ids: Int64
    sequence_starts: Int64
    cu_seqlens: npt.NDArray[np.int32]
    max_seqlen: int

    @property
    def sequence_ids(self) -> Int64:
        """int64 [B, S]: a number for each token that only those of its sequence have."""
        sizes = np.diff(self.cu_seqlens)
        return np.repeat(np.arange(len(sizes)), sizes).reshape(self.position_ids.shape)


@dataclass(frozen=True)
class Batch:
    """Sequences: padded, one a row, or packed, several a row.

    Attributes:
        input_ids: int64 [B, S].
        attention_mask: int64 [B, S], 1 on real tokens and 0 on padding.
        token_type_ids: int64 [B, S].
        packing: where the sequences lie, or None where each row is one.
    """

    input_ids: Int64
    attention_mask: Int64
    token_type_ids: Int64
    packing: Packing | None = None

    @property
    def arrays(self) -> dict[str, Int64]:
        """What a padded batch holds by name, in the order of INPUTS."""
        return {name: getattr(self, name) for name in INPUTS}

    @property
    def graph_inputs(self) -> dict[str, Int64]:
        """The inputs of an exported graph by name: `arrays`, or a packed batch's in the order of PACKED_INPUTS."""
        if self.packing is None:
            return self.arrays
        own = (self.input_ids, self.token_type_ids)
        lying = (self.packing.position_ids, self.packing.sequence_ids, self.packing.sequence_starts)
        return dict(zip(PACKED_INPUTS, (*own, *lying), strict=True))

    @property
    def lengths(self) -> Int64:
        """int64 [B]: real tokens of each row."""
        lengths: Int64 = self.attention_mask.sum(axis=1)
        return lengths

    @property
    def real_tokens(self) -> int:
        return int(self.attention_mask.sum())

    def __len__(self) -> int:
        return len(self.input_ids)


@dataclass(frozen=True)
class TrainingBatch:
    """A batch and what is to be learnt from it.

    Attributes:
        targets: arrays by name, as the task's loss expects them.
    """

    batch: Batch
    targets: Mapping[str, npt.NDArray[Any]] = field(default_factory=dict)


@dataclass(frozen=True)
class Features:
    """What a model is fine-tuned on: items of one sequence each (or of several that belong together) and its targets.

    Attributes:
        sequences: the sequences of each item, as many in every one.
        targets: arrays by name whose first axis counts the items.
        token_targets: by name and item a number for each token of its first sequence; in a batch int64 [items, S],
            IGNORE_INDEX on padding.
        whole_steps: whether the loss compares the items of a step, so that they go through the model together.
    """

    sequences: Sequence[tuple[Encoded, ...]]
    targets: Mapping[str, npt.NDArray[Any]] = field(default_factory=dict)
    token_targets: Mapping[str, Sequence[Sequence[int]]] = field(default_factory=dict)
    whole_steps: bool = False

    def __len__(self) -> int:
        return len(self.sequences)

    @cached_property
    def lengths(self) -> Int64:
        """int64 [items]: tokens of an item's sequences when all are padded to the longest of them."""
        return np.array([max(map(len, item)) * len(item) for item in self.sequences], np.int64)

    @property
    def truncated(self) -> int:
        """How many items lost tokens."""
        return sum(any(sequence.truncated for sequence in item) for item in self.sequences)

    def batch(self, items: Int64, pad_id: int) -> TrainingBatch:
        """All first sequences of these items, then all second ones, and so on."""
        chosen = [self.sequences[item] for item in items]
        batch = pad([sequence for place in zip(*chosen, strict=True) for sequence in place], pad_id)
        targets = {name: values[items] for name, values in self.targets.items()}
        for name, rows in self.token_targets.items():
            targets[name] = np.full((len(items), batch.input_ids.shape[1]), IGNORE_INDEX, np.int64)
            for row, item in enumerate(items):
                targets[name][row, : len(rows[item])] = rows[item]
        return TrainingBatch(batch, targets)


def pad(sequences: Sequence[Encoded], pad_id: int, length: int | None = None) -> Batch:
    """Pad sequences on the right to `length`, or to the longest of them."""
    longest = max(map(len, sequences))
    length = length or longest
    if longest > length:
        raise ValueError(f"a sequence of {longest} tokens does not fit into {length}")
    shape = (len(sequences), length)
    input_ids = np.full(shape, pad_id, dtype=np.int64)
    attention_mask = np.zeros(shape, dtype=np.int64)
    token_type_ids = np.zeros(shape, dtype=np.int64)
    for row, sequence in enumerate(sequences):
        input_ids[row, : len(sequence)] = sequence.input_ids
        attention_mask[row, : len(sequence)] = 1
        token_type_ids[row, : len(sequence)] = sequence.token_type_ids
    return Batch(input_ids, attention_mask, token_type_ids)


def unpad(batch: Batch) -> list[Encoded]:
    """The sequences of a batch without their padding: the inverse of `pad`."""
    return [
        Encoded(ids[:length].tolist(), types[:length].tolist())
        for ids, types, length in zip(batch.input_ids, batch.token_type_ids, batch.lengths, strict=True)
    ]


def group_by_budget(
    lengths: Sequence[int] | Int64, max_tokens: int, max_sequences: int, *, in_order: bool = False
) -> Iterator[Int64]:
    """Yield index arrays of similar length, the longest first: rows times the longest row stays in the budget.

    A sequence that alone exceeds the budget makes a batch of its own.

    Args:
        lengths: tokens of each sequence.
        max_tokens: padded tokens of one batch.
        max_sequences: rows of one batch.
        in_order: cut in the order given, whatever the lengths.
    """
    tokens = np.maximum(np.asarray(lengths, dtype=np.int64), 1)
    order = np.arange(len(tokens)) if in_order else np.argsort(-tokens, kind="stable")
    start = longest = 0
    for place, length in enumerate(tokens[order].tolist()):
        longest = max(longest, length)
        rows = place - start + 1
        if rows > 1 and (rows > max_sequences or rows * longest > max_tokens):
            yield order[start:place]
            start, longest = place, length
    if len(order):
        yield order[start:]


def group_by_tokens(lengths: Sequence[int] | Int64, max_tokens: int) -> Iterator[Int64]:
    """Yield index arrays of similar length, the longest first, of so many real tokens at most.

    A sequence that alone exceeds them makes a batch of its own.
    """
    tokens = np.asarray(lengths, dtype=np.int64)
    order = np.argsort(-tokens, kind="stable")
    ends = tokens[order].cumsum()
    start = 0
    while start < len(order):
        before = ends[start - 1] if start else 0
        stop = max(start + 1, int(np.searchsorted(ends, before + max_tokens, side="right")))
        yield order[start:stop]
        start = stop


def group_by_cost(
    lengths: Sequence[int] | Int64, batch_cost: int, max_tokens: int, max_sequences: int
) -> Iterator[Int64]:
    """Yield index arrays of similar length, the longest first, that cost the least together.

    The cost is what is computed: rows times the longest row, and `batch_cost` for each batch. No cut of the sequences
    in order of length is cheaper (dynamic programming, a few microseconds a sequence).

    Args:
        lengths: tokens of each sequence.
        batch_cost: what a batch costs beside its tokens, in tokens.
        max_tokens: padded tokens of one batch; a sequence that alone exceeds it makes a batch of its own.
        max_sequences: rows of one batch.
    """
    tokens = np.maximum(np.asarray(lengths, dtype=np.int64), 1)
    order = np.argsort(-tokens, kind="stable")
    longest, rows = tokens[order], np.arange(1, max_sequences + 1)
    cost_from = np.zeros(len(order) + 1, np.int64)  # of the sequences from a place to the end
    rows_from = np.zeros(len(order), np.int64)  # of the batch that begins at a place
    for place in range(len(order) - 1, -1, -1):
        most = max(1, min(max_sequences, max_tokens // longest[place], len(order) - place))
        costs = rows[:most] * longest[place] + cost_from[place + 1 : place + 1 + most]
        best = costs.argmin()
        cost_from[place], rows_from[place] = costs[best] + batch_cost, best + 1
    place = 0
    while place < len(order):
        yield order[place : place + rows_from[place]]
        place += rows_from[place]
