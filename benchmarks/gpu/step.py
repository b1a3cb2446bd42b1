"""One step of run.py, in a process of its own: calls a function and writes each row that it finds at once.

python -m benchmarks.gpu.step MODULE:FUNCTION --rows FILE [--arguments JSON] [--model DIR] [--dry]
"""

from __future__ import annotations

import argparse
import importlib
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch


@dataclass(frozen=True)
class Run:
    """What a step is given.

    Attributes:
        dry: tiny shapes, once each.
        rows: where the rows go.
        model: a checkpoint of real weights.
    """

    device: torch.device
    dry: bool
    rows: Path
    model: Path | None = None

    def found(self, **row: Any) -> None:
        with self.rows.open("a", encoding="utf-8") as stream:
            stream.write(json.dumps(row) + "\n")

    def synchronize(self) -> None:
        if self.device.type == "cuda":
            torch.cuda.synchronize()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("function")
    parser.add_argument("--rows", type=Path, required=True)
    parser.add_argument("--arguments", type=json.loads, default={})
    parser.add_argument("--model", type=Path)
    parser.add_argument("--dry", action="store_true")
    options = parser.parse_args()
    if not options.dry and not torch.cuda.is_available():
        raise SystemExit("torch sees no CUDA device. On a CPU there is --dry.")
    device = torch.device("cpu" if options.dry else "cuda")
    module, _, name = options.function.partition(":")
    function = getattr(importlib.import_module(f"benchmarks.gpu.{module}"), name)
    function(Run(device, options.dry, options.rows, options.model), **options.arguments)


if __name__ == "__main__":
    main()
