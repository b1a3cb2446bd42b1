"""CTranslate2's encoder and pooler, with the classifier's one layer in numpy.

It gets each row's own ids (lengths follow from them) and token types: accuracy fell from 97.6 to 89.3% for a user who
left the lengths of padded rows out (CTranslate2#1286), and pairs need their second segment (CTranslate2#1383).
"""

from __future__ import annotations

import sys
import time
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import ctranslate2
import numpy as np
from safetensors.numpy import load_file
from transformers import AutoTokenizer

sys.path.append(str(Path(__file__).parents[1]))
from classifier import Classifier, Rows, Watch, refuse_other_tasks, versions

PRECISIONS = {"float32": "fp32", "int8_float32": "int8"}


def load(job: dict[str, Any]) -> Classifier:
    refuse_other_tasks(job, "classify")
    wanted = job["options"]["compute_type"]
    with TemporaryDirectory() as folder:
        start_s = time.perf_counter()
        converter = ctranslate2.converters.TransformersConverter(job["model"])
        converter.convert(folder, quantization=wanted, force=True)
        build_s = time.perf_counter() - start_s
        encoder = ctranslate2.Encoder(folder, compute_type=wanted, intra_threads=job["threads"] or 0)
    weights = load_file(Path(job["model"]) / "model.safetensors")
    weight, bias = weights["classifier.weight"], weights["classifier.bias"]

    def run(rows: Rows, watch: Watch) -> np.ndarray:
        with watch("compute"):
            ids, segments = ([row[name] for row in rows] for name in ("input_ids", "token_type_ids"))
            output = encoder.forward_batch(ids, token_type_ids=segments)
            return np.array(output.pooler_output) @ weight.T + bias

    facts = {
        "precision": PRECISIONS[encoder.compute_type],
        "libraries": versions("ctranslate2", "transformers", "tokenizers"),
        "build_s": build_s,
    }
    tokenizer = AutoTokenizer.from_pretrained(job["model"])
    return Classifier(facts, tokenizer, job["labels"], job["max_length"], lambda rows: rows, run, pads=False)
