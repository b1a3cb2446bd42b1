"""Training without padding on a CPU: a row for each real token, laid out with padding for attention alone.

Shapes: B sequences of up to S tokens; T rows; A attention heads of size D. Parts are query, key and value, or one.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Any, cast

import torch
from torch import Tensor


def round_up(tokens: int) -> int:
    """The next of 16 sizes between one power of two and the next; below 128, the next multiple of 8.

    For every number of rows that was not met before oneDNN writes new kernels, which takes longer than the 2% of rows
    that are added so that it comes back (benchmarks/LOG.md).
    """
    step = max(8, 1 << max(0, tokens.bit_length() - 5))
    return -(-tokens // step) * step


@dataclass(frozen=True)
class Places:
    """Where the real tokens of a padded batch are; its padding stands behind them.

    The first rows are the real tokens, in their order. The others, which round their number up, are nobody's: nothing
    looks at what becomes of them, and their gradients are 0.

    Attributes:
        mask_BS: int64, 1 on real tokens and 0 on padding.
        heads: A.
    """

    mask_BS: Tensor
    heads: int

    @cached_property
    def real(self) -> Tensor:
        """int64: the places of the real tokens among B * S."""
        return self.mask_BS.flatten().nonzero()[:, 0]

    @cached_property
    def rows(self) -> int:
        """T"""
        return round_up(len(self.real))

    @cached_property
    def taken_T(self) -> Tensor:
        """int64: the place among B * S that each row has its token from; the first one's for nobody's rows."""
        return torch.cat([self.real, self.real[:1].expand(self.rows - len(self.real))])

    @cached_property
    def first_B(self) -> Tensor:
        """int64: the row that begins each sequence."""
        lengths = self.mask_BS.sum(1)
        return lengths.cumsum(0) - lengths

    @cached_property
    def row_BS(self) -> Tensor:
        """int64: the row of each place, T on padding."""
        numbers = self.mask_BS.flatten().cumsum(0).view_as(self.mask_BS) - 1
        return torch.where(self.mask_BS == 1, numbers, self.rows)

    @cached_property
    def heads_of_rows(self) -> Tensor:
        """int64 [T, A]: each head's place among B * A * S, and B * A * S for nobody's rows."""
        batch, length = self.mask_BS.shape
        first = self.real // length * self.heads * length + self.real % length
        real = first[:, None] + torch.arange(self.heads) * length
        nobodys = real.new_full((self.rows - len(real), self.heads), batch * self.heads * length)
        return torch.cat([real, nobodys])

    @cached_property
    def rows_of_heads(self) -> Tensor:
        """int64 [B * A * S]: the place of each head among T * A, or T * A on padding."""
        numbers = self.row_BS[:, None] * self.heads + torch.arange(self.heads)[:, None]
        return numbers.clamp_(max=self.rows * self.heads).flatten()

    @cached_property
    def rows_of_three(self) -> Tensor:
        """int64 [3 * B * A * S]: `rows_of_heads` for rows of three parts."""
        numbers = (self.row_BS * 3)[:, None] * self.heads + torch.arange(3 * self.heads).view(3, 1, self.heads, 1)
        return numbers.clamp_(max=self.rows * 3 * self.heads).flatten()

    @cached_property
    def three_of_rows(self) -> Tensor:
        """int64 [T * 3 * A]: `heads_of_rows` among three parts."""
        count = self.mask_BS.numel() * self.heads
        numbers = self.heads_of_rows[:, None] + torch.arange(3)[:, None] * count
        numbers[len(self.real) :] = 3 * count
        return numbers.flatten()

    def to_heads(self, rows: Tensor, parts: int) -> Tensor:
        """Rows [T + 1, parts * A * D], the last of zeros, as [parts, B * A, S, D] with zeros on padding."""
        there = self.rows_of_three if parts == 3 else self.rows_of_heads
        batch, length = self.mask_BS.shape
        found = rows.view((self.rows + 1) * parts * self.heads, -1).index_select(0, there)
        return found.view(parts, batch * self.heads, length, -1)

    def to_rows(self, heads: Tensor, parts: int) -> Tensor:
        """[parts * B * A * S + 1, D], the last of zeros, as rows [T, parts * A * D], nobody's of zeros."""
        back = self.three_of_rows if parts == 3 else self.heads_of_rows.flatten()
        return heads.index_select(0, back).view(self.rows, -1)

    def with_padding(self, rows_TF: Tensor) -> Tensor:
        """[B, S, F] with zeros on padding."""
        return cast(Tensor, _WithPadding.apply(rows_TF, self))  # type: ignore[no-untyped-call]


class _WithPadding(torch.autograd.Function):
    """torch's own gradient would add row by row."""

    @staticmethod
    def forward(ctx: Any, rows_TF: Tensor, places: Places) -> Tensor:
        ctx.places = places
        with_zeros = torch.cat([rows_TF, rows_TF.new_zeros(1, rows_TF.shape[1])])
        return with_zeros.index_select(0, places.row_BS.flatten()).view(*places.row_BS.shape, -1)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        places: Places = ctx.places
        rows = gradient.new_zeros(places.rows, gradient.shape[-1])
        rows[: len(places.real)] = gradient.flatten(0, 1).index_select(0, places.real)
        return rows, None
