from __future__ import annotations

import json
from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import numpy_helper
from torch import nn
from typer.testing import CliRunner

from bertfast import artifact
from bertfast.backends import Backend, onnx_runtime, open_backend, open_served
from bertfast.backends.predictor import load
from bertfast.backends.pytorch import TorchBackend
from bertfast.cli import app
from bertfast.config import ModelConfig, Precision
from bertfast.errors import AccuracyError, BackendError, ConfigError, DataError
from bertfast.export import quantized as quantizing
from bertfast.export.check import check_export
from bertfast.export.dev import DevRows, Loss
from bertfast.export.export import Exported, _model, export
from bertfast.export.plan import ExportPlan, calibration_text
from bertfast.quantize.product import QuantizedProduct
from bertfast.quantize.simulate import simulated
from bertfast.quantize.walk import quantize
from bertfast.tasks import get_task
from bertfast.text.batch import Batch
from bertfast.text.tokenizer import Tokenizer
from tests.conftest import labelled_rows, write_checkpoint, write_rows

ENCODER = 2 * (4 * 32 * 32 + 2 * 32 * 64)


@pytest.fixture(scope="module")
def texts(tmp_path_factory: pytest.TempPathFactory) -> Path:
    rows = [{"text": row["text"]} for row in labelled_rows(160, 4)]
    return write_rows(tmp_path_factory.mktemp("texts") / "texts.jsonl", rows)


@pytest.fixture(scope="module")
def made(classifier: Path, texts: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Exported]:
    out = tmp_path_factory.mktemp("int8") / "int8"
    return out, export(classifier, out, precision=Precision.INT8, plan=ExportPlan(calibration=texts))


def test_both_runtimes_execute_the_promised_weights_in_int8(made: tuple[Path, Exported]) -> None:
    out, exported = made
    served = open_served(out)
    assert exported.quantization is not None
    assert served.int8_weights == exported.quantization.quantized_weights >= 0.9 * ENCODER
    assert exported.quantization.weights == ENCODER
    for name in ("onnxruntime", "openvino"):
        with open_backend(served, name) as backend:
            assert backend.precision is Precision.INT8
        with pytest.raises(BackendError, match=f"executes .* weights in int8, and {10 * ENCODER:,} were promised"):
            open_backend(replace(served, int8_weights=10 * ENCODER), name)


def test_the_runtimes_give_the_numbers_of_the_simulation(made: tuple[Path, Exported]) -> None:
    worst = {name: max(errors.values()) for name, errors in made[1].checks.items()}
    assert worst["onnxruntime"] < 0.02
    assert worst["openvino"] < 0.06  # around INT8 it computes in bf16, where the CPU has that


def test_the_graph_obeys_the_rules_of_tensorrt(made: tuple[Path, Exported]) -> None:
    """Symmetric, per tensor for activations, per output for weights, and nothing between dequantising and product."""
    graph = onnx.load(made[0] / "model.onnx").graph
    constants = {item.name: numpy_helper.to_array(item) for item in graph.initializer}
    makers = {node.output[0]: node for node in graph.node}
    products = [
        node
        for node in graph.node
        if node.op_type == "MatMul" and makers.get(node.input[0], node).op_type == "DequantizeLinear"
    ]
    assert made[1].quantization is not None
    kept = [row.product for row in made[1].quantization.products if row.executed == "int8"]
    # the last layer's query is of the first tokens alone, so it is a product for itself
    assert len(products) == len(kept) + ("bert.encoder.layer.1.attention.self.query_key_value" in kept)
    for node in products:
        inputs, weights = (makers[name] for name in node.input)
        assert weights.op_type == "DequantizeLinear"
        steps, scale = (constants[name] for name in weights.input)
        assert (steps.dtype, scale.shape) == (np.int8, (steps.shape[1],))
        assert [attribute.i for attribute in weights.attribute] == [1]
        assert steps.min() >= -127
        assert makers[inputs.input[0]].op_type == "QuantizeLinear"
        for pair in (inputs, makers[inputs.input[0]]):
            assert constants[pair.input[1]].shape == ()
            assert constants[pair.input[1]] > 0
            assert constants[pair.input[2]] == 0
            assert constants[pair.input[2]].dtype == np.int8


