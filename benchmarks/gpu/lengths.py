"""How long real sequences are: counts[length] of SST-2's and SQuAD's dev files, for runs where no text can be.

    python -m benchmarks.gpu.lengths --data DIR        writes lengths.json beside this file

SST-2: `[CLS] sentence [SEP]`. SQuAD: windows of 384 tokens with a stride of 128, as in MLPerf's BERT.
"""

from __future__ import annotations

import argparse
import json
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from benchmarks.provenance import minilm
from bertfast.tasks import Context, get_task
from bertfast.text import tokenizer as tokenization
from bertfast.text.labelled import Columns
from bertfast.text.tokenizer import Encoded

FILE = Path(__file__).with_suffix(".json")
SOURCES = {"sst2": ("classify", "sst2/dev.tsv", 512), "squad": ("qa", "squad/dev.json", 384)}


def draw(mix: str, count: int, vocab_size: int, longest: int) -> list[Encoded]:
    """Sequences of random tokens in the lengths of a mix, in random order, the same every time."""
    counts = read_counts()[mix]
    rng = np.random.default_rng(0)
    shares = np.array(list(counts.values())) / sum(counts.values())
    lengths = np.minimum(rng.choice(list(counts), count, p=shares), longest)
    return [Encoded(rng.integers(5, vocab_size, length).tolist(), [0] * length) for length in lengths.tolist()]


def read_counts() -> dict[str, dict[int, int]]:
    """How many sequences of each length there are, by mix."""
    mixes = json.loads(FILE.read_text(encoding="utf-8"))
    return {mix: {int(length): number for length, number in counts.items()} for mix, counts in mixes.items()}


def count(task_name: str, file: Path, max_length: int) -> dict[int, int]:
    task = get_task(task_name)
    settings = task.settings()
    examples = task.read(file, Columns(), settings, False)
    context = Context(tokenization.load(minilm()), (), max_length, settings)
    encoded = task.encode([example.request for example in examples], context)
    return dict(sorted(Counter(len(window) for windows in encoded for window in windows).items()))


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True)
    data = parser.parse_args(arguments).data
    found = {mix: count(task, data / file, longest) for mix, (task, file, longest) in SOURCES.items()}
    FILE.write_text("{\n" + ",\n".join(f'"{mix}": {json.dumps(of)}' for mix, of in found.items()) + "\n}\n")


if __name__ == "__main__":
    main()
