"""The task record."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from bertfast.config import Config, ModelConfig
from bertfast.errors import DataError
from bertfast.tasks.soft_targets import one_of_many
from bertfast.text.batch import Features
from bertfast.text.labelled import Columns, Example, Request
from bertfast.text.tokenizer import Encoded, Tokenizer

if TYPE_CHECKING:
    from torch import Tensor, nn

Outputs = Mapping[str, npt.NDArray[np.float32]]
Answer = dict[str, Any]
Targets = Mapping[str, npt.NDArray[Any]]


class NoSettings(Config):
    """The settings of a task that has none."""


def no_tables(answers: Sequence[Answer], golds: Sequence[Any]) -> dict[str, str]:
    """The tables of a task whose numbers say all."""
    return {}


@dataclass(frozen=True)
class Context:
    """What turns requests into numbers and numbers into answers, beside the weights.

    Attributes:
        labels: class names in the order of the logits; empty for a task without classes.
        max_length: tokens of a sequence.
        settings: the task's own.
    """

    tokenizer: Tokenizer
    labels: tuple[str, ...]
    max_length: int
    settings: Config


def nothing_more(path: Path, config: ModelConfig, context: Context) -> None:
    """Leave a checkpoint's directory as it is: its weights, configuration and tokenizer say all."""


@dataclass(frozen=True)
class Task:
    """All that a task is. What needs torch or scikit-learn is a function that imports it when it is called.

    A request becomes one sequence, or several windows of a long text; the model's outputs for each become a piece,
    and the pieces of a request its answer.

    Attributes:
        name: as in `bertfast train NAME` and in manifests.
        architecture: the Hugging Face class whose layout the checkpoint has.
        outputs: the model's outputs, in the order of the exported signature.
        per_token: the outputs among them that have a row for each token ([B, S, ...], not [B, ...]).
        metric: the number of `score` that the field quotes.
        metric_otherwise: the one that it quotes where the data are of a kind for which `score` has no `metric`.
        settings: the class of the task's own settings, `--set task.KEY=VALUE`.
        read: the examples of a file; its last argument says whether each must have its gold.
        labels: the class names that training examples show, in the order that the logits are to have.
        settle: the settings with what the training examples decide.
        refuse: raises DataError where a model with these labels cannot be judged by the golds of the examples.
        check: raises DataError for a malformed request.
        encode: the sequences of each request.
        decode: the pieces of a batch's sequences, from its outputs.
        merge: the answer to a request, from its pieces.
        decision: the part of an answer that flips when another backend decides otherwise; None where nothing does.
        score: metrics by name, from answers and the golds of the same requests.
        features: what is learnt from examples.
        build: the torch module, freshly initialised, for a number of labels.
        forward: the module's outputs in training, given inputs and targets as tensors.
        losses: summed (not averaged) losses by name.
        correct: how many of the things that each loss judges were predicted right.
        counts: by what each of the sums is divided over the global batch.
        max_length: tokens of a sequence in training, where the user says nothing.
        problem: what the logits mean, as config.json names it (`problem_type`) where the architecture leaves it open.
        distill: the losses of a student's outputs by a teacher's, with the targets and a temperature; summed, and
            named, as `losses` is.
        tables: what `score` has no number for, as files of text by name, from the same answers and golds.
        of_the_weights: the settings that go with weights; training further keeps those of the checkpoint.
        furnish: writes into a checkpoint's directory what other libraries look for there beside the weights.
        right: whether an answer is right by its gold; None where answers are not simply right or wrong.
    """

    name: str
    architecture: str
    outputs: tuple[str, ...]
    per_token: tuple[str, ...]
    metric: str
    settings: type[Config]
    read: Callable[[Path, Columns, Config, bool], list[Example]]
    labels: Callable[[Sequence[Example]], tuple[str, ...]]
    settle: Callable[[Config, Sequence[Example]], Config]
    refuse: Callable[[Sequence[Example], Sequence[str]], None]
    check: Callable[[Request], object]
    encode: Callable[[Sequence[Request], Context], list[list[Encoded]]]
    decode: Callable[[Outputs, Sequence[Encoded], Context], Sequence[Any]]
    merge: Callable[[Request, Sequence[Any], Context], Answer]
    decision: Callable[[Answer], Any] | None
    score: Callable[[Sequence[Answer], Sequence[Any]], dict[str, float]]
    features: Callable[[Sequence[Example], Context], Features]
    build: Callable[[ModelConfig, int, Config], nn.Module]
    forward: Callable[[nn.Module, Mapping[str, Tensor], Mapping[str, Tensor]], Mapping[str, Tensor]]
    losses: Callable[[Mapping[str, Tensor], Mapping[str, Tensor], Config], dict[str, Tensor]]
    correct: Callable[[Mapping[str, Tensor], Mapping[str, Tensor]], dict[str, Tensor]]
    counts: Callable[[Targets], Mapping[str, float]]
    max_length: int = 128
    metric_otherwise: str | None = None
    of_the_weights: tuple[str, ...] = ()
    problem: str | None = None
    tables: Callable[[Sequence[Answer], Sequence[Any]], Mapping[str, str]] = no_tables
    furnish: Callable[[Path, ModelConfig, Context], None] = nothing_more
    distill: Callable[[Mapping[str, Tensor], Mapping[str, Tensor], Mapping[str, Tensor], float], dict[str, Tensor]] = (
        one_of_many
    )
    right: Callable[[Answer, Any], bool] | None = None

    @property
    def quotable(self) -> tuple[str, ...]:
        """The metrics of which the first that `score` has for the data is quoted."""
        return tuple(name for name in (self.metric, self.metric_otherwise) if name is not None)


def text_or_pair(request: Request) -> tuple[str, str | None]:
    """The texts of `{"text": …}` or `{"text": …, "pair": …}`.

    Raises:
        DataError: `text` is missing, or one of the two is not text.
    """
    if "text" not in request:
        raise DataError(f"a request needs 'text'; this one has {', '.join(request) or 'nothing'}.")
    text, pair = request["text"], request.get("pair")
    if not isinstance(text, str) or not isinstance(pair, str | None):
        wrong = "text" if not isinstance(text, str) else "pair"
        raise DataError(f"'{wrong}' is {type(request[wrong]).__name__}, and a string is needed.")
    return text, pair


def encode_texts(requests: Sequence[Request], context: Context) -> list[list[Encoded]]:
    """One sequence a request, cut to the model's length."""
    texts = [text_or_pair(request) for request in requests]
    return [[sequence] for sequence in context.tokenizer.encode(texts, context.max_length)]


def only_piece(request: Request, pieces: Sequence[Any], context: Context) -> Answer:
    """The answer where a request is one sequence: its piece."""
    (answer,) = pieces
    return answer  # type: ignore[no-any-return]


def as_given(settings: Config, examples: Sequence[Example]) -> Config:
    """The settings where the examples decide nothing."""
    return settings


def no_labels(examples: Sequence[Example]) -> tuple[str, ...]:
    """The class names of a task without classes."""
    return ()


def one_logit(examples: Sequence[Example]) -> tuple[str, ...]:
    """The class names of a task whose answer is one number: transformers' name for an only logit."""
    return ("LABEL_0",)


def take_all(examples: Sequence[Example], labels: Sequence[str]) -> None:
    """Refuse no example."""


def plain_forward(
    model: nn.Module, inputs: Mapping[str, Tensor], targets: Mapping[str, Tensor]
) -> Mapping[str, Tensor]:
    """The module's outputs, which do not depend on what is to be learnt."""
    return model(**inputs)  # type: ignore[no-any-return]
