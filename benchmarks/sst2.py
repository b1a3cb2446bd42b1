"""SST-2 from the MiniLM checkpoint: accuracy over seeds, and the time beside a plain transformers loop.

    python benchmarks/sst2.py accuracy --data DIR [--seeds 0 1 2] --out DIR
    python benchmarks/sst2.py speed --data DIR [--slices 7] [--out FILE]

`accuracy` fine-tunes with the settings of suites/sst2.toml, evaluates the last epoch on dev and selects nothing on
it, then exports and compares the label of every dev row between torch, ONNX Runtime and OpenVINO. `speed` times
slices of both loops in turn (A B A B), each slice the same number of sequences, and gives the ratio of the two whole
jobs: ours with its epochs, the plain loop with the two that it was measured with (batch 32, learning rate 8e-5,
padded to the longest of a random batch, bf16 autocast).
"""

from __future__ import annotations

import argparse
import itertools
import json
import statistics
import time
from collections.abc import Iterator
from pathlib import Path

import torch
import transformers
from provenance import minilm, provenance

import bertfast
from bertfast.backends import available
from bertfast.config import FinetuneConfig, read_settings
from bertfast.export.export import export
from bertfast.model.weights import load_weights, open_checkpoint
from bertfast.tasks import Context, get_task
from bertfast.text.labelled import read_examples
from bertfast.train import loop
from bertfast.train.device import choose_precision
from bertfast.train.finetune import FinetuneSource, finetune
from bertfast.train.optimizer import make_optimizer

SETTINGS = Path(__file__).parent / "suites" / "sst2.toml"
PLAIN_EPOCHS, PLAIN_BATCH, PLAIN_RATE = 2, 32, 8e-5
SLICE_SEQUENCES = 1280


def accuracy(data: Path, out: Path, seeds: list[int]) -> dict[str, object]:
    """Fine-tune once a seed; returns the accuracies, the seconds, and whether the backends agree on every row."""
    rows = []
    for seed in seeds:
        config = FinetuneConfig.parse(read_settings(SETTINGS, [f"seed={seed}"]), str(SETTINGS))
        start_s = time.perf_counter()
        files = data / "train.tsv", data / "dev.tsv"
        result = finetune(
            open_checkpoint(minilm()),
            get_task("classify"),
            *files,
            out / f"seed{seed}",
            config,
            resume=True,
        )
        rows.append({"seed": seed, "accuracy": result["dev_accuracy"], "elapsed_s": time.perf_counter() - start_s})
        rows[-1] |= agreement(out / f"seed{seed}", out / f"seed{seed}_onnx", files[1])
        print(json.dumps(rows[-1]), flush=True)
    values = [row["accuracy"] for row in rows]
    summary = {"mean": statistics.mean(values), "spread": max(values) - min(values), "runs": rows}
    return provenance() | summary


def agreement(checkpoint: Path, onnx: Path, dev: Path) -> dict[str, object]:
    """The rows on which a backend's label differs from torch's, and the precision that each executed in."""
    export(checkpoint, onnx, overwrite=True)
    texts = [row.request["text"] for row in read_examples(dev)]
    labels: dict[str, list[str]] = {}
    executed: dict[str, str] = {}
    for runtime in available():
        with bertfast.load(checkpoint if runtime.kind == "checkpoint" else onnx, runtime.name) as model:
            labels[runtime.name] = [answer["label"] for answer in model.predict(texts)]
            executed[runtime.name] = model.backend.precision.value
    differing = {
        name: sum(a != b for a, b in zip(found, labels["torch"], strict=True)) for name, found in labels.items()
    }
    return {"rows": len(texts), "differing_labels": differing, "executed": executed}


def speed(data: Path, slices: int) -> dict[str, object]:
    """Seconds a sequence of both loops, measured in turn, and the ratio of the whole jobs."""
    config = FinetuneConfig.parse(read_settings(SETTINGS, []), str(SETTINGS))
    loops = {"bertfast": our_steps(data, config), "transformers": plain_steps(data)}
    sizes = {"bertfast": config.global_batch_size, "transformers": PLAIN_BATCH}
    seconds: dict[str, list[float]] = {name: [] for name in loops}
    for number in range(slices + 1):
        for name, steps in loops.items():
            start_s = time.perf_counter()
            for _ in itertools.islice(steps, SLICE_SEQUENCES // sizes[name]):
                pass
            if number:  # the first slice of each warms up
                seconds[name].append((time.perf_counter() - start_s) / SLICE_SEQUENCES)
    epochs = {"bertfast": config.epochs, "transformers": PLAIN_EPOCHS}
    ratios = [
        (ours * epochs["bertfast"]) / (plain * PLAIN_EPOCHS)
        for ours, plain in zip(seconds["bertfast"], seconds["transformers"], strict=True)
    ]
    measured = provenance()
    return {
        **measured,
        "epochs": epochs,
        "ms_per_sequence": {name: 1e3 * statistics.median(values) for name, values in seconds.items()},
        "whole_job_ratio": statistics.median(ratios),
        "ratios": ratios,
        "libraries": measured["libraries"] | {"transformers": transformers.__version__},
    }


def our_steps(data: Path, config: FinetuneConfig) -> Iterator[None]:
    checkpoint, task = open_checkpoint(minilm()), get_task("classify")
    examples = read_examples(data / "train.tsv")
    context = Context(checkpoint.tokenizer, task.labels(examples), config.max_length, task.settings())
    source = FinetuneSource(task.features(examples, context), checkpoint.tokenizer.pad_id, config)
    model = task.build(checkpoint.config, len(context.labels), context.settings).train()
    load_weights(model, minilm())
    device = torch.device("cpu")
    trainer = loop.Trainer(task, context.settings, model, model, device, choose_precision(config, device))
    optimizer = make_optimizer(model, config)
    for step in itertools.count():
        batches = source.micro_batches(step)
        loop.optimizer_step(trainer, trainer.losses, optimizer, batches, loop.count(task, batches), config)
        yield


def plain_steps(data: Path) -> Iterator[None]:
    """What one writes with transformers alone."""
    tokenizer = transformers.AutoTokenizer.from_pretrained(minilm())
    model = transformers.AutoModelForSequenceClassification.from_pretrained(minilm(), num_labels=2).train()
    examples = read_examples(data / "train.tsv")
    optimizer = torch.optim.AdamW(model.parameters(), lr=PLAIN_RATE)
    generator = torch.Generator().manual_seed(0)
    for indices in torch.randperm(len(examples), generator=generator).split(PLAIN_BATCH):
        rows = [examples[i] for i in indices]
        batch = tokenizer([row.request["text"] for row in rows], padding=True, truncation=True, return_tensors="pt")
        labels = torch.tensor([int(row.gold) for row in rows])
        with torch.autocast("cpu", torch.bfloat16):
            loss = model(**batch, labels=labels).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        yield


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=("accuracy", "speed"))
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--out", type=Path)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--slices", type=int, default=7)
    arguments = parser.parse_args()
    if arguments.what == "accuracy":
        if arguments.out is None:
            parser.error("accuracy needs --out DIR")
        result = accuracy(arguments.data, arguments.out, arguments.seeds)
        (arguments.out / "result.json").write_text(json.dumps(result, indent=1) + "\n")
    else:
        result = speed(arguments.data, arguments.slices)
        if arguments.out is not None:
            arguments.out.write_text(json.dumps(result, indent=1) + "\n")
    print(json.dumps(result, indent=1))


if __name__ == "__main__":
    main()
