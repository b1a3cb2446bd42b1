"""Every precision that is exported is built for every GPU that multiplies in it, and refused by name for the others."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from bertfast.config import ModelConfig, Precision, ShapeProfile
from bertfast.engine.build import build, open_source
from bertfast.engine.recipe import Recipe
from bertfast.errors import EngineError
from bertfast.export.export import export
from bertfast.export.plan import ExportPlan
from bertfast.text.tokenizer import Tokenizer
from tests.conftest import labelled_rows, write_checkpoint, write_rows

TARGETS = ("SM75", "SM80", "SM86", "SM89", "SM120")
PROFILE = ShapeProfile(batch=(1, 2, 4), length=(1, 16, 64))
ATTENTION = re.compile("no plan for SM86 .*Attention operation was not supported by a dedicated kernel", re.DOTALL)


def texts(tmp_path: Path) -> Path:
    return write_rows(tmp_path / "texts.jsonl", [{"text": row["text"]} for row in labelled_rows(160, 4)])


@pytest.mark.parametrize(
    ("precision", "first"),
    [
        (Precision.FP32, "SM80"),
        (Precision.FP16, "SM75"),
        (Precision.BF16, "SM80"),
        (Precision.INT8, "SM75"),
        (Precision.FP8, "SM89"),
    ],
)
def test_a_precision_is_built_from_its_first_gpu_on(
    classifier: Path, tmp_path: Path, precision: Precision, first: str
) -> None:
    calibrated = precision in (Precision.INT8, Precision.FP8)
    plan = ExportPlan(calibration=texts(tmp_path) if calibrated else None, rounding="nearest")
    export(classifier, tmp_path / "onnx", precision=precision, plan=plan)
    source = open_source(tmp_path / "onnx")
    place = TARGETS.index(first)
    able = Recipe(library="tensorrt-rtx", profiles=(PROFILE,), targets=TARGETS[place:])
    record = build(source, tmp_path / "engine", able)
    assert [made.target for made in record.plans] == list(TARGETS[place:])
    for target in TARGETS[:place]:
        unable = Recipe(library="tensorrt-rtx", profiles=(PROFILE,), targets=(target,))
        with pytest.raises(EngineError, match=f"{target} has no products in {precision.value} .*the first is {first}"):
            build(source, tmp_path / "none", unable)


@pytest.mark.parametrize("precision", [Precision.FP16, Precision.BF16, Precision.INT8])
def test_the_attention_operator_is_one_kernel_or_no_engine(
    tiny_config: ModelConfig, tokenizer: Tokenizer, tmp_path: Path, precision: Precision
) -> None:
    plan = ExportPlan(calibration=texts(tmp_path) if precision is Precision.INT8 else None, rounding="nearest")
    recipe = Recipe(library="tensorrt-rtx", profiles=(PROFILE,), targets=("SM86", "SM120"))
    for heads in (2, 4):
        config = tiny_config.model_copy(update={"hidden_size": 32, "num_attention_heads": heads})
        checkpoint = write_checkpoint(tmp_path / f"{heads}", "classify", config, tokenizer, ("no", "yes"))
        export(checkpoint, tmp_path / f"onnx{heads}", precision=precision, plan=plan, attention="operator")
    assert len(build(open_source(tmp_path / "onnx2"), tmp_path / "engine", recipe).plans) == 2
    with pytest.raises(EngineError, match=ATTENTION):  # heads of 8 have no kernel
        build(open_source(tmp_path / "onnx4"), tmp_path / "none", recipe)
