"""Fine-tuning beside transformers' Trainer: the same rows, hyper-parameters and seeds, in turn.

    make peers
    python benchmarks/finetune.py --data DIR --out runs/finetune.json [--only sst2 nli] [--seeds 0 1 2]
        [--ungrouped-seeds 0] [--threads 2]

For every data set of suites/finetune.toml and every seed, ours and the peer, with random batches and with batches
grouped by length, run one after another, each in a process of its own; who begins changes from seed to seed. `train_s`
is the training loop alone on all sides, without evaluation, and `process_s` the whole process. A peer that took other
numbers of steps and windows than ours ends the script. Every run is written as it comes; started again, the script runs
what is missing: a run counts as there only if it has today's settings, on this commit and this hardware.
"""

from __future__ import annotations

import argparse
import csv
import gzip
import json
import os
import random
import statistics
import subprocess
import sys
import tempfile
import time
import tomllib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import IO, Literal

from provenance import Row, minilm, provenance, read_runs, run_once
from pydantic import Field

from bertfast import artifact
from bertfast.config import Config
from bertfast.model.weights import open_checkpoint
from bertfast.tasks import Context, get_task
from bertfast.text.labelled import Columns

HERE = Path(__file__).parent
SUITE = HERE / "suites" / "finetune.toml"
PEER = HERE / "peers" / "transformers"
SAMPLE_SEED = 0
TRAINERS_ADAM_EPSILON = 1e-8
NEVER = 1_000_000_000


class Source(Config):
    """Where rows come from. `columns`: the text, for pairs its second text, and the label; the text alone where rows
    are not to have labels."""

    file: str
    columns: tuple[str, ...] = ()
    split: str | None = Field(None, description="keep rows whose column `split` says this")
    rows: int | None = Field(None, gt=0, description="how many are drawn; all when not given")


class DataSet(Config):
    """One data set of the suite with the hyper-parameters that all systems share."""

    task: Literal["classify", "regress", "tag", "qa"]
    metrics: tuple[str, ...] = Field(description="what is reported; the first one is what counts")
    train: Source
    dev: Source
    learning_rate: float
    epochs: float
    batch_size: int
    max_length: int
    warmup_fraction: float = 0.1
    weight_decay: float = 0.01


@dataclass(frozen=True)
class Run:
    """One fine-tuning run of the suite, whoever makes it."""

    data_set: DataSet
    model: Path
    train: Path
    dev: Path
    seed: int
    threads: int


def read_suite(path: Path) -> dict[str, DataSet]:
    tables = tomllib.loads(path.read_text(encoding="utf-8"))
    return {name: DataSet.parse(table, f"{path}, [{name}]") for name, table in tables.items()}


def prepare(source: Source, data: Path, out: Path) -> Path:
    """Write the rows of `source` to a file that all systems read; returns its path, `out` with the format's ending."""
    path = data / source.file
    write = {".conll": write_conll, ".json": write_squad}.get(path.suffix, write_table)
    ending = path.suffix if path.suffix in (".conll", ".json") else ".jsonl"
    out.parent.mkdir(parents=True, exist_ok=True)
    target = out.with_suffix(ending)
    write(source, path, target)
    return target


def draw(count: int, wanted: int | None) -> list[int]:
    """Places of a random sample without repeats, in the file's order, and the same one every time."""
    if wanted is None or wanted >= count:
        return list(range(count))
    return sorted(random.Random(SAMPLE_SEED).sample(range(count), wanted))


def write_table(source: Source, path: Path, out: Path) -> None:
    with open_text(path) as lines:
        rows = [row for row in read_table(path.name, lines) if source.split in (None, row.get("split"))]
    keys = {1: ("text",), 2: ("text", "label"), 3: ("text", "pair", "label")}[len(source.columns)]
    kept = (
        {key: rows[i][name] for key, name in zip(keys, source.columns, strict=True)}
        for i in draw(len(rows), source.rows)
    )
    with out.open("w", encoding="utf-8") as sink:
        sink.writelines(json.dumps(row, ensure_ascii=False) + "\n" for row in kept)


def read_table(name: str, lines: IO[str]) -> Iterator[Row]:
    if ".jsonl" in name:
        return map(json.loads, lines)
    if ".tsv" in name:
        return iter(csv.DictReader(lines, delimiter="\t", quoting=csv.QUOTE_NONE))
    return iter(csv.DictReader(lines))


def open_text(path: Path) -> IO[str]:
    opener = gzip.open if path.suffix == ".gz" else open
    return opener(path, "rt", encoding="utf-8", newline="")


def write_conll(source: Source, path: Path, out: Path) -> None:
    lines = (line.strip() for line in path.read_text(encoding="utf-8").split("\n"))
    sentences = [block for block in "\n".join(lines).split("\n\n") if block.strip()]
    kept = [sentences[i].strip("\n") for i in draw(len(sentences), source.rows)]
    out.write_text("\n\n".join(kept) + "\n", encoding="utf-8")


