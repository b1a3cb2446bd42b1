"""Attention as ONNX's own operator."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
from safetensors.numpy import load_file, save_file

from bertfast.backends.served import ENGINE_FILE
from bertfast.config import ModelConfig, Precision
from bertfast.errors import CheckError, ConfigError
from bertfast.export.export import export
from bertfast.export.plan import ExportPlan
from bertfast.text.tokenizer import Tokenizer
from tests.conftest import labelled_rows, write_checkpoint, write_rows


def kinds(path: Path) -> list[str]:
    return [node.op_type for node in onnx.load(path).graph.node]


@pytest.fixture
def texts(tmp_path: Path) -> Path:
    return write_rows(tmp_path / "texts.jsonl", [{"text": row["text"]} for row in labelled_rows(160, 4)])


@pytest.mark.parametrize("precision", [Precision.FP16, Precision.BF16])
@pytest.mark.parametrize("task", ["classify", "tag"])
def test_the_operator_stands_for_the_whole_of_attention(
    tiny_config: ModelConfig, tokenizer: Tokenizer, tmp_path: Path, precision: Precision, task: str
) -> None:
    labels = ("O", "B-X", "I-X") if task == "tag" else ("no", "yes")
    checkpoint = write_checkpoint(tmp_path / "checkpoint", task, tiny_config, tokenizer, labels)
    exported = export(checkpoint, tmp_path / "onnx", precision=precision, attention="operator")
    (errors,) = exported.checks.values()
    assert {"rows of nothing but padding", "padding invariance", "length 1"} <= set(errors)
    found = kinds(tmp_path / "onnx" / "model.onnx")
    alone = task == "classify"  # the query of the first token, in the last layer
    assert found.count("Attention") == tiny_config.num_hidden_layers - alone
    assert found.count("Softmax") == alone
    assert onnx.load(tmp_path / "onnx" / "model.onnx").opset_import[0].version == 23


def test_an_int8_artefact_has_it_for_engines_alone(classifier: Path, texts: Path, tmp_path: Path) -> None:
    plan = ExportPlan(calibration=texts, rounding="nearest")
    export(classifier, tmp_path / "int8", precision=Precision.INT8, plan=plan, attention="operator")
    assert "Attention" not in kinds(tmp_path / "int8" / "model.onnx")
    assert "Attention" in kinds(tmp_path / "int8" / ENGINE_FILE)


def test_fp32_has_no_kernel_for_it(classifier: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"16 bit alone, and --precision is fp32.*--precision fp16"):
        export(classifier, tmp_path / "onnx", attention="operator")


def test_what_overflows_within_it_is_refused_by_name(classifier: Path, tmp_path: Path) -> None:
    weights = load_file(classifier / "model.safetensors")
    for kind in ("query", "key"):
        name = f"bert.encoder.layer.0.attention.self.{kind}.weight"
        weights[name] = weights[name] * np.float32(2.0**7)
    folder = tmp_path / "checkpoint"
    folder.mkdir()
    for file in ("config.json", "tokenizer.json", "vocab.txt"):
        (folder / file).write_bytes((classifier / file).read_bytes())
    save_file(weights, folder / "model.safetensors", {"format": "pt"})
    with pytest.raises(CheckError, match=r"layer\.0\.attention\.self/scores reaches .* without --attention operator"):
        export(folder, tmp_path / "onnx", precision=Precision.FP16, attention="operator")