def test_the_manifest_says_how_int8_was_made(made: tuple[Path, Exported], texts: Path) -> None:
    manifest = artifact.open_manifest(made[0], "onnx")
    account = manifest.settings["quantization"]
    assert manifest.precision is Precision.INT8
    assert manifest.settings["text_sha256"] == {"calibration": artifact.sha256_of(texts)}
    assert (manifest.settings["plan"]["rounding"], account["drop"]) == ("gptq", None)
    assert len(account["products"]) == 8
    assert all(0 < row["error"] < 0.2 for row in account["products"])


def test_the_answers_are_nearly_those_of_the_checkpoint(made: tuple[Path, Exported], classifier: Path) -> None:
    texts = [row["text"] for row in labelled_rows(60, 9)]
    with load(classifier) as source, load(made[0], "onnxruntime") as quantized:
        wanted, found = source.predict(texts), quantized.predict(texts)
    drift = max(abs(a["score"] - b["score"]) for a, b in zip(wanted, found, strict=True))
    assert 0 < drift < 0.05


def test_a_search_on_rows_tells_what_each_runtime_loses(classifier: Path, texts: Path, tmp_path: Path) -> None:
    rows = labelled_rows(40, 8)
    dev = write_rows(tmp_path / "dev.jsonl", rows)
    plan = ExportPlan(calibration=texts, dev=dev, max_drop=100, rounding="nearest")
    exported = export(classifier, tmp_path / "int8", precision=Precision.INT8, plan=plan)
    settings = artifact.open_manifest(tmp_path / "int8").settings
    assert settings["text_sha256"]["dev"] == artifact.sha256_of(dev)

    def labels(path: Path, backend: str) -> list[str]:
        with load(path, backend) as model:
            return [answer["label"] for answer in model.predict([row["text"] for row in rows])]

    def right(found: list[str]) -> int:
        return sum(label == row["label"] for label, row in zip(found, rows, strict=True))

    wanted = labels(classifier, "torch")
    for name in ("onnxruntime", "openvino"):
        found = labels(tmp_path / "int8", name)
        assert exported.losses[name].flips == sum(a != b for a, b in zip(found, wanted, strict=True))
        assert exported.losses[name].drop == pytest.approx(100 * (right(wanted) - right(found)) / len(rows))


