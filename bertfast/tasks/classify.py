"""Classification of texts and of pairs: one label a row."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np

from bertfast.config import ModelConfig
from bertfast.tasks.task import Answer, Outputs, Task, Vocabulary, read_text_or_pair
from bertfast.text.batch import Int64
from bertfast.text.tokenizer import Encoded

if TYPE_CHECKING:
    from torch import Tensor, nn


def decode(outputs: Outputs, encoded: Sequence[Encoded], vocabulary: Vocabulary) -> list[Answer]:
    """`{"label", "score", "scores"}` of each row; scores are softmax probabilities by label."""
    logits = outputs["logits"].astype(np.float64)
    exponentials = np.exp(logits - logits.max(axis=1, keepdims=True))
    answers: list[Answer] = []
    for row in exponentials / exponentials.sum(axis=1, keepdims=True):
        scores = dict(zip(vocabulary.labels, row.tolist(), strict=True))
        label = vocabulary.labels[int(row.argmax())]
        answers.append({"label": label, "score": scores[label], "scores": scores})
    return answers


def score(answers: Sequence[Answer], labels: Sequence[str]) -> dict[str, float]:
    """Accuracy and macro F1, as fractions."""
    from sklearn.metrics import accuracy_score, f1_score

    predicted = [answer["label"] for answer in answers]
    return {
        "accuracy": float(accuracy_score(labels, predicted)),
        "macro_f1": float(f1_score(labels, predicted, average="macro", zero_division=0)),
    }


def build(config: ModelConfig, num_labels: int) -> nn.Module:
    from bertfast.model.encoder import initialize
    from bertfast.model.heads import BertForSequenceClassification

    model = BertForSequenceClassification(config, num_labels)
    initialize(model, config.initializer_range)
    return model


def forward(model: nn.Module, inputs: Mapping[str, Tensor], targets: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
    return model(**inputs)  # type: ignore[no-any-return]


def losses(outputs: Mapping[str, Tensor], targets: Mapping[str, Tensor]) -> dict[str, Tensor]:
    from torch.nn.functional import cross_entropy

    return {"loss": cross_entropy(outputs["logits"].float(), targets["labels"], reduction="sum")}


def correct(outputs: Mapping[str, Tensor], targets: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {"loss": (outputs["logits"].argmax(-1) == targets["labels"]).sum()}


def counts(targets: Mapping[str, Int64]) -> dict[str, int]:
    return {"loss": len(targets["labels"])}


CLASSIFY = Task(
    name="classify",
    architecture="BertForSequenceClassification",
    outputs=("logits",),
    per_token=(),
    metric="accuracy",
    read_request=read_text_or_pair,
    decode=decode,
    score=score,
    build=build,
    forward=forward,
    losses=losses,
    correct=correct,
    counts=counts,
)
