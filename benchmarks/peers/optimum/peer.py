"""ONNX Runtime through optimum: the checkpoint exported by optimum, as it is or with dynamically quantised INT8."""

from __future__ import annotations

import sys
import time
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import onnxruntime
from optimum.onnxruntime import AutoQuantizationConfig, ORTModelForSequenceClassification, ORTQuantizer
from transformers import AutoTokenizer

sys.path.append(str(Path(__file__).parents[1]))
from classifier import Classifier, Watch, padded, refuse_other_tasks, versions


def load(job: dict[str, Any]) -> Classifier:
    refuse_other_tasks(job, "classify")
    settings = onnxruntime.SessionOptions()
    if job["threads"]:
        settings.intra_op_num_threads = job["threads"]
    with TemporaryDirectory() as folder:
        start_s = time.perf_counter()
        build(job["model"], folder, quantized=job["options"]["precision"] == "int8")
        build_s = time.perf_counter() - start_s
        model = ORTModelForSequenceClassification.from_pretrained(
            folder, provider="CPUExecutionProvider", session_options=settings
        )

    def run(inputs: Any, watch: Watch) -> np.ndarray:
        with watch("compute"):
            return model(**inputs).logits

    tokenizer = AutoTokenizer.from_pretrained(job["model"])
    libraries = versions("onnxruntime", "optimum-onnx", "transformers", "tokenizers", "torch")
    facts = {"precision": job["options"]["precision"], "libraries": libraries, "build_s": build_s}
    return Classifier(facts, tokenizer, job["labels"], job["max_length"], padded(tokenizer, "np"), run)


def build(checkpoint: str, folder: str, *, quantized: bool) -> None:
    """Export into `folder`; where it is quantised, the graph there is the quantised one alone."""
    model = ORTModelForSequenceClassification.from_pretrained(checkpoint, export=True)
    if not quantized:
        model.save_pretrained(folder)
        return
    settings = AutoQuantizationConfig.avx512_vnni(is_static=False, per_channel=False)
    ORTQuantizer.from_pretrained(model).quantize(settings, save_dir=folder, file_suffix=None)