def test_products_are_restored_until_the_rows_are_right_again(
    classifier: Path, texts: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One product is broken; the rows' right answers are the checkpoint's own, so every flip is a loss."""
    rows = labelled_rows(60, 8)
    with load(classifier, "torch") as source:
        answers = source.predict([row["text"] for row in rows])
    said = [row | {"label": answer["label"]} for row, answer in zip(rows, answers, strict=True)]
    dev = write_rows(tmp_path / "dev.jsonl", said)

    def broken(*given: Any) -> list[QuantizedProduct]:
        *others, last = quantize(*given)
        return [*others, replace(last, bias_N=-9 * last.bias_N - 3 * np.sign(last.bias_N))]

    monkeypatch.setattr(quantizing, "quantize", broken)
    plan = ExportPlan(calibration=texts, dev=dev, max_drop=0.0, rounding="nearest")
    exported = export(classifier, tmp_path / "int8", precision=Precision.INT8, plan=plan)
    account = exported.quantization
    assert account is not None
    assert account.products[-1].executed == "restored"
    assert account.drop == 0
    assert {loss.flips for loss in exported.losses.values()} == {0}


def test_a_runtime_that_loses_more_than_torch_did_has_further_products_restored(
    classifier: Path, texts: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    dev = write_rows(tmp_path / "dev.jsonl", labelled_rows(40, 8))
    plan = ExportPlan(calibration=texts, dev=dev, max_drop=1, rounding="nearest")
    asked: list[str] = []

    def compare(self: DevRows, backend: Backend) -> Loss:
        asked.append(backend.name)
        return Loss(drop=2 if asked.count(backend.name) <= lossy and backend.name == "openvino" else 0, flips=None)

    monkeypatch.setattr(DevRows, "compare", compare)
    monkeypatch.setattr(DevRows, "drop", lambda self, run: 0.0)
    for lossy in (0, 2):
        asked.clear()
        out = tmp_path / f"int8-{lossy}"
        account = export(classifier, out, precision=Precision.INT8, plan=plan).quantization
        assert account is not None
        assert [row.executed for row in account.products].count("restored") == lossy
        assert asked == ["onnxruntime", "openvino"] * (1 + lossy)
        with load(out, "onnxruntime") as model:
            assert len(model.predict(["a river"])) == 1
    lossy = 99
    with pytest.raises(AccuracyError, match=r"loses 2\.00 points in openvino on 40 rows, of which one is worth 2\.50"):
        export(classifier, tmp_path / "no", precision=Precision.INT8, plan=plan)
    assert not (tmp_path / "no").exists()


def test_what_loses_too_much_is_not_published(
    classifier: Path, texts: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    dev = write_rows(tmp_path / "dev.jsonl", labelled_rows(40, 8))
    monkeypatch.setattr(DevRows, "drop", lambda self, run: 5.0)
    plan = ExportPlan(calibration=texts, dev=dev, max_drop=1, rounding="nearest")
    with pytest.raises(AccuracyError, match=r"int8 loses 5\.00 points at the least"):
        export(classifier, tmp_path / "int8", precision=Precision.INT8, plan=plan)
    assert not (tmp_path / "int8").exists()


@pytest.mark.parametrize(
    ("flags", "exact"),
    [("avx2 avx512f avx512_vnni", False), ("avx_vnni", False), ("avx512f avx512_bf16", True), (None, True)],
)
def test_exact_kernels_are_asked_for_where_the_others_overflow(
    made: tuple[Path, Exported], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, flags: str | None, exact: bool
) -> None:
    if flags:
        (tmp_path / "cpuinfo").write_text(f"processor : 0\nflags : fpu sse {flags}\n")
    monkeypatch.setattr(onnx_runtime, "_CPU", tmp_path / "cpuinfo")
    with open_backend(open_served(made[0]), "onnxruntime") as backend:
        assert isinstance(backend, onnx_runtime.OnnxRuntimeBackend)
        options = backend.session.get_session_options()
        with nullcontext() if exact else pytest.raises(RuntimeError, match="does not have configuration"):
            assert options.get_session_config_entry("session.x64quantprecision") == "1"


def test_restored_products_stay_in_float(classifier: Path, texts: Path, tmp_path: Path) -> None:
    """Also where the products around them are in INT8, and where what they read was to be divided by others."""
    served = open_served(classifier)
    with TorchBackend(served, device="cpu") as source:
        plan = ExportPlan(calibration=texts)
        text = calibration_text(served, plan)
        quantized, _ = next(quantizing.quantize_checkpoint(served, source, text, plan, "int8", None, lambda *_: None))
    for kept in (quantized[1:], quantized[::2], quantized[1::2]):
        onnx.save(_model(served, kept), tmp_path / "model.onnx")
        weights = sum(one.weights for one in kept)
        exported = replace(
            served, kind="onnx", path=tmp_path, precision=Precision.INT8, int8_weights=weights, checkpoint=None
        )
        with (
            TorchBackend(served, device="cpu") as source,
            open_backend(exported, "onnxruntime") as backend,
            simulated(source.module, kept),
        ):
            assert max(check_export(exported, source, backend).values()) < 0.02


TASKS = {"tag": ("O", "B-a", "I-a"), "multi-label": ("a", "b"), "rerank": ("LABEL_0",), "regress": ("LABEL_0",)}


def calibration_of(task: str, path: Path) -> Path:
    """Texts in what the task reads."""
    lines = [row["text"] for row in labelled_rows(160, 4)]
    if task == "tag":
        path.write_text("\n\n".join("\n".join(f"{word} O" for word in line.split()) for line in lines) + "\n")
        return path.rename(path.with_suffix(".conll"))
    if task == "qa":
        return write_rows(
            path, [{"id": str(i), "question": "Who waits?", "context": line} for i, line in enumerate(lines)]
        )
    if task in ("rerank", "regress"):
        return write_rows(path, [{"text": "Who waits?", "pair": line} for line in lines])
    return write_rows(path, [{"text": line} for line in lines])


@pytest.mark.parametrize("task", ["tag", "embed", "pretrain", "qa", "multi-label", "rerank", "regress"])
def test_other_tasks_are_quantised_too(
    task: str, tiny_config: ModelConfig, tokenizer: Tokenizer, tmp_path: Path
) -> None:
    checkpoint = write_checkpoint(tmp_path / "checkpoint", task, tiny_config, tokenizer, TASKS.get(task, ()))
    plan = ExportPlan(calibration=calibration_of(task, tmp_path / "texts.jsonl"), rounding="nearest")
    exported = export(checkpoint, tmp_path / "int8", precision=Precision.INT8, plan=plan)
    assert set(exported.checks) == {"onnxruntime", "openvino", "fp16 around INT8"}


def test_other_shapes_are_quantised_too(tiny_config: ModelConfig, tokenizer: Tokenizer, tmp_path: Path) -> None:
    """Another activation, and vectors of the first token alone."""
    config = tiny_config.model_copy(update={"hidden_act": "relu"})
    settings = get_task("embed").settings(pooling="cls")
    checkpoint = write_checkpoint(tmp_path / "checkpoint", "embed", config, tokenizer, (), settings)
    plan = ExportPlan(calibration=calibration_of("embed", tmp_path / "texts.jsonl"))
    account = export(checkpoint, tmp_path / "int8", precision=Precision.INT8, plan=plan).quantization
    assert account is not None
    assert account.error < 0.2


def test_a_long_context_is_held_back_with_all_its_windows(
    tiny_config: ModelConfig, tokenizer: Tokenizer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    checkpoint = write_checkpoint(tmp_path / "checkpoint", "qa", tiny_config, tokenizer, ())
    rows = [{"id": str(i), "question": f"Who waits {i}?", "context": "The river waits. " * 60} for i in range(16)]
    served = open_served(checkpoint)
    plan = ExportPlan(calibration=write_rows(tmp_path / "rows.jsonl", rows), rounding="nearest")
    texts = calibration_text(served, plan)
    assert all(len(windows) > 1 for windows in texts)
    judged: list[int] = []

    class Noting(quantizing.Trial):
        def __init__(self, model: nn.Module, batches: Sequence[Batch], drop: Any) -> None:
            judged.append(sum(len(batch.input_ids) for batch in batches))
            super().__init__(model, batches, drop)

    monkeypatch.setattr(quantizing, "Trial", Noting)
    with TorchBackend(served, device="cpu") as source:
        next(quantizing.quantize_checkpoint(served, source, texts, plan, "int8", None, lambda *_: None))
    assert judged == [len(texts[0]) + len(texts[8])]


def test_calibration_sees_the_whole_file_where_it_is_larger_than_what_is_used(classifier: Path, tmp_path: Path) -> None:
    rows = [{"text": "the river " * (10 + place // 500)} for place in range(1000)]
    plan = ExportPlan(calibration=write_rows(tmp_path / "sorted.jsonl", rows), calibration_rows=512)
    lengths = [len(text[0]) for text in calibration_text(open_served(classifier), plan)]
    assert [lengths.count(length) for length in sorted(set(lengths))] == [256, 256]


@pytest.mark.parametrize("texts", [["a river"] * 300, ["The river waits near the bridge. " * 30] * 31])
def test_too_little_text_is_refused_with_what_is_wanted(texts: list[str], classifier: Path, tmp_path: Path) -> None:
    few = write_rows(tmp_path / "few.jsonl", [{"text": text} for text in texts])
    with pytest.raises(DataError, match=r"few\.jsonl has [\d,]+ tokens in \d+ sequences, and .* wants 2,000 in 32"):
        export(classifier, tmp_path / "int8", precision=Precision.INT8, plan=ExportPlan(calibration=few))


def test_int8_and_calibration_belong_together(classifier: Path, texts: Path, tmp_path: Path) -> None:
    for precision in (Precision.INT8, Precision.FP8):
        with pytest.raises(ConfigError, match=f"{precision.value} is calibrated on texts .* --calibration FILE"):
            export(classifier, tmp_path / "none", precision=precision)
    with pytest.raises(ConfigError, match="--dev and --max-drop belong together"):
        ExportPlan(calibration=texts, max_drop=0.3)
    with pytest.raises(ConfigError, match=r"--calibration and --dev are both .*Split the file"):
        ExportPlan(calibration=texts, dev=texts, max_drop=0.3)


def test_the_command_line_prints_the_share_and_ends_with_3_where_the_drop_is_not_held(
    classifier: Path, texts: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    command = ["export", str(classifier), "--precision", "int8", "--calibration", str(texts), "--rounding", "nearest"]
    result = CliRunner().invoke(app, [*command, "--out", str(tmp_path / "int8")])
    assert result.exit_code == 0, result.output
    assert 0.9 <= json.loads(result.stdout)["quantized_share_of_weights"] <= 1
    assert "layer.0.attention.self.query_key_value" in result.stderr
    dev = write_rows(tmp_path / "dev.jsonl", labelled_rows(40, 8))
    monkeypatch.setattr(DevRows, "drop", lambda self, run: 5.0)
    result = CliRunner().invoke(app, [*command, "--out", str(tmp_path / "no"), "--dev", str(dev), "--max-drop", "1"])
    assert result.exit_code == 3
    assert not (tmp_path / "no").exists()
