"""The task record."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from bertfast.config import ModelConfig
from bertfast.errors import DataError
from bertfast.text.batch import Int64
from bertfast.text.tokenizer import Encoded, Tokenizer

if TYPE_CHECKING:
    from torch import Tensor, nn

Outputs = Mapping[str, npt.NDArray[np.float32]]
Request = Mapping[str, Any]
Answer = dict[str, Any]


@dataclass(frozen=True)
class Vocabulary:
    """What turns numbers into words: the tokenizer, and the class names in the order of the logits."""

    tokenizer: Tokenizer
    labels: tuple[str, ...]


@dataclass(frozen=True)
class Task:
    """All that a task is. What needs torch or scikit-learn is a function that imports it when it is called.

    Attributes:
        name: as in `bertfast train NAME` and in manifests.
        architecture: the Hugging Face class whose layout the checkpoint has.
        outputs: the model's outputs, in the order of the exported signature.
        per_token: the outputs among them that have a row for each token ([B, S, ...], not [B, ...]).
        metric: the number of `score` that the field quotes.
        read_request: (text, pair or None) of a request.
        decode: answers from a batch's outputs.
        score: metrics by name from answers and the labels of the same rows.
        build: the torch module, freshly initialised, for a number of labels.
        forward: the module's outputs in training, given inputs and targets as tensors.
        losses: summed (not averaged) losses by name.
        correct: how many of the things that each loss judges were predicted right.
        counts: by how many each of the sums is divided over the global batch.
    """

    name: str
    architecture: str
    outputs: tuple[str, ...]
    per_token: tuple[str, ...]
    metric: str
    read_request: Callable[[Request], tuple[str, str | None]]
    decode: Callable[[Outputs, Sequence[Encoded], Vocabulary], list[Answer]]
    score: Callable[[Sequence[Answer], Sequence[str]], dict[str, float]]
    build: Callable[[ModelConfig, int], nn.Module]
    forward: Callable[[nn.Module, Mapping[str, Tensor], Mapping[str, Tensor]], Mapping[str, Tensor]]
    losses: Callable[[Mapping[str, Tensor], Mapping[str, Tensor]], dict[str, Tensor]]
    correct: Callable[[Mapping[str, Tensor], Mapping[str, Tensor]], dict[str, Tensor]]
    counts: Callable[[Mapping[str, Int64]], dict[str, int]]


def read_text_or_pair(request: Request) -> tuple[str, str | None]:
    """`{"text": …}` or `{"text": …, "pair": …}`.

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
