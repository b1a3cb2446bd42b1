"""Rows with right answers: what a precision loses on them."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path

from bertfast.backends import Backend, ServedModel
from bertfast.backends.predictor import Compute, answers, one_by_one
from bertfast.backends.profiles import by_length
from bertfast.backends.pytorch import TorchBackend
from bertfast.config import Config, Precision, ShapeProfile
from bertfast.errors import AccuracyError, DataError
from bertfast.tasks import Answer, Outputs
from bertfast.text.batch import Batch
from bertfast.text.labelled import Columns


class Loss(Config):
    """What a runtime loses on the rows of the search: points of the metric, and decisions that are others; None for
    tasks that decide nothing."""

    drop: float
    flips: int | None


class DevRows:
    """Rows with right answers, and what the checkpoint makes of them.

    Raises:
        DataError: the rows have no right answers, or labels that the model does not know, or a metric that is none.
    """

    def __init__(self, served: ServedModel, source: TorchBackend, path: Path, columns: Columns) -> None:
        self.task, self.context = served.task, served.context
        examples = self.task.read(path, columns, self.context.settings, True)
        self.task.refuse(examples, self.context.labels)
        self.requests = [example.request for example in examples]
        self.golds = [example.gold for example in examples]
        self.encoded = self.task.encode(self.requests, self.context)
        self.wanted = self._answers(source.stream)
        self.points = self._points(self.wanted)
        if math.isnan(self.points):
            raise DataError(
                f"{path}: the checkpoint's metric on these {len(examples):,} rows is no number. Give others."
            )

    def drop(self, run: Callable[[Batch], Outputs]) -> float:
        """Points of the metric that a model loses against the checkpoint."""
        return self.points - self._points(self._answers(one_by_one(run)))

    def compare(self, backend: Backend) -> Loss:
        """Points and flips in a runtime."""
        found, decision = self._answers(backend.stream, backend.profiles), self.task.decision
        flips = (
            None
            if decision is None
            else sum(decision(answer) != decision(wanted) for answer, wanted in zip(found, self.wanted, strict=True))
        )
        return Loss(drop=self.points - self._points(found), flips=flips)

    def _answers(self, compute: Compute, profiles: Sequence[ShapeProfile] = ()) -> list[Answer]:
        group = partial(by_length, profiles=profiles)
        return answers(compute, self.task, self.requests, self.encoded, self.context, group=group)

    def _points(self, found: Sequence[Answer]) -> float:
        metrics = self.task.score(found, self.golds)
        return 100 * next(metrics[name] for name in self.task.quotable if name in metrics)


def refusal(losses: Mapping[str, Loss], max_drop: float, precision: Precision, rows: int) -> AccuracyError | None:
    """The error of a runtime that loses more than is allowed on the rows, whatever was found in torch; None where each
    holds it."""
    for name, loss in losses.items():
        if not loss.drop <= max_drop + 1e-9:
            return AccuracyError(
                f"{precision.value} loses {loss.drop:.2f} points in {name} on {rows:,} rows, of which one is worth "
                f"{100 / rows:.2f}, and {max_drop:g} is the limit. Nothing was published. Give more rows to --dev or "
                "texts to --calibration, a larger --max-drop, or export in a higher precision."
            )
    return None
