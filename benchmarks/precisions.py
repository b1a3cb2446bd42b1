"""What each precision costs on the task's own metric: points and flips on rows that nothing was selected on.

    python benchmarks/precisions.py --data DIR --out FILE [--only sst2 nli wnut17 squad] [--threads 2]

For each data set of suites/finetune.toml MiniLM is fine-tuned (seed 0), exported in every precision, calibrated on the
training rows without a search, and each runtime answers the dev rows. Half an hour on 2 cores. Where a CPU computes a
precision's numbers in fp32, the row says `emulated`.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import tempfile
from collections.abc import Sequence
from functools import partial
from pathlib import Path

import torch
from finetune import SUITE, DataSet, our_settings, prepare, read_suite
from provenance import Row, minilm, provenance, run_once

from bertfast.backends import backends_for, open_backend, open_served
from bertfast.backends.pytorch import TorchBackend
from bertfast.config import FinetuneConfig, Precision
from bertfast.export.dev import DevRows
from bertfast.export.export import export
from bertfast.export.plan import ExportPlan
from bertfast.model.weights import open_checkpoint
from bertfast.tasks import get_task
from bertfast.text.labelled import Columns
from bertfast.train.finetune import finetune

SEED = 0
CALIBRATED = (Precision.FP16, Precision.INT8, Precision.FP8)


def measure(data_set: DataSet, data: Path, folder: Path, threads: int) -> Row:
    """Points of the checkpoint, and what each precision loses in each runtime."""
    train, dev = prepare(data_set.train, data, folder / "train"), prepare(data_set.dev, data, folder / "dev")
    config = FinetuneConfig.parse(our_settings(data_set) | {"seed": SEED, "threads": threads}, str(SUITE))
    model = folder / "model"
    finetune(open_checkpoint(minilm()), get_task(data_set.task), train, dev, model, config)
    with TorchBackend(open_served(model), device="cpu") as source:
        rows = DevRows(open_served(model), source, dev, Columns())
        found = [row for precision in Precision for row in losses(model, precision, train, folder, rows, threads)]
    return {"rows": len(rows.golds), "metric_of_checkpoint": rows.points, "precisions": found}


def losses(model: Path, precision: Precision, train: Path, folder: Path, rows: DevRows, threads: int) -> list[Row]:
    out = folder / precision.value
    plan = ExportPlan(calibration=train if precision in CALIBRATED else None)
    exported = export(model, out, precision=precision, plan=plan)
    served, found = open_served(out), []
    for name in backends_for(served):
        with open_backend(served, name, threads=threads) as backend:
            loss = rows.compare(backend)
            found.append(
                {"precision": precision.value, "backend": name, "emulated": backend.emulated}
                | loss.model_dump()
                | {"quantized_share": exported.quantization.share if exported.quantization else None}
                | {"kept_in_fp32": sorted(exported.kept_in_fp32)}
            )
        print(json.dumps(found[-1]), file=sys.stderr, flush=True)
    return found


def table(suite: dict[str, DataSet], runs: Sequence[Row]) -> str:
    """Markdown: for each data set the points that each precision loses in each runtime, and how many answers change."""
    lossy = [item for run in runs for item in run["precisions"] if item["precision"] != Precision.FP32.value]
    columns = list(dict.fromkeys(map(_column, lossy)))
    heads = ["data set", "metric", "rows", "fp32 %", *columns]
    lines = [f"| {' | '.join(heads)} |", "|---" * len(heads) + "|"]
    for run in runs:
        lost = {_column(item): f"{item['drop']:.2f}, {item['flips']}" for item in run["precisions"]}
        cells = [run["data_set"], suite[run["data_set"]].metrics[0], f"{run['rows']:,}"]
        cells += [f"{run['metric_of_checkpoint']:.2f}", *(lost.get(column, "-") for column in columns)]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def _column(item: Row) -> str:
    return f"{item['precision']}, {item['backend']}{' (emulated)' if item['emulated'] else ''}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--only", nargs="+", default=["sst2", "nli", "wnut17", "squad"])
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    measured = provenance()
    for name in options.only:
        data_set = read_suite(SUITE)[name]
        key = {"data_set": name, "threads": options.threads, "settings": data_set.model_dump(mode="json")}
        with tempfile.TemporaryDirectory() as folder:
            make = partial(measure, data_set, options.data, Path(folder), options.threads)
            run_once(options.out, key, measured, make)


if __name__ == "__main__":
    main()
