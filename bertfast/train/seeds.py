"""The same run with several seeds: how much of a result is luck."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from statistics import fmean, stdev
from typing import Any

from bertfast import artifact
from bertfast.errors import ArtifactError, ConfigError
from bertfast.train.selection import quoted

SEEDS_FILE = "seeds.json"


def parse_seeds(text: str, first: int | None) -> list[int]:
    """The seeds that `3` (so many, from `first` on, or from 0) or `0,1,7` (these) names.

    Args:
        first: what the setting `seed` was given as; None where it was not.
    Raises:
        ConfigError: it is neither, names a seed twice, or is a list beside `first`.
    """
    parts = text.split(",")
    numbers = [int(part) for part in parts if part.strip().isdecimal()]
    if len(parts) > 1 and first is not None:
        raise ConfigError(f"--seeds {text} names the seeds, and so does seed={first}. Leave out one of the two.")
    seeds = numbers if len(parts) > 1 else [(first or 0) + number for number in range(sum(numbers))]
    if not seeds or len(set(numbers)) < len(parts):
        raise ConfigError(
            f"--seeds {text} is neither a count, such as 3, nor a list of different seeds, such as 0,1,2."
        )
    return seeds


def run_seeds(
    run: Callable[[int, Path], Mapping[str, Any]], seeds: Sequence[int], out: Path, metrics: Sequence[str]
) -> dict[str, Any]:
    """Run each seed into `out`/seed-N, and write `out`/seeds.json: every result, and what the metric comes to.

    Args:
        run: a seed and its directory to a result.
        metrics: names of which the first that the results have is summarised.
    Returns:
        `metric`, its `mean`, `sd` (of a sample; None for a single seed), `min` and `max`, and `results` by seed.
    Raises:
        ArtifactError: `out` is an artefact itself, of which the runs would become a part.
    """
    if (out / artifact.MANIFEST).exists():
        raise ArtifactError(
            f"{out} is an artefact, and --seeds makes a folder of several. Give --out another path, or remove it."
        )
    results = {str(seed): dict(run(seed, out / f"seed-{seed}")) for seed in seeds}
    metric = quoted(next(iter(results.values())), metrics)
    values = [result[metric] for result in results.values()]
    summary = {
        "metric": metric,
        "mean": fmean(values),
        "sd": stdev(values) if len(values) > 1 else None,
        "min": min(values),
        "max": max(values),
        "results": results,
    }
    draft = out / f"{SEEDS_FILE}.partial"
    draft.write_text(json.dumps(summary, indent=1) + "\n", encoding="utf-8")
    draft.replace(out / SEEDS_FILE)
    return summary