def write_squad(source: Source, path: Path, out: Path) -> None:
    """Draws questions; paragraphs and articles without one are left out."""
    data = json.loads(path.read_text(encoding="utf-8"))
    paragraphs = [paragraph for article in data["data"] for paragraph in article["paragraphs"]]
    ids = [question["id"] for paragraph in paragraphs for question in paragraph["qas"]]
    kept = {ids[i] for i in draw(len(ids), source.rows)}
    for article in data["data"]:
        for paragraph in article["paragraphs"]:
            paragraph["qas"] = [question for question in paragraph["qas"] if question["id"] in kept]
        article["paragraphs"] = [paragraph for paragraph in article["paragraphs"] if paragraph["qas"]]
    data["data"] = [article for article in data["data"] if article["paragraphs"]]
    out.write_text(json.dumps(data, ensure_ascii=False), encoding="utf-8")


def peer_job(run: Run, *, grouped: bool) -> Row:
    """The job of peers/transformers/job.py."""
    shared = run.data_set.model_dump(exclude={"metrics", "train", "dev"})
    paths = {"model": str(run.model), "train": str(run.train), "dev": str(run.dev)}
    return shared | paths | {"seed": run.seed, "threads": run.threads, "group_by_length": grouped}


def our_settings(data_set: DataSet) -> Row:
    """A `FinetuneConfig`'s: the shared hyper-parameters, what the Trainer does by default, and dev at the end only."""
    same = {"learning_rate", "epochs", "max_length", "warmup_fraction", "weight_decay"}
    theirs = {"precision": "bf16", "adam_epsilon": TRAINERS_ADAM_EPSILON}
    at_the_end = {"evaluate_every_steps": NEVER, "checkpoint_every_steps": NEVER}
    return data_set.model_dump(include=same) | {"global_batch_size": data_set.batch_size} | theirs | at_the_end


def our_command(run: Run, out: Path) -> list[str]:
    """`bertfast train` with the same hyper-parameters, evaluating once at the end."""
    settings = our_settings(run.data_set) | {"seed": run.seed, "threads": run.threads}
    paths = {"--model": run.model, "--train": run.train, "--dev": run.dev, "--out": out}
    command = [sys.executable, "-m", "bertfast", "train", run.data_set.task]
    command += [str(word) for pair in paths.items() for word in pair]
    return command + [word for key, value in settings.items() for word in ("--set", f"{key}={value}")]


def run_ours(run: Run) -> Row:
    with tempfile.TemporaryDirectory() as folder:
        output, process_s = execute(our_command(run, Path(folder) / "out"), run.threads)
    result = json.loads(output)
    metrics = {name: result[f"dev_{name}"] for name in run.data_set.metrics}
    return {
        "metrics": metrics,
        "train_s": result["train_s"],
        "process_s": process_s,
        "steps": result["steps"],
        "windows": our_windows(run),
        "versions": artifact.libraries(),
    }


def our_windows(run: Run) -> dict[str, int]:
    """Sequences that are trained on and evaluated: one an example, of qa one a window of its context."""
    task, tokenizer = get_task(run.data_set.task), open_checkpoint(run.model).tokenizer
    settings = task.settings()
    train, dev = (task.read(path, Columns(), settings, True) for path in (run.train, run.dev))
    context = Context(tokenizer, task.labels(train), run.data_set.max_length, task.settle(settings, train))
    encoded = task.encode([example.request for example in dev], context)
    return {"train": len(task.features(train, context)), "dev": sum(map(len, encoded))}


def run_peer(run: Run, *, grouped: bool) -> Row:
    python = PEER / ".venv" / "bin" / "python"
    if not python.exists():
        raise SystemExit(f"{python} does not exist. Run 'make peers'.")
    with tempfile.TemporaryDirectory() as folder:
        job = Path(folder) / "job.json"
        job.write_text(json.dumps(peer_job(run, grouped=grouped)), encoding="utf-8")
        output, process_s = execute([str(python), str(PEER / "finetune.py"), str(job)], run.threads)
    return {**json.loads(output.splitlines()[-1]), "process_s": process_s}


UNGROUPED = "transformers"
SYSTEMS: dict[str, Callable[[Run], Row]] = {
    "bertfast": run_ours,
    UNGROUPED: partial(run_peer, grouped=False),
    "transformers, grouped": partial(run_peer, grouped=True),
}


def execute(command: Sequence[str], threads: int) -> tuple[str, float]:
    """Run a process; returns what it printed, and its seconds."""
    environment = os.environ | {"OMP_NUM_THREADS": str(threads), "HF_HUB_OFFLINE": "1"}
    start_s = time.perf_counter()
    ended = subprocess.run(command, capture_output=True, text=True, env=environment)
    process_s = time.perf_counter() - start_s
    if ended.returncode:
        raise SystemExit(f"{' '.join(command)} ended with {ended.returncode}:\n{ended.stderr[-4000:]}")
    return ended.stdout, process_s


