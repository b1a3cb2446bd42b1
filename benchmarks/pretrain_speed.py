"""Pretraining speed beside transformers.BertForPreTraining: the same instances, interleaved, real tokens/s.

    python benchmarks/pretrain_speed.py --text FILE... [--vocab FILE] [--preset mini] [--length 128] [--batch 32]
        [--steps 500] [--ours packed packed-compile ...] [--peers fp32 bf16 bf16-compile] [--device cpu|cuda]
        [--out FILE]

Each contender trains a model of its own on the same steps. They take turns, a slice of steps each, so that a noisy
machine disturbs all alike; what is reported is the median over the slices of the ratio of two neighbours, with its
quartiles. Making the instances is on nobody's clock (it is a thread or processes beside the loop, and the wait for
it is in a run's log); laying them out, copying them, forward, backward, clipping and the fused AdamW step are.

The peer runs as its users run it: padded to the full length, labels at every position, SDPA. The first peer takes
every step, for the comparison of losses; the others take a slice now and then, and are timed only. On CUDA, where the
packed kernel knows no dropout of attention probabilities, both sides train without it.
"""

from __future__ import annotations

import argparse
import itertools
import json
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import torch
import transformers
from provenance import minilm, provenance

from bertfast.config import ModelConfig, Precision, PretrainConfig, read_settings
from bertfast.tasks import get_task
from bertfast.tasks.task import NoSettings
from bertfast.text import tokenizer as tokenization
from bertfast.text.batch import IGNORE_INDEX
from bertfast.text.corpus import Corpus, build_corpus, open_corpus
from bertfast.text.documents import read_documents
from bertfast.text.instances import Instance, InstanceSource
from bertfast.text.packing import Sizes, pack
from bertfast.train import loop
from bertfast.train.device import make_deterministic, resolve
from bertfast.train.diagnosis import mfu
from bertfast.train.distributed import World
from bertfast.train.optimizer import learning_rate, make_optimizer, set_learning_rate
from bertfast.train.pretrain import packed_layout, sample_sizes, training_flops_per_token

Step = Callable[[Sequence[Instance]], dict[str, float]]
PEER_SLICES = 8


def corpus_of(text: list[Path], vocabulary: Path | None, cache: Path) -> Corpus:
    if not cache.exists():
        build_corpus(read_documents(text), cache, tokenization.load(vocabulary or minilm() / "vocab.txt"))
    return open_corpus(cache)


def ours(name: str, source: InstanceSource, sample: Sizes, config: PretrainConfig, shape: ModelConfig) -> Step:
    """A training step of ours; `packed` and `padded`, each also `-compile`."""
    config = config.model_copy(update={"packing": name.startswith("packed"), "compile": name.endswith("compile")})
    config = resolve(config, config.max_steps or 0, static_shapes=config.packing)
    device = torch.device(config.device)
    task = get_task("pretrain")
    torch.manual_seed(config.seed)
    model = task.build(shape, 2, NoSettings()).to(device).train()
    layout = packed_layout(sample, config, shape, World())
    print(f"{name}: {layout}", file=sys.stderr)
    optimizer = make_optimizer(model, config)
    trainer = loop.Trainer(task, NoSettings(), model, model, device, Precision(config.precision))
    losses_of = torch.compile(trainer.losses, dynamic=False) if config.compile else trainer.losses
    pad_id, numbers = source.corpus.tokenizer.pad_id, itertools.count()

    def step(instances: Sequence[Instance]) -> dict[str, float]:
        make_deterministic(config, device)
        set_learning_rate(optimizer, learning_rate(next(numbers), config.max_steps or 1, config))
        batches = pack(instances, layout, pad_id) if layout else [source.collate(instances, len(instances))]
        losses, _ = loop.optimizer_step(trainer, losses_of, optimizer, batches, loop.count(task, batches), config)
        return {key: value.item() for key, value in losses.items()}

    return step


