"""The verb `export`."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, cast, get_args

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
    from bertfast.export.export import Exported
    from bertfast.export.quantized import Quantization

Calibration = Annotated[
    Path | None,
    typer.Option(help="INT8, FP8, FP16: texts like those that will be served; labels are not needed."),
]
CalibrationRows = Annotated[
    int | None, typer.Option(min=1, help="How many of them are used, evenly spread; 512 if not given.")
]
Dev = Annotated[Path | None, typer.Option(help="Rows with labels to search and judge on, not those you report.")]
MaxDrop = Annotated[
    float | None, typer.Option(min=0, metavar="POINTS", help="Most points of the metric to lose on --dev.")
]
RoundingOption = Annotated[
    str | None,
    typer.Option("--rounding", help="INT8, FP8: gptq (default) sets errors of weights against each other; or nearest."),
]
AttentionOption = Annotated[
    str,
    typer.Option(
        "--attention",
        help="In what is in 16 bit: plain, or ONNX's operator, which TensorRT builds as a fused kernel or not at all.",
    ),
]
PackedOption = Annotated[
    bool,
    typer.Option("--packed", help="A graph without padding: texts share a row, and each attends to itself alone."),
]


def export(
    checkpoint: Annotated[
        Path, typer.Argument(help="A checkpoint of ours, a BERT of others, or hub:OWNER/NAME@REVISION.")
    ],
    out: Out,
    precision: Annotated[
        str, typer.Option(help="What the matrix products execute in: fp32, fp16, bf16, int8 or fp8.")
    ] = "fp32",
    calibration: Calibration = None,
    calibration_rows: CalibrationRows = None,
    dev: Dev = None,
    max_drop: MaxDrop = None,
    rounding: RoundingOption = None,
    attention: AttentionOption = "plain",
    packed: PackedOption = False,
    text_column: TextColumn = None,
    pair_column: PairColumn = None,
    label_column: LabelColumn = None,
    settings: TaskSettings = None,
    overwrite: Overwrite = False,
) -> None:
    """Export to ONNX; nothing is published that does not reproduce its source.

    INT8 and FP8 are calibrated on your texts, FP16 keeps in fp32 what would overflow on them, and all are judged by
    your rows: where one cannot hold --max-drop, the exit status is 3.
    """
    from bertfast.config import Precision
    from bertfast.export.export import export as export_checkpoint
    from bertfast.export.nodes import Attention
    from bertfast.export.plan import ExportPlan
    from bertfast.model.snapshot import local_model
    from bertfast.quantize.fit import Rounding
    from bertfast.text.hub import local_data
    from bertfast.text.labelled import Columns

    wanted = Precision(choice("--precision", precision, [one.value for one in Precision]))
    if rounding and wanted not in (Precision.INT8, Precision.FP8):
        raise ConfigError(f"--rounding is of int8 and fp8, and --precision is {wanted.value}. Leave it out.")
    if calibration and wanted in (Precision.FP32, Precision.BF16):
        raise ConfigError(f"{wanted.value} needs no calibration. Leave --calibration out, or give another --precision.")
    given: dict[str, Any] = {
        "calibration": calibration and local_data(calibration),
        "dev": dev and local_data(dev),
        "max_drop": max_drop,
        "columns": Columns(text=text_column, pair=pair_column, label=label_column),
    }
    given |= {"calibration_rows": calibration_rows} if calibration_rows else {}
    given |= {"rounding": choice("--rounding", rounding, get_args(Rounding))} if rounding else {}
    plan = ExportPlan.parse(given, f"--precision {wanted.value}")
    source, own = local_model(checkpoint), task_settings(settings)
    form = cast(Attention, choice("--attention", attention, get_args(Attention)))
    with notifying() as notify:
        exported = export_checkpoint(
            source,
            out,
            precision=wanted,
            settings=own,
            plan=plan,
            attention=form,
            packed=packed,
            overwrite=overwrite,
            notify=notify,
        )
    if exported.quantization:
        _show(exported.quantization)
    for name, largest in exported.kept_in_fp32.items():
        errors.print(f"kept in fp32: {name}, which reaches {largest:,.0f}", highlight=False)
    print_json({"onnx": str(out)} | _largest(exported.checks) | _in_short(exported))


def adopt(
    folder: Annotated[Path, typer.Argument(help="A folder of optimum or the like: a graph, config.json, a tokenizer.")],
    out: Out,
    overwrite: Overwrite = False,
) -> None:
    """Make an artefact of an ONNX graph that others have exported, as it is; it must pass the checks of export."""
    from bertfast.export.adopt import adopt as adopt_graph
    from bertfast.export.adopt import foreign_graph

    adopted = adopt_graph(foreign_graph(folder), out, overwrite=overwrite)
    print_json({"onnx": str(out), "precision": adopted.precision.value} | _largest(adopted.checks))


def _largest(checks: Mapping[str, Mapping[str, float]]) -> dict[str, Any]:
    return {"largest_relative_error": {runtime: max(errors_of.values()) for runtime, errors_of in checks.items()}}


def _show(quantization: Quantization) -> None:
    """Product by product, on standard error."""
    restored = sum(row.executed == "restored" for row in quantization.products)
    caption = f"{quantization.share:.1%} of the weights in eight bits, {restored} products restored"
    table = Table(box=SIMPLE_HEAD, padding=(0, 1), caption=caption, caption_justify="left")
    for heading in ("product", "executed", "method", "its error", "model's error without"):
        table.add_column(heading, justify="right" if "error" in heading else "left", overflow="fold")
    for row in quantization.products:
        figures = (f"{100 * value:.2f}%" for value in (row.error, row.error_without))
        table.add_row(row.product.removeprefix("bert.encoder."), row.executed, row.method, *figures)
    console = Console(stderr=True, width=None if errors.is_terminal else 140)
    console.print(table, highlight=False)


def _in_short(exported: Exported) -> dict[str, Any]:
    found: dict[str, Any] = {}
    if exported.quantization:
        found["quantized_share_of_weights"] = exported.quantization.share
        found["error_on_held_back_text"] = exported.quantization.error
    if exported.kept_in_fp32:
        found["kept_in_fp32"] = dict(exported.kept_in_fp32)
    if exported.losses:
        found["drop_on_dev"] = {name: loss.drop for name, loss in exported.losses.items()}
    return found
