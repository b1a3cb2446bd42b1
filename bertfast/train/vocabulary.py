"""The part of the word embedding that a run can touch: the rest of its rows is neither trained nor moved about.

A token that no example holds has no gradient, so AdamW leaves its row but for the weight decay. Half of the weights
of a small BERT are such rows; without them a step has half of the optimiser's work.

Shapes: V rows of the vocabulary, n of them in use, H hidden size.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor, nn

from bertfast.config import TrainConfig
from bertfast.text.batch import Batch, Features, Int64
from bertfast.text.tokenizer import Encoded
from bertfast.train.optimizer import learning_rate, rate_factors

WORD_EMBEDDINGS = "bert.embeddings.word_embeddings.weight"


@dataclass(frozen=True)
class VocabularyInUse:
    """Which rows of the word embedding a run needs.

    Attributes:
        tokens: int64 [n], ascending token ids; a token's place among them is its row in training.
        untouched: float32 [V, H], the embedding before training.
    """

    tokens: Int64
    untouched: Tensor

    def row_of(self, token: int) -> int:
        return int(np.searchsorted(self.tokens, token))

    def batch(self, batch: Batch) -> Batch:
        """The batch with rows in the place of token ids."""
        return replace(batch, input_ids=np.searchsorted(self.tokens, batch.input_ids))

    def features(self, features: Features) -> Features:
        """The features with rows in the place of token ids."""
        rows = [tuple(self._encoded(sequence) for sequence in item) for item in features.sequences]
        return replace(features, sequences=rows)

    def _encoded(self, sequence: Encoded) -> Encoded:
        return replace(sequence, input_ids=np.searchsorted(self.tokens, sequence.input_ids).tolist())

    def weights(self, model: nn.Module, config: TrainConfig, done: int, steps: int) -> dict[str, Tensor]:
        """The model's weights after `done` of the run's `steps` steps, with the whole word embedding."""
        weights = dict(model.state_dict())
        share = rate_factors(model, config.layer_lr_decay).get(WORD_EMBEDDINGS, 0.0) * config.weight_decay
        kept = math.prod(1 - share * learning_rate(step, steps, config) for step in range(done))
        whole = self.untouched * kept
        whole[torch.from_numpy(self.tokens)] = weights[WORD_EMBEDDINGS].float().cpu()
        return weights | {WORD_EMBEDDINGS: whole}


def restrict_vocabulary(model: nn.Module, sequences: Iterable[Sequence[int]]) -> VocabularyInUse:
    """Cut the model's word embedding down to the token ids of these sequences."""
    embedding = model.get_submodule("bert.embeddings.word_embeddings")
    assert isinstance(embedding, nn.Embedding)
    met = np.zeros(embedding.num_embeddings, bool)
    for sequence in sequences:
        met[sequence] = True
    in_use = VocabularyInUse(np.flatnonzero(met), embedding.weight.detach().clone())
    embedding.weight = nn.Parameter(in_use.untouched[torch.from_numpy(in_use.tokens)])
    embedding.num_embeddings = len(in_use.tokens)
    return in_use
