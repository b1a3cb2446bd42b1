"""The BERT encoder (Devlin et al. 2019), with Hugging Face's parameter names.

Shapes: B rows, S tokens, H hidden size, A attention heads, D = H / A. A row is a sequence with its padding or, in a
packed batch, several sequences: N in all, with K boundaries (see `bertfast.text.packing`).
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from typing import NamedTuple, cast

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.attention.varlen import varlen_attn
from torch.utils.checkpoint import checkpoint

from bertfast.config import ModelConfig
from bertfast.model import by_hand
from bertfast.model.dropout import Dropout, attention_with_dropout, draws_words
from bertfast.model.padding import Chosen, Places

# What a masked key adds to its score, as in the reference. It underflows to an exact 0 after the softmax in every
# precision, stays finite in fp16, and a row that is all padding gives numbers, not NaN.
MASKED_SCORE = -1e4


def activation(name: str) -> nn.Module:
    """The feed-forward activation: erf GELU (Hugging Face's `gelu`), its tanh form (the reference's), or ReLU."""
    if name == "gelu":
        return nn.GELU()
    if name == "relu":
        return nn.ReLU()
    return nn.GELU(approximate="tanh")


class Visibility(NamedTuple):
    """Which tokens attend to which: by what is added to their scores, or by the boundaries of the sequences.

    Attributes:
        scores: [B, 1, 1, S] or [B, 1, S, S], or None where the boundaries or `shared` say it.
        cu_seqlens: int32 [K].
        max_seqlen: the most tokens between two boundaries.
        sequence_starts: int64 [N], the first token of each sequence, where a row is not just one with its padding.
        shared: what layers by hand share, for a batch whose padding was left out.
    """

    scores: Tensor | None
    cu_seqlens: Tensor | None = None
    max_seqlen: int = 0
    sequence_starts: Tensor | None = None
    shared: by_hand.Shared | None = None


class BertEmbeddings(nn.Module):
    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.word_embeddings = nn.Embedding(config.vocab_size, config.hidden_size)
        self.position_embeddings = nn.Embedding(config.max_position_embeddings, config.hidden_size)
        self.token_type_embeddings = nn.Embedding(config.type_vocab_size, config.hidden_size)
        self.LayerNorm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.dropout = Dropout(config.hidden_dropout_prob)

    def forward(self, input_ids: Tensor, token_type_ids: Tensor, position_ids: Tensor | None = None) -> Tensor:
        if position_ids is None:
            positions = self.position_embeddings.weight[: input_ids.shape[1]]
        else:
            positions = self.position_embeddings(position_ids)
        summed = self.word_embeddings(input_ids) + self.token_type_embeddings(token_type_ids) + positions
        return self.dropout(self.LayerNorm(summed))  # type: ignore[no-any-return]


class BertSelfAttention(nn.Module):
    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.num_heads, self.head_size = config.num_attention_heads, config.head_size
        self.dropout_prob = config.attention_probs_dropout_prob
        self.query = nn.Linear(config.hidden_size, config.hidden_size)
        self.key = nn.Linear(config.hidden_size, config.hidden_size)
        self.value = nn.Linear(config.hidden_size, config.hidden_size)

    def forward(self, hidden_BSH: Tensor, visible: Visibility, asking: Tensor) -> Tensor:
        query, key, value = self.query(asking), self.key(hidden_BSH), self.value(hidden_BSH)
        first_only = asking is not hidden_BSH
        if visible.cu_seqlens is not None:
            return self._by_boundaries(query, key, value, visible, first_only)
        assert visible.scores is not None
        packed = visible.sequence_starts is not None
        scores = visible.scores[:, :, visible.sequence_starts] if first_only and packed else visible.scores
        rows = len(hidden_BSH)
        query, key, value = (self._in_heads(part, rows) for part in (query, key, value))
        context = self._attend(query, key, value, scores)
        return context.transpose(1, 2).flatten(2)

    def _in_heads(self, states: Tensor, rows: int) -> Tensor:
        """[rows, A, tokens, D]"""
        return states.view(rows, -1, self.num_heads, self.head_size).transpose(1, 2)

    def _attend(self, query: Tensor, key: Tensor, value: Tensor, scores: Tensor) -> Tensor:
        dropout = self.dropout_prob if self.training else 0.0
        attend = attention_with_dropout if draws_words(query, dropout) else functional.scaled_dot_product_attention
        return attend(query, key, value, scores.to(query.dtype), dropout)

    def _by_boundaries(
        self, query: Tensor, key: Tensor, value: Tensor, visible: Visibility, first_only: bool
    ) -> Tensor:
        of_keys, longest = visible.cu_seqlens, visible.max_seqlen
        assert of_keys is not None
        shape = query.shape
        query, key, value = (part.view(-1, self.num_heads, self.head_size) for part in (query, key, value))
        of_queries, most = (_one_each(query), 1) if first_only else (of_keys, longest)
        bounds = of_queries, of_keys[: len(of_queries)]
        return cast(Tensor, varlen_attn(query, key, value, *bounds, most, longest)).view(shape)


def _one_each(query_NAD: Tensor) -> Tensor:
    """The boundaries of sequences of one token."""
    return torch.arange(len(query_NAD) + 1, dtype=torch.int32, device=query_NAD.device)


class BertResidual(nn.Module):
    """Linear, dropout, residual and LayerNorm: the end of both halves of a layer."""

    def __init__(self, in_features: int, config: ModelConfig) -> None:
        super().__init__()
        self.dense = nn.Linear(in_features, config.hidden_size)
        self.LayerNorm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.dropout = Dropout(config.hidden_dropout_prob)

    def forward(self, hidden: Tensor, residual: Tensor) -> Tensor:
        return self.LayerNorm(self.dropout(self.dense(hidden)) + residual)  # type: ignore[no-any-return]


class BertAttention(nn.Module):
    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.self = BertSelfAttention(config)
        self.output = BertResidual(config.hidden_size, config)

    def forward(self, hidden_BSH: Tensor, visible: Visibility, asking: Tensor) -> Tensor:
        return self.output(self.self(hidden_BSH, visible, asking), asking)  # type: ignore[no-any-return]


class BertIntermediate(nn.Module):
    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.dense = nn.Linear(config.hidden_size, config.intermediate_size)
        self.activation = activation(config.hidden_act)

    def forward(self, hidden: Tensor) -> Tensor:
        return self.activation(self.dense(hidden))  # type: ignore[no-any-return]


class BertLayer(nn.Module):
    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.attention = BertAttention(config)
        self.intermediate = BertIntermediate(config)
        self.output = BertResidual(config.intermediate_size, config)

    def forward(
        self, hidden_BSH: Tensor, visible: Visibility, first_only: bool = False, asked: Chosen | None = None
    ) -> Tensor:
        """[B, S, H], or what becomes of the first tokens alone, which attend to all: [B, 1, H], packed [1, N, H].

        By hand, from rows without padding: [T, H], or [B, H], or of the rows `asked` for alone; modules below this one
        are not called then.
        """
        if visible.shared is not None:
            return self._by_hand(hidden_BSH, visible.shared, first_only, asked)
        asking = hidden_BSH
        if first_only:
            starts = visible.sequence_starts
            asking = hidden_BSH[:, :1] if starts is None else hidden_BSH[:, starts]
        attended = self.attention(hidden_BSH, visible, asking)
        return self.output(self.intermediate(attended), attended)  # type: ignore[no-any-return]

    def _by_hand(self, hidden_TH: Tensor, shared: by_hand.Shared, first_only: bool, asked: Chosen | None) -> Tensor:
        heads, after = self.attention.self, self.attention.output
        of_attention = _parameters((heads.query, heads.key, heads.value, after.dense, after.LayerNorm))
        if first_only:
            attended = by_hand.attention_of_first(hidden_TH, shared, *of_attention)
        else:
            attended = by_hand.attention(hidden_TH, shared, asked, *of_attention)
        of_end = _parameters((self.intermediate.dense, self.output.dense, self.output.LayerNorm))
        return by_hand.feed_forward(attended, shared, self.intermediate.activation, *of_end)


def _parameters(modules: Iterable[nn.Linear | nn.LayerNorm]) -> Iterator[Tensor]:
    for module in modules:
        yield from (module.weight, module.bias)


class BertEncoder(nn.Module):
    """The layers.

    With `gradient_checkpointing` training keeps only what enters each layer and computes the layer again, with the same
    random numbers, when its gradient is needed (Chen et al. 2016).
    """

    gradient_checkpointing = False

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.layer = nn.ModuleList(BertLayer(config) for _ in range(config.num_hidden_layers))

    def forward(
        self, hidden_BSH: Tensor, visible: Visibility, first_only: bool = False, asked: Chosen | None = None
    ) -> Tensor:
        last = len(self.layer) - 1
        for number, layer in enumerate(self.layer):
            inputs = hidden_BSH, visible, first_only and number == last, asked if number == last else None
            again = self.gradient_checkpointing and self.training
            hidden_BSH = checkpoint(layer, *inputs, use_reentrant=False) if again else layer(*inputs)
        return hidden_BSH


class BertPooler(nn.Module):
    """Dense and tanh on the first token of each sequence."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.dense = nn.Linear(config.hidden_size, config.hidden_size)

    def forward(self, hidden_BSH: Tensor, sequence_starts: Tensor | None = None) -> Tensor:
        first = hidden_BSH[:, 0] if sequence_starts is None else hidden_BSH.flatten(0, 1)[sequence_starts]
        return torch.tanh(self.dense(first))


