"""What pretraining is worth: NLI from a pretrained checkpoint, and from random weights of the same shape.

    python benchmarks/pretraining_helps.py --data DIR --model DIR --out DIR [--rows 20000] [--seeds 0 1 2] [--threads 2]
        [--set KEY=VALUE]...

Both learn LingNLI with the settings of suites/finetune.toml but for those of --set, in the same order, and are
evaluated on the whole of MNLI's matched dev file (9,815 pairs, 35.4% of them of the commonest class) after the last
step. With a model of L4 H256 on 2 cores a run over 20,000 rows takes about 4 minutes: 25 minutes with three seeds; all
44,983 rows an hour.
OUT/result.json has all runs and the figures; started again, the script makes the runs that are missing there.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from functools import partial
from pathlib import Path

from distill import summary
from finetune import SUITE, our_settings, prepare, read_suite
from provenance import Row, provenance, run_once

from bertfast.config import FinetuneConfig, read_settings
from bertfast.model.weights import Checkpoint, open_checkpoint
from bertfast.tasks import get_task
from bertfast.train.finetune import finetune

SYSTEMS = {"pretrained": False, "from scratch": True}


def train(start: Checkpoint, out: Path, files: tuple[Path, Path], config: FinetuneConfig, *, from_scratch: bool) -> Row:
    """Fine-tune into `out`, anew if something is there; returns what counts of the result."""
    task = get_task("classify")
    result = finetune(start, task, *files, out, config, from_scratch=from_scratch, overwrite=True)
    return {name: result[name] for name in ("dev_accuracy", "train_s", "steps")}


def measure(options: argparse.Namespace) -> list[Row]:
    """For each seed a run from the checkpoint and one from scratch."""
    measured, runs = provenance(), []
    nli, start = read_suite(SUITE)["nli"], open_checkpoint(options.model)
    parts = {"train": nli.train.model_copy(update={"rows": options.rows}), "dev": nli.dev}
    files = tuple(prepare(part, options.data, options.out / "data" / name) for name, part in parts.items())
    shared = our_settings(nli) | {"max_length": min(nli.max_length, start.config.max_position_embeddings)}
    shared |= read_settings(None, options.set)
    for seed in options.seeds:
        config = FinetuneConfig.parse(shared | {"seed": seed, "threads": options.threads}, str(SUITE))
        for system, from_scratch in SYSTEMS.items():
            key = {"system": system, "settings": config.model_dump(mode="json"), "rows": options.rows}
            key |= {"model": start.sha256, "shape": start.config.model_dump(mode="json")}
            out = options.out / f"{system.replace(' ', '_')}{seed}"
            make = partial(train, start, out, files, config, from_scratch=from_scratch)
            row = run_once(options.out / "runs.json", key, measured, make)
            print(f"{system}, seed {seed}: {row['dev_accuracy']:.4f}, {row['train_s']:.1f} s", file=sys.stderr)
            runs.append(row)
    return runs


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--model", type=Path, required=True, help="a pretrained checkpoint of bertfast")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--rows", type=int, help="training rows that are drawn; all when not given")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    parser.add_argument("--set", nargs="+", default=[], metavar="KEY=VALUE", help="settings that are to be others")
    options = parser.parse_args()
    runs = measure(options)
    result = provenance() | {"accuracy": summary(runs), "runs": runs}
    (options.out / "result.json").write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    print(json.dumps(result["accuracy"], indent=1))


if __name__ == "__main__":
    main()