def turns(seeds: Sequence[int], ungrouped: Sequence[int] | None = None) -> Iterator[tuple[int, str]]:
    """Seeds and systems in the order in which they run: A B C, then B C A, then C A B.

    Args:
        ungrouped: the seeds with which the peer runs on random batches too; all where it is None.
    """
    for number, seed in enumerate(seeds):
        names = [name for name in SYSTEMS if name != UNGROUPED or ungrouped is None or seed in ungrouped]
        first = number % len(names)
        yield from ((seed, name) for name in names[first:] + names[:first])


def measure(suite: dict[str, DataSet], options: argparse.Namespace) -> list[Row]:
    """Run what the results in `options.out` lack; returns all runs of this suite, seeds and threads."""
    model, measured, found = minilm(), provenance(), []
    for name, data_set in suite.items():
        folder = options.out.with_suffix(".data") / name
        train = prepare(data_set.train, options.data, folder / "train")
        dev = prepare(data_set.dev, options.data, folder / "dev")
        for seed, system in turns(options.seeds, options.ungrouped_seeds):
            key = {"data_set": name, "system": system, "seed": seed, "threads": options.threads}
            key |= {"settings": data_set.model_dump(mode="json")}
            run = Run(data_set, model, train, dev, seed, options.threads)
            row = run_once(options.out, key, measured, partial(SYSTEMS[system], run))
            found.append(row)
            print(f"{name}, {system}, seed {seed}: {row['metrics']}, {row['train_s']:.1f} s", file=sys.stderr)
            refuse_other_work([row for row in found if row["data_set"] == name])
    return found


def refuse_other_work(runs: Sequence[Row]) -> None:
    """Stop where runs of one data set differ in optimiser steps or in windows: their seconds cannot be compared."""
    for name in ("steps", "windows"):
        if any(run[name] != runs[0][name] for run in runs):
            said = ", ".join(f"{run['system']} {run[name]}" for run in runs)
            raise SystemExit(f"{runs[0]['data_set']}: the {name} differ: {said}. The systems must do the same work.")


def recorded(suite: dict[str, DataSet], path: Path) -> list[Row]:
    """The runs of a file that were made with the settings of this suite."""
    settings = {name: data_set.model_dump(mode="json") for name, data_set in suite.items()}
    return [run for run in read_runs(path) if run["settings"] == settings.get(run["data_set"])]


def table(suite: dict[str, DataSet], runs: Sequence[Row]) -> str:
    """Markdown: for each data set and metric the mean over seeds and its standard deviation, and the medians of the
    seconds; `faster` is the better peer's median by ours."""
    lines = [
        f"| data set | metric | {' | '.join(SYSTEMS)} | train s | faster | process s | faster |",
        "|---" * (len(SYSTEMS) + 6) + "|",
    ]
    for name, data_set in suite.items():
        by_system = [[run for run in runs if (run["data_set"], run["system"]) == (name, system)] for system in SYSTEMS]
        seconds = [cell for key in ("train_s", "process_s") for cell in compare(by_system, key)]
        for metric in data_set.metrics:
            values = [spread([100 * run["metrics"][metric] for run in group]) for group in by_system]
            lines.append(f"| {name} | {metric} | {' | '.join([*values, *seconds])} |")
    return "\n".join(lines)


def spread(values: Sequence[float]) -> str:
    if not values:
        return "-"
    deviation = f" ± {statistics.stdev(values):.2f}" if len(values) > 1 else ""
    return f"{statistics.mean(values):.2f}{deviation}"


def compare(by_system: Sequence[Sequence[Row]], key: str) -> tuple[str, str]:
    """The median seconds of each system, and how many times faster ours, the first one, is than the better peer."""
    middles = [statistics.median([run[key] for run in group]) if group else None for group in by_system]
    ours, *peers = middles
    said = " / ".join("-" if middle is None else f"{middle:.1f}" for middle in middles)
    faster = [peer / ours for peer in peers if peer is not None and ours is not None]
    return said, f"{min(faster):.2f}" if faster else "-"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--suite", type=Path, default=SUITE)
    parser.add_argument("--only", nargs="+", help="data sets; all when not given")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument(
        "--ungrouped-seeds",
        type=int,
        nargs="+",
        help="the seeds with which transformers runs on random batches too, the slowest runs; all when not given",
    )
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    parser.add_argument(
        "--table", action="store_true", help="run nothing: the table of the runs that OUT has of this suite"
    )
    options = parser.parse_args()
    suite = read_suite(options.suite)
    suite = {name: suite[name] for name in options.only or suite}
    print(table(suite, recorded(suite, options.out) if options.table else measure(suite, options)))


if __name__ == "__main__":
    main()
