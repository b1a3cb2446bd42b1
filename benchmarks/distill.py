"""What a teacher is worth: SST-2 by a 3-layer MiniLM with the 6-layer one as its teacher, and without.

    python benchmarks/distill.py --data DIR --out DIR [--teacher DIR] [--rows 20000] [--seeds 0 1 2] [--threads 2]

Fine-tunes the teacher with the settings of suites/sst2.toml (or takes --teacher, a checkpoint of this task), then for
every seed a student from three of MiniLM's layers with it and one without, with the same settings; every run is
evaluated on the whole dev file after its last step. `bertfast bench` then measures the teacher and the first student,
in torch and exported, in turn on dev.

On 2 cores 20,000 rows take 7 minutes for the teacher, 6 for a student that has it and 4 for one alone: with three seeds
and the measurement 40 minutes; all 67,349 rows two hours. OUT/result.json has all runs and the figures; started again,
the script makes the runs that are missing there. Use one OUT for one number of rows.
"""

from __future__ import annotations

import argparse
import json
import os
import shlex
import statistics
import sys
from functools import partial
from pathlib import Path
from typing import Any

from finetune import SUITE, prepare, read_suite
from provenance import Row, minilm, provenance, run_once
from sst2 import SETTINGS

from bertfast.bench.results import Measured, Results
from bertfast.bench.run import BenchPlan, bench
from bertfast.config import FinetuneConfig, read_settings
from bertfast.export.export import export
from bertfast.model.weights import open_checkpoint
from bertfast.tasks import get_task
from bertfast.train.finetune import finetune

STUDENT_LAYERS = 3


def train(out: Path, files: tuple[Path, Path], config: FinetuneConfig, teacher: Path | None) -> Row:
    """Fine-tune MiniLM into `out`, anew if something is there; returns what counts of the result."""
    taught_by = open_checkpoint(teacher) if teacher else None
    start = open_checkpoint(minilm())
    result = finetune(start, get_task("classify"), *files, out, config, teacher=taught_by, overwrite=True)
    return {name: result[name] for name in ("dev_accuracy", "train_s", "steps")}


def measure(options: argparse.Namespace, files: tuple[Path, Path]) -> list[Row]:
    """The runs: the teacher's if it is ours to train, and for each seed a student with it and one alone."""
    measured, runs = provenance(), []
    teacher = options.teacher or options.out / "teacher"

    def run(system: str, seed: int, taught_by: Path | None, **settings: Any) -> None:
        settings |= {**read_settings(SETTINGS, []), "seed": seed, "threads": options.threads}
        config = FinetuneConfig.parse(settings, str(SETTINGS))
        key = {"system": system, "settings": config.model_dump(mode="json"), "rows": options.rows}
        key |= {"teacher": open_checkpoint(taught_by).sha256 if taught_by else None}
        out = teacher if system == "teacher" else options.out / f"{system}{seed}"
        row = run_once(options.out / "runs.json", key, measured, partial(train, out, files, config, taught_by))
        print(f"{system}, seed {seed}: accuracy {row['dev_accuracy']:.4f}, {row['train_s']:.1f} s", file=sys.stderr)
        runs.append(row)

    if options.teacher is None:
        run("teacher", 0, None)
    for seed in options.seeds:
        run("distilled", seed, teacher, layers=STUDENT_LAYERS)
        run("alone", seed, None, layers=STUDENT_LAYERS)
    return runs


def serve(options: argparse.Namespace, dev: Path) -> Results:
    """Teacher and first student, as checkpoints and as ONNX models, in every backend, taking turns on dev."""
    student = options.out / f"distilled{options.seeds[0]}"
    artefacts = []
    for name, checkpoint in (("teacher", options.teacher or options.out / "teacher"), ("student", student)):
        onnx = options.out / f"{name}_onnx"
        export(checkpoint, onnx, overwrite=True)
        artefacts += [checkpoint, onnx]
    command = shlex.join(["python", *sys.argv])
    return bench(BenchPlan(artefacts, dev, command, threads=options.threads), options.out / "report", overwrite=True)


def sequences_per_s(item: Measured) -> float | None:
    speeds = [(item.sequences or 0) / run.elapsed_s for run in item.offline]
    return statistics.median(speeds) if speeds else None


def served(report: Results) -> dict[str, Row]:
    """For each artefact in a backend: accuracy, the median of its sequences a second, and bytes."""
    return {
        item.name: {
            "accuracy": item.metrics.get("accuracy"),
            "sequences_per_s": sequences_per_s(item),
            "bytes": item.artefact_bytes,
            "error": item.error,
        }
        for item in report.candidates
    }


def summary(runs: list[Row]) -> dict[str, Row]:
    """The mean accuracy of each system and, with more seeds than one, its standard deviation."""
    found: dict[str, list[float]] = {}
    for run in runs:
        found.setdefault(run["system"], []).append(run["dev_accuracy"])
    return {
        name: {"mean": statistics.mean(values), "deviation": statistics.stdev(values) if len(values) > 1 else None}
        for name, values in found.items()
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--teacher", type=Path, help="a checkpoint that answers SST-2; trained when not given")
    parser.add_argument("--rows", type=int, help="training rows that are drawn; all when not given")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    options = parser.parse_args()
    sst2 = read_suite(SUITE)["sst2"]
    source = sst2.train.model_copy(update={"rows": options.rows})
    parts = {"train": source, "dev": sst2.dev}
    files = tuple(prepare(part, options.data, options.out / "data" / name) for name, part in parts.items())
    runs = measure(options, files)
    result = provenance() | {"accuracy": summary(runs), "served": served(serve(options, files[1])), "runs": runs}
    (options.out / "result.json").write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    print(json.dumps({name: result[name] for name in ("accuracy", "served")}, indent=1))


if __name__ == "__main__":
    main()
