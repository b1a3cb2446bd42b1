"""The two halves of an encoder layer as one autograd node each, for eager training on a CPU.

As modules under autocast a layer is some 300 kernels forwards and back, and a third of a short step goes to casts,
copies and the bookkeeping of small tensors (benchmarks/LOG.md). Here query, key and value are one product, what is
multiplied is cast once, and padding is computed in attention alone.

What follows attention in the last layer is computed for the tokens that are asked for alone. Where those are first
tokens, no key and no value is made: with one query a sequence it takes fewer products to bring the query to the inputs
than all inputs to it.

Shapes: T rows, one a real token and some to round their number up (see `Places`), N of them asked for, H hidden size; B
sequences of up to S tokens, A attention heads, D = H / A. Products are computed in `Shared.dtype`; what enters and
leaves a half, and LayerNorm, stays in fp32. There are no second derivatives.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import chain
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn import functional

from bertfast.model.dropout import attention_probabilities, keep_scaled
from bertfast.model.padding import Chosen, Places

_aten = torch.ops.aten


@dataclass(frozen=True)
class Shared:
    """What the layers share for one batch.

    Attributes:
        scores: [B * A, 1, S] in `dtype`, what is added to each key's score.
        scale: of the products of queries and keys, 1 / sqrt(D).
        dtype: of the matrix products.
        epsilon: of LayerNorm.
    """

    places: Places
    scores: Tensor
    scale: float
    dtype: torch.dtype
    hidden_dropout: float
    attention_dropout: float
    epsilon: float


def attention(hidden_TH: Tensor, shared: Shared, asked: Chosen | None, *parameters: Tensor) -> Tensor:
    """Self-attention, a Linear, residual and LayerNorm: [T, H], or [N, H] of the rows that are asked for.

    Args:
        parameters: weight and bias of query, key, value, the Linear and LayerNorm.
    """
    with torch.autocast(hidden_TH.device.type, enabled=False):
        return cast(Tensor, _Attention.apply(hidden_TH, shared, asked, *parameters))  # type: ignore[no-untyped-call]


def attention_of_first(hidden_TH: Tensor, shared: Shared, *parameters: Tensor) -> Tensor:
    """`attention` for the first token of each sequence: [B, H]."""
    with torch.autocast(hidden_TH.device.type, enabled=False):
        return cast(Tensor, _AttentionOfFirst.apply(hidden_TH, shared, *parameters))  # type: ignore[no-untyped-call]


def feed_forward(hidden_TH: Tensor, shared: Shared, activation: nn.Module, *parameters: Tensor) -> Tensor:
    """Two Linears with GELU or ReLU between them, residual and LayerNorm; `parameters` are their weights and biases."""
    with torch.autocast(hidden_TH.device.type, enabled=False):
        return cast(Tensor, _FeedForward.apply(hidden_TH, shared, activation, *parameters))  # type: ignore[no-untyped-call]


class _Attention(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, hidden: Tensor, shared: Shared, asked: Chosen | None, *parameters: Tensor) -> Tensor:
        projections, of_output = parameters[:6], parameters[6:]
        weights, biases = (_joined(tensors, shared.dtype) for tensors in (projections[::2], projections[1::2]))
        places, inputs = shared.places, hidden.to(shared.dtype)
        rows = _and_zeros(inputs, len(inputs), len(weights))
        torch.addmm(biases, inputs, weights.t(), out=rows[:-1])
        heads = places.to_heads(rows, parts=3)
        flat = _and_zeros(inputs, heads.shape[1:3].numel(), heads.shape[-1])
        query, key, value = heads.unbind()
        of_attention = _attend(query, key, value, shared, out=flat[:-1].view(query.shape))
        context, asking = places.to_rows(flat, parts=1), hidden
        if asked is not None:
            context, asking = (states.index_select(0, asked.from_N) for states in (context, hidden))
        output, of_residual = _residual(asking, context, of_output, shared)
        ctx.shared, ctx.asked = shared, asked
        ctx.save_for_backward(inputs, weights, heads, *of_attention, *of_residual)
        return output

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        shared, asked, places = ctx.shared, ctx.asked, ctx.shared.places
        inputs, weights, heads, *saved = ctx.saved_tensors
        of_attention, of_residual = saved[:3], saved[3:]
        rows = _and_zeros(inputs, *gradient.shape)
        d_asking, of_output = _residual_backward(gradient, of_residual, shared, out=rows[:-1])
        if asked is not None:
            rows = rows.index_select(0, asked.back)
            d_asking = functional.pad(d_asking, (0, 0, 0, 1)).index_select(0, asked.back[:-1])
        flat = _and_zeros(heads, heads[..., 0].numel(), heads.shape[-1])
        _attend_backward(places.to_heads(rows, parts=1)[0], heads, of_attention, shared, out=flat[:-1].view_as(heads))
        d_rows = places.to_rows(flat, parts=3)
        d_hidden = (d_rows @ weights).to(gradient.dtype)
        d_hidden += d_asking
        of_projections = zip((d_rows.t() @ inputs).chunk(3), d_rows.sum(0).chunk(3), strict=True)
        return d_hidden, None, None, *chain(*of_projections), *of_output


class _AttentionOfFirst(torch.autograd.Function):
    """Each head's query goes through its part of the keys' weight and is likened to the inputs themselves; what it
    finds there goes through the values' weight.

    The keys' bias adds the same to all of a query's scores: nothing. The values' bias comes times the sum of the
    query's probabilities, which is not 1 after dropout. For the T * H * H multiplications of a projection of all rows
    there are B * H * H and B * S * A * H.

    Shapes: `inputs` [B, S, H]; `queries` [A, B, D]; `sought` and `found` [B, A, H]; `total`, the sum, [B, A, 1].
    """

    @staticmethod
    def forward(ctx: Any, hidden: Tensor, shared: Shared, *parameters: Tensor) -> Tensor:
        query_weight, key_weight, value_weight = (weight.to(shared.dtype) for weight in parameters[:6:2])
        query_bias, value_bias = (parameters[place].to(shared.dtype) for place in (1, 5))
        rows = _and_zeros(query_weight, *hidden.shape)
        rows[:-1] = hidden
        inputs, first = shared.places.to_padded(rows), rows.index_select(0, shared.places.first_B)
        queries = _head_by_head(functional.linear(first, query_weight, query_bias), shared)
        sought = torch.bmm(queries, _cut(key_weight, shared)).transpose(0, 1).contiguous()
        found = torch.empty_like(sought)
        of_attention = _attend(sought, inputs, inputs, shared, out=found)
        context = torch.bmm(found.transpose(0, 1), _cut(value_weight, shared).transpose(1, 2)).transpose(0, 1)
        total = of_attention[-1].sum(-1, keepdim=True)
        context = torch.addcmul(context, total, value_bias.view(context.shape[1:]))
        output, of_residual = _residual(hidden[shared.places.first_B], context.flatten(1), parameters[6:], shared)
        ctx.shared = shared
        of_projections = query_weight, key_weight, value_weight, value_bias, inputs, first, queries
        ctx.save_for_backward(*of_projections, sought, found, total, *of_attention, *of_residual)
        return output

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        shared, places = ctx.shared, ctx.shared.places
        query_weight, key_weight, value_weight, value_bias, inputs, first, queries, *saved = ctx.saved_tensors
        (sought, found, total), of_attention, of_residual = saved[:3], saved[3:6], saved[6:]
        d_context = torch.empty_like(first)
        d_asking, of_output = _residual_backward(gradient, of_residual, shared, out=d_context)
        d_context = _head_by_head(d_context, shared)
        d_value_weight = torch.bmm(d_context.transpose(1, 2), found.transpose(0, 1)).view_as(value_weight)
        d_found = torch.bmm(d_context, _cut(value_weight, shared)).transpose(0, 1).contiguous()
        d_context = d_context.transpose(0, 1)
        d_value_bias = (total * d_context).sum(0).flatten()
        d_total = (d_context * value_bias.view(d_context.shape[1:])).sum(-1, keepdim=True)
        d_sought, d_keys, d_values = (torch.empty_like(tensor) for tensor in (sought, inputs, inputs))
        heads, d_heads = (sought, inputs, inputs), (d_sought, d_keys, d_values)
        _attend_backward(d_found, heads, of_attention, shared, d_heads, d_total)
        d_sought = d_sought.transpose(0, 1)
        d_key_weight = torch.bmm(queries.transpose(1, 2), d_sought).view_as(key_weight)
        d_queries = torch.bmm(d_sought, _cut(key_weight, shared).transpose(1, 2)).transpose(0, 1).flatten(1)
        d_hidden = places.from_padded(d_values.add_(d_keys)).to(gradient.dtype)
        d_hidden[places.first_B] += d_asking + d_queries @ query_weight
        of_query = d_queries.t() @ first, d_queries.sum(0)
        of_key = d_key_weight, torch.zeros_like(d_value_bias)
        return d_hidden, None, *of_query, *of_key, d_value_weight, d_value_bias, *of_output


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


def _cut(weight: Tensor, shared: Shared) -> Tensor:
    """The part of each head of a projection's weight, [A, D, H]."""
    return weight.view(shared.places.heads, -1, weight.shape[1])


