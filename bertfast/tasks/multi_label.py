"""Multi-label classification of texts and of pairs: any number of labels a row, none included.

Shapes: B rows, C labels.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt
from pydantic import Field

from bertfast.config import Config
from bertfast.errors import DataError
from bertfast.tasks.classify import ClassWeights, build, named_weights
from bertfast.tasks.probabilities import sigmoid
from bertfast.tasks.soft_targets import each_for_itself
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
from bertfast.text.batch import Features
from bertfast.text.labelled import Columns, Example, in_order, label_set, read_examples, refuse_unknown_labels
from bertfast.text.tokenizer import Encoded

if TYPE_CHECKING:
    from torch import Tensor

USUAL_NAMES = ("labels", "label", "categories", "tags", "classes")


class MultiLabelSettings(Config):
    """How labels are written, how sure one must be, and what it costs to miss one."""

    separator: str = Field(",", min_length=1, description="what stands between the labels of a row that is no list")
    threshold: float = Field(0.5, ge=0, le=1, description="the probability from which on a label is given")
    class_weights: ClassWeights = Field(
        "none",
        description="weight in the loss of a label that a row has, by its name, 1 where it is not named and where a "
        "row has it not; balanced: how many rows have it not for each that has it",
    )


def read(path: Path, columns: Columns, settings: Config, golds_needed: bool) -> list[Example]:
    """Texts with their labels as a sorted tuple: a list in JSON lines and Parquet, else text with separators."""
    assert isinstance(settings, MultiLabelSettings)
    gold = partial(label_set, separator=settings.separator)
    return read_examples(path, columns, labels_needed=golds_needed, usual_labels=USUAL_NAMES, gold=gold)


def labels(examples: Sequence[Example]) -> tuple[str, ...]:
    """The distinct labels, in numeric or alphabetical order.

    Raises:
        DataError: no row has one.
    """
    found = {label for example in examples for label in example.gold}
    if not found:
        raise DataError(f"none of the {len(examples)} training rows carries a label. Is their column the right one?")
    return in_order(found)


def refuse(examples: Sequence[Example], names: Sequence[str]) -> None:
    """Raise DataError for a label that `names` lacks."""
    each = [Example(example.request, label, example.where) for example in examples for label in example.gold or ()]
    refuse_unknown_labels(each, names)


def decode(outputs: Outputs, encoded: Sequence[Encoded], context: Context) -> list[Answer]:
    """`{"labels", "scores"}` of each row: the labels whose probability reaches the threshold, in the model's order."""
    assert isinstance(context.settings, MultiLabelSettings)
    answers: list[Answer] = []
    for row in sigmoid(outputs["logits"]).tolist():
        scores = dict(zip(context.labels, row, strict=True))
        given = [label for label, value in scores.items() if value >= context.settings.threshold]
        answers.append({"labels": given, "scores": scores})
    return answers


def decision(answer: Answer) -> tuple[str, ...]:
    return tuple(answer["labels"])


def score(answers: Sequence[Answer], golds: Sequence[Sequence[str]]) -> dict[str, float]:
    """Micro and macro F1 over labels, the share of rows whose labels are all right, and what that is for always giving
    the commonest set of labels, as fractions. A label that neither occurs nor is given has an F1 of 0."""
    from sklearn.metrics import f1_score

    names = tuple(answers[0]["scores"])
    predicted, right = _table([answer["labels"] for answer in answers], names), _table(golds, names)
    return {
        "micro_f1": float(f1_score(right.ravel(), predicted.ravel(), zero_division=0)),
        "macro_f1": float(
            np.mean([f1_score(*column, zero_division=0) for column in zip(right.T, predicted.T, strict=True)])
        ),
        "subset_accuracy": float((predicted == right).all(axis=1).mean()),
        "majority": Counter(map(frozenset, golds)).most_common(1)[0][1] / len(golds),
    }


def _table(rows: Sequence[Sequence[str]], names: Sequence[str]) -> npt.NDArray[np.float32]:
    """float32 [B, C]: 1 where a row has a label."""
    place = {name: number for number, name in enumerate(names)}
    table = np.zeros((len(rows), len(names)), np.float32)
    for number, row in enumerate(rows):
        table[number, [place[label] for label in row]] = 1
    return table


def features(examples: Sequence[Example], context: Context) -> Features:
    encoded = encode_texts([example.request for example in examples], context)
    golds = _table([example.gold for example in examples], context.labels)
    weights = np.where(golds > 0, positive_weights(golds, context), np.float32(1))
    return Features([tuple(item) for item in encoded], {"labels": golds, "weights": weights})


def positive_weights(golds: npt.NDArray[np.float32], context: Context) -> npt.NDArray[np.float32]:
    """float32 [C]: what each label weighs in the loss of a row that has it.

    Args:
        golds: [B, C], 1 where a training example has a label; each label is that of one at least.
    Raises:
        ConfigError: the settings name a label that there is not.
    """
    assert isinstance(context.settings, MultiLabelSettings)
    wanted = context.settings.class_weights
    if wanted == "balanced":
        having = golds.sum(axis=0)
        weights: npt.NDArray[np.float32] = np.maximum(len(golds) - having, 1) / having  # all may have it: not 0
        return weights
    return named_weights({} if wanted == "none" else wanted, context.labels)


def losses(outputs: Mapping[str, Tensor], targets: Mapping[str, Tensor], settings: Config) -> dict[str, Tensor]:
    """Summed binary cross-entropies in nats, one for each label of each row, by its weight."""
    from torch.nn.functional import binary_cross_entropy_with_logits as cross_entropy

    logits, labels, weights = outputs["logits"].float(), targets["labels"], targets["weights"]
    return {"loss": cross_entropy(logits, labels, weights, reduction="sum")}


def correct(outputs: Mapping[str, Tensor], targets: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {"loss": (((outputs["logits"] >= 0) == (targets["labels"] > 0)) * targets["weights"]).sum()}


def counts(targets: Targets) -> dict[str, float]:
    return {"loss": float(targets["weights"].sum(dtype=np.float64))}


MULTI_LABEL = Task(
    name="multi-label",
    architecture="BertForSequenceClassification",
    outputs=("logits",),
    per_token=(),
    metric="micro_f1",
    settings=MultiLabelSettings,
    read=read,
    labels=labels,
    settle=as_given,
    refuse=refuse,
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
    problem="multi_label_classification",
    distill=each_for_itself,
    right=lambda answer, gold: set(answer["labels"]) == set(gold),
)
