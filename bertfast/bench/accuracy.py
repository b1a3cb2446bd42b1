"""What a candidate's answers are worth: by the golds, and held against the reference's answers to the same rows."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from bertfast.bench.uncertainty import drop_interval, resampled
from bertfast.errors import DataError
from bertfast.tasks import Answer, Task
from bertfast.tasks.ranking import unit


@dataclass(frozen=True)
class Judge:
    """A task, and the golds of the rows; None where a row has none, and then there is speed only."""

    task: Task
    golds: Sequence[Any] | None

    def metrics(self, answers: Sequence[Answer]) -> dict[str, float]:
        """The task's metrics; none without golds, or where an answer holds a number that is none."""
        if self.golds is None or not_finite(answers):
            return {}
        return self.task.score(answers, self.golds)

    def quoted(self, metrics: Mapping[str, float]) -> str | None:
        """The metric that the task quotes for data of this kind; None without metrics."""
        return next((name for name in self.task.quotable if name in metrics), None)

    def resampled(self, answers: Sequence[Answer], metrics: Mapping[str, float]) -> list[float] | None:
        """The quoted metric on resamples of the rows; None where there is none."""
        metric = self.quoted(metrics)
        if self.golds is None or metric is None:
            return None
        return resampled(self.task.score, metric, answers, self.golds)

    def compare(
        self,
        answers: Sequence[Answer],
        reference: Sequence[Answer],
        metrics: Mapping[str, float],
        reference_metrics: Mapping[str, float],
        reference_resampled: Sequence[float] | None,
    ) -> dict[str, Any]:
        """The fields of `Measured` that hold answers against those of the reference.

        Args:
            metrics: those of the answers.
            reference_resampled: the reference's quoted metric, which takes as long as scoring it a hundred times.
        """
        if not_finite(answers) or not_finite(reference):
            return {}
        flips, drift = compare_answers(self.task, answers, reference)
        found: dict[str, Any] = {"flips": flips, "largest_score_drift": drift}
        if self.golds is None:
            return found
        metric = self.quoted(reference_metrics)
        assert metric is not None, f"{self.task.name} names no metric for these golds"
        drop = reference_metrics[metric] - metrics[metric]
        found["drop_interval"] = drop_interval(drop, reference_resampled, self.resampled(answers, metrics))
        if self.task.right is not None:
            before, after = (list(map(self.task.right, rows, self.golds)) for rows in (reference, answers))
            pairs = list(zip(before, after, strict=True))
            found |= {"lost": pairs.count((True, False)), "gained": pairs.count((False, True))}
        return found


def not_finite(answers: Sequence[Answer]) -> int:
    """How many answers hold a number that is none, or infinite."""
    return sum(not all(map(math.isfinite, _numbers(answer))) for answer in answers)


def _numbers(value: Any) -> Iterator[float]:
    match value:
        case float():
            yield value
        case dict():
            yield from (number for part in value.values() for number in _numbers(part))
        case list():
            yield from (number for part in value for number in _numbers(part))


def compare_answers(
    task: Task, answers: Sequence[Answer], reference: Sequence[Answer]
) -> tuple[int | None, float | None]:
    """(answers that decide otherwise, the largest drift of an answer's numbers).

    The first is None where the task decides nothing, the second where its answers hold no numbers.

    Raises:
        DataError: the two do not answer the same requests.
    """
    if len(answers) != len(reference):
        raise DataError(f"{len(answers)} answers cannot be compared with {len(reference)}.")
    pairs = list(zip(answers, reference, strict=True))
    flips = sum(task.decision(a) != task.decision(b) for a, b in pairs) if task.decision else None
    return flips, max((drift for a, b in pairs for drift in _drifts(a, b)), default=None)


def _drifts(answer: Answer, reference: Answer) -> list[float]:
    """The changes of the score of each label or, without labels, of the score; of vectors 1 - their cosine."""
    if "scores" in reference:
        return [abs(answer["scores"][label] - value) for label, value in reference["scores"].items()]
    scores = [abs(answer["score"] - reference["score"])] if "score" in reference else []
    names = [name for name in ("embedding", "pair_embedding") if name in reference]
    return scores + [1 - _cosine(answer[name], reference[name]) for name in names]


def _cosine(first: Sequence[float], second: Sequence[float]) -> float:
    return float(unit(np.array(first, np.float64)) @ unit(np.array(second, np.float64)))
