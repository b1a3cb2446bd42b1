"""Regression of texts and of pairs: one number a row, as the likeness of two sentences in STS-B."""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from pydantic import Field

from bertfast.config import Config, ModelConfig
from bertfast.errors import DataError
from bertfast.tasks import classify
from bertfast.tasks.ranking import correlations
from bertfast.tasks.soft_targets import same_numbers
from bertfast.tasks.task import (
    Answer,
    Context,
    Outputs,
    Targets,
    Task,
    encode_texts,
    one_logit,
    only_piece,
    plain_forward,
    take_all,
    text_or_pair,
)
from bertfast.text.batch import Features
from bertfast.text.labelled import NUMBER_NAMES, Columns, Example, label_number, read_examples
from bertfast.text.tokenizer import Encoded

if TYPE_CHECKING:
    from torch import Tensor, nn

_NARROW, _WIDE = 0.1, 10.0


class RegressSettings(Config):
    """Where learning starts."""

    mean: float | None = Field(None, description="the first answer to everything; the mean of the training labels")


def read(path: Path, columns: Columns, settings: Config, golds_needed: bool) -> list[Example]:
    return read_examples(path, columns, labels_needed=golds_needed, usual_labels=NUMBER_NAMES, gold=label_number)


def settle(settings: Config, examples: Sequence[Example]) -> Config:
    """The mean of the labels, where none is set.

    Raises:
        DataError: all labels are the same.
    """
    assert isinstance(settings, RegressSettings)
    golds = np.array([example.gold for example in examples], np.float64)
    spread = float(golds.std())
    if np.ptp(golds) == 0:
        raise DataError(f"all {len(golds)} training labels are {golds[0]:g}, so there is nothing to tell apart.")
    if not _NARROW <= spread <= _WIDE:
        warnings.warn(
            f"the labels spread by {spread:.3g} around {golds.mean():.3g}, and a model learns best what spreads by "
            f"{_NARROW:g} to {_WIDE:g}. Divide the labels by {spread:.2g}, and multiply the answers.",
            stacklevel=2,
        )
    return settings if settings.mean is not None else RegressSettings(mean=float(golds.mean()))


def decode(outputs: Outputs, encoded: Sequence[Encoded], context: Context) -> list[Answer]:
    """`{"score"}` of each row: the logit, in the units of the training labels."""
    return [{"score": value} for value in outputs["logits"][:, 0].tolist()]


def score(answers: Sequence[Answer], golds: Sequence[float]) -> dict[str, float]:
    """Spearman's and Pearson's correlation, 0 where there is no order to compare, the mean squared error, and that of
    always answering the mean."""
    scores, right = np.array([answer["score"] for answer in answers]), np.array(golds)
    errors = {"mse": float(np.mean((scores - right) ** 2)), "variance": float(right.var())}
    return correlations(scores, right) | errors


def features(examples: Sequence[Example], context: Context) -> Features:
    golds = np.array([example.gold for example in examples], np.float32)
    encoded = encode_texts([example.request for example in examples], context)
    return Features([tuple(item) for item in encoded], {"labels": golds})


def build(config: ModelConfig, num_labels: int, settings: Config) -> nn.Module:
    """A classifier of one logit that begins at the mean, so that its first steps need not find that; the logit is in
    fp32, as the mean may be far from 0."""
    import torch

    from bertfast.model.heads import FullPrecisionLinear

    assert isinstance(settings, RegressSettings)
    model = classify.build(config, num_labels, settings)
    answer = FullPrecisionLinear(config.hidden_size, num_labels)
    answer.load_state_dict(model.classifier.state_dict())  # type: ignore[union-attr]
    torch.nn.init.constant_(answer.bias, settings.mean or 0.0)
    model.classifier = answer
    return model


def losses(outputs: Mapping[str, Tensor], targets: Mapping[str, Tensor], settings: Config) -> dict[str, Tensor]:
    """Summed squared errors."""
    from torch.nn.functional import mse_loss

    return {"loss": mse_loss(outputs["logits"][:, 0].float(), targets["labels"], reduction="sum")}


def correct(outputs: Mapping[str, Tensor], targets: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Nothing: a number is near or far, not right or wrong."""
    return {}


def counts(targets: Targets) -> dict[str, float]:
    return {"loss": len(targets["labels"])}


REGRESS = Task(
    name="regress",
    architecture="BertForSequenceClassification",
    outputs=("logits",),
    per_token=(),
    metric="spearman",
    settings=RegressSettings,
    read=read,
    labels=one_logit,
    settle=settle,
    refuse=take_all,
    check=text_or_pair,
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
    problem="regression",
    distill=same_numbers,
)
