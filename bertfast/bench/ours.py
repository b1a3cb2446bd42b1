"""Our own backends as a candidate of the benchmark (child.py loads this file)."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np

from bertfast import artifact
from bertfast.backends.predictor import Predictor, answers
from bertfast.backends.predictor import load as open_predictor
from bertfast.backends.profiles import as_given
from bertfast.backends.protocol import Arrays
from bertfast.tasks import Answer
from bertfast.text.batch import Batch, Int64, group_by_budget
from bertfast.text.labelled import Request

if TYPE_CHECKING:
    from bertfast.bench.child import Watch


def load(job: Mapping[str, Any]) -> Ours:
    """Open the artefact in the backend; `settings` are those of the task that are to be others than its own."""
    predictor = open_predictor(job["model"], job["backend"], threads=job["threads"], settings=job["settings"])
    predictor.backend.make_ready()
    return Ours(predictor)


class Ours:
    """An artefact in a backend of ours; child.Candidate says what is asked of it."""

    def __init__(self, predictor: Predictor) -> None:
        self.model, self.backend = predictor.model, predictor.backend
        self.facts = {
            "precision": self.backend.precision.value,
            "emulated": self.backend.emulated,
            "libraries": artifact.libraries(),
        }
        self.synchronize = self.backend.synchronize
        self.encode = predictor.encode

    def answer(
        self, requests: Sequence[Request], watch: Watch, *, in_order: bool, batch_size: int | None
    ) -> list[Answer]:
        with watch("tokenize"):
            encoded = self.encode(requests)

        def group(lengths: Sequence[int]) -> Iterator[Int64]:
            if batch_size is not None:
                return group_by_budget(lengths, sys.maxsize, batch_size, in_order=in_order)
            return as_given(lengths, self.backend.profiles) if in_order else self.backend.group(lengths)

        compute = self._overlapping if self.backend.overlaps else self._apart
        return answers(
            partial(compute, watch), self.model.task, requests, encoded, self.model.context, group=group, watch=watch
        )

    def lengths(self, requests: Sequence[Request]) -> list[list[int]]:
        return [[len(sequence) for sequence in sequences] for sequences in self.encode(requests)]

    def grid(self, batch_size: int, length: int) -> Callable[[], object]:
        ones = np.ones((batch_size, length), np.int64)
        inputs = self.backend.upload(Batch(ones, ones, ones * 0))

        def compute() -> None:
            self.backend.execute(inputs)
            self.synchronize()

        return compute

    def _apart(self, watch: Watch, batches: Iterable[Batch]) -> Iterator[Arrays]:
        """Each phase ends when its work is done, not when it is asked for."""
        for batch in batches:
            watch.count(self.backend.computed_tokens(batch))
            with watch("upload"):
                inputs = self.backend.upload(batch)
                self.synchronize()
            with watch("compute"):
                outputs = self.backend.execute(inputs)
                self.synchronize()
            with watch("download"):
                arrays = self.backend.download(outputs)
            yield arrays

    def _overlapping(self, watch: Watch, batches: Iterable[Batch]) -> Iterator[Arrays]:
        """As `predict` does it. Batches are computed while others are padded, copied and decoded: `compute` is what is
        waited for beside that."""

        def counted() -> Iterator[Batch]:
            for batch in batches:
                watch.count(self.backend.computed_tokens(batch))
                yield batch

        computed = self.backend.stream(counted())
        while True:
            with watch("compute"):
                arrays = next(computed, None)
            if arrays is None:
                return
            yield arrays
