"""ONNX Runtime through optimum: the checkpoint exported by optimum, as it is or in INT8, with ranges taken at run time
(dynamic) or from texts (static)."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import onnxruntime
from datasets import Dataset
from optimum.onnxruntime import (
    AutoCalibrationConfig,
    AutoQuantizationConfig,
    ORTModelForSequenceClassification,
    ORTQuantizer,
)
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
        build(job, folder)
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


def build(job: Mapping[str, Any], folder: str) -> None:
    """Export into `folder`; where it is quantised, the graph there is the quantised one alone."""
    options = job["options"]
    model = ORTModelForSequenceClassification.from_pretrained(job["model"], export=True)
    if options["precision"] == "fp32":
        model.save_pretrained(folder)
        return
    quantizer = ORTQuantizer.from_pretrained(model)
    texts = options.get("calibration")
    settings = AutoQuantizationConfig.avx512_vnni(is_static=texts is not None, per_channel=False)
    ranges = None
    if texts is not None:
        rows = calibration_rows(job, Path(job["model"]).with_name(texts), options["calibration_rows"])
        with TemporaryDirectory() as scratch:
            ranges = quantizer.fit(
                rows,
                AutoCalibrationConfig.minmax(rows),
                onnx_augmented_model_name=f"{scratch}/augmented.onnx",
                operators_to_quantize=settings.operators_to_quantize,
            )
    quantizer.quantize(settings, save_dir=folder, file_suffix=None, calibration_tensors_range=ranges)


def calibration_rows(job: Mapping[str, Any], file: Path, count: int) -> Dataset:
    """The first rows of a file of JSON lines with `text` and perhaps `pair`, tokenised one by one: without padding."""
    if not file.is_file():
        raise ValueError(f"static quantisation takes its ranges from {file}, which is not there.")
    with file.open(encoding="utf-8") as lines:
        rows = [json.loads(line) for line, _ in zip(lines, range(count), strict=False)]
    tokenizer = AutoTokenizer.from_pretrained(job["model"])
    return Dataset.from_list(
        [dict(tokenizer(row["text"], row.get("pair"), truncation=True, max_length=job["max_length"])) for row in rows]
    )
