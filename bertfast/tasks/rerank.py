"""Reranking: how well a second text answers a first one, as one logit (Nogueira and Cho 2019)."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import numpy as np
import numpy.typing as npt
from pydantic import Field

from bertfast.config import Config, ModelConfig
from bertfast.errors import DataError
from bertfast.model.sentence_transformers import cross_encoder_config
from bertfast.model.weights import CONFIG_FILE
from bertfast.tasks.classify import build
from bertfast.tasks.probabilities import sigmoid
from bertfast.tasks.ranking import RELEVANT, grouped_rankings
from bertfast.tasks.soft_targets import same_numbers
from bertfast.tasks.task import (
    Answer,
    Context,
    Outputs,
    Targets,
    Task,
    as_given,
    encode_texts,
    one_logit,
    only_piece,
    plain_forward,
    text_or_pair,
)
from bertfast.text.batch import Features
from bertfast.text.labelled import NUMBER_NAMES, Columns, Example, Request, label_number, read_examples
from bertfast.text.tokenizer import Encoded

if TYPE_CHECKING:
    from torch import Tensor


class RerankSettings(Config):
    """How a logit becomes a score."""

    activation: Literal["sigmoid", "identity"] = Field(
        "sigmoid", description="identity: the logit itself, as some models of others give it; the order is the same"
    )


def read(path: Path, columns: Columns, settings: Config, golds_needed: bool) -> list[Example]:
    """Pairs with how well the second text answers the first, 0 to 1. The gold is that grade after the first text."""
    examples = read_examples(path, columns, labels_needed=golds_needed, usual_labels=NUMBER_NAMES, gold=_grade)
    return [replace(example, gold=_gold(example)) for example in examples]


def _grade(value: object) -> float | None:
    grade = label_number(value)
    if grade is not None and not 0 <= grade <= 1:
        raise ValueError("a number from 0 (no answer) to 1 (an answer; divide by the highest)")
    return grade


def _gold(example: Example) -> tuple[str, float] | None:
    if "pair" not in example.request:
        raise DataError(f"{example.where} is one text, and rerank scores pairs. Name the second with --pair-column.")
    return None if example.gold is None else (str(example.request["text"]), float(example.gold))


def refuse(examples: Sequence[Example], labels: Sequence[str]) -> None:
    """Raise DataError where a model cannot be judged by the grades: before it is trained or measured, not after."""
    golds = [example.gold for example in examples]
    if None not in golds:
        _both_kinds(golds)


def _both_kinds(golds: Sequence[tuple[str, float]]) -> npt.NDArray[np.bool_]:
    """bool [golds], True for the relevant ones; DataError where all are, or none."""
    relevant = np.array([grade >= RELEVANT for _, grade in golds])
    if relevant.all() or not relevant.any():
        raise DataError(
            f"{relevant.sum()} of the {len(golds)} pairs that rerank is judged by have a label of {RELEVANT} or more. "
            "Give it pairs of both kinds."
        )
    return relevant


def check(request: Request) -> None:
    """Raise DataError unless a request is `{"text": …, "pair": …}`."""
    _, pair = text_or_pair(request)
    if pair is None:
        raise DataError(f"a request needs 'text' and 'pair'; this one has {', '.join(request)}.")


def decode(outputs: Outputs, encoded: Sequence[Encoded], context: Context) -> list[Answer]:
    """`{"score"}` of each pair: by default the logit's sigmoid."""
    settings = context.settings
    assert isinstance(settings, RerankSettings)
    logits = outputs["logits"][:, 0].astype(np.float64)
    scores = logits if settings.activation == "identity" else sigmoid(logits)
    return [{"score": value} for value in scores.tolist()]


def score(answers: Sequence[Answer], golds: Sequence[tuple[str, float]]) -> dict[str, float]:
    """Average precision over all pairs; where first texts have several candidates, MRR@10 and NDCG@10 over them.

    Raises:
        DataError: no pair is relevant, or every one, so that there is nothing to tell apart.
    """
    from sklearn.metrics import average_precision_score

    scores, grades = [answer["score"] for answer in answers], np.array([grade for _, grade in golds])
    relevant = _both_kinds(golds)
    precision = {"average_precision": float(average_precision_score(relevant, scores))}
    return precision | grouped_rankings(scores, grades, [query for query, _ in golds])


def features(examples: Sequence[Example], context: Context) -> Features:
    grades = np.array([example.gold[1] for example in examples], np.float32)
    encoded = encode_texts([example.request for example in examples], context)
    return Features([tuple(item) for item in encoded], {"grades": grades})


def losses(outputs: Mapping[str, Tensor], targets: Mapping[str, Tensor], settings: Config) -> dict[str, Tensor]:
    from torch.nn.functional import binary_cross_entropy_with_logits as cross_entropy

    return {"loss": cross_entropy(outputs["logits"][:, 0].float(), targets["grades"], reduction="sum")}


def correct(outputs: Mapping[str, Tensor], targets: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {"loss": ((outputs["logits"][:, 0] > 0) == (targets["grades"] >= RELEVANT)).sum()}


def counts(targets: Targets) -> dict[str, float]:
    return {"loss": len(targets["grades"])}


def furnish(path: Path, config: ModelConfig, context: Context) -> None:
    """Write into config.json what makes a checkpoint's directory one that sentence-transformers' CrossEncoder opens."""
    settings, file = context.settings, path / CONFIG_FILE
    assert isinstance(settings, RerankSettings)
    values = json.loads(file.read_text(encoding="utf-8")) | cross_encoder_config(settings.activation)
    file.write_text(json.dumps(values, indent=1) + "\n", encoding="utf-8")


RERANK = Task(
    name="rerank",
    architecture="BertForSequenceClassification",
    outputs=("logits",),
    per_token=(),
    metric="average_precision",
    settings=RerankSettings,
    read=read,
    labels=one_logit,
    settle=as_given,
    refuse=refuse,
    check=check,
    encode=encode_texts,
    decode=decode,
    merge=only_piece,
    decision=None,
    score=score,
    features=features,
    build=build,
    forward=plain_forward,
    losses=losses,
    correct=correct,
    counts=counts,
    of_the_weights=("activation",),
    furnish=furnish,
    distill=same_numbers,
)
