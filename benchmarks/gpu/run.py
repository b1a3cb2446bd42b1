"""All that is to be measured on a GPU, in steps that survive each other: one command on any machine that has a card.

    python benchmarks/gpu/run.py --out DIR [--only STEP...] [--limit-s N] [--model DIR] [--commit ID] [--dry]

Every step is a process of its own with a limit in time; its rows go to DIR/gpu.json as it ends, or as far as it came.
What DIR/gpu.json has as done on this commit and hardware is not done again, but for a dirty tree, of which nobody knows
what was measured. Nothing is begun that `--limit-s` may cut, so a call that is too short for all is repeated:

    for call in 1 2 3; do python benchmarks/gpu/run.py --out DIR --limit-s 590; done

takes every step on one H100 or H200 in about half an hour. `--model` is a checkpoint of real weights that the
correctness is judged on too. `--dry` takes every step on a CPU with tiny shapes, in minutes, and engines on the tests'
fake GPU; its figures say nothing.

Needed: Python 3.11+, torch 2.11 to 2.15, numpy, tokenizers, safetensors, transformers 5, onnx 1.19+, onnxruntime, and
bertfast with pydantic and rich. onnxruntime-gpu and tensorrt-rtx are used where they are there. What the machine lacks
is brought along in a folder that is made where there is a network, for the machine's Python:

    pip install --target .gpu --python-version 3.12 --only-binary :all: 'pydantic>=2.9' 'rich>=13.7'
    pip install --target .gpu --no-deps .
    PYTHONPATH=.gpu python benchmarks/gpu/run.py --out DIR --commit ID

This file runs with Python alone.
"""

from __future__ import annotations

import argparse
import contextlib
import importlib.metadata
import json
import os
import platform
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[2]
LIBRARIES = ("numpy", "torch", "triton", "transformers", "onnxruntime", "onnxruntime-gpu", "tensorrt_rtx")
Row = dict[str, Any]
MEASURED = ("commit", "dry", "hardware")  # what a step is of


@dataclass(frozen=True)
class Step:
    """A step: `function` is MODULE:NAME beside this file."""

    name: str
    function: str
    limit_s: int
    arguments: dict[str, Any] = field(default_factory=dict)


def _offline(shape: str, mix: str) -> Step:
    return Step(f"offline-{shape}-{mix}", "inference:offline", 100, {"shape": shape, "mix": mix})


def _single_stream(shape: str) -> Step:
    return Step(f"single-stream-{shape}", "inference:single_stream", 60, {"shape": shape})


def _pretrain(preset: str, length: int) -> Step:
    return Step(f"pretrain-{preset}-{length}", "training:pretrain", 200, {"preset": preset, "length": length})


PLAN = (
    Step("correctness", "inference:correctness", 120),
    Step("ceilings", "timing:ceilings", 60),
    _offline("bert-base", "sst2"),
    _offline("bert-large", "squad"),
    _single_stream("bert-base"),
    _pretrain("base", 128),
    _offline("minilm", "sst2"),
    _offline("bert-base", "squad"),
    _single_stream("minilm"),
    _single_stream("bert-large"),
    _pretrain("large", 128),
    _pretrain("base", 512),
    _offline("minilm", "squad"),
    _offline("bert-large", "sst2"),
    Step("rtx", "others:rtx", 90),
    Step("engines", "engines:engines", 90),
    Step("onnxruntime-cuda", "others:onnxruntime_cuda", 60),
)