class BertModel(nn.Module):
    """Embeddings, layers and, for the heads that read it, the pooler."""

    def __init__(self, config: ModelConfig, *, add_pooling_layer: bool = True) -> None:
        super().__init__()
        self.config = config
        self.embeddings = BertEmbeddings(config)
        self.encoder = BertEncoder(config)
        if add_pooling_layer:
            self.pooler = BertPooler(config)

    def forward(
        self,
        input_ids: Tensor,
        attention_mask: Tensor,
        token_type_ids: Tensor,
        position_ids: Tensor | None = None,
        cu_seqlens: Tensor | None = None,
        max_seqlen: int = 0,
        sequence_starts: Tensor | None = None,
        first_only: bool = False,
        asked_BS: Tensor | None = None,
    ) -> Tensor:
        """Hidden states [B, S, H] of int64 [B, S] inputs; `attention_mask` is 1 on real tokens and 0 on padding.

        With `first_only` those of the first tokens, [B, 1, H] or [N, 1, H]: the last layer does little for the others,
        which is most of its work. `position_ids`, `cu_seqlens`, `max_seqlen` and `sequence_starts` are a packed
        batch's (see `bertfast.text.batch.Packing`); for `first_only` it has one row, all padding at its end.
        `asked_BS` (bool) names the real tokens whose hidden states are wanted: eager training on a CPU does less for
        the others then, and leaves them 0.
        """
        assert cu_seqlens is None or not first_only or len(input_ids) == 1
        assert asked_BS is None or not first_only
        plain = cu_seqlens is None and position_ids is None
        dtype = self.embeddings.word_embeddings.weight.dtype
        if self.training and plain and leaves_padding_out(attention_mask, dtype):
            return self._without_padding(input_ids, attention_mask, token_type_ids, first_only, asked_BS)
        hidden = self.embeddings(input_ids, token_type_ids, position_ids)
        dropout = self.config.attention_probs_dropout_prob if self.training else 0.0
        if cu_seqlens is None:
            masked = (1 - attention_mask)[:, None, None, :]
            visible = Visibility(masked.to(hidden.dtype) * MASKED_SCORE)
        elif takes_boundaries(hidden.device.type, _computed_in(hidden), dropout):
            visible = Visibility(None, cu_seqlens, max_seqlen, sequence_starts)
        else:
            masked = _between_sequences(cu_seqlens, input_ids.shape)
            visible = Visibility(masked.to(hidden.dtype) * MASKED_SCORE, sequence_starts=sequence_starts)
        hidden = cast(Tensor, self.encoder(hidden, visible, first_only))
        return hidden.transpose(0, 1) if first_only and cu_seqlens is not None else hidden

    def _without_padding(
        self, input_ids: Tensor, mask_BS: Tensor, token_type_ids: Tensor, first_only: bool, asked_BS: Tensor | None
    ) -> Tensor:
        """`forward` of a padded batch whose layers see real tokens alone; on padding the hidden states are 0."""
        config, places = self.config, Places(mask_BS, self.config.num_attention_heads)
        ids, types = (values.flatten()[places.taken_T][None] for values in (input_ids, token_type_ids))
        hidden = self.embeddings(ids, types, places.taken_T[None] % mask_BS.shape[1])[0]
        dtype = _computed_in(hidden)
        shared = by_hand.Shared(
            places,
            ((1 - mask_BS).to(dtype) * MASKED_SCORE).repeat_interleave(places.heads, 0)[:, None],
            1 / math.sqrt(config.head_size),
            dtype,
            config.hidden_dropout_prob,
            config.attention_probs_dropout_prob,
            config.layer_norm_eps,
        )
        visible = Visibility(None, shared=shared)
        if first_only:
            return cast(Tensor, self.encoder(hidden, visible, first_only=True))[:, None]
        if asked_BS is None:
            return places.with_padding(self.encoder(hidden, visible))
        asked = Places(asked_BS.long(), places.heads)
        return asked.with_padding(self.encoder(hidden, visible, asked=places.choose(asked)))


