"""OpenVINO through optimum-intel: in fp32, and as it comes, which is bf16 where the CPU has it."""

from __future__ import annotations

import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
from optimum.intel import OVModelForSequenceClassification
from transformers import AutoTokenizer

sys.path.append(str(Path(__file__).parents[1]))
from classifier import Classifier, Watch, padded, refuse_other_tasks, versions

PRECISIONS = {"f32": "fp32", "bf16": "bf16", "f16": "fp16"}


def load(job: dict[str, Any]) -> Classifier:
    refuse_other_tasks(job, "classify")
    settings = dict(job["options"].get("ov_config", {}))
    if job["threads"]:
        settings["INFERENCE_NUM_THREADS"] = str(job["threads"])
    start_s = time.perf_counter()
    model = OVModelForSequenceClassification.from_pretrained(
        job["model"], export=True, compile=False, ov_config=settings
    )
    build_s = time.perf_counter() - start_s
    model.compile()

    def run(inputs: Any, watch: Watch) -> np.ndarray:
        with watch("compute"):
            return model(**inputs).logits

    tokenizer = AutoTokenizer.from_pretrained(job["model"])
    facts = {
        "precision": PRECISIONS[model.request.get_property("INFERENCE_PRECISION_HINT").get_type_name()],
        "libraries": versions("openvino", "optimum-intel", "transformers", "tokenizers", "torch"),
        "build_s": build_s,
    }
    return Classifier(facts, tokenizer, job["labels"], job["max_length"], padded(tokenizer, "np"), run)
