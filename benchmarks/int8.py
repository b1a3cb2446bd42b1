"""What INT8 leaves of MiniLM's sentence vectors: the cosine with those of the checkpoint, in every runtime.

    python benchmarks/int8.py --data DIR --out FILE [--threads 2]

all-MiniLM-L6-v2 is exported in INT8, calibrated on the first 256 sentences of SST-2's dev file; the vectors of all
others are compared. Once with weights rounded to the nearest step, once by GPTQ. 3 minutes on 2 cores.
"""

from __future__ import annotations

import argparse
import json
import os
import tempfile
import time
from pathlib import Path
from typing import Any, get_args

import numpy as np
import torch
from finetune import Source, prepare
from provenance import minilm, provenance

from bertfast.backends import backends_for, open_served
from bertfast.backends.predictor import load
from bertfast.config import Precision
from bertfast.export.export import export
from bertfast.export.plan import ExportPlan
from bertfast.quantize.fit import Rounding

CALIBRATION_ROWS = 256


def vectors(path: Path, backend: str, texts: list[str], threads: int) -> np.ndarray:
    """[texts, H], each of length 1."""
    with load(path, backend, threads=threads) as model:
        found = np.array([answer["embedding"] for answer in model.predict(texts)])
    return found / np.linalg.norm(found, axis=1, keepdims=True)


def measure(checkpoint: Path, folder: Path, texts: list[str], rounding: str, threads: int) -> list[dict[str, Any]]:
    """The cosines in each runtime of an export that is calibrated on the first texts, over the others."""
    calibration = folder / "calibration.jsonl"
    calibration.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts[:CALIBRATION_ROWS]))
    plan = ExportPlan.parse({"calibration": calibration, "rounding": rounding}, __file__)
    out = folder / rounding
    started_s = time.monotonic()
    account = export(checkpoint, out, precision=Precision.INT8, plan=plan).quantization
    export_s = time.monotonic() - started_s
    assert account is not None
    wanted = vectors(checkpoint, "torch", texts[CALIBRATION_ROWS:], threads)
    rows = []
    for backend in backends_for(open_served(out)):  # opening refuses a runtime that executes fewer weights in INT8
        cosines = (vectors(out, backend, texts[CALIBRATION_ROWS:], threads) * wanted).sum(axis=1)
        rows.append(
            {
                "rounding": rounding,
                "backend": backend,
                "quantized_share_of_weights": account.share,
                "restored": [row.product for row in account.products if row.executed == "restored"],
                "export_s": export_s,
                "mean_cosine": float(cosines.mean()),
                "min_cosine": float(cosines.min()),
            }
        )
        print(json.dumps(rows[-1]), flush=True)
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        dev = prepare(Source(file="sst2/dev.tsv", columns=("sentence",)), options.data, folder / "dev")
        texts = [json.loads(line)["text"] for line in dev.read_text(encoding="utf-8").splitlines()]
        rows = [row for one in get_args(Rounding) for row in measure(minilm(), folder, texts, one, options.threads)]
    options.out.write_text(json.dumps(provenance() | {"runs": rows}, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
