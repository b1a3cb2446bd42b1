"""Exported folders in the hands of others: optimum in its own environment, and plain ONNX Runtime."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path

import numpy as np
import onnxruntime
import pytest

import bertfast
from bertfast.backends import open_backend, open_served
from bertfast.config import ModelConfig
from bertfast.export.export import export
from bertfast.text.batch import Batch, pad
from bertfast.text.tokenizer import Tokenizer
from tests.conftest import write_checkpoint

PYTHON = Path(__file__).parents[2] / "benchmarks" / "peers" / "optimum" / ".venv" / "bin" / "python"
TEXTS = [("The river crosses the garden.", None), ("A lantern waits.", "Where does the bridge stand?")]
LABELS = ("building", "nature", "tool")

OPEN = """
import json, sys
import numpy as np
import optimum.onnxruntime
from transformers import AutoTokenizer

kind, folder, texts, out = sys.argv[1:]
model = getattr(optimum.onnxruntime, kind).from_pretrained(folder)
pairs = json.loads(texts)
tokenizer = AutoTokenizer.from_pretrained(folder)
inputs = [tokenizer(*[text for text in pair if text is not None], return_tensors="np") for pair in pairs]
found = [{name: array for name, array in model(**item).items() if array is not None} for item in inputs]
np.savez(out, **{f"{name}.{i}": array for i, arrays in enumerate(found) for name, array in arrays.items()})
print(json.dumps({"labels": model.config.id2label, "longest": tokenizer.model_max_length}))
"""


@pytest.fixture(params=["classify", "multi-label", "regress", "rerank", "tag", "qa", "embed"])
def served(request: pytest.FixtureRequest, tiny_config: ModelConfig, tokenizer: Tokenizer, tmp_path: Path) -> Path:
    """An exported model of each task."""
    several, one = LABELS, ("LABEL_0",)
    labels = {"classify": several, "multi-label": several, "regress": one, "rerank": one, "tag": ("O", "B-a", "I-a")}
    name = request.param
    checkpoint = write_checkpoint(tmp_path / "model", name, tiny_config, tokenizer, labels.get(name, ()))
    export(checkpoint, tmp_path / "onnx")
    return tmp_path / "onnx"


def batch_of(path: Path, pair: tuple[str, str | None]) -> Batch:
    tokenizer = open_served(path).context.tokenizer
    return pad(tokenizer.encode([pair], 64), tokenizer.pad_id)


@pytest.mark.slow
@pytest.mark.peers
def test_optimum_opens_what_we_export(served: Path, tmp_path: Path) -> None:
    if not PYTHON.exists():
        pytest.skip("optimum has no environment: make peer-optimum")
    model = open_served(served)
    classes = {"qa": "QuestionAnswering", "tag": "TokenClassification", "embed": "CustomTasks"}
    kind = f"ORTModelFor{classes.get(model.task.name, 'SequenceClassification')}"
    out = tmp_path / "found.npz"
    done = subprocess.run(
        [PYTHON, "-c", OPEN, kind, served, json.dumps(TEXTS), out], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    said = json.loads(done.stdout.splitlines()[-1])
    assert said["longest"] == model.context.max_length
    if model.context.labels:
        assert tuple(said["labels"].values()) == model.context.labels
    found = np.load(out)
    with open_backend(model, "onnxruntime") as backend:
        for place, pair in enumerate(TEXTS):
            for name, expected in backend.run(batch_of(served, pair)).items():
                np.testing.assert_allclose(found[f"{name}.{place}"], expected, rtol=1e-5, atol=1e-6)


def test_plain_onnxruntime_needs_the_file_alone(served: Path) -> None:
    session = onnxruntime.InferenceSession(served / "model.onnx", providers=["CPUExecutionProvider"])
    batch = batch_of(served, TEXTS[1])
    names = [output.name for output in session.get_outputs()]
    with open_backend(open_served(served), "onnxruntime") as backend:
        expected = backend.run(batch)
    assert names == list(expected)
    for name, array in zip(names, session.run(None, batch.arrays), strict=True):
        np.testing.assert_array_equal(array, expected[name])


def test_config_json_is_that_of_the_checkpoint(exported: Path, classifier: Path) -> None:
    ours, theirs = (json.loads((path / "config.json").read_text()) for path in (exported, classifier))
    assert ours == theirs
    with bertfast.load(exported) as model:
        assert model.model.kind == "onnx"
