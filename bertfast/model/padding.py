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
    """Where the real tokens of a padded batch are (or some of them: then all others are its padding).

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
    def _of_one(self) -> tuple[Tensor, Tensor]:
        return self._there_and_back(1)

    @cached_property
    def _of_three(self) -> tuple[Tensor, Tensor]:
        return self._there_and_back(3)

    def _there_and_back(self, parts: int) -> tuple[Tensor, Tensor]:
        """int64 [parts * B * A * S], where each head is among T * parts * A, behind them on padding; and int64
        [T * parts * A], where each is among parts * B * A * S, behind them for nobody's rows."""
        (batch, length), heads, part = self.mask_BS.shape, torch.arange(self.heads), torch.arange(parts)[:, None]
        there = (self.row_BS * parts)[:, None] * self.heads + (part * self.heads + heads).view(parts, 1, -1, 1)
        sequence, place = (self.real // length)[:, None, None], (self.real % length)[:, None, None]
        back = ((part * batch + sequence) * self.heads + heads) * length + place
        nobodys = back.new_full((self.rows - len(back), *back.shape[1:]), there.numel())
        return there.clamp_(max=self.rows * parts * self.heads).flatten(), torch.cat([back, nobodys]).flatten()

    def to_heads(self, rows: Tensor, parts: int) -> Tensor:
        """Rows [T + 1, parts * A * D], the last of zeros, as [parts, B * A, S, D] with zeros on padding."""
        there, _ = self._of_three if parts == 3 else self._of_one
        batch, length = self.mask_BS.shape
        found = rows.view((self.rows + 1) * parts * self.heads, -1).index_select(0, there)
        return found.view(parts, batch * self.heads, length, -1)

    def to_rows(self, heads: Tensor, parts: int) -> Tensor:
        """[parts * B * A * S + 1, D], the last of zeros, as rows [T, parts * A * D], nobody's of zeros."""
        _, back = self._of_three if parts == 3 else self._of_one
        return heads.index_select(0, back).view(self.rows, -1)

    def to_padded(self, rows: Tensor) -> Tensor:
        """Rows [T + 1, F], the last of zeros, as [B, S, F] with zeros on padding."""
        return rows.index_select(0, self.row_BS.flatten()).view(*self.mask_BS.shape, -1)

    def from_padded(self, padded_BSF: Tensor) -> Tensor:
        """[T, F], nobody's rows of zeros."""
        rows = padded_BSF.new_zeros(self.rows, padded_BSF.shape[-1])
        rows[: len(self.real)] = padded_BSF.flatten(0, 1).index_select(0, self.real)
        return rows

    def choose(self, some: Places) -> Chosen:
        """Where the rows of `some`, whose tokens are among the real ones here, come from."""
        back = self.real.new_full((self.rows + 1,), some.rows)
        back[: len(self.real)] = some.row_BS.flatten()[self.real]
        return Chosen(self.row_BS.flatten()[some.taken_T], back)

    def with_padding(self, rows_TF: Tensor) -> Tensor:
        """[B, S, F] with zeros on padding."""
        return cast(Tensor, _WithPadding.apply(rows_TF, self))  # type: ignore[no-untyped-call]


@dataclass(frozen=True)
class Chosen:
    """Some of T rows: N, of which the last may be nobody's.

    Attributes:
        from_N: int64, the row that each is.
        back: int64 [T + 1], the place of each row among the N, N of one that is none of them; the last is N.
    """

    from_N: Tensor
    back: Tensor


class _WithPadding(torch.autograd.Function):
    """torch's own gradient would add row by row."""

    @staticmethod
    def forward(ctx: Any, rows_TF: Tensor, places: Places) -> Tensor:
        ctx.places = places
        return places.to_padded(torch.cat([rows_TF, rows_TF.new_zeros(1, rows_TF.shape[1])]))

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        return ctx.places.from_padded(gradient), None
