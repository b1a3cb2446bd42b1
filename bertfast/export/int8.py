"""A checkpoint's products in INT8: calibrated on the user's text, held to the user's metric."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Literal

from pydantic import NonNegativeFloat, PositiveInt, model_validator
from torch import nn

from bertfast import artifact
from bertfast.backends import ServedModel
from bertfast.backends.predictor import answers
from bertfast.backends.pytorch import TorchBackend
from bertfast.config import Config
from bertfast.errors import ConfigError, DataError
from bertfast.quantize.product import QuantizedProduct
from bertfast.quantize.search import Chosen, Sensitivity, Trial, hold_drop, hold_error, sensitivities
from bertfast.quantize.walk import equal_lengths, quantize
from bertfast.text.labelled import Columns, Example
from bertfast.text.tables import split_reference
from bertfast.text.tokenizer import Encoded

LEAST_TOKENS = 2000
LEAST_SEQUENCES = 32
_HELD_BACK = 8

Notify = Callable[[str, int, int], object]


class Int8Plan(Config):
    """How INT8 is made and what it must hold.

    Attributes:
        calibration: texts like those that will be served; right answers are not needed.
        calibration_rows: how many of them are used, evenly spread.
        dev: rows with right answers, which the search judges by.
        max_drop: points of the task's metric that may be lost on them.
        rounding: of weights: to the nearest step, or with their errors set against each other.
    """

    calibration: Path
    calibration_rows: PositiveInt = 512
    dev: Path | None = None
    max_drop: NonNegativeFloat | None = None
    rounding: Literal["gptq", "nearest"] = "gptq"
    columns: Columns = Columns()

    @model_validator(mode="after")
    def _is_judged(self) -> Int8Plan:
        if (self.dev is None) != (self.max_drop is None):
            raise ConfigError(
                "--dev and --max-drop belong together: the rows, and the points that may be lost on them."
            )
        return self


class Row(Config):
    """A line of the table that an INT8 export prints.

    Attributes:
        error: of the product's own outputs, relative.
        error_without: of the model's outputs on held-back text, if this product alone stayed as it was.
        executed: `int8`, or `restored` to the higher precision.
    """

    product: str
    method: str
    weights: int
    error: float
    error_without: float
    executed: str


class Quantization(Config):
    """What an INT8 export did, as its manifest holds it.

    Attributes:
        tokens: of the calibration text, without padding.
        error: of the model's outputs on calibration text that was held back, relative.
        drop: points of the metric that were lost on the rows of the search.
    """

    plan: Int8Plan
    calibration_sha256: str
    dev_sha256: str | None
    tokens: int
    int8_weights: int
    weights: int
    error: float
    drop: float | None
    products: tuple[Row, ...]


def quantize_checkpoint(
    served: ServedModel, source: TorchBackend, plan: Int8Plan, notify: Notify
) -> tuple[tuple[QuantizedProduct, ...], Quantization]:
    """The products that are to be INT8, and the account of how they were found.

    Args:
        source: the checkpoint in torch, on the CPU.
        notify: called with (what is being done, steps done, steps in all).
    Raises:
        DataError: too little calibration text, or rows without right answers.
        AccuracyError: the drop cannot be held.
    """
    model = source.module
    sequences = _sequences(served, plan)
    pad_id = served.context.tokenizer.pad_id
    seen = [sequence for i, sequence in enumerate(sequences) if i % _HELD_BACK]
    quantized = quantize(model, list(equal_lengths(seen, pad_id)), plan.rounding, notify)
    drop = _drop(served, source, plan) if plan.dev else None
    trial = Trial(model, list(equal_lengths(sequences[::_HELD_BACK], pad_id)), drop)
    ranked = sensitivities(trial, quantized, notify)
    if plan.max_drop is None:
        chosen = hold_error(trial, quantized, ranked)
    else:
        chosen = hold_drop(trial, quantized, ranked, plan.max_drop, notify)
    return chosen.quantized, _account(served, plan, sequences, quantized, ranked, chosen)


def _sequences(served: ServedModel, plan: Int8Plan) -> list[Encoded]:
    """The calibration text as the model gets it."""
    task, context = served.task, served.context
    examples = task.read(plan.calibration, plan.columns, context.settings, False)
    step = max(1, len(examples) // plan.calibration_rows)
    requests = [example.request for example in examples[::step][: plan.calibration_rows]]
    sequences = [sequence for windows in task.encode(requests, context) for sequence in windows]
    tokens = sum(map(len, sequences))
    if tokens < LEAST_TOKENS or len(sequences) < LEAST_SEQUENCES:
        raise DataError(
            f"{plan.calibration} has {tokens:,} tokens in {len(sequences):,} sequences, and calibration wants "
            f"{LEAST_TOKENS:,} in {LEAST_SEQUENCES}. Give more text like that which will be served."
        )
    return sequences


def _drop(served: ServedModel, source: TorchBackend, plan: Int8Plan) -> Callable[[nn.Module], float]:
    """Points of the metric that the model, whatever its products are now, loses against the checkpoint."""
    assert plan.dev is not None
    task, context = served.task, served.context
    examples: Sequence[Example] = task.read(plan.dev, plan.columns, context.settings, True)
    task.refuse(examples, context.labels)
    requests, golds = [example.request for example in examples], [example.gold for example in examples]
    encoded = task.encode(requests, context)

    def points() -> float:
        metrics = task.score(answers(source.run, task, requests, encoded, context), golds)
        return 100 * next(metrics[name] for name in task.quotable if name in metrics)

    wanted = points()
    return lambda model: wanted - points()


def _account(
    served: ServedModel,
    plan: Int8Plan,
    sequences: Sequence[Encoded],
    quantized: Sequence[QuantizedProduct],
    ranked: Sequence[Sensitivity],
    chosen: Chosen,
) -> Quantization:
    without = {item.quantized.product.name: item.error for item in ranked}
    rows = tuple(
        Row(
            product=one.product.name,
            method=one.method,
            weights=one.weights,
            error=one.error,
            error_without=without[one.product.name],
            executed="restored" if one.product.name in chosen.restored else "int8",
        )
        for one in quantized
    )
    return Quantization(
        plan=plan,
        calibration_sha256=_sha256(plan.calibration),
        dev_sha256=_sha256(plan.dev) if plan.dev else None,
        tokens=sum(map(len, sequences)),
        int8_weights=sum(one.weights for one in chosen.quantized),
        weights=sum(one.weights for one in quantized),
        error=chosen.error,
        drop=chosen.drop,
        products=rows,
    )


def _sha256(path: Path) -> str:
    return artifact.sha256_of(split_reference(path)[0])
