"""SST-2 from the MiniLM checkpoint: accuracy over seeds, and whether the backends agree.

    python benchmarks/sst2.py --data DIR --out DIR [--seeds 0 1 2]

Fine-tunes with the settings of suites/sst2.toml, evaluates the last epoch on dev and selects nothing on it, then
exports and compares the label of every dev row between torch, ONNX Runtime and OpenVINO. About 24 minutes a seed on 2
cores; a seed is not run again on the commit and the hardware that it was run on. How long it takes beside transformers
is asked in finetune.py.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import time
from functools import partial
from pathlib import Path

from provenance import Row, minilm, provenance, run_once

import bertfast
from bertfast.backends import backends_for, open_served
from bertfast.config import FinetuneConfig, read_settings
from bertfast.export.export import export
from bertfast.model.weights import open_checkpoint
from bertfast.tasks import get_task
from bertfast.text.labelled import read_examples
from bertfast.train.finetune import finetune

SETTINGS = Path(__file__).parent / "suites" / "sst2.toml"


def accuracy(data: Path, out: Path, seeds: list[int]) -> Row:
    """Fine-tune once a seed; returns the accuracies, the seconds, and whether the backends agree on every row."""
    measured, runs = provenance(), []
    for seed in seeds:
        config = FinetuneConfig.parse(read_settings(SETTINGS, [f"seed={seed}"]), str(SETTINGS))
        key = {"seed": seed, "settings": config.model_dump(mode="json")}
        make = partial(run, data, out / f"seed{seed}", config)
        runs.append(run_once(out / "runs.json", key, measured, make))
        print(f"seed {seed}: accuracy {runs[-1]['accuracy']:.4f}", file=sys.stderr, flush=True)
    values = [run["accuracy"] for run in runs]
    return measured | {"mean": statistics.mean(values), "spread": max(values) - min(values), "runs": runs}


def run(data: Path, out: Path, config: FinetuneConfig) -> Row:
    """Fine-tune MiniLM into `out`, anew if something is there, and ask every backend."""
    start_s = time.perf_counter()
    files = data / "train.tsv", data / "dev.tsv"
    result = finetune(open_checkpoint(minilm()), get_task("classify"), *files, out, config, overwrite=True)
    row = {"accuracy": result["dev_accuracy"], "elapsed_s": time.perf_counter() - start_s}
    return row | agreement(out, out.with_name(f"{out.name}_onnx"), files[1])


def agreement(checkpoint: Path, onnx: Path, dev: Path) -> Row:
    """The rows on which a backend's label differs from torch's, and the precision that each executed in."""
    export(checkpoint, onnx, overwrite=True)
    texts = [row.request["text"] for row in read_examples(dev)]
    labels: dict[str, list[str]] = {}
    executed: dict[str, str] = {}
    for path in (checkpoint, onnx):
        for name in backends_for(open_served(path)):
            with bertfast.load(path, name) as model:
                labels[name] = [answer["label"] for answer in model.predict(texts)]
                executed[name] = model.backend.precision.value
    differing = {
        name: sum(a != b for a, b in zip(found, labels["torch"], strict=True)) for name, found in labels.items()
    }
    return {"rows": len(texts), "differing_labels": differing, "executed": executed}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    arguments = parser.parse_args()
    result = json.dumps(accuracy(arguments.data, arguments.out, arguments.seeds), indent=1)
    (arguments.out / "result.json").write_text(result + "\n")
    print(result)


if __name__ == "__main__":
    main()
