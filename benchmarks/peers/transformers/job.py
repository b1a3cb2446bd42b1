"""What a peer is asked and what it answers: one JSON object each way. This file needs nothing but Python.

A runner takes the job's file as its argument and prints the result as the last line of its standard output. Files of
`classify` and `regress` are JSON lines of `text`, `label` and, for pairs, `pair`; of `tag` CoNLL, token and label with
a tab between them; of `qa` SQuAD JSON.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, TypedDict


@dataclass(frozen=True)
class Job:
    """One fine-tuning run. `model`, `train` and `dev` are paths."""

    task: Literal["classify", "regress", "tag", "qa"]
    model: str
    train: str
    dev: str
    learning_rate: float
    epochs: float
    batch_size: int
    max_length: int
    warmup_fraction: float
    weight_decay: float
    seed: int
    threads: int
    group_by_length: bool


class Result(TypedDict):
    """What came of it: metrics of `dev` as fractions, by name; seconds in the training loop; optimiser steps;
    the sequences of `train` and `dev`, which for `qa` are windows."""

    metrics: dict[str, float]
    train_s: float
    steps: int
    windows: dict[str, int]
    versions: dict[str, str]