def leaves_padding_out(attention_mask: Tensor, dtype: torch.dtype) -> bool:
    """Whether the layers are spared a batch's padding in training: eagerly, on a CPU, which needs no fixed shapes, with
    weights in fp32, and where no row is nothing but padding."""
    eager_on_cpu = attention_mask.device.type == "cpu" and not torch.compiler.is_compiling()
    return eager_on_cpu and dtype is torch.float32 and bool(attention_mask.any(1).all())


def checkpoint_gradients(model: nn.Module, wanted: bool) -> None:
    """Switch gradient checkpointing on or off (see `BertEncoder`)."""
    for part in model.modules():
        if isinstance(part, BertEncoder):
            part.gradient_checkpointing = wanted


def _computed_in(hidden: Tensor) -> torch.dtype:
    """The type of the matrix products: autocast's, where it is on."""
    device = hidden.device.type
    return torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else hidden.dtype


def takes_boundaries(device: str, dtype: torch.dtype, dropout: float) -> bool:
    """Whether the attention kernel for packed sequences serves: it is CUDA's, for half precision, without dropout."""
    return device == "cuda" and dtype in (torch.float16, torch.bfloat16) and dropout == 0


def sequence_numbers(cu_seqlens: Tensor, shape: torch.Size) -> Tensor:
    """int64 [B, S]: a number for each token that only those of its sequence have."""
    places = torch.arange(shape.numel(), device=cu_seqlens.device, dtype=cu_seqlens.dtype)
    return torch.bucketize(places, cu_seqlens, right=True).view(shape)


def _between_sequences(cu_seqlens: Tensor, shape: torch.Size) -> Tensor:
    """bool [B, 1, S, S]: True where a token and another of its row are of different sequences."""
    sequence_BS = sequence_numbers(cu_seqlens, shape)
    return (sequence_BS[:, :, None] != sequence_BS[:, None, :])[:, None]


def initialize(module: nn.Module, std: float) -> None:
    """Initialise as the reference does: truncated normal (cut at two deviations), biases 0, LayerNorm 1 and 0."""
    for part in module.modules():
        if isinstance(part, nn.Linear | nn.Embedding):
            nn.init.trunc_normal_(part.weight, std=std, a=-2 * std, b=2 * std)
        if isinstance(part, nn.Linear) and part.bias is not None:
            nn.init.zeros_(part.bias)
        if isinstance(part, nn.LayerNorm):
            nn.init.ones_(part.weight)
            nn.init.zeros_(part.bias)