def peer(name: str, source: InstanceSource, config: PretrainConfig, shape: ModelConfig) -> Step:
    """A training step of transformers: `fp32`, `bf16` (autocast), each also `-compile`."""
    device = torch.device("cuda" if config.device == "cuda" else "cpu")
    theirs = transformers.BertConfig(**shape.model_dump())
    torch.manual_seed(config.seed)
    model = transformers.BertForPreTraining._from_config(theirs, attn_implementation="sdpa").to(device).train()
    call = torch.compile(model) if name.endswith("compile") else model
    optimizer = make_optimizer(model, config)
    pad_id, numbers = source.corpus.tokenizer.pad_id, itertools.count()

    def step(instances: Sequence[Instance]) -> dict[str, float]:
        torch.use_deterministic_algorithms(False)
        set_learning_rate(optimizer, learning_rate(next(numbers), config.max_steps or 1, config))
        batch = padded(instances, config.max_length, pad_id)
        inputs = {key: torch.from_numpy(value).to(device, non_blocking=True) for key, value in batch.items()}
        with torch.autocast(device.type, torch.bfloat16, enabled=name.startswith("bf16")):
            output = call(**inputs)
        output.loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), config.max_grad_norm)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        return {"total": output.loss.item()}

    return step


def padded(instances: Sequence[Instance], length: int, pad_id: int) -> dict[str, np.ndarray]:
    """Instances as transformers takes them."""
    shape = (len(instances), length)
    batch = {
        "input_ids": np.full(shape, pad_id),
        "attention_mask": np.zeros(shape, np.int64),
        "token_type_ids": np.zeros(shape, np.int64),
        "labels": np.full(shape, IGNORE_INDEX),
        "next_sentence_label": np.array([instance.next_sentence_label for instance in instances]),
    }
    for row, instance in enumerate(instances):
        size = len(instance.input_ids)
        batch["input_ids"][row, :size] = instance.input_ids
        batch["attention_mask"][row, :size] = 1
        batch["token_type_ids"][row, :size] = instance.token_type_ids
        batch["labels"][row, instance.masked_positions] = instance.masked_labels
    return batch


