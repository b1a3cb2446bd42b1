"""What stands on the encoder: heads under Hugging Face's names.

Every model also takes a packed batch: `sequence_starts`, `position_ids`, `cu_seqlens` and `max_seqlen` (see
`bertfast.text.batch.Packing`). Then what it says of sequences has N rows, and what it says of tokens lies as they do.

Shapes: B rows, S tokens, N sequences of a packed batch (else B), H hidden size, M masked positions, V vocabulary,
C classes.
"""

from __future__ import annotations

from typing import Any, Literal, cast

import torch
from torch import Tensor, nn

from bertfast.config import ModelConfig
from bertfast.model.dropout import Dropout
from bertfast.model.encoder import BertModel, activation, sequence_numbers

VOCABULARY_MULTIPLE = 64
SHORTEST = 1e-6  # a vector is divided by no smaller length: above 0 in fp16 too


class BertTransform(nn.Module):
    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.dense = nn.Linear(config.hidden_size, config.hidden_size)
        self.activation = activation(config.hidden_act)
        self.LayerNorm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)

    def forward(self, hidden: Tensor) -> Tensor:
        return self.LayerNorm(self.activation(self.dense(hidden)))  # type: ignore[no-any-return]


class BertPredictions(nn.Module):
    """The MLM head. Its decoder is the word embedding itself; only the bias is its own."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.transform = BertTransform(config)
        self.bias = nn.Parameter(torch.zeros(config.vocab_size))

    def forward(self, hidden: Tensor, word_embeddings_VH: Tensor) -> Tensor:
        weight, bias = word_embeddings_VH, cast(Tensor, self.bias)
        if weight.is_cuda:
            weight, bias = pad_vocabulary(weight, bias)
        logits = nn.functional.linear(self.transform(hidden), weight, bias)
        return logits[..., : len(word_embeddings_VH)]


def pad_vocabulary(weight_VH: Tensor, bias_V: Tensor) -> tuple[Tensor, Tensor]:
    """A decoder with rows of zeros up to a multiple of 64, where tensor cores are at their fastest."""
    missing = -len(weight_VH) % VOCABULARY_MULTIPLE
    return nn.functional.pad(weight_VH, (0, 0, 0, missing)), nn.functional.pad(bias_V, (0, missing))


class BertPreTrainingHeads(nn.Module):
    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.predictions = BertPredictions(config)
        self.seq_relationship = nn.Linear(config.hidden_size, 2)


class BertForPreTraining(nn.Module):
    """Encoder with the MLM and NSP heads."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.config = config
        self.bert = BertModel(config)
        self.cls = BertPreTrainingHeads(config)

    def forward(
        self,
        input_ids: Tensor,
        attention_mask: Tensor,
        token_type_ids: Tensor,
        masked_positions: Tensor | None = None,
        sequence_starts: Tensor | None = None,
        **packing: Any,
    ) -> dict[str, Tensor]:
        """`prediction_logits` [M, V] at `masked_positions` (int64 [M], into the flattened batch), or [B, S, V]
        where none are given, and `seq_relationship_logits` [N, 2] (0: IsNext).
        """
        hidden_BSH = self.bert(input_ids, attention_mask, token_type_ids, **packing)
        pooled = self.bert.pooler(hidden_BSH, sequence_starts)
        if masked_positions is not None:
            hidden_BSH = hidden_BSH.flatten(0, 1).index_select(0, masked_positions)
        return {
            "prediction_logits": self.cls.predictions(hidden_BSH, self.bert.embeddings.word_embeddings.weight),
            "seq_relationship_logits": self.cls.seq_relationship(pooled),
        }


class FullPrecisionLinear(nn.Linear):
    """A linear layer that computes in fp32 under autocast too.

    bfloat16 has 8 bits, so that near 2,000 it knows multiples of 8 alone: too coarse for a number that is an answer.
    """

    def forward(self, hidden: Tensor) -> Tensor:
        with torch.autocast(hidden.device.type, enabled=False):
            return super().forward(hidden.float())


class BertForSequenceClassification(nn.Module):
    """Encoder with dropout and a linear classifier on the pooled first token."""

    def __init__(self, config: ModelConfig, num_labels: int) -> None:
        super().__init__()
        self.config = config
        self.bert = BertModel(config)
        self.dropout = Dropout(config.hidden_dropout_prob)
        self.classifier = nn.Linear(config.hidden_size, num_labels)

    def forward(
        self, input_ids: Tensor, attention_mask: Tensor, token_type_ids: Tensor, **packing: Any
    ) -> dict[str, Tensor]:
        """`logits` [N, C]."""
        first_N1H = self.bert(input_ids, attention_mask, token_type_ids, first_only=True, **packing)
        return {"logits": self.classifier(self.dropout(self.bert.pooler(first_N1H)))}


