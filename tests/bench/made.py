"""Results as a run would leave them, made of round numbers."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from bertfast.bench.results import GridCell, Measured, OfflineRun, Results, ServerRun

ROWS = 1000


def measured(name: str, per_s: float | Sequence[float] = 100.0, **changes: Any) -> Measured:
    """A candidate that answers so many sequences in a second, in one repeat or in each of several.

    Its right answers, lost and gained rows follow from `lost` and `gained`: the reference has 900 right.
    """
    rates = [per_s] * 3 if isinstance(per_s, float) else per_s
    lost, gained = changes.pop("lost", None), changes.pop("gained", None)
    right = 900 - (lost or 0) + (gained or 0)
    values: dict[str, Any] = {
        "artefact": "model",
        "artefact_sha256": "a" * 64,
        "artefact_bytes": 24_000_000,
        "backend": name,
        "precision": "fp32",
        "metrics": {"accuracy": right / ROWS},
        "lost": lost,
        "gained": gained,
        "flips": None if lost is None else lost + (gained or 0),
        "sequences": ROWS,
        "real_tokens": 20 * ROWS,
        "padded_tokens": {"offline": 25 * ROWS},
        "peak_memory_bytes": 300_000_000,
        "offline": tuple(offline(rate) for rate in rates),
        "latency_ms": ((2.0, 4.0, 6.0), (2.0, 4.0, 6.0)),
    }
    if lost is not None:
        middle, reach = (lost - (gained or 0)) / ROWS, 1.96 * (lost + (gained or 0)) ** 0.5 / ROWS
        values["drop_interval"] = (middle - reach, middle + reach)
    return Measured(name=name, **(values | changes))


def offline(per_s: float) -> OfflineRun:
    elapsed_s = ROWS / per_s
    return OfflineRun(phases_s={"tokenize": 0.25 * elapsed_s, "compute": 0.75 * elapsed_s}, elapsed_s=elapsed_s)


def failed(name: str, error: str = "MemoryError: no more", **changes: Any) -> Measured:
    bare = {"artefact": "model", "artefact_sha256": "a" * 64, "artefact_bytes": 1, "backend": name}
    return Measured(name=name, error=error, **(bare | changes))


def served(rate_per_s: float, p99_ms: float) -> ServerRun:
    return ServerRun(rate_per_s=rate_per_s, latency_ms=(p99_ms,) * 10)


def shaped(batch_size: int, length: int, compute_s: float) -> GridCell:
    return GridCell(batch_size=batch_size, length=length, compute_s=(compute_s,) * 3)


def results(*candidates: Measured, **changes: Any) -> Results:
    """A run of which the first candidate is the reference."""
    values: dict[str, Any] = {
        "command": "bertfast bench model --data dev.tsv --out report",
        "data": "dev.tsv",
        "data_sha256": "d" * 64,
        "rows": ROWS,
        "labelled": True,
        "task": "classify",
        "metric": "accuracy",
        "reference": candidates[0].name,
        "repeats": 3,
        "threads": 2,
        "lengths": (0, 0, 400, 600),
        "libraries": {"numpy": "2.0"},
        "hardware": {"cpu": "a CPU", "cores": 2, "memory_bytes": 2**33, "system": "Linux"},
    }
    return Results(candidates=candidates, **(values | changes))


UNLABELLED: dict[str, Any] = {"labelled": False, "metric": None}
