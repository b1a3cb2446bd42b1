"""Classification of texts and of pairs: one label a row."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import numpy as np
import numpy.typing as npt
from pydantic import Field, PositiveFloat

from bertfast.config import Config, ModelConfig
from bertfast.errors import ConfigError, did_you_mean
from bertfast.tasks.probabilities import softmax
from bertfast.tasks.task import (
    Answer,
    Context,
    Outputs,
    Targets,
    Task,
    as_given,
    encode_texts,
    only_piece,
    plain_forward,
    text_or_pair,
)
from bertfast.text.batch import Features, Int64
from bertfast.text.labelled import Columns, Example, label_ids, label_names, read_examples, refuse_unknown_labels
from bertfast.text.tokenizer import Encoded

if TYPE_CHECKING:
    from torch import Tensor, nn


ClassWeights = Literal["none", "balanced"] | dict[str, PositiveFloat]


class ClassifySettings(Config):
    """What a mistake costs."""

    class_weights: ClassWeights = Field(
        "none",
        description="weight of a label in the loss by its name, 1 where it is not named; balanced: 1 / its share",
    )


def read(path: Path, columns: Columns, settings: Config, golds_needed: bool) -> list[Example]:
    return read_examples(path, columns, labels_needed=golds_needed)


def decode(outputs: Outputs, encoded: Sequence[Encoded], context: Context) -> list[Answer]:
    """`{"label", "score", "scores"}` of each row; scores are softmax probabilities by label."""
    answers: list[Answer] = []
    for row in softmax(outputs["logits"]):
        scores = dict(zip(context.labels, row.tolist(), strict=True))
        label = context.labels[int(row.argmax())]
        answers.append({"label": label, "score": scores[label], "scores": scores})
    return answers


def decision(answer: Answer) -> str:
    return str(answer["label"])


def score(answers: Sequence[Answer], golds: Sequence[str]) -> dict[str, float]:
    """Accuracy, macro and micro F1, Matthews' correlation and the share of the commonest label, as fractions.

    Where each text has one label, micro F1 is the accuracy.
    """
    from sklearn.metrics import accuracy_score, f1_score, matthews_corrcoef

    predicted = [answer["label"] for answer in answers]
    return {
        "accuracy": float(accuracy_score(golds, predicted)),
        "macro_f1": float(f1_score(golds, predicted, average="macro", zero_division=0)),
        "micro_f1": float(f1_score(golds, predicted, average="micro", zero_division=0)),
        "mcc": float(matthews_corrcoef(golds, predicted)) if len({*golds, *predicted}) > 1 else 0.0,
        "majority": Counter(golds).most_common(1)[0][1] / len(golds),
    }


def confusion(answers: Sequence[Answer], golds: Sequence[str]) -> dict[str, str]:
    """`confusion.tsv`: how many texts of each label (a row) were given each label (a column)."""
    names = list(answers[0]["scores"])
    pairs = Counter(zip(golds, (answer["label"] for answer in answers), strict=True))
    rows = ("\t".join([gold, *(str(pairs[gold, name]) for name in names)]) for gold in names)
    return {"confusion.tsv": "\n".join(["\t".join(["label", *names]), *rows]) + "\n"}


def features(examples: Sequence[Example], context: Context) -> Features:
    ids = np.array(label_ids(examples, context.labels), np.int64)
    weights = class_weights(ids, context)[ids]
    encoded = encode_texts([example.request for example in examples], context)
    return Features([tuple(item) for item in encoded], {"labels": ids, "weights": weights})


def class_weights(ids: Int64, context: Context) -> npt.NDArray[np.float32]:
    """The weight of each label in the loss.

    Args:
        ids: the labels of the training examples.
    Raises:
        ConfigError: the settings name a label that there is not.
    """
    assert isinstance(context.settings, ClassifySettings)
    wanted = context.settings.class_weights
    if wanted == "balanced":
        counts = np.bincount(ids, minlength=len(context.labels))
        return (len(ids) / (len(counts) * counts)).astype(np.float32)
    return named_weights({} if wanted == "none" else wanted, context.labels)


def named_weights(wanted: Mapping[str, float], labels: Sequence[str]) -> npt.NDArray[np.float32]:
    """The weight of each label, 1 where it is not named.

    Raises:
        ConfigError: a label is named that there is not.
    """
    for name in wanted:
        if name not in labels:
            raise ConfigError(
                f"class_weights names '{name}', and the labels are {', '.join(labels)}.{did_you_mean(name, labels)}"
            )
    return np.array([wanted.get(name, 1.0) for name in labels], np.float32)


def build(config: ModelConfig, num_labels: int, settings: Config) -> nn.Module:
    from bertfast.model.encoder import initialize
    from bertfast.model.heads import BertForSequenceClassification

    model = BertForSequenceClassification(config, num_labels)
    initialize(model, config.initializer_range)
    return model


def losses(outputs: Mapping[str, Tensor], targets: Mapping[str, Tensor], settings: Config) -> dict[str, Tensor]:
    from torch.nn.functional import cross_entropy

    each = cross_entropy(outputs["logits"].float(), targets["labels"], reduction="none")
    return {"loss": (each * targets["weights"]).sum()}


def correct(outputs: Mapping[str, Tensor], targets: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {"loss": ((outputs["logits"].argmax(-1) == targets["labels"]) * targets["weights"]).sum()}


def counts(targets: Targets) -> dict[str, float]:
    return {"loss": float(targets["weights"].sum())}


CLASSIFY = Task(
    name="classify",
    architecture="BertForSequenceClassification",
    outputs=("logits",),
    per_token=(),
    metric="accuracy",
    settings=ClassifySettings,
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
    problem="single_label_classification",
    tables=confusion,
    right=lambda answer, gold: answer["label"] == gold,
)
