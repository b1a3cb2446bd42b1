"""Texts in, typed answers out, whatever the runtime."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from itertools import islice
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import numpy as np

from bertfast.backends.profiles import by_length
from bertfast.backends.protocol import Backend
from bertfast.backends.registry import open_backend
from bertfast.backends.served import AS_TRAINED, ServedModel, open_served
from bertfast.errors import BackendError, DataError
from bertfast.tasks import Answer, Context, Outputs, Task
from bertfast.text.batch import Batch, Int64, pad
from bertfast.text.labelled import Request
from bertfast.text.tokenizer import Encoded

_WINDOW = 4096

Input = str | tuple[str, str] | Mapping[str, Any]
Compute = Callable[[Iterable[Batch]], Iterable[Outputs]]
Stopwatch = Callable[[str], AbstractContextManager[object]]


def untimed(phase: str) -> AbstractContextManager[object]:
    """A stopwatch that nobody reads."""
    return nullcontext()


class Predictor:
    """A model in a runtime, for one thread at a time. Use it as a context manager.

    Example:
        with bertfast.load("artefact") as model:
            model.predict(["a text", ("a pair", "of texts")])
    """

    def __init__(self, model: ServedModel, backend: Backend) -> None:
        self.model = model
        self.backend = backend

    def predict(self, inputs: Iterable[Input]) -> list[Answer]:
        """Answers in the order of the inputs.

        Args:
            inputs: texts, pairs of texts, or requests such as `{"text": …, "pair": …}`.
        Returns:
            The task's answers; `"truncated": True` is in those whose text was cut to the model's length.
        Raises:
            BackendError: an output is NaN or infinite.
            DataError: an input is not a request of this task.
            ProfileError: an engine takes no text of such a length.
        """
        return list(self.stream(inputs))

    def stream(self, inputs: Iterable[Input]) -> Iterator[Answer]:
        """Like `predict`, for any number of inputs: a few thousand are held at a time."""
        if isinstance(inputs, str | Mapping):
            raise DataError("predict takes many inputs: put the one into a list.")
        source = iter(inputs)
        while window := [as_request(item) for item in islice(source, _WINDOW)]:
            yield from self.answer(window, self.encode(window))

    def encode(self, requests: Sequence[Request]) -> list[list[Encoded]]:
        """The sequences of each request."""
        return self.model.task.encode(requests, self.model.context)

    def answer(self, requests: Sequence[Request], encoded: Sequence[Sequence[Encoded]]) -> list[Answer]:
        """Run requests that are already tokenised; answers come in their order."""
        group, task, context = self.backend.group, self.model.task, self.model.context
        return answers(self._finite, task, requests, encoded, context, group=group)

    def _finite(self, batches: Iterable[Batch]) -> Iterator[Outputs]:
        """The outputs of batches; of NaN the first label would be made, with a score that no JSON knows."""
        for outputs in self.backend.stream(batches):
            if bad := [name for name, values in outputs.items() if not np.isfinite(values).all()]:
                raise BackendError(
                    f"{self.model.path}: {self.backend.name} computed {bad[0]} that are NaN or infinite, in "
                    f"{self.backend.precision.value}. Export in bf16 or fp32, or predict in another backend."
                )
            yield outputs

    def close(self) -> None:
        self.backend.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def one_by_one(run: Callable[[Batch], Outputs]) -> Compute:
    """A model that is given batch after batch."""
    return lambda batches: map(run, batches)


def answers(
    compute: Compute,
    task: Task,
    requests: Sequence[Request],
    encoded: Sequence[Sequence[Encoded]],
    context: Context,
    *,
    group: Callable[[Sequence[int]], Iterable[Int64]] = by_length,
    watch: Stopwatch = untimed,
) -> list[Answer]:
    """The answers to tokenised requests, in their order.

    Args:
        compute: the model: the outputs of batches as float32 arrays, in their order.
        encoded: the sequences of each request.
        group: the places of the sequences of each batch, from the lengths of all sequences.
        watch: times what happens around the model: `tokenize` (padding too) and `decode`.
    """
    sequences = [sequence for windows in encoded for sequence in windows]
    pieces: list[Any] = [None] * len(sequences)
    groups = list(group([len(item) for item in sequences]))

    def batches() -> Iterator[Batch]:
        for indices in groups:
            with watch("tokenize"):
                batch = pad([sequences[i] for i in indices], context.tokenizer.pad_id)
            yield batch

    for indices, outputs in zip(groups, compute(batches()), strict=True):
        with watch("decode"):
            rows = [sequences[i] for i in indices]
            for i, piece in zip(indices, task.decode(outputs, rows, context), strict=True):
                pieces[i] = piece
    with watch("decode"):
        left = iter(pieces)
        return [
            _whole(task.merge(request, list(islice(left, len(windows))), context), windows)
            for request, windows in zip(requests, encoded, strict=True)
        ]


def _whole(answer: Answer, windows: Sequence[Encoded]) -> Answer:
    return answer | {"truncated": True} if any(window.truncated for window in windows) else answer


def load(
    path: str | Path,
    backend: str | None = None,
    *,
    threads: int | None = None,
    settings: Mapping[str, Any] = AS_TRAINED,
) -> Predictor:
    """Open an artefact for prediction in a runtime, by default the preferred one that is installed.

    Args:
        settings: the task's settings that are to be others than the artefact's, such as `{"return_n_best": True}`.
    Raises:
        ArtifactError: it is not an artefact that predicts, or not whole.
        ConfigError: a setting is none of the task's, or is fixed in an exported graph.
        BackendError: the runtime is missing or does not fit.
    """
    model = open_served(Path(path), settings)
    return Predictor(model, open_backend(model, backend, threads=threads))


def as_request(item: Input) -> Request:
    """A text, a pair of texts or a request, as a request."""
    match item:
        case str():
            return {"text": item}
        case (first, second):
            return {"text": first, "pair": second}
        case Mapping():
            return item
    raise DataError(f"{item!r} is neither a text, nor a pair of texts, nor a request such as {{'text': ...}}.")
