"""sentence-transformers: SentenceTransformer for vectors, CrossEncoder for pairs. Both sort by length themselves."""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from sentence_transformers import CrossEncoder, SentenceTransformer

sys.path.append(str(Path(__file__).parents[1]))
from classifier import USUAL_BATCH_SIZE, Request, Watch, label_answer, refuse_other_tasks, versions

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}

Answers = list[dict[str, Any]]


@dataclass(frozen=True)
class SentenceTransformers:
    """A candidate of bertfast.bench.child; `compute` answers requests in batches of a size, sorted by length."""

    facts: dict[str, Any]
    compute: Callable[[Sequence[Request], int], Answers]

    def answer(self, requests: Sequence[Request], watch: Watch, *, in_order: bool, batch_size: int | None) -> Answers:
        size = batch_size or USUAL_BATCH_SIZE
        if not in_order:
            return self.compute(requests, size)
        batches = (requests[first : first + size] for first in range(0, len(requests), size))
        return [answer for batch in batches for answer in self.compute(batch, size)]


def load(job: dict[str, Any]) -> SentenceTransformers:
    refuse_other_tasks(job, "classify", "embed")
    if job["threads"]:
        torch.set_num_threads(job["threads"])
    compute = cross_encoder(job) if job["task"] == "classify" else sentence_encoder(job)
    libraries = versions("sentence-transformers", "torch", "transformers", "tokenizers")
    return SentenceTransformers({"precision": job["options"]["dtype"], "libraries": libraries}, compute)


def cross_encoder(job: dict[str, Any]) -> Callable[[Sequence[Request], int], Answers]:
    """Raises ValueError when it is asked for single texts, which CrossEncoder does not take."""
    settings = {"dtype": DTYPES[job["options"]["dtype"]]}
    model = CrossEncoder(job["model"], max_length=job["max_length"], model_kwargs=settings)

    def compute(requests: Sequence[Request], batch_size: int) -> Answers:
        if any("pair" not in request for request in requests):
            raise ValueError("CrossEncoder takes pairs, and these are single texts.")
        pairs = [(request["text"], request["pair"]) for request in requests]
        rows = model.predict(pairs, batch_size=batch_size, apply_softmax=True, show_progress_bar=False)
        return [label_answer(dict(zip(job["labels"], row.tolist(), strict=True))) for row in rows]

    return compute


def sentence_encoder(job: dict[str, Any]) -> Callable[[Sequence[Request], int], Answers]:
    model = SentenceTransformer(job["model"], model_kwargs={"dtype": DTYPES[job["options"]["dtype"]]})
    model.max_seq_length = job["max_length"]

    def compute(requests: Sequence[Request], batch_size: int) -> Answers:
        texts = [text for request in requests for text in (request["text"], request.get("pair")) if text is not None]
        rows = iter(model.encode(texts, batch_size=batch_size, show_progress_bar=False))
        return [embed_answer(next(rows), next(rows) if "pair" in request else None) for request in requests]

    return compute


def embed_answer(vector: np.ndarray, pair: np.ndarray | None) -> dict[str, Any]:
    """bertfast's answer to a text, or to a pair with the cosine of its two vectors."""
    if pair is None:
        return {"embedding": vector}
    cosine = float(vector @ pair) / float(np.linalg.norm(vector) * np.linalg.norm(pair))
    return {"embedding": vector, "pair_embedding": pair, "score": cosine}
