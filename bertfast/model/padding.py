"""Training without padding on a CPU: real tokens in one row, laid out with padding for attention alone.

Shapes: B rows, S tokens, T of all B * S tokens real, A attention heads, D their size.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Any, cast

import torch
from torch import Tensor


@dataclass(frozen=True)
class Places:
    """Where the real tokens of a padded batch are; its padding stands behind them.

    Attributes:
        mask_BS: int64, 1 on real tokens and 0 on padding.
        heads: A.
    """

    mask_BS: Tensor
    heads: int

    @cached_property
    def real_T(self) -> Tensor:
        """int64: the places of the real tokens among all."""
        return self.mask_BS.flatten().nonzero()[:, 0]

    @cached_property
    def padded(self) -> Tensor:
        """int64 [B * S]: which real token stands there, and T on padding."""
        numbers = self.mask_BS.flatten().cumsum(0) - 1
        return torch.where(self.mask_BS.flatten() == 1, numbers, len(self.real_T))

    @cached_property
    def first_B(self) -> Tensor:
        """int64: which real token begins each row."""
        lengths = self.mask_BS.sum(1)
        return lengths.cumsum(0) - lengths

    @cached_property
    def heads_real(self) -> Tensor:
        """int64 [T * A]: where each head of each real token is among B * A * S."""
        length = self.mask_BS.shape[1]
        row, place = self.real_T // length, self.real_T % length
        return ((row * self.heads)[:, None] + torch.arange(self.heads)).mul_(length).add_(place[:, None]).flatten()

    @cached_property
    def heads_padded(self) -> Tensor:
        """int64 [B * A * S]: which head of a real token stands there, T * A on padding."""
        padded_B1S = self.padded.view(len(self.mask_BS), 1, -1)
        numbers = padded_B1S * self.heads + torch.arange(self.heads)[:, None]
        return torch.where(padded_B1S == len(self.real_T), len(self.real_T) * self.heads, numbers).flatten()

    def with_padding(self, tokens_1TF: Tensor) -> Tensor:
        """[B, S, F] with zeros on padding."""
        (padded,) = _spread(self.padded, self.real_T, tokens_1TF[0])
        return padded.view(*self.mask_BS.shape, -1)

    def heads_with_padding(self, *tokens_1TH: Tensor) -> list[Tensor]:
        """Each as [B, A, S, D] with zeros on padding."""
        rows, length = self.mask_BS.shape
        heads = (tokens.reshape(len(self.heads_real), -1) for tokens in tokens_1TH)
        return [part.view(rows, self.heads, length, -1) for part in _spread(self.heads_padded, self.heads_real, *heads)]

    def heads_of_tokens(self, heads_BASD: Tensor) -> Tensor:
        """[1, T, H], without what stands on padding."""
        collected = _collect(heads_BASD.flatten(0, 2), self.heads_real, self.heads_padded)
        return collected.view(1, len(self.real_T), -1)


def _spread(there: Tensor, back: Tensor, *values: Tensor) -> tuple[Tensor, ...]:
    return cast(tuple[Tensor, ...], _Spread.apply(there, back, *values))  # type: ignore[no-untyped-call]


def _collect(values: Tensor, there: Tensor, back: Tensor) -> Tensor:
    return cast(Tensor, _Collect.apply(values, there, back))  # type: ignore[no-untyped-call]


def _with_zeros(values: Tensor, places: Tensor) -> Tensor:
    """Rows of `values` [N, F] by number, where N is a row of zeros."""
    return torch.cat([values, values.new_zeros(1, values.shape[1])]).index_select(0, places)


class _Spread(torch.autograd.Function):
    """Rows to the places that have one; its gradient is `_Collect`. torch's own would add row by row."""

    @staticmethod
    def forward(ctx: Any, there: Tensor, back: Tensor, *values: Tensor) -> tuple[Tensor, ...]:
        ctx.save_for_backward(back)
        return tuple(_with_zeros(part, there) for part in values)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        (back,) = ctx.saved_tensors
        return None, None, *(gradient.index_select(0, back) for gradient in gradients)


class _Collect(torch.autograd.Function):
    """Rows from the places that have one; its gradient is `_Spread`."""

    @staticmethod
    def forward(ctx: Any, values: Tensor, there: Tensor, back: Tensor) -> Tensor:
        ctx.save_for_backward(back)
        return values.index_select(0, there)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None]:
        (back,) = ctx.saved_tensors
        return _with_zeros(gradient, back), None, None
