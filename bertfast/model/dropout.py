"""Dropout on a CPU: random numbers many at a time, and few passes over what is dropped from.

torch draws one number after the other there, which is a fifth of a small training step (benchmarks/LOG.md).
"""

from __future__ import annotations

import math
from functools import cache

import torch
from torch import Tensor, nn

_INT64_MIN = -(2**63)
_FASTER_IN_FP32 = range(16, 64)  # lengths of rows whose softmax in bf16 takes up to four times as long
_INTEGERS = {2: torch.int16, 4: torch.int32}


class Dropout(nn.Dropout):
    """`torch.nn.Dropout`, in our own way where that is faster (see `draws_words`)."""

    def forward(self, values: Tensor) -> Tensor:
        if not draws_words(values, self.p if self.training else 0.0):
            return super().forward(values)
        return drop(values, self.p)


def draws_words(values: Tensor, dropout: float) -> bool:
    """Whether values are dropped in our own way: eagerly, on a CPU, in up to 32 bits."""
    here = values.device.type == "cpu" and values.element_size() in _INTEGERS
    return dropout > 0 and here and not torch.compiler.is_compiling()


def drop(values: Tensor, dropout: float) -> Tensor:
    """The values with a share of `dropout` set to 0 and the rest scaled so that the mean stays; fp32, fp16 or bf16.

    The scale is rounded to the type of the values, as torch's own is.
    """
    return values * keep_scaled(values, dropout)


def keep_scaled(values: Tensor, dropout: float) -> Tensor:
    """Of the shape and type of `values`: 0 with a probability of `dropout` (rounded to 1 / 65,536), else the scale.

    Every 64-bit word of torch's generator is cut into four numbers. What they become is written as the bits of the
    result, by comparisons and products of integers, which are the quickest that torch has.
    """
    words = torch.empty(-(-values.numel() // 4), dtype=torch.int64).random_(_INT64_MIN, None)
    numbers = words.view(torch.int16)[: values.numel()].view(values.shape)
    first_kept = min(round(dropout * 2**16), 2**16 - 1) - 2**15
    kept = torch.ge(numbers, first_kept, out=torch.empty_like(numbers))
    return kept.to(_INTEGERS[values.element_size()]).mul_(_scale_bits(dropout, values.dtype)).view(values.dtype)


@cache
def _scale_bits(dropout: float, dtype: torch.dtype) -> int:
    """The scale of what is kept, as an integer of the same bits."""
    return int(torch.tensor(1 / (1 - dropout), dtype=dtype).view(_INTEGERS[dtype.itemsize]))


def attention_with_dropout(query: Tensor, key: Tensor, value: Tensor, scores: Tensor, dropout: float) -> Tensor:
    """`scaled_dot_product_attention` for `draws_words`; [B, A, S, D], with `scores` added before the softmax.

    torch's own form with dropout also looks for rows that attend to nothing; ours always attend to something.
    """
    batch, heads = query.shape[:2]
    added = scores.expand(batch, heads, -1, -1).flatten(0, 1)
    query, key, value = (part.flatten(0, 1) for part in (query, key, value))
    with torch.autocast(query.device.type, enabled=False):
        probabilities = attention_probabilities(query, key, added, 1 / math.sqrt(query.shape[-1])).to(value.dtype)
        return torch.bmm(drop(probabilities, dropout), value).view(batch, heads, *query.shape[1:])


def attention_probabilities(query: Tensor, key: Tensor, scores: Tensor, scale: float) -> Tensor:
    """[N, queries, keys] of queries and keys [N, ., D], with `scores` added; in fp32 where its softmax is faster."""
    likeness = torch.baddbmm(scores, query, key.transpose(1, 2), alpha=scale)
    return torch.softmax(likeness, dim=-1, dtype=torch.float32 if likeness.shape[-1] in _FASTER_IN_FP32 else None)