def perform(step: Step, options: argparse.Namespace) -> Row:
    """Run a step in a process; what it has measured is in the row however it ends."""
    rows = options.out / f"{step.name}.rows"
    rows.unlink(missing_ok=True)
    command = [sys.executable, "-m", "benchmarks.gpu.step", step.function, "--rows", str(rows)]
    command += ["--arguments", json.dumps(step.arguments)] + (["--dry"] if options.dry else [])
    command += ["--model", str(options.model.resolve())] if options.model else []
    paths = [str(ROOT), str(ROOT / "benchmarks"), *filter(None, [os.environ.get("PYTHONPATH")])]
    started_s = time.monotonic()
    with (options.out / f"{step.name}.log").open("w+", encoding="utf-8") as log:
        process = subprocess.Popen(
            command, stdout=log, stderr=log, env=os.environ | {"PYTHONPATH": os.pathsep.join(paths)}, cwd=ROOT,
            start_new_session=True,
        )  # fmt: skip
        try:
            status = "done" if process.wait(step.limit_s) == 0 else "failed"
        except subprocess.TimeoutExpired:
            status = "timed out"
        finally:
            kill_group(process)
        log.seek(0)
        said = log.read()[-2000:]
    found = [json.loads(line) for line in rows.read_text(encoding="utf-8").splitlines()] if rows.exists() else []
    result = {"step": step.name, "status": status, "elapsed_s": round(time.monotonic() - started_s, 1), "rows": found}
    return result | ({} if status == "done" else {"said": said})


def kill_group(process: subprocess.Popen[bytes]) -> None:
    """End a step with all that it has started (compilers), however it ended itself."""
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()


def provenance(options: argparse.Namespace) -> Row:
    """By which command, on which commit, with which libraries and on what hardware is measured."""
    ask = "--query-gpu=name,driver_version,memory.total,clocks.max.sm,power.limit"
    git = ["git", "-C", str(ROOT), "describe", "--always", "--abbrev=40", "--dirty", "--exclude=*"]
    installed = {dist.metadata["Name"]: dist.version for dist in importlib.metadata.distributions()}
    libraries = {name: installed[name] for name in LIBRARIES if name in installed}
    return {
        "command": shlex.join(["python", *sys.argv]),
        "commit": options.commit or said_by(git) or "unknown-dirty",
        "dry": options.dry,
        "libraries": {"python": platform.python_version(), **libraries},
        "hardware": {"gpu": said_by(["nvidia-smi", ask, "--format=csv,noheader"]), "cores": os.cpu_count()},
    }


def said_by(command: Sequence[str]) -> str | None:
    """What a program prints; None where it is missing or fails."""
    try:
        return subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return None


def read_runs(file: Path) -> list[Row]:
    return json.loads(file.read_text(encoding="utf-8"))["runs"] if file.exists() else []


def keep(run: Row, file: Path) -> None:
    """Put a run into the file, in the place of an earlier one of the same step."""
    key = {name: run[name] for name in ("step", *MEASURED)}
    others = [old for old in read_runs(file) if not key.items() <= old.items()]
    partial_file = file.with_suffix(".partial")
    partial_file.write_text(json.dumps({"runs": [*others, run]}, indent=1) + "\n", encoding="utf-8")
    partial_file.replace(file)


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--only", nargs="+", default=[""], metavar="STEP", help="steps, or how their names begin")
    parser.add_argument("--limit-s", type=float, default=float("inf"), help="begin no step that may end later")
    parser.add_argument("--model", type=Path)
    parser.add_argument("--commit", help="what is measured, where git is not there to tell")
    parser.add_argument("--dry", action="store_true")
    return parser.parse_args(arguments)


def main(arguments: Sequence[str] | None = None) -> None:
    began_s = time.monotonic()
    options = parse(arguments)
    options.out = options.out.resolve()
    options.out.mkdir(parents=True, exist_ok=True)
    file, measured = options.out / "gpu.json", provenance(options)
    same = {name: measured[name] for name in MEASURED}
    before = {run["step"]: run["status"] for run in read_runs(file) if same.items() <= run.items()}
    done = {name for name in before if before[name] == "done" and not measured["commit"].endswith("-dirty")}
    steps = [step for step in PLAN if step.name.startswith(tuple(options.only)) and step.name not in done]
    for step in sorted(steps, key=lambda step: step.name in before):  # what was tried before is tried again at the end
        if began_s + options.limit_s < time.monotonic() + step.limit_s:
            continue
        run = perform(step, options)
        keep(run | measured, file)
        print(f"{step.name}: {run['status']} in {run['elapsed_s']} s, {len(run['rows'])} rows", flush=True)


if __name__ == "__main__":
    main()