class BertForQuestionAnswering(nn.Module):
    """Encoder with a linear layer that weighs each token as the first and the last of an answer; it has no pooler."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.config = config
        self.bert = BertModel(config, add_pooling_layer=False)
        self.qa_outputs = nn.Linear(config.hidden_size, 2)

    def forward(
        self, input_ids: Tensor, attention_mask: Tensor, token_type_ids: Tensor, **packing: Any
    ) -> dict[str, Tensor]:
        """`start_logits` and `end_logits`, both [B, S]."""
        hidden_BSH = self.bert(input_ids, attention_mask, token_type_ids, **packing)
        start_BS, end_BS = self.qa_outputs(hidden_BSH).unbind(-1)
        return {"start_logits": start_BS, "end_logits": end_BS}


class BertForTokenClassification(nn.Module):
    """Encoder with dropout and a linear classifier on every token; it has no pooler."""

    def __init__(self, config: ModelConfig, num_labels: int) -> None:
        super().__init__()
        self.config = config
        self.bert = BertModel(config, add_pooling_layer=False)
        self.dropout = Dropout(config.hidden_dropout_prob)
        self.classifier = nn.Linear(config.hidden_size, num_labels)

    def forward(
        self,
        input_ids: Tensor,
        attention_mask: Tensor,
        token_type_ids: Tensor,
        asked_BS: Tensor | None = None,
        **packing: Any,
    ) -> dict[str, Tensor]:
        """`logits` [B, S, C]; in training those of tokens that are not asked for say nothing (see `BertModel`)."""
        hidden_BSH = self.bert(input_ids, attention_mask, token_type_ids, asked_BS=asked_BS, **packing)
        return {"logits": self.classifier(self.dropout(hidden_BSH))}


class SentenceEncoder(nn.Module):
    """Encoder with one vector a sequence: the mean of its tokens or its [CLS], by default of length 1.

    It has no parameters of its own, so its checkpoints are those of Hugging Face's `BertModel`.
    """

    def __init__(self, config: ModelConfig, pooling: Literal["mean", "cls"] = "mean", normalize: bool = True) -> None:
        super().__init__()
        self.config = config
        self.pooling, self.normalize = pooling, normalize
        self.bert = BertModel(config, add_pooling_layer=False)

    def forward(
        self, input_ids: Tensor, attention_mask: Tensor, token_type_ids: Tensor, **packing: Any
    ) -> dict[str, Tensor]:
        """`embedding` [N, H]; a row of nothing but padding gets a finite one."""
        from_first = self.pooling == "cls"
        hidden_BSH = self.bert(input_ids, attention_mask, token_type_ids, first_only=from_first, **packing)
        if from_first:
            pooled_NH = hidden_BSH[:, 0]
        elif packing:
            pooled_NH = mean_of_sequences(hidden_BSH, packing["sequence_starts"], packing["cu_seqlens"])
        else:
            pooled_NH = mean_of_tokens(hidden_BSH, attention_mask)
        if self.normalize:
            pooled_NH = nn.functional.normalize(pooled_NH, dim=-1, eps=SHORTEST)
        return {"embedding": pooled_NH}


def mean_of_tokens(hidden_BSH: Tensor, attention_mask_BS: Tensor) -> Tensor:
    """The mean [B, H] over the tokens whose mask is 1; 0 where there are none."""
    mask_BS1 = attention_mask_BS[..., None].to(hidden_BSH.dtype)
    return (hidden_BSH * mask_BS1).sum(dim=1) / mask_BS1.sum(dim=1).clamp(min=1)


def mean_of_sequences(hidden_BSH: Tensor, sequence_starts: Tensor, cu_seqlens: Tensor) -> Tensor:
    """The mean [N, H] over the tokens of each sequence of a packed batch, as one matrix product."""
    numbers = sequence_numbers(cu_seqlens, hidden_BSH.shape[:2]).flatten()
    inside = (numbers == numbers[sequence_starts][:, None]).to(hidden_BSH.dtype)
    return inside @ hidden_BSH.flatten(0, 1) / inside.sum(dim=1, keepdim=True, dtype=torch.float32)
