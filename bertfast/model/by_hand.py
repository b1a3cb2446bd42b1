"""The two halves of an encoder layer as one autograd node each, for eager training on a CPU.

As modules under autocast a layer is some 300 kernels forwards and back, and a third of a short step goes to casts,
copies and the bookkeeping of small tensors (benchmarks/LOG.md). Here query, key and value are one product, what is
multiplied is cast once, and padding is computed in attention alone.

Shapes: T rows, one a real token and some to round their number up (see `Places`), H hidden size; B sequences of up to S
tokens, A attention heads, D = H / A. Products are computed in `Shared.dtype`; what enters and leaves a half, and
LayerNorm, stays in fp32. There are no second derivatives.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import chain
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn import functional

from bertfast.model.dropout import attention_probabilities, keep_scaled
from bertfast.model.padding import Places

_aten = torch.ops.aten


@dataclass(frozen=True)
class Shared:
    """What the layers share for one batch.

    Attributes:
        scores: [B * A, 1, S] in `dtype`, what is added to each key's score.
        dtype: of the matrix products.
        epsilon: of LayerNorm.
    """

    places: Places
    scores: Tensor
    dtype: torch.dtype
    hidden_dropout: float
    attention_dropout: float
    epsilon: float


def attention(hidden_TH: Tensor, shared: Shared, first_only: bool, *parameters: Tensor) -> Tensor:
    """Self-attention, a Linear, residual and LayerNorm: [T, H], or [B, H] of the first tokens alone.

    Args:
        parameters: weight and bias of query, key, value, the Linear and LayerNorm.
    """
    with torch.autocast(hidden_TH.device.type, enabled=False):
        return cast(Tensor, _Attention.apply(hidden_TH, shared, first_only, *parameters))  # type: ignore[no-untyped-call]


def feed_forward(hidden_TH: Tensor, shared: Shared, activation: nn.Module, *parameters: Tensor) -> Tensor:
    """Two Linears with GELU or ReLU between them, residual and LayerNorm; `parameters` are their weights and biases."""
    with torch.autocast(hidden_TH.device.type, enabled=False):
        return cast(Tensor, _FeedForward.apply(hidden_TH, shared, activation, *parameters))  # type: ignore[no-untyped-call]


class _Attention(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, hidden: Tensor, shared: Shared, first_only: bool, *parameters: Tensor) -> Tensor:
        projections, of_output = parameters[:6], parameters[6:]
        weights, biases = (_joined(tensors, shared.dtype) for tensors in (projections[::2], projections[1::2]))
        places, inputs = shared.places, hidden.to(shared.dtype)
        rows = _and_zeros(inputs, len(inputs), len(weights))
        torch.addmm(biases, inputs, weights.t(), out=rows[:-1])
        heads = places.to_heads(rows, parts=3)
        query, key, value = _asked(heads, first_only)
        flat = _and_zeros(inputs, query.shape[:2].numel(), query.shape[2])
        of_attention = _attend(query, key, value, shared, out=flat[:-1].view(query.shape))
        context = flat[:-1].view(-1, hidden.shape[1]) if first_only else places.to_rows(flat, parts=1)
        asking = hidden[places.first_B] if first_only else hidden
        output, of_residual = _residual(asking, context, of_output, shared)
        ctx.shared, ctx.first_only = shared, first_only
        ctx.save_for_backward(inputs, weights, heads, *of_attention, *of_residual)
        return output

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        shared, first_only, places = ctx.shared, ctx.first_only, ctx.shared.places
        inputs, weights, heads, probabilities, kept, dropped, *of_residual = ctx.saved_tensors
        rows = _and_zeros(inputs, len(gradient), inputs.shape[1])
        d_asking, of_output = _residual_backward(gradient, of_residual, shared, out=rows[:-1])
        d_attended = rows[:-1].view_as(heads[0, :, :1]) if first_only else places.to_heads(rows, parts=1)[0]
        flat = _and_zeros(heads, heads[..., 0].numel(), heads.shape[-1])
        d_heads = flat[:-1].view_as(heads)
        if first_only:
            d_heads[0] = 0
        of_attention = probabilities, kept, dropped
        _attend_backward(d_attended, _asked(heads, first_only), of_attention, _asked(d_heads, first_only))
        d_rows = places.to_rows(flat, parts=3)
        d_hidden = (d_rows @ weights).to(gradient.dtype)
        if first_only:
            d_hidden[places.first_B] += d_asking
        else:
            d_hidden += d_asking
        of_projections = zip((d_rows.t() @ inputs).chunk(3), d_rows.sum(0).chunk(3), strict=True)
        return d_hidden, None, None, *chain(*of_projections), *of_output


class _FeedForward(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, hidden: Tensor, shared: Shared, activation: nn.Module, *parameters: Tensor) -> Tensor:
        (weight, bias), of_output = parameters[:2], parameters[2:]
        inputs, weight = hidden.to(shared.dtype), weight.to(shared.dtype)
        wide = functional.linear(inputs, weight, bias.to(shared.dtype))
        output, of_residual = _residual(hidden, activation(wide), of_output, shared)
        ctx.shared, ctx.activation = shared, activation
        ctx.save_for_backward(inputs, weight, wide, *of_residual)
        return output

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        inputs, weight, wide, *of_residual = ctx.saved_tensors
        d_active = torch.empty_like(wide)
        d_hidden, of_output = _residual_backward(gradient, of_residual, ctx.shared, out=d_active)
        d_wide = _through(ctx.activation, d_active, wide)
        return d_hidden + d_wide @ weight, None, None, d_wide.t() @ inputs, d_wide.sum(0), *of_output


def _through(activation: nn.Module, gradient: Tensor, given: Tensor) -> Tensor:
    """The gradient of what an activation was given."""
    if isinstance(activation, nn.GELU):
        return cast(Tensor, _aten.gelu_backward(gradient, given, approximate=activation.approximate))
    assert isinstance(activation, nn.ReLU)
    return cast(Tensor, _aten.threshold_backward(gradient, given, 0))


def _joined(tensors: Sequence[Tensor], dtype: torch.dtype) -> Tensor:
    """The tensors one below the other, in `dtype`."""
    return torch.cat(list(tensors), out=torch.empty(0, dtype=dtype))


def _and_zeros(like: Tensor, rows: int, columns: int) -> Tensor:
    """[rows + 1, columns], to be written to but for the last row, which is of zeros."""
    values = like.new_empty(rows + 1, columns)
    values[-1] = 0
    return values


def _asked(heads: Tensor, first_only: bool) -> tuple[Tensor, Tensor, Tensor]:
    """Query, key and value [B * A, S, D], with `first_only` queries [B * A, 1, D]."""
    query, key, value = heads.unbind()
    return query[:, :1] if first_only else query, key, value


def _attend(
    query: Tensor, key: Tensor, value: Tensor, shared: Shared, out: Tensor
) -> tuple[Tensor, Tensor | None, Tensor]:
    """Write what the queries find into `out`, of their shape; returns what `_attend_backward` needs."""
    probabilities = attention_probabilities(query, key, shared.scores)
    narrow = probabilities.to(value.dtype)
    kept = keep_scaled(narrow, shared.attention_dropout) if shared.attention_dropout else None
    dropped = narrow if kept is None else narrow * kept
    torch.bmm(dropped, value, out=out)
    return probabilities, kept, dropped


def _attend_backward(
    gradient: Tensor, heads: Sequence[Tensor], saved: tuple[Tensor, Tensor | None, Tensor], out: Sequence[Tensor]
) -> None:
    """Write the gradients of query, key and value into `out`."""
    (query, key, value), (d_query, d_key, d_value) = heads, out
    probabilities, kept, dropped = saved
    scale = 1 / math.sqrt(query.shape[-1])
    torch.bmm(dropped.transpose(1, 2), gradient, out=d_value)
    d_probabilities = torch.bmm(gradient, value.transpose(1, 2))
    if kept is not None:
        d_probabilities *= kept
    wide = probabilities.dtype
    d_likeness = _aten._softmax_backward_data(d_probabilities.to(wide), probabilities, -1, wide).to(query.dtype)
    torch.baddbmm(d_query, d_likeness, key, beta=0, alpha=scale, out=d_query)
    torch.baddbmm(d_key, d_likeness.transpose(1, 2), query, beta=0, alpha=scale, out=d_key)


def _residual(
    hidden: Tensor, inputs: Tensor, parameters: Sequence[Tensor], shared: Shared
) -> tuple[Tensor, tuple[Tensor | None, ...]]:
    """Linear, dropout, residual and LayerNorm, and what `_residual_backward` needs."""
    weight, bias, gamma, beta = parameters
    weight = weight.to(shared.dtype)
    linear = functional.linear(inputs, weight, bias.to(shared.dtype))
    kept = keep_scaled(linear, shared.hidden_dropout) if shared.hidden_dropout else None
    added = hidden + (linear if kept is None else linear.mul_(kept))
    output, mean, rstd = torch.native_layer_norm(added, [added.shape[1]], gamma, beta, shared.epsilon)
    return output, (inputs, weight, gamma, beta, kept, added, mean, rstd)


def _residual_backward(
    gradient: Tensor, saved: Sequence[Tensor], shared: Shared, out: Tensor
) -> tuple[Tensor, tuple[Tensor, ...]]:
    """Write the gradient of what the Linear was given into `out`; returns that of what the residual adds to, and those
    of the parameters."""
    inputs, weight, gamma, beta, kept, added, mean, rstd = saved
    shape = [added.shape[1]]
    d_added, *of_norm = _aten.native_layer_norm_backward(gradient, added, shape, mean, rstd, gamma, beta, [True] * 3)
    d_linear = d_added.to(shared.dtype)
    if kept is not None:
        d_linear = d_linear * kept
    torch.mm(d_linear, weight, out=out)
    return d_added, (d_linear.t() @ inputs, d_linear.sum(0), *of_norm)
