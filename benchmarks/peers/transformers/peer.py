"""transformers as its users run a classifier: the model by hand (eager or compiled), or its `pipeline`."""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import AutoModelForSequenceClassification, AutoTokenizer, pipeline

sys.path.append(str(Path(__file__).parents[1]))
from classifier import USUAL_BATCH_SIZE, Classifier, Request, Watch, label_answer, padded, refuse_other_tasks, versions

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}
DEVICE = "cuda" if torch.cuda.is_available() else "cpu"


def load(job: dict[str, Any]) -> Classifier | Pipeline:
    refuse_other_tasks(job, "classify")
    if job["threads"]:
        torch.set_num_threads(job["threads"])
    if job["options"].get("pipeline"):
        return load_pipeline(job)
    dtype = DTYPES[job["options"]["dtype"]]
    model = AutoModelForSequenceClassification.from_pretrained(job["model"], dtype=dtype).to(DEVICE).eval()
    facts = facts_of(model)
    if job["options"].get("compile"):
        model = torch.compile(model, dynamic=True)
    tokenizer = AutoTokenizer.from_pretrained(job["model"])
    return Classifier(facts, tokenizer, job["labels"], job["max_length"], padded(tokenizer, "pt"), runner(model))


def runner(model: Callable[..., Any]) -> Callable[[Any, Watch], np.ndarray]:
    @torch.inference_mode()
    def run(inputs: Any, watch: Watch) -> np.ndarray:
        with watch("upload"):
            inputs = inputs.to(DEVICE)
            synchronize()
        with watch("compute"):
            logits = model(**inputs).logits
            synchronize()
        with watch("download"):
            return logits.float().cpu().numpy()

    return run


def synchronize() -> None:
    if DEVICE == "cuda":
        torch.cuda.synchronize()


@dataclass(frozen=True)
class Pipeline:
    """`pipeline("text-classification")`: its batches are in the order given, and it has no phases."""

    facts: dict[str, Any]
    pipe: Any
    max_length: int

    def answer(
        self, requests: Sequence[Request], watch: Watch, *, in_order: bool, batch_size: int | None
    ) -> list[dict[str, Any]]:
        texts = [
            {"text": request["text"], "text_pair": request["pair"]} if "pair" in request else request["text"]
            for request in requests
        ]
        size = batch_size or USUAL_BATCH_SIZE
        found = self.pipe(texts, batch_size=size, truncation=True, max_length=self.max_length)
        return [label_answer({item["label"]: item["score"] for item in scores}) for scores in found]


def load_pipeline(job: dict[str, Any]) -> Pipeline:
    pipe = pipeline("text-classification", model=job["model"], device=DEVICE, top_k=None)
    return Pipeline(facts_of(pipe.model), pipe, job["max_length"])


def facts_of(model: torch.nn.Module) -> dict[str, Any]:
    names = {dtype: name for name, dtype in DTYPES.items()}
    return {
        "precision": names[next(model.parameters()).dtype],
        "libraries": versions("torch", "transformers", "tokenizers"),
    }
