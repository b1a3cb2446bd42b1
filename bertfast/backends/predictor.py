"""Texts in, typed answers out, whatever the runtime."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import islice
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from bertfast.backends.protocol import Backend
from bertfast.backends.registry import open_backend
from bertfast.backends.served import ServedModel, open_served
from bertfast.errors import DataError
from bertfast.tasks import Answer
from bertfast.text.batch import group_by_budget, pad
from bertfast.text.tokenizer import Encoded

MAX_BATCH_TOKENS = 4096
MAX_BATCH_SEQUENCES = 256
_WINDOW = 4096

Input = str | tuple[str, str] | Mapping[str, Any]


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
            DataError: an input is not a request of this task.
        """
        return list(self.stream(inputs))

    def stream(self, inputs: Iterable[Input]) -> Iterator[Answer]:
        """Like `predict`, for any number of inputs: a few thousand are held at a time."""
        if isinstance(inputs, str | Mapping):
            raise DataError("predict takes many inputs: put the one into a list.")
        source = iter(inputs)
        while window := list(islice(source, _WINDOW)):
            yield from self.answer(self.encode(window))

    def encode(self, inputs: Sequence[Input]) -> list[Encoded]:
        """Tokenise inputs, cut to the model's length."""
        texts = [self.model.task.read_request(_as_request(item)) for item in inputs]
        return self.model.vocabulary.tokenizer.encode(texts, self.model.max_length)

    def answer(self, encoded: Sequence[Encoded]) -> list[Answer]:
        """Run tokenised inputs in batches of similar length; answers come back in the order of the inputs."""
        answers: list[Answer] = [{} for _ in encoded]
        pad_id = self.model.vocabulary.tokenizer.pad_id
        for indices in group_by_budget([len(item) for item in encoded], MAX_BATCH_TOKENS, MAX_BATCH_SEQUENCES):
            rows = [encoded[i] for i in indices]
            decoded = self.model.task.decode(self.backend.run(pad(rows, pad_id)), rows, self.model.vocabulary)
            for i, row, answer in zip(indices, rows, decoded, strict=True):
                answers[i] = answer | {"truncated": True} if row.truncated else answer
        return answers

    def close(self) -> None:
        self.backend.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def load(path: str | Path, backend: str | None = None, *, threads: int | None = None) -> Predictor:
    """Open an artefact for prediction in a runtime, by default the preferred one that is installed.

    Raises:
        ArtifactError: it is not an artefact that predicts, or not whole.
        BackendError: the runtime is missing or does not fit.
    """
    model = open_served(Path(path))
    return Predictor(model, open_backend(model, backend, threads=threads))


def _as_request(item: Input) -> Mapping[str, Any]:
    match item:
        case str():
            return {"text": item}
        case (first, second):
            return {"text": first, "pair": second}
        case Mapping():
            return item
    raise DataError(f"{item!r} is neither a text, nor a pair of texts, nor a request such as {{'text': ...}}.")