def _head_by_head(rows: Tensor, shared: Shared) -> Tensor:
    """[B, H] as [A, B, D]"""
    return rows.view(len(rows), shared.places.heads, -1).transpose(0, 1)


def _attend(
    query: Tensor, key: Tensor, value: Tensor, shared: Shared, out: Tensor
) -> tuple[Tensor, Tensor | None, Tensor]:
    """Write what the queries find into `out`, of their shape; returns what `_attend_backward` needs.

    Queries, keys and values are [B * A, S, D]; or queries [B, A, H] of keys and values [B, S, H], one a head.
    """
    scores = shared.scores.view(len(query), -1, key.shape[1])
    probabilities = attention_probabilities(query, key, scores, shared.scale)
    narrow = probabilities.to(value.dtype)
    kept = keep_scaled(narrow, shared.attention_dropout) if shared.attention_dropout else None
    dropped = narrow if kept is None else narrow * kept
    torch.bmm(dropped, value, out=out)
    return probabilities, kept, dropped


def _attend_backward(
    gradient: Tensor,
    heads: Iterable[Tensor],
    saved: Sequence[Tensor],
    shared: Shared,
    out: Iterable[Tensor],
    d_total: Tensor | None = None,
) -> None:
    """Write the gradients of query, key and value into `out`.

    Args:
        d_total: the gradient of the sum of each query's probabilities after dropout, where that was used too.
    """
    (query, key, value), (d_query, d_key, d_value) = heads, out
    probabilities, kept, dropped = saved
    torch.bmm(dropped.transpose(1, 2), gradient, out=d_value)
    d_probabilities = torch.bmm(gradient, value.transpose(1, 2))
    if d_total is not None:
        d_probabilities += d_total
    if kept is not None:
        d_probabilities *= kept
    wide = probabilities.dtype
    d_likeness = _aten._softmax_backward_data(d_probabilities.to(wide), probabilities, -1, wide).to(query.dtype)
    torch.baddbmm(d_query, d_likeness, key, beta=0, alpha=shared.scale, out=d_query)
    torch.baddbmm(d_key, d_likeness.transpose(1, 2), query, beta=0, alpha=shared.scale, out=d_key)


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
