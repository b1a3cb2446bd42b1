"""Our backends and every peer on the same rows: speed, accuracy, one table.

    make peers
    python benchmarks/inference.py SUITE... --data DIR --out DIR [--threads 2] [--record]

A suite is benchmarks/suites/inference-SUITE.toml: small, sst2, mnli, long or bert-base. Its model is made under OUT
where it is not there: MiniLM fine-tuned as the suite says (begun training goes on), or random weights of a shape; and
exported in every precision, INT8 calibrated on rows that it learnt from.
`bertfast bench` then measures all of them in turn; the report is OUT/SUITE/report. With --record its raw samples are
kept as benchmarks/results/inference-SUITE_HARDWARE_YYYYMM.json, from which the README's table is made.
"""

from __future__ import annotations

import argparse
import os
import re
import shutil
import sys
import tomllib
from collections.abc import Mapping
from dataclasses import replace
from datetime import datetime
from pathlib import Path
from typing import Any

import torch
from finetune import Source, prepare
from provenance import minilm, provenance
from pydantic import model_validator

from bertfast import artifact
from bertfast.backends import backends_for, open_served
from bertfast.bench.run import BenchPlan, bench
from bertfast.config import Config, FinetuneConfig, Precision
from bertfast.export.export import export
from bertfast.export.plan import ExportPlan
from bertfast.model.weights import open_checkpoint, save_checkpoint
from bertfast.tasks import get_task
from bertfast.train.finetune import finetune

HERE = Path(__file__).parent
CLASSIFY = get_task("classify")
SEED = 0


class Suite(Config):
    """What is measured on what.

    Attributes:
        peers: folders of benchmarks/peers, or NAME:VARIANT.
        dev: the rows that are answered; without a column of labels there is speed only.
        train: what the model learns from, with the settings of `finetune`.
        shape: that of a model of random weights, where nothing is learnt.
        labels: the class names of such a model.
        grid: (sequences, tokens) of batches that are computed alone too, without text.
    """

    peers: tuple[str, ...]
    dev: Source
    train: Source | None = None
    finetune: FinetuneConfig | None = None
    shape: dict[str, int] = {}
    labels: tuple[str, ...] = ()
    repeats: int = 5
    single_stream_rows: int = 100
    grid: tuple[tuple[int, int], ...] = ()

    @model_validator(mode="after")
    def _has_one_model(self) -> Suite:
        if (self.train is None, self.finetune is None) != (bool(self.shape), bool(self.labels)):
            raise ValueError("give train and [finetune], or [shape] and labels")
        return self


def read_suite(name: str) -> Suite:
    path = HERE / "suites" / f"inference-{name}.toml"
    return Suite.parse(tomllib.loads(path.read_text(encoding="utf-8")), str(path))


def make_model(suite: Suite, data: Path, dev: Path, out: Path) -> Path:
    """The suite's checkpoint at `out`, made where it is not there or not finished."""
    if suite.train is None or suite.finetune is None:
        return out if out.exists() else random_model(suite, out)
    train = prepare(suite.train, data, out.with_name("train"))
    config = suite.finetune.model_copy(update={"seed": SEED})
    finetune(open_checkpoint(minilm()), CLASSIFY, train, dev, out, config, resume=True)
    return out


def random_model(suite: Suite, out: Path) -> Path:
    """A checkpoint of the suite's shape that has learnt nothing, with MiniLM's vocabulary."""
    start = open_checkpoint(minilm())
    config = start.config.model_copy(update=suite.shape)
    torch.manual_seed(SEED)
    weights = CLASSIFY.build(config, len(suite.labels), CLASSIFY.settings()).state_dict()
    with artifact.create(out, "checkpoint", task=CLASSIFY.name, labels=suite.labels) as draft:
        save_checkpoint(
            draft.path, weights, config, start.tokenizer, CLASSIFY.architecture, suite.labels, CLASSIFY.problem
        )
    return out


def measure(name: str, options: argparse.Namespace) -> Path:
    """Measure a suite; returns the folder of its report."""
    suite, out, measured = read_suite(name), options.out / name, provenance()
    dev = prepare(suite.dev, options.data, out / "dev")
    model = make_model(suite, options.data, dev, out / "model")
    plan = BenchPlan(
        artefacts=(model, *exports(model, out, int8_plan(suite, out / "train.jsonl", dev))),
        data=dev,
        command=measured["command"],
        commit=measured["commit"],
        peers=[str(HERE / "peers" / peer) for peer in suite.peers],
        repeats=suite.repeats,
        single_stream_rows=suite.single_stream_rows,
        threads=options.threads,
        grid=suite.grid,
    )
    bench(plan, out / "report", overwrite=True, notify=say)
    return out / "report"


def int8_plan(suite: Suite, train: Path, dev: Path) -> ExportPlan:
    """How INT8 is made: of random weights, which have a speed alone, in the quicker way."""
    if suite.train is None:
        return ExportPlan(calibration=dev, rounding="nearest")
    return ExportPlan(calibration=train)


def exports(model: Path, out: Path, for_int8: ExportPlan) -> list[Path]:
    """The model in every precision that some runtime of this machine may multiply in; what it would only emulate has no
    speed to be measured (see precisions.py for its accuracy)."""
    made = []
    for precision in (Precision.FP32, Precision.BF16, Precision.INT8):
        served = replace(open_served(model), kind="onnx", precision=precision)
        if not backends_for(served):
            continue
        plan = for_int8 if precision is Precision.INT8 else ExportPlan()
        export(model, out / precision.value, precision=precision, plan=plan, overwrite=True, notify=say)
        made.append(out / precision.value)
    return made


def say(what: str, done: int, steps: int) -> None:
    print(f"{done}/{steps} {what}", file=sys.stderr)


def record_path(name: str, hardware: Mapping[str, Any], now: datetime) -> Path:
    """Where the results of a suite on this hardware are kept."""
    cpu = re.sub(r"[^a-z0-9]+", "-", hardware["cpu"].lower()).strip("-")
    return HERE / "results" / f"inference-{name}_{cpu}-{hardware['cores']}core_{now:%Y%m}.json"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("suites", nargs="+", metavar="SUITE")
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    parser.add_argument("--record", action="store_true", help="keep the results in benchmarks/results")
    options = parser.parse_args()
    for name in options.suites:
        report = measure(name, options)
        print((report / "report.md").read_text(encoding="utf-8"))
        if options.record:
            shutil.copyfile(report / "report.json", record_path(name, artifact.hardware(), datetime.now()))


if __name__ == "__main__":
    main()
