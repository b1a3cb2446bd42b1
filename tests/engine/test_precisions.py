"""Every precision that is exported is built for every GPU that multiplies in it, and refused by name for the others."""

from __future__ import annotations

from pathlib import Path

import pytest

from bertfast.config import Precision, ShapeProfile
from bertfast.engine.build import build, open_source
from bertfast.engine.recipe import Recipe
from bertfast.errors import EngineError
from bertfast.export.export import export
from bertfast.export.plan import ExportPlan
from tests.conftest import labelled_rows, write_rows

TARGETS = ("SM75", "SM80", "SM86", "SM89", "SM120")
PROFILE = ShapeProfile(batch=(1, 2, 4), length=(1, 16, 64))


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
    texts = write_rows(tmp_path / "texts.jsonl", [{"text": row["text"]} for row in labelled_rows(160, 4)])
    calibrated = precision in (Precision.INT8, Precision.FP8)
    plan = ExportPlan(calibration=texts if calibrated else None, rounding="nearest")
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
