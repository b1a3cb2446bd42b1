"""kill -9 at random moments of a compiled bf16 run: does it end with the weights of an undisturbed one, bit for bit?

    python benchmarks/kills.py --corpus DIR --out DIR [--kills 20] [--seed 0] [--result FILE]

A run is started, killed after a random number of seconds, and resumed, until it ends; then a new one, until there
were so many kills. A moment may fall into start-up, compilation, a step, or the writing of a state.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

from provenance import provenance

from bertfast import artifact

SETTINGS = (
    *("--config", "tiny", "--set", "max_steps=600", "--set", "max_length=64", "--set", "global_batch_size=32"),
    *("--set", "compile=true", "--set", "precision=bf16", "--set", "deterministic=true", "--set", "threads=2"),
    *("--set", "checkpoint_every_steps=7", "--set", "warmup_fraction=0.1", "--set", "learning_rate=1e-3"),
    *("--set", "heldout_instances=64"),
)


def start(corpus: Path, out: Path, resume: bool) -> subprocess.Popen[bytes]:
    command = [sys.executable, "-m", "bertfast", "train", "pretrain", "--corpus", str(corpus), "--out", str(out)]
    command += [*SETTINGS, *(["--resume"] if resume else [])]
    return subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, start_new_session=True)


def finish(process: subprocess.Popen[bytes]) -> None:
    _, errors = process.communicate()
    if process.returncode:
        raise SystemExit(errors.decode())


def weights(out: Path) -> str:
    return artifact.sha256_of(out / "model.safetensors")


def steps_saved(out: Path) -> int:
    states = sorted(path.name for path in out.with_name(out.name + ".run").glob("state-*[0-9]"))
    return int(states[-1].partition("-")[2]) if states else 0


def killed(corpus: Path, out: Path, rng: random.Random, kills: int, longest_s: float) -> list[dict[str, float]]:
    """One run to its end with at most `kills` kills; returns when each came and what was saved then."""
    moments: list[dict[str, float]] = []
    while True:
        process = start(corpus, out, resume=bool(moments))
        if len(moments) == kills:
            finish(process)
            return moments
        after_s = rng.uniform(0, longest_s)
        try:
            process.wait(after_s)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            process.communicate()
            moments.append({"after_s": round(after_s, 2), "steps_saved": steps_saved(out)})
            print(f"kill {len(moments)} after {after_s:.1f} s, {moments[-1]['steps_saved']} steps saved", flush=True)
            continue
        finish(process)
        return moments


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--corpus", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--result", type=Path)
    options = parser.parse_args()
    options.out.mkdir(parents=True, exist_ok=True)
    finish(start(options.corpus, options.out / "undisturbed", resume=False))
    started_s = time.perf_counter()
    finish(start(options.corpus, options.out / "again", resume=False))
    longest_s = 0.6 * (time.perf_counter() - started_s)  # of a run whose compiled code lies in torch's cache
    expected = weights(options.out / "undisturbed")
    rng = random.Random(options.seed)
    runs: list[dict[str, object]] = []
    left = options.kills
    while left:
        out = options.out / f"killed{len(runs)}"
        moments = killed(options.corpus, out, rng, left, longest_s)
        left -= len(moments)
        runs.append({"kills": moments, "same": weights(out) == expected})
        print(f"{len(moments)} kills, the same weights: {runs[-1]['same']}", flush=True)
    report = {
        **provenance(),
        "settings": list(SETTINGS),
        "undisturbed_twice_the_same": weights(options.out / "again") == expected,
        "kills": options.kills,
        "runs": runs,
        "all_the_same": all(run["same"] for run in runs),
    }
    text = json.dumps(report, indent=1)
    if options.result:
        options.result.write_text(text + "\n")
    print(text)
    sys.exit(not report["all_the_same"])


if __name__ == "__main__":
    main()
