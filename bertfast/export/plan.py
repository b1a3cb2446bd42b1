"""What an export is made and judged by: the user's own texts."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import chain
from pathlib import Path

from pydantic import NonNegativeFloat, PositiveInt, model_validator

from bertfast.backends import ServedModel
from bertfast.config import Config
from bertfast.errors import ConfigError, DataError
from bertfast.quantize.fit import Rounding
from bertfast.text.labelled import Columns, evenly_spread
from bertfast.text.tokenizer import Encoded

LEAST_TOKENS = 2000
LEAST_SEQUENCES = 32


class ExportPlan(Config):
    """Texts, and what must hold on them.

    Attributes:
        calibration: texts like those that will be served; right answers are not needed.
        calibration_rows: how many of them are used, evenly spread.
        dev: rows with right answers, by which products are chosen and the export is judged.
        max_drop: points of the task's metric that may be lost on them.
        rounding: of weights in INT8 and FP8: to the nearest, or with their errors set against each other.
    """

    calibration: Path | None = None
    calibration_rows: PositiveInt = 512
    dev: Path | None = None
    max_drop: NonNegativeFloat | None = None
    rounding: Rounding = "gptq"
    columns: Columns = Columns()

    @model_validator(mode="after")
    def _is_judged(self) -> ExportPlan:
        if (self.dev is None) != (self.max_drop is None):
            raise ConfigError(
                "--dev and --max-drop belong together: the rows, and the points that may be lost on them."
            )
        if self.dev is not None and self.dev == self.calibration:
            raise ConfigError(
                f"--calibration and --dev are both {self.dev}: rows that ranges were taken from cannot judge them. "
                "Split the file."
            )
        return self


NO_TEXTS = ExportPlan()


def calibration_text(served: ServedModel, plan: ExportPlan) -> list[list[Encoded]]:
    """The sequences of each calibration text, as the model gets them; empty where the plan has none.

    Raises:
        DataError: it is too little to calibrate on.
    """
    if plan.calibration is None:
        return []
    task, context = served.task, served.context
    examples = task.read(plan.calibration, plan.columns, context.settings, False)
    requests = [examples[place].request for place in evenly_spread(len(examples), plan.calibration_rows)]
    texts = task.encode(requests, context)
    _refuse_too_little(plan.calibration, list(chain(*texts)), left_out=len(examples) - len(requests))
    return texts


def _refuse_too_little(path: Path, sequences: Sequence[Encoded], left_out: int) -> None:
    tokens = sum(map(len, sequences))
    if tokens < LEAST_TOKENS or len(sequences) < LEAST_SEQUENCES:
        raise DataError(
            f"{path} has {tokens:,} tokens in {len(sequences):,} sequences, and calibration wants "
            f"{LEAST_TOKENS:,} in {LEAST_SEQUENCES}. "
            + (
                f"Raise --calibration-rows, which left {left_out:,} rows out."
                if left_out
                else "Give more text like that which will be served."
            )
        )
