"""What the peers' classifiers share: texts to labels around a system that turns token ids into logits.

Each peer's environment has its own transformers; its tokenizer is used as its documentation shows. A peer.py finds this
file in the folder above its own.
"""

from __future__ import annotations

import importlib.metadata
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np

USUAL_BATCH_SIZE = 32

Request = Mapping[str, str]
Rows = Sequence[Mapping[str, list[int]]]


class Watch(Protocol):
    """The stopwatch of bertfast.bench.child."""

    def __call__(self, phase: str) -> AbstractContextManager[object]: ...

    def count(self, padded_tokens: int) -> object: ...


class Unwatched:
    """A stopwatch that measures nothing."""

    def __call__(self, phase: str) -> AbstractContextManager[object]:
        return nullcontext()

    def count(self, padded_tokens: int) -> None: ...


@dataclass(frozen=True)
class Classifier:
    """A candidate of bertfast.bench.child whose system takes batches of token ids.

    Attributes:
        facts: what the report says of it: `precision`, `libraries`, and `build_s` where something was built.
        tokenizer: transformers' own, with the vocabulary of the checkpoint.
        labels: class names in the order of the logits.
        max_length: tokens of a sequence; what is longer is cut.
        collate: rows of token ids as the batch that the system takes.
        run: the logits [B, C] of such a batch; phases by the stopwatch.
        pads: whether it computes on the padding of a batch.
    """

    facts: dict[str, Any]
    tokenizer: Any
    labels: Sequence[str]
    max_length: int
    collate: Callable[[Rows], Any]
    run: Callable[[Any, Watch], np.ndarray]
    pads: bool = True

    def answer(
        self, requests: Sequence[Request], watch: Watch, *, in_order: bool, batch_size: int | None
    ) -> list[dict[str, Any]]:
        with watch("tokenize"):
            rows = self._encode(requests)
        lengths = [len(row["input_ids"]) for row in rows]
        answers: list[dict[str, Any]] = [{}] * len(rows)
        for indices in batches(lengths, batch_size or USUAL_BATCH_SIZE, in_order=in_order):
            batch = [lengths[i] for i in indices]
            watch.count(max(batch) * len(batch) if self.pads else sum(batch))
            with watch("tokenize"):
                inputs = self.collate([rows[i] for i in indices])
            logits = self.run(inputs, watch)
            with watch("decode"):
                for i, answer in zip(indices, decode(logits, self.labels), strict=True):
                    answers[i] = answer
        return answers

    def lengths(self, requests: Sequence[Request]) -> list[list[int]]:
        return [[len(row["input_ids"])] for row in self._encode(requests)]

    def grid(self, batch_size: int, length: int) -> Callable[[], object]:
        row = {"input_ids": [self.tokenizer.unk_token_id] * length, "attention_mask": [1] * length}
        inputs = self.collate([row | {"token_type_ids": [0] * length}] * batch_size)
        return lambda: self.run(inputs, Unwatched())

    def _encode(self, requests: Sequence[Request]) -> Rows:
        pairs = [request["pair"] for request in requests] if "pair" in requests[0] else None
        texts = [request["text"] for request in requests]
        encoded = self.tokenizer(texts, pairs, truncation=True, max_length=self.max_length)
        return [dict(zip(encoded, row, strict=True)) for row in zip(*encoded.values(), strict=True)]


def batches(lengths: Sequence[int], batch_size: int, *, in_order: bool) -> Iterable[Sequence[int]]:
    """Places of sequences, batch by batch: as they come, or of similar length, the longest first."""
    order = range(len(lengths)) if in_order else sorted(range(len(lengths)), key=lengths.__getitem__, reverse=True)
    return (order[first : first + batch_size] for first in range(0, len(order), batch_size))


def decode(logits: np.ndarray, labels: Sequence[str]) -> list[dict[str, Any]]:
    """bertfast's answers: the label, its probability, and the probabilities of all labels.

    Args:
        logits: [B, C].
    """
    powers = np.exp(logits - logits.max(axis=1, keepdims=True))
    shares = powers / powers.sum(axis=1, keepdims=True)
    return [label_answer(dict(zip(labels, row.tolist(), strict=True))) for row in shares]


def label_answer(scores: Mapping[str, float]) -> dict[str, Any]:
    """bertfast's answer, from the probability of each label."""
    label = max(scores, key=scores.__getitem__)
    return {"label": label, "score": scores[label], "scores": scores}


def padded(tokenizer: Any, tensors: str) -> Callable[[Rows], Any]:
    """Batches padded to their longest row, as `pt` or `np` tensors."""
    tokenizer.deprecation_warnings["Asking-to-pad-a-fast-tokenizer"] = True  # sorted rows can only be padded later
    return lambda rows: tokenizer.pad(list(rows), return_tensors=tensors)


def refuse_other_tasks(job: Mapping[str, Any], *tasks: str) -> None:
    """Raise ValueError where the job is none of the tasks that the peer has been written for."""
    if job["task"] not in tasks:
        raise ValueError(f"this peer does {' and '.join(tasks)}, and the task is {job['task']}.")


def versions(*packages: str) -> dict[str, str]:
    return {name: importlib.metadata.version(name) for name in packages}
