"""The part of the word embedding that a run can touch: the rest of its rows is neither trained nor moved about.

A token that no example holds has no gradient, so AdamW leaves its row but for the weight decay. Half of the weights
of a small BERT are such rows; without them a step has half of the optimiser's work. One row of ones stands for all of
them: what training leaves of it is what it would leave of them.

Shapes: V rows of the vocabulary, n of them in use, H hidden size.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from bertfast.text.batch import Batch, Features, Int64
from bertfast.text.tokenizer import Encoded

WORD_EMBEDDINGS = "bert.embeddings.word_embeddings.weight"


@dataclass(frozen=True)
class VocabularyInUse:
    """Which rows of the word embedding a run needs.

    Attributes:
        tokens: int64 [n], ascending token ids; a token's place among them is its row in training. The row behind
            them is that of ones, where there are other tokens.
        untouched: float32 [V, H], the embedding before training.
    """

    tokens: Int64
    untouched: Tensor

    def rows(self, ids: npt.ArrayLike) -> Int64:
        """The rows that stand for these token ids."""
        rows = np.searchsorted(self.tokens, ids).astype(np.int64)
        assert np.array_equal(self.tokens[rows], ids), "a token that was not said to be in use"
        return rows

    def batch(self, batch: Batch) -> Batch:
        """The batch with rows in the place of token ids."""
        return replace(batch, input_ids=self.rows(batch.input_ids))

    def features(self, features: Features) -> Features:
        """The features with rows in the place of token ids."""
        items = [tuple(self._encoded(sequence) for sequence in item) for item in features.sequences]
        return replace(features, sequences=items)

    def _encoded(self, sequence: Encoded) -> Encoded:
        return replace(sequence, input_ids=self.rows(sequence.input_ids).tolist())

    def weights(self, model: nn.Module) -> dict[str, Tensor]:
        """The model's weights with the whole word embedding."""
        weights = dict(model.state_dict())
        trained = weights[WORD_EMBEDDINGS].float().cpu()
        whole = self.untouched * trained[-1]
        whole[torch.from_numpy(self.tokens)] = trained[: len(self.tokens)]
        return weights | {WORD_EMBEDDINGS: whole}


def tokens_in_use(sequences: Iterable[Sequence[int]], vocab_size: int) -> Int64:
    """Ascending: the token ids of these sequences."""
    met = np.zeros(vocab_size, bool)
    for sequence in sequences:
        met[sequence] = True
    return np.flatnonzero(met)


def restrict_vocabulary(model: nn.Module, tokens: Int64) -> VocabularyInUse:
    """Cut the model's word embedding down to these tokens."""
    embedding = model.get_submodule("bert.embeddings.word_embeddings")
    assert isinstance(embedding, nn.Embedding)
    untouched = embedding.weight.detach().clone()
    rows = untouched[torch.from_numpy(tokens)]
    if len(tokens) < len(untouched):
        rows = torch.cat([rows, rows.new_ones(1, rows.shape[1])])
    embedding.weight = nn.Parameter(rows, requires_grad=embedding.weight.requires_grad)
    embedding.num_embeddings = len(rows)
    return VocabularyInUse(tokens, untouched)
