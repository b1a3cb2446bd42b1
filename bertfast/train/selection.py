"""Which evaluation of a run was the best, and when to wait for a better one no longer."""

from __future__ import annotations

import math
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

from torch import Tensor, nn

from bertfast.config import FinetuneConfig
from bertfast.tasks import Task

_WORST = -sys.float_info.max  # JSON, in which states are described, has no infinity


@dataclass(frozen=True)
class Criterion:
    """What evaluations are compared by.

    Attributes:
        metrics: names of which the first that an evaluation has counts; the higher the better.
        keep_best: whether the run ends with the weights of its best evaluation, not with its last ones.
        patience: the run ends after so many evaluations on end that are no better; None: it takes all its steps.
    """

    metrics: Sequence[str]
    keep_best: bool
    patience: int | None


@dataclass(frozen=True)
class Best:
    """The best evaluation of a run so far.

    Attributes:
        step: after how many steps it was.
        value: what it found for the metric.
        weights: the parameters, on the CPU, where they are kept.
        since: how many evaluations came after it.
    """

    step: int
    value: float
    weights: Mapping[str, Tensor] = field(default_factory=dict)
    since: int = 0


def metrics_on_dev(task: Task) -> tuple[str, ...]:
    """What an evaluation calls the numbers of which one is quoted: the first that it has."""
    return tuple(f"dev_{name}" for name in task.quotable)


def criterion_of(config: FinetuneConfig, task: Task) -> Criterion | None:
    """What decides which weights a run ends with, or None where that is the number of its steps alone."""
    if config.keep != "best" and config.patience is None:
        return None
    return Criterion(metrics_on_dev(task), config.keep != "last", config.patience)


def better(best: Best | None, criterion: Criterion, step: int, metrics: Mapping[str, float], model: nn.Module) -> Best:
    """The best evaluation after one more; of two that are alike the earlier one. NaN is worse than any number."""
    found = metrics[quoted(metrics, criterion.metrics)]
    value = _WORST if math.isnan(found) else found
    if best is not None and value <= best.value:
        return replace(best, since=best.since + 1)
    kept = model.state_dict() if criterion.keep_best else {}
    return Best(step, value, {name: tensor.detach().cpu().clone() for name, tensor in kept.items()})


def quoted(found: Mapping[str, float], metrics: Sequence[str]) -> str:
    """The first of these metrics that was found; KeyError where none was."""
    for name in metrics:
        if name in found:
            return name
    raise KeyError(f"none of {', '.join(metrics)} is among {', '.join(found)}")


def given_up(best: Best | None, criterion: Criterion | None) -> bool:
    """Whether no better evaluation is waited for any longer."""
    return bool(criterion and criterion.patience and best and best.since >= criterion.patience)
