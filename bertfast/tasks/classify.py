"""Classification of texts and of pairs: one label a row."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from bertfast.config import Config, ModelConfig
from bertfast.tasks.task import (
    Answer,
    Context,
    NoSettings,
    Outputs,
    Targets,
    Task,
    as_given,
    encode_texts,
    only_piece,
    plain_forward,
    text_or_pair,
)
from bertfast.text.batch import Features
from bertfast.text.labelled import Columns, Example, label_ids, label_names, read_examples, refuse_unknown_labels
from bertfast.text.tokenizer import Encoded

if TYPE_CHECKING:
    from torch import Tensor, nn


def read(path: Path, columns: Columns, settings: Config, golds_needed: bool) -> list[Example]:
    return read_examples(path, columns, labels_needed=golds_needed)


def decode(outputs: Outputs, encoded: Sequence[Encoded], context: Context) -> list[Answer]:
    """`{"label", "score", "scores"}` of each row; scores are softmax probabilities by label."""
    logits = outputs["logits"].astype(np.float64)
    exponentials = np.exp(logits - logits.max(axis=1, keepdims=True))
    answers: list[Answer] = []
    for row in exponentials / exponentials.sum(axis=1, keepdims=True):
        scores = dict(zip(context.labels, row.tolist(), strict=True))
        label = context.labels[int(row.argmax())]
        answers.append({"label": label, "score": scores[label], "scores": scores})
    return answers


def decision(answer: Answer) -> str:
    return str(answer["label"])


def score(answers: Sequence[Answer], golds: Sequence[str]) -> dict[str, float]:
    """Accuracy, macro F1 and the share of the commonest label, as fractions."""
    from sklearn.metrics import accuracy_score, f1_score

    predicted = [answer["label"] for answer in answers]
    return {
        "accuracy": float(accuracy_score(golds, predicted)),
        "macro_f1": float(f1_score(golds, predicted, average="macro", zero_division=0)),
        "majority": Counter(golds).most_common(1)[0][1] / len(golds),
    }


def features(examples: Sequence[Example], context: Context) -> Features:
    ids = np.array(label_ids(examples, context.labels), np.int64)
    encoded = encode_texts([example.request for example in examples], context)
    return Features([tuple(item) for item in encoded], {"labels": ids})


def build(config: ModelConfig, num_labels: int, settings: Config) -> nn.Module:
    from bertfast.model.encoder import initialize
    from bertfast.model.heads import BertForSequenceClassification

    model = BertForSequenceClassification(config, num_labels)
    initialize(model, config.initializer_range)
    return model


def losses(outputs: Mapping[str, Tensor], targets: Mapping[str, Tensor], settings: Config) -> dict[str, Tensor]:
    from torch.nn.functional import cross_entropy

    return {"loss": cross_entropy(outputs["logits"].float(), targets["labels"], reduction="sum")}


def correct(outputs: Mapping[str, Tensor], targets: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {"loss": (outputs["logits"].argmax(-1) == targets["labels"]).sum()}


def counts(targets: Targets) -> dict[str, float]:
    return {"loss": len(targets["labels"])}


CLASSIFY = Task(
    name="classify",
    architecture="BertForSequenceClassification",
    outputs=("logits",),
    per_token=(),
    metric="accuracy",
    settings=NoSettings,
    read=read,
    labels=label_names,
    settle=as_given,
    refuse=refuse_unknown_labels,
    check=text_or_pair,
    encode=encode_texts,
    decode=decode,
    merge=only_piece,
    decision=decision,
    score=score,
    features=features,
    build=build,
    forward=plain_forward,
    losses=losses,
    correct=correct,
    counts=counts,
)
