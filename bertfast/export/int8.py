"""A checkpoint's products in INT8: calibrated on the user's text, held to the user's metric."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from pydantic import NonNegativeFloat, PositiveInt, model_validator

from bertfast import artifact
from bertfast.backends import ServedModel
from bertfast.backends.predictor import answers
from bertfast.backends.pytorch import TorchBackend
from bertfast.config import Config
from bertfast.errors import AccuracyError, ConfigError, DataError
from bertfast.quantize.fit import Rounding
from bertfast.quantize.product import QuantizedProduct
from bertfast.quantize.search import Chosen, Notify, Sensitivity, Trial, hold_drop, hold_error, sensitivities
from bertfast.quantize.walk import equal_lengths, quantize
from bertfast.tasks import Answer, Outputs
from bertfast.text.batch import Batch
from bertfast.text.labelled import Columns
from bertfast.text.tables import split_reference
from bertfast.text.tokenizer import Encoded

LEAST_TOKENS = 2000
LEAST_SEQUENCES = 32
_HELD_BACK = 8


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
    rounding: Rounding = "gptq"
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
        error: of the product, relative (see `QuantizedProduct`).
        error_without: of the model's outputs on held-back text, if this product alone stayed as it was.
        executed: `int8`, or `restored` to the higher precision.
    """

    product: str
    method: str
    weights: int
    error: float
    error_without: float
    executed: str


class Loss(Config):
    """What a runtime loses on the rows of the search: points of the metric, and decisions that are others; None for
    tasks that decide nothing."""

    drop: float
    flips: int | None


class Quantization(Config):
    """What an INT8 export did, as its manifest holds it.

    Attributes:
        tokens: of the calibration text, without padding, held-back text included.
        error: of the model's outputs on calibration text that was held back, relative.
        drop: points of the metric that were lost on the rows of the search, in torch.
        losses: what each runtime loses on them.
    """

    plan: Int8Plan
    calibration_sha256: str
    dev_sha256: str | None
    tokens: int
    int8_weights: int
    weights: int
    error: float
    drop: float | None
    losses: dict[str, Loss] = {}
    products: tuple[Row, ...]

    @property
    def int8_share(self) -> float:
        """The share of the encoder's weights that is in INT8."""
        return self.int8_weights / self.weights


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
        self.wanted = self._answers(source.run)
        self.points = self._points(self.wanted)
        if math.isnan(self.points):
            raise DataError(
                f"{path}: the checkpoint's metric on these {len(examples):,} rows is no number. Give others."
            )

    def drop(self, run: Callable[[Batch], Outputs]) -> float:
        """Points of the metric that a model loses against the checkpoint."""
        return self.points - self._points(self._answers(run))

    def compare(self, run: Callable[[Batch], Outputs]) -> Loss:
        """Points and flips in a runtime."""
        found, decision = self._answers(run), self.task.decision
        flips = (
            None
            if decision is None
            else sum(decision(answer) != decision(wanted) for answer, wanted in zip(found, self.wanted, strict=True))
        )
        return Loss(drop=self.points - self._points(found), flips=flips)

    def _answers(self, run: Callable[[Batch], Outputs]) -> list[Answer]:
        return answers(run, self.task, self.requests, self.encoded, self.context)

    def _points(self, found: Sequence[Answer]) -> float:
        metrics = self.task.score(found, self.golds)
        return 100 * next(metrics[name] for name in self.task.quotable if name in metrics)


def hold_in_runtimes(losses: Mapping[str, Loss], max_drop: float) -> None:
    """Raise AccuracyError where a runtime loses more than is allowed, whatever was found in torch."""
    for name, loss in losses.items():
        if not loss.drop <= max_drop + 1e-9:
            raise AccuracyError(
                f"INT8 holds {max_drop:g} points in torch and loses {loss.drop:.2f} in {name}. Nothing was published. "
                "Give a larger --max-drop, or export in bf16 or fp32."
            )


def quantize_checkpoint(
    served: ServedModel, source: TorchBackend, plan: Int8Plan, dev: DevRows | None, notify: Notify
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
    drop = (lambda: dev.drop(source.run)) if dev else None
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
