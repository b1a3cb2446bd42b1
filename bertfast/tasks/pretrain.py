"""Pretraining: masked language modelling and next-sentence prediction, jointly (Devlin et al. 2019, 3.1)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from bertfast.config import Config, ModelConfig
from bertfast.errors import DataError
from bertfast.tasks.probabilities import softmax
from bertfast.tasks.task import (
    Answer,
    Context,
    NoSettings,
    Outputs,
    Targets,
    Task,
    as_given,
    encode_texts,
    no_labels,
    only_piece,
    take_all,
    text_or_pair,
)
from bertfast.text.batch import IGNORE_INDEX, Features
from bertfast.text.labelled import Columns, Example, read_examples
from bertfast.text.tokenizer import Encoded

if TYPE_CHECKING:
    from torch import Tensor, nn

_CANDIDATES = 5


def decode(outputs: Outputs, encoded: Sequence[Encoded], context: Context) -> list[Answer]:
    """`{"masks": [[{"token", "score"}, ...], ...], "is_next"}`: the best tokens for each [MASK] of the request, and
    the probability that the second segment follows the first."""
    answers: list[Answer] = []
    for row, sequence in enumerate(encoded):
        places = [i for i, token in enumerate(sequence.input_ids) if token == context.tokenizer.mask_id]
        masks = [_best_tokens(outputs["prediction_logits"][row, place], context) for place in places]
        is_next = float(softmax(outputs["seq_relationship_logits"][row])[0])
        answers.append({"masks": masks, "is_next": is_next})
    return answers


def _best_tokens(logits: npt.NDArray[np.float32], context: Context) -> list[Answer]:
    probabilities = softmax(logits)
    best = np.argsort(-probabilities, kind="stable")[:_CANDIDATES]
    tokens = context.tokenizer.tokens(best.tolist())
    return [{"token": token, "score": float(p)} for token, p in zip(tokens, probabilities[best], strict=True)]


def read(path: Path, columns: Columns, settings: Config, golds_needed: bool) -> list[Example]:
    """The texts of a file; labels of other tasks that stand in it are left out."""
    return [Example(example.request) for example in read_examples(path, columns, labels_needed=False)]


def score(answers: Sequence[Answer], golds: Sequence[Any]) -> dict[str, float]:
    raise DataError(
        "a pretraining checkpoint is scored on held-out text by 'bertfast train pretrain', not on labelled rows. "
        "Fine-tune it first."
    )


def features(examples: Sequence[Example], context: Context) -> Features:
    raise DataError("pretraining learns from a corpus, not from rows: bertfast train pretrain --corpus DIR.")


def build(config: ModelConfig, num_labels: int, settings: Config) -> nn.Module:
    from bertfast.model.encoder import initialize
    from bertfast.model.heads import BertForPreTraining

    model = BertForPreTraining(config)
    initialize(model, config.initializer_range)
    return model


def forward(model: nn.Module, inputs: Mapping[str, Tensor], targets: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
    return model(**inputs, masked_positions=targets["masked_positions"])  # type: ignore[no-any-return]


def losses(outputs: Mapping[str, Tensor], targets: Mapping[str, Tensor], settings: Config) -> dict[str, Tensor]:
    """Summed cross-entropies in nats; empty slots for masked tokens and sequences (IGNORE_INDEX) count for nothing."""
    from torch.nn.functional import cross_entropy

    return {
        "mlm": cross_entropy(
            outputs["prediction_logits"].float(), targets["masked_labels"], reduction="sum", ignore_index=IGNORE_INDEX
        ),
        "nsp": cross_entropy(
            outputs["seq_relationship_logits"].float(),
            targets["next_sentence_labels"],
            reduction="sum",
            ignore_index=IGNORE_INDEX,
        ),
    }


def correct(outputs: Mapping[str, Tensor], targets: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {
        "mlm": (outputs["prediction_logits"].argmax(-1) == targets["masked_labels"]).sum(),
        "nsp": (outputs["seq_relationship_logits"].argmax(-1) == targets["next_sentence_labels"]).sum(),
    }


def counts(targets: Targets) -> dict[str, float]:
    return {
        "mlm": int((targets["masked_labels"] != IGNORE_INDEX).sum()),
        "nsp": int((targets["next_sentence_labels"] != IGNORE_INDEX).sum()),
    }


PRETRAIN = Task(
    name="pretrain",
    architecture="BertForPreTraining",
    outputs=("prediction_logits", "seq_relationship_logits"),
    per_token=("prediction_logits",),
    metric="nsp_accuracy",
    settings=NoSettings,
    read=read,
    labels=no_labels,
    settle=as_given,
    refuse=take_all,
    check=text_or_pair,
    encode=encode_texts,
    decode=decode,
    merge=only_piece,
    decision=None,
    score=score,
    features=features,
    build=build,
    forward=forward,
    losses=losses,
    correct=correct,
    counts=counts,
)
