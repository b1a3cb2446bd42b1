"""Pretraining through bertfast's own loop, beside transformers: pretrain_speed.py on text without meaning."""

from __future__ import annotations

import json
import random
import tempfile
from pathlib import Path

import pretrain_speed

from benchmarks.gpu.models import write_vocabulary
from benchmarks.gpu.step import Run

WORDS, TOKENS = 30522, 32768
DRY = "--preset tiny --length 32 --batch 4 --steps 4 --slice 2 --ours packed --peers fp32"
ON_A_CARD = (
    "--steps 60 --slice 10 --warm 2 --micro-batch-tokens 32768 --device cuda --ours packed packed-compile --peers bf16"
)


def write_text(file: Path, documents: int, words: int) -> Path:
    """Documents of sentences of 5 to 40 words, a sentence a line."""
    rng = random.Random(0)
    sentences = (
        " ".join(f"w{rng.randrange(words - 8)}" for _ in range(rng.randint(5, 40))) + "." for _ in range(documents * 30)
    )
    file.write_text("".join(s + ("\n\n" if n % 30 == 29 else "\n") for n, s in enumerate(sentences)), encoding="utf-8")
    return file


def pretrain(run: Run, preset: str, length: int) -> None:
    """Real tokens a second and MFU; the first slices, with compilation, are left out."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        words = 300 if run.dry else WORDS
        vocabulary = write_vocabulary(folder / "vocab.txt", words)
        text = write_text(folder / "text.txt", 20 if run.dry else 4000, words)
        arguments = ["--text", text, "--vocab", vocabulary, "--cache", folder / "corpus", "--out", folder / "out.json"]
        how = DRY if run.dry else f"--preset {preset} --length {length} --batch {TOKENS // length} {ON_A_CARD}"
        pretrain_speed.main([*map(str, arguments), *how.split()])
        report = json.loads((folder / "out.json").read_text(encoding="utf-8"))
    kept = ("transformers", "packed", "ratios")
    run.found(**{key: value for key, value in report.items() if key.startswith(kept)}, model=report["model"])
