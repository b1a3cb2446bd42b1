"""The BERT encoder (Devlin et al. 2019), with Hugging Face's parameter names.

Shapes: B sequences, S tokens, H hidden size, A attention heads, D = H / A, M masked positions, V vocabulary.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional

from bertfast.config import ModelConfig

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


class BertEmbeddings(nn.Module):
    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.word_embeddings = nn.Embedding(config.vocab_size, config.hidden_size)
        self.position_embeddings = nn.Embedding(config.max_position_embeddings, config.hidden_size)
        self.token_type_embeddings = nn.Embedding(config.type_vocab_size, config.hidden_size)
        self.LayerNorm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.dropout = nn.Dropout(config.hidden_dropout_prob)

    def forward(self, input_ids: Tensor, token_type_ids: Tensor) -> Tensor:
        positions = self.position_embeddings.weight[: input_ids.shape[1]]
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

    def forward(self, hidden_BSH: Tensor, mask_B11S: Tensor) -> Tensor:
        def heads_BASD(projection: nn.Linear) -> Tensor:
            projected: Tensor = projection(hidden_BSH)
            return projected.view(*projected.shape[:2], self.num_heads, self.head_size).transpose(1, 2)

        query = heads_BASD(self.query)
        context_BASD = functional.scaled_dot_product_attention(
            query,
            heads_BASD(self.key),
            heads_BASD(self.value),
            attn_mask=mask_B11S.to(query.dtype),
            dropout_p=self.dropout_prob if self.training else 0.0,
        )
        return context_BASD.transpose(1, 2).flatten(2)


class BertResidual(nn.Module):
    """Linear, dropout, residual and LayerNorm: the end of both halves of a layer."""

    def __init__(self, in_features: int, config: ModelConfig) -> None:
        super().__init__()
        self.dense = nn.Linear(in_features, config.hidden_size)
        self.LayerNorm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.dropout = nn.Dropout(config.hidden_dropout_prob)

    def forward(self, hidden: Tensor, residual: Tensor) -> Tensor:
        return self.LayerNorm(self.dropout(self.dense(hidden)) + residual)  # type: ignore[no-any-return]


class BertAttention(nn.Module):
    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.self = BertSelfAttention(config)
        self.output = BertResidual(config.hidden_size, config)

    def forward(self, hidden_BSH: Tensor, mask_B11S: Tensor) -> Tensor:
        return self.output(self.self(hidden_BSH, mask_B11S), hidden_BSH)  # type: ignore[no-any-return]


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

    def forward(self, hidden_BSH: Tensor, mask_B11S: Tensor) -> Tensor:
        attended = self.attention(hidden_BSH, mask_B11S)
        return self.output(self.intermediate(attended), attended)  # type: ignore[no-any-return]


class BertEncoder(nn.Module):
    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.layer = nn.ModuleList(BertLayer(config) for _ in range(config.num_hidden_layers))

    def forward(self, hidden_BSH: Tensor, mask_B11S: Tensor) -> Tensor:
        for layer in self.layer:
            hidden_BSH = layer(hidden_BSH, mask_B11S)
        return hidden_BSH


class BertPooler(nn.Module):
    """Dense and tanh on the first token."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.dense = nn.Linear(config.hidden_size, config.hidden_size)

    def forward(self, hidden_BSH: Tensor) -> Tensor:
        return torch.tanh(self.dense(hidden_BSH[:, 0]))


class BertModel(nn.Module):
    """Embeddings, layers and pooler."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.config = config
        self.embeddings = BertEmbeddings(config)
        self.encoder = BertEncoder(config)
        self.pooler = BertPooler(config)

    def forward(self, input_ids: Tensor, attention_mask: Tensor, token_type_ids: Tensor) -> Tensor:
        """Hidden states [B, S, H] of int64 [B, S] inputs; `attention_mask` is 1 on real tokens and 0 on padding."""
        hidden = self.embeddings(input_ids, token_type_ids)
        mask_B11S = (1 - attention_mask)[:, None, None, :].to(hidden.dtype) * MASKED_SCORE
        return self.encoder(hidden, mask_B11S)  # type: ignore[no-any-return]


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
