"""The verb `export`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, get_args

import typer
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table

from bertfast.cli.options import (
    LabelColumn,
    Out,
    Overwrite,
    PairColumn,
    TaskSettings,
    TextColumn,
    choice,
    print_json,
    task_settings,
)
from bertfast.console import errors, notifying
from bertfast.errors import ConfigError

if TYPE_CHECKING:
    from bertfast.export.int8 import Quantization

Calibration = Annotated[
    Path | None, typer.Option(help="INT8: texts like those that will be served; labels are not needed.")
]
CalibrationRows = Annotated[
    int | None, typer.Option(min=1, help="INT8: how many of them are used, evenly spread; 512 if not given.")
]
Dev = Annotated[Path | None, typer.Option(help="INT8: rows with labels to search on, not those you report.")]
MaxDrop = Annotated[
    float | None, typer.Option(min=0, metavar="POINTS", help="INT8: most points of the metric to lose on --dev.")
]
RoundingOption = Annotated[
    str | None,
    typer.Option("--rounding", help="INT8: gptq (default) sets the errors of weights against each other; or nearest."),
]


def export(
    checkpoint: Annotated[
        Path, typer.Argument(help="A checkpoint of ours, a BERT of others, or hub:OWNER/NAME@REVISION.")
    ],
    out: Out,
    precision: Annotated[str, typer.Option(help="What the matrix products execute in: fp32, bf16 or int8.")] = "fp32",
    calibration: Calibration = None,
    calibration_rows: CalibrationRows = None,
    dev: Dev = None,
    max_drop: MaxDrop = None,
    rounding: RoundingOption = None,
    text_column: TextColumn = None,
    pair_column: PairColumn = None,
    label_column: LabelColumn = None,
    settings: TaskSettings = None,
    overwrite: Overwrite = False,
) -> None:
    """Export to ONNX; nothing is published that does not reproduce its source.

    INT8 is calibrated on your texts and judged by your rows; where it cannot hold --max-drop, the exit status is 3.
    """
    from bertfast.config import Precision
    from bertfast.export.export import export as export_checkpoint
    from bertfast.export.int8 import Int8Plan
    from bertfast.model.snapshot import local_model
    from bertfast.quantize.fit import Rounding
    from bertfast.text.hub import local_data
    from bertfast.text.labelled import Columns

    wanted = Precision(choice("--precision", precision, [one.value for one in Precision]))
    if not calibration and (dev or max_drop is not None or rounding or calibration_rows):
        raise ConfigError(
            "--dev, --max-drop, --rounding and --calibration-rows are of INT8. Give --precision int8 and --calibration."
        )
    given: dict[str, Any] = {
        "calibration": calibration and local_data(calibration),
        "dev": dev and local_data(dev),
        "max_drop": max_drop,
        "columns": Columns(text=text_column, pair=pair_column, label=label_column),
    }
    given |= {"calibration_rows": calibration_rows} if calibration_rows else {}
    given |= {"rounding": choice("--rounding", rounding, get_args(Rounding))} if rounding else {}
    plan = Int8Plan.parse(given, "--precision int8") if calibration else None
    source, own = local_model(checkpoint), task_settings(settings)
    with notifying() as notify:
        exported = export_checkpoint(
            source, out, precision=wanted, settings=own, int8=plan, overwrite=overwrite, notify=notify
        )
    if exported.quantization:
        _show(exported.quantization)
    worst = {runtime: max(errors_of.values()) for runtime, errors_of in exported.checks.items()}
    print_json({"onnx": str(out), "largest_relative_error": worst} | _in_short(exported.quantization))


def _show(quantization: Quantization) -> None:
    """Product by product, on standard error."""
    restored = sum(row.executed == "restored" for row in quantization.products)
    caption = f"{quantization.int8_share:.1%} of the weights in INT8, {restored} products restored"
    table = Table(box=SIMPLE_HEAD, padding=(0, 1), caption=caption, caption_justify="left")
    for heading in ("product", "executed", "method", "its error", "model's error without"):
        table.add_column(heading, justify="right" if "error" in heading else "left", overflow="fold")
    for row in quantization.products:
        figures = (f"{100 * value:.2f}%" for value in (row.error, row.error_without))
        table.add_row(row.product.removeprefix("bert.encoder."), row.executed, row.method, *figures)
    console = Console(stderr=True, width=None if errors.is_terminal else 140)
    console.print(table, highlight=False)


def _in_short(quantization: Quantization | None) -> dict[str, Any]:
    if quantization is None:
        return {}
    return {
        "int8_share_of_weights": quantization.int8_share,
        "error_on_held_back_text": quantization.error,
        "drop_on_dev": {name: loss.drop for name, loss in quantization.losses.items()},
    }
