"""A graph that takes one row of real tokens, behind the protocol of all backends: batches have padding outside.

On a CPU a mask keeps sequences apart, so that a row costs every token's score with every other: rows are short, and a
batch of more tokens is several of them.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from bertfast.backends.protocol import Arrays, Backend
from bertfast.text.batch import Batch, Int64, group_by_tokens
from bertfast.text.packing import Layout, with_padding, without_padding

ROW_TOKENS = 256


@dataclass(frozen=True)
class Row:
    """Sequences of a batch that share a row.

    Attributes:
        places: of the sequences in their batch, int64 [N].
        inputs: where the row is computed.
    """

    places: Int64
    inputs: Any


@dataclass(frozen=True)
class Rows:
    """A batch as rows; `real` is where its tokens are real, bool [B, S]."""

    rows: list[Row]
    real: npt.NDArray[np.bool_]


@dataclass(frozen=True)
class Computed:
    """The outputs of rows, in the order of the rows."""

    of: Rows
    outputs: list[Arrays]


class InRows(Backend):
    """A backend whose graph takes packed rows.

    Args:
        inner: the runtime with the graph; it is given packed batches.
        per_token: the outputs that have a row for each token.
        row_tokens: real tokens of a row; a sequence that alone exceeds them has a row of its own.
    """

    def __init__(self, inner: Backend, per_token: Sequence[str], row_tokens: int = ROW_TOKENS) -> None:
        self.inner, self.per_token, self.row_tokens = inner, per_token, row_tokens
        self.name, self.precision, self.emulated = inner.name, inner.precision, inner.emulated

    def group(self, lengths: Sequence[int]) -> Iterator[Int64]:
        return group_by_tokens(lengths, self.row_tokens)

    def computed_tokens(self, batch: Batch) -> int:
        return batch.real_tokens

    def upload(self, batch: Batch) -> Rows:
        rows = [Row(places, self.inner.upload(row)) for places, row in rows_of(batch, self.row_tokens)]
        return Rows(rows, batch.attention_mask == 1)

    def execute(self, inputs: Rows) -> Computed:
        """The outputs of a row are downloaded here: a runtime may write those of the next one in their place."""
        return Computed(inputs, [self.inner.download(self.inner.execute(row.inputs)) for row in inputs.rows])

    def download(self, outputs: Computed) -> Arrays:
        found: Arrays = {}
        real = outputs.of.real
        for row, computed in zip(outputs.of.rows, outputs.outputs, strict=True):
            for name, values in computed.items():
                of_tokens = name in self.per_token
                shape = (*real.shape, *values.shape[2:]) if of_tokens else (len(real), *values.shape[1:])
                array = found.setdefault(name, np.zeros(shape, np.float32))
                array[row.places] = with_padding(values, real[row.places]) if of_tokens else values
        return found

    def synchronize(self) -> None:
        self.inner.synchronize()

    def close(self) -> None:
        self.inner.close()


def rows_of(batch: Batch, row_tokens: int = ROW_TOKENS) -> Iterator[tuple[Int64, Batch]]:
    """The places of sequences of a padded batch that share a row, and that row; sequences alike in length share one."""
    for places in group_by_tokens(batch.lengths, row_tokens):
        yield places, _packed(batch, places)


def _packed(batch: Batch, places: Int64) -> Batch:
    """Sequences in a row, which has one token at the least."""
    some = Batch(batch.input_ids[places], batch.attention_mask[places], batch.token_type_ids[places])
    longest, tokens = (max(1, int(number)) for number in (some.lengths.max(), some.real_tokens))
    return without_padding(some, Layout(1, tokens, len(places), 0, longest))


def smallest_row() -> Batch:
    """Two tokens of one sequence, packed: what a graph that was just loaded is tried on."""
    ones = np.ones((1, 2), np.int64)
    return _packed(Batch(ones, ones, ones * 0), np.zeros(1, np.int64))