def race(contenders: dict[str, Step], every: dict[str, int], source: InstanceSource, options: argparse.Namespace):  # type: ignore[no-untyped-def]
    """Let the contenders take turns; returns seconds by slice and contender, losses by step, real tokens by slice."""
    seconds: dict[str, dict[int, float]] = {name: {} for name in contenders}
    losses: dict[str, list[float]] = {name: [] for name in contenders}
    tokens: list[int] = []
    for number in range(options.steps // options.slice):
        first = number * options.slice * options.batch
        steps = [
            [source.at(place) for place in range(start, start + options.batch)]
            for start in range(first, first + options.slice * options.batch, options.batch)
        ]
        tokens.append(sum(len(instance.input_ids) for step in steps for instance in step))
        order = list(contenders) if number % 2 else list(reversed(contenders))
        for name in order:
            if number % every[name]:
                continue
            started_s = time.perf_counter()
            for instances in steps:
                losses[name].append(sum(contenders[name](instances).values()))
            if options.device == "cuda":
                torch.cuda.synchronize()
            seconds[name][number] = time.perf_counter() - started_s
        speeds = "  ".join(f"{name} {tokens[-1] / by[number]:,.0f}" for name, by in seconds.items() if number in by)
        print(f"slice {number}: {speeds} real tokens/s", file=sys.stderr, flush=True)
    return seconds, losses, tokens


def summary(  # type: ignore[no-untyped-def]
    seconds, losses, tokens, ours_names: list[str], warm: int, flops: float, device_name: str
) -> dict[str, object]:
    """Medians; the first `warm` slices, with compilation and first touches of memory, are left out."""
    result: dict[str, object] = {}
    for name, by_slice in seconds.items():
        speeds = [tokens[number] / elapsed for number, elapsed in by_slice.items() if number >= warm]
        result[name] = {"real_tokens_per_s": statistics.median(speeds), "slices": len(speeds)}
        if (share := mfu(statistics.median(speeds), flops, device_name)) is not None:
            result[name]["mfu"] = share  # type: ignore[index]
        if len(losses[name]) >= 100:
            result[name]["mean_loss_of_last_100_steps"] = statistics.fmean(losses[name][-100:])  # type: ignore[index]
    ratios = {}
    for name, other in itertools.product(ours_names, seconds):
        both = [number for number in seconds[name] if number >= warm and number in seconds[other]]
        if name != other and both:
            quotients = [seconds[other][number] / seconds[name][number] for number in both]
            low, middle, high = np.quantile(quotients, [0.25, 0.5, 0.75]).tolist()
            ratios[f"{name} / {other}"] = {"median": middle, "quartiles": [low, high], "slices": len(both)}
    return result | {"ratios": ratios}


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--text", type=Path, nargs="+", required=True)
    parser.add_argument("--vocab", type=Path, help="by default bert-base-uncased's")
    parser.add_argument("--cache", type=Path, default=Path("runs/pretrain-speed-corpus"))
    parser.add_argument("--preset", default="mini")
    parser.add_argument("--length", type=int, default=128)
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--micro-batch-tokens", type=int, default=16384)
    parser.add_argument("--steps", type=int, default=500)
    parser.add_argument("--slice", type=int, default=10)
    parser.add_argument("--warm", type=int, default=1)
    parser.add_argument("--ours", nargs="+", default=["packed-compile"])
    parser.add_argument("--peers", nargs="*", default=["bf16", "fp32"])
    parser.add_argument("--device", default="cpu", choices=["cpu", "cuda"])
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--out", type=Path)
    options = parser.parse_args(arguments)
    options.cache.parent.mkdir(exist_ok=True)
    torch.set_num_threads(options.threads)
    corpus = corpus_of(options.text, options.vocab, options.cache)
    values = read_settings(Path(options.preset), [], "pretrain")
    settings = {"vocab_size": corpus.tokenizer.vocab_size, **values.pop("model")}
    if options.device == "cuda":
        settings["attention_probs_dropout_prob"] = 0.0
    shape = ModelConfig.parse(settings, options.preset)
    values |= {"max_length": options.length, "global_batch_size": options.batch, "max_steps": options.steps}
    values |= {"device": options.device, "micro_batch_tokens": options.micro_batch_tokens, "threads": options.threads}
    config = PretrainConfig.parse(values | {"warmup_fraction": 0.1}, options.preset)
    source = InstanceSource(corpus, np.arange(corpus.num_documents), config)
    sample = sample_sizes(source)
    contenders = {name: ours(name, source, sample, config, shape) for name in options.ours}
    contenders |= {f"transformers {name}": peer(name, source, config, shape) for name in options.peers}
    slices = options.steps // options.slice
    every = (
        dict.fromkeys(contenders, 1)
        | {
            f"transformers {name}": max(1, slices // PEER_SLICES) | 1  # odd, so that the order of the turns changes
            for name in options.peers[1:]
        }
    )
    seconds, losses, tokens = race(contenders, every, source, options)
    gpu = torch.cuda.get_device_name() if options.device == "cuda" else ""
    flops = training_flops_per_token(sample, shape)
    measured = provenance()
    report = {
        **measured,
        "model": shape.model_dump(),
        "settings": config.model_dump(mode="json"),
        **summary(seconds, losses, tokens, options.ours, options.warm, flops, gpu),
        "libraries": measured["libraries"] | {"transformers": transformers.__version__},
        "hardware": measured["hardware"] | ({"gpu": gpu} if gpu else {}),
        "samples": {"real_tokens": tokens, "seconds": seconds},
    }
    text = json.dumps(report, indent=1)
    if options.out:
        options.out.write_text(text + "\n")
    print(json.dumps({key: report[key] for key in report if key not in ("samples", "settings", "model")}, indent=1))


if __name__ == "__main__":
    main()
