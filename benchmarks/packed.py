"""What rows without padding bring on a CPU: graphs of MiniLM that take them, beside those that take padding.

    python benchmarks/packed.py --data DIR --out FILE [--precision fp32|bf16|int8] [--threads 1] [--repeats 7]

192 sentences of SST-2's dev file, tokenised once, in three ways: in batches of each backend's own rule, 32 at a time in
the order of the file, and one by one. What is timed is `Backend.run`, with packing and unpacking. All candidates answer
in turn, again and again, each time beginning with another one; figures are medians, of the clock and of the seconds
that the process computed, which others on the machine disturb less.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from pathlib import Path
from statistics import median
from typing import Any

from finetune import Source, prepare
from provenance import minilm, provenance

from bertfast.backends import Backend, backends_for, open_backend, open_served
from bertfast.backends.rows import InRows
from bertfast.config import Precision
from bertfast.export.export import export
from bertfast.export.plan import ExportPlan
from bertfast.text.batch import Batch, group_by_budget, pad
from bertfast.text.tokenizer import Encoded

ROW_TOKENS = (128, 256, 512)
SENTENCES, SINGLE_STREAM = 192, 32
Runs = dict[str, Callable[[], None]]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--precision", choices=["fp32", "bf16", "int8"], default="fp32")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--repeats", type=int, default=7)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder, ExitStack() as opened:
        texts = sentences(options.data, Path(folder))
        runs = candidates(opened, Path(folder), texts, Precision(options.precision), options.threads)
        rows = measure(runs, options.repeats)
    for row in rows:
        print(json.dumps(row), flush=True)
    found = provenance() | {"precision": options.precision, "threads": options.threads, "runs": rows}
    options.out.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")


def sentences(data: Path, folder: Path) -> list[str]:
    dev = prepare(Source(file="sst2/dev.tsv", columns=("sentence",)), data, folder / "dev")
    return [json.loads(line)["text"] for line in dev.read_text(encoding="utf-8").splitlines()]


def candidates(opened: ExitStack, folder: Path, texts: list[str], precision: Precision, threads: int) -> Runs:
    """What is measured, by name: runtime, way of batching, and what the graph takes."""
    runs: Runs = {}
    for packed in (False, True):
        out = folder / ("packed" if packed else "padded")
        export(minilm(), out, precision=precision, plan=plan_for(precision, texts, folder), packed=packed)
        served = open_served(out)
        tokenizer = served.context.tokenizer
        step = len(texts) / SENTENCES
        requests = [{"text": texts[int(step * number)]} for number in range(SENTENCES)]
        encoded = served.task.encode(requests, served.context)
        for name in backends_for(served):
            backend = opened.enter_context(open_backend(served, name, threads=threads))
            forms = {"padded": backend}
            if isinstance(backend, InRows):
                rows = {size: InRows(backend.inner, served.task.per_token, size) for size in ROW_TOKENS}
                forms = {f"packed {size}": form for size, form in rows.items()}
            for kind, form in forms.items():
                for way, batches in ways(form, encoded, tokenizer.pad_id).items():
                    runs[f"{name} | {way} | {kind}"] = running(form, batches)
    return runs


def plan_for(precision: Precision, texts: list[str], folder: Path) -> ExportPlan:
    if precision is not Precision.INT8:
        return ExportPlan()
    calibration = folder / "calibration.jsonl"
    calibration.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts[:256]))
    return ExportPlan(calibration=calibration, rounding="nearest")


def ways(backend: Backend, encoded: Sequence[Sequence[Encoded]], pad_id: int) -> dict[str, list[Batch]]:
    """The batches of each way."""
    rows = [sequence for sequences in encoded for sequence in sequences]
    lengths = [len(row) for row in rows]
    groups = {
        "own batches": list(backend.group(lengths)),
        "32 as they come": list(group_by_budget(lengths, sys.maxsize, 32, in_order=True)),
        "one by one": [[place] for place in range(SINGLE_STREAM)],
    }
    return {way: [pad([rows[i] for i in group], pad_id) for group in found] for way, found in groups.items()}


def running(backend: Backend, batches: Sequence[Batch]) -> Callable[[], None]:
    def run() -> None:
        for batch in batches:
            backend.run(batch)

    return run


def measure(runs: Runs, repeats: int) -> list[dict[str, Any]]:
    """The medians of each, beginning with another one in each repeat; the first round is not counted."""
    seconds: dict[str, list[tuple[float, float]]] = {name: [] for name in runs}
    names = list(runs)
    for repeat in range(repeats + 1):
        print(f"round {repeat}", file=sys.stderr, flush=True)
        for name in (*names[repeat % len(names) :], *names[: repeat % len(names)]):
            started = time.perf_counter(), time.process_time()
            runs[name]()
            seconds[name].append((time.perf_counter() - started[0], time.process_time() - started[1]))
    return [
        {
            "name": name,
            "elapsed_s": median(one for one, _ in found[1:]),
            "computed_s": median(one for _, one in found[1:]),
            "least_computed_s": min(one for _, one in found[1:]),
        }
        for name, found in seconds.items()
    ]


if __name__ == "__main__":
    main()
