"""Correctness and speed of inference: ours in their precisions, and transformers as its users run it."""

from __future__ import annotations

import statistics
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch

from benchmarks.gpu import lengths, models, timing
from benchmarks.gpu.step import Run
from bertfast.backends import Backend, ServedModel, open_served, relative_error, tolerance
from bertfast.backends.pytorch import TorchBackend
from bertfast.backends.torch_packed import TorchPackedBackend
from bertfast.config import ModelConfig, Precision
from bertfast.text.batch import pad
from bertfast.text.tokenizer import Encoded
from bertfast.train.diagnosis import flops_per_token

SEQUENCES = {"minilm": 65536, "bert-base": 16384, "bert-large": 4096}  # of SST-2's lengths; a sixth of SQuAD's
Maker = Callable[[ServedModel], Backend]


class Contender(NamedTuple):
    """What is timed: all batches from the GPU's memory, and from token ids of the host to answers there."""

    compute: timing.Call
    whole: timing.Call


def our_makers(run: Run) -> dict[str, Maker]:
    """Our candidates by name; eager ones first, since they compile nothing and fail least."""
    packed = partial(TorchPackedBackend, device=run.device.type)
    makers: dict[str, Maker] = {
        "torch-packed bf16": partial(packed, precision=Precision.BF16),
        "torch-packed fp16": partial(packed, precision=Precision.FP16),
        "torch-packed int8": partial(packed, precision=Precision.INT8),
        "torch-packed fp8": partial(packed, precision=Precision.FP8),
        "torch bf16": partial(TorchBackend, device=run.device.type, precision=Precision.BF16),
    }
    if not run.dry:  # a compiler is not everywhere, and takes its time
        for precision in (Precision.BF16, Precision.INT8, Precision.FP8):
            makers[f"torch-packed {precision} compiled"] = partial(packed, precision=precision, compiled=True)
    return makers


def correctness(run: Run) -> None:
    """The largest error of each candidate against fp32 on the CPU, for ragged lengths; fails where one is too large."""
    wrong = set()
    with tempfile.TemporaryDirectory() as folder:
        paths = [models.write_model(run, "minilm", task, Path(folder)) for task in ("classify", "qa", "tag", "embed")]
        for path in [*paths, *filter(None, [run.model])]:
            model = open_served(path)
            sequences = lengths.draw("squad", 24, model.context.tokenizer.vocab_size, 48 if run.dry else 384)
            with TorchBackend(model, device="cpu") as source:
                batch = pad(sequences, model.context.tokenizer.pad_id)
                expected, real = source.run(batch), batch.attention_mask == 1
            for name, make in our_makers(run).items():
                wrong.add(f"{name} on {path.name}")
                with survived(run, name, path.name), make(model) as backend:
                    backend.run(batch)
                    actual = backend.run(batch)  # what was recorded is replayed
                    chosen = {key: real if key in model.task.per_token else slice(None) for key in expected}
                    error = max(relative_error(actual[key][at], expected[key][at]) for key, at in chosen.items())
                    limit = tolerance(backend.name, backend.precision)
                    run.found(model=path.name, contender=name, relative_error=error, tolerance=limit)
                    wrong -= {f"{name} on {path.name}"} if error <= limit else set()
    if wrong:
        raise SystemExit(f"beyond the tolerance, or not computed: {', '.join(sorted(wrong))}")


def offline(run: Run, shape: str, mix: str) -> None:
    """Sequences and real tokens a second in the lengths of a mix, and the share of the measured ceiling.

    What compiles nothing is measured and written first; what compiles then takes turns with the best of it.
    """
    ceiling = timing.matmul_flops(run)
    run.found(what="ceiling", tflops=ceiling / 1e12)
    with tempfile.TemporaryDirectory() as folder:
        model = open_served(models.write_model(run, shape, models.TASKS[mix], Path(folder)))
        config = shape_of(model)
        count = 24 if run.dry else SEQUENCES[shape] // (6 if mix == "squad" else 1)
        sequences = lengths.draw(mix, count, config.vocab_size, 64 if run.dry else 512)
        tokens = np.array([len(sequence) for sequence in sequences])
        flops = tokens.sum() * flops_per_token(config, (tokens**2).sum() / tokens.sum(), 0) / 3
        makers = all_makers(run, model, sequences)
        eager = {name: make for name, make in makers.items() if "compile" not in name}
        ready = dict(warm(run, model.name, eager))
        measure(run, "eager", ready, tokens, flops, ceiling)
        compared = {name: one for name, one in ready.items() if name in COMPARED}
        for name in [name for name in makers if name not in eager]:
            found = dict(warm(run, model.name, {name: makers[name]}))
            if found:
                measure(run, name, compared | found, tokens, flops, ceiling)


def measure(
    run: Run, turns: str, contenders: Mapping[str, Contender], tokens: np.ndarray, flops: float, ceiling: float
) -> None:
    """Let contenders take turns, and write a row for each.

    Args:
        turns: what tells these turns from others: figures are compared within them.
        tokens: of each sequence.
        flops: of all of them together; `ceiling` is what the card does in a second.
    """
    compute = timing.take_turns({name: one.compute for name, one in contenders.items()}, run, 7)
    whole = timing.take_turns({name: one.whole for name, one in contenders.items()}, run, 3)
    for name, samples in compute.items():
        median_s = statistics.median(samples)
        run.found(
            contender=name,
            turns=turns,
            sequences_per_s=len(tokens) / median_s,
            real_tokens_per_s=int(tokens.sum()) / median_s,
            tflops=flops / median_s / 1e12,
            share_of_ceiling=flops / median_s / ceiling,
            whole_sequences_per_s=len(tokens) / statistics.median(whole[name]) if name in whole else None,
            **timing.summarize(samples),
        )


def single_stream(run: Run, shape: str) -> None:
    """One sequence of 128 tokens at a time: its latency, beside the time that the weights take to be read."""
    size = 16 if run.dry else 128
    sequence = Encoded(list(range(5, 5 + size)), [0] * size)
    with tempfile.TemporaryDirectory() as folder:
        model = open_served(models.write_model(run, shape, "classify", Path(folder)))
        read = 2 * layer_weights(shape_of(model))
        run.found(what="floor", weight_bytes=read, s=read / timing.copy_bytes_per_s(run))
        for name, contender in warm(run, shape, all_makers(run, model, [sequence])):
            for part, call in contender._asdict().items():
                with survived(run, name, shape):
                    samples = [timing.seconds(call, run) for _ in range(3 if run.dry else 200)]
                    p50, p90, p99 = np.quantile(samples, [0.5, 0.9, 0.99]).tolist()
                    run.found(contender=name, part=part, p50_s=p50, p90_s=p90, p99_s=p99)


def all_makers(run: Run, model: ServedModel, sequences: Sequence[Encoded]) -> dict[str, Callable[[], Contender]]:
    """What makes each contender, ours and others; those that compile come last, and not in a dry run."""
    makers: dict[str, Callable[[], Contender]] = {
        name: partial(ours, make, model, sequences) for name, make in our_makers(run).items()
    } | {name: partial(theirs, run, model, sequences, **how) for name, how in PEERS.items()}
    order = sorted(makers, key=lambda name: "compile" in name)
    return {name: makers[name] for name in order if not (run.dry and "compile" in name)}


def warm(run: Run, model: str, makers: Mapping[str, Callable[[], Contender]]) -> Iterator[tuple[str, Contender]]:
    """Each that can be made, warmed up, with a row of how long it then takes alone: what fails leaves its error."""
    for name, make in makers.items():
        contender = None
        with survived(run, name, model):
            contender = make()
            for call in contender:  # graphs are recorded the second time that a layout comes
                call()
            alone_s = {part: timing.seconds(call, run) for part, call in contender._asdict().items()}
            run.found(contender=name, alone_s=alone_s)
        if contender is not None:
            yield name, contender


def ours(make: Maker, model: ServedModel, sequences: Sequence[Encoded]) -> Contender:
    backend, pad_id = make(model), model.context.tokenizer.pad_id
    numbers = [len(sequence) for sequence in sequences]
    uploaded = [backend.upload(pad([sequences[i] for i in group], pad_id)) for group in backend.group(numbers)]

    def compute() -> None:
        for inputs in uploaded:
            backend.execute(inputs)

    return Contender(compute, streamed(backend, model, sequences))


def streamed(backend: Backend, model: ServedModel, sequences: Sequence[Encoded]) -> timing.Call:
    """What users call: batches are padded and uploaded while others are computed."""
    numbers, pad_id = [len(sequence) for sequence in sequences], model.context.tokenizer.pad_id

    def whole() -> None:
        for _ in backend.stream(pad([sequences[i] for i in group], pad_id) for group in backend.group(numbers)):
            pass

    return whole


# fp16, eager and in the order given, is what most run; sorted and compiled is the best that a few lines reach
PEERS = {
    "transformers fp16": {"in_order": True, "compiled": False},
    "transformers fp16 sorted": {"in_order": False, "compiled": False},
    "transformers fp16 sorted compile": {"in_order": False, "compiled": True},
}
PEER_BATCH = 64
COMPARED = ("torch-packed bf16", "transformers fp16 sorted")  # what takes turns with each that is compiled


def theirs(
    run: Run, model: ServedModel, sequences: Sequence[Encoded], *, in_order: bool, compiled: bool
) -> Contender:  # fmt: skip
    """transformers on the same weights, padded to the longest of each batch."""
    import transformers

    architecture = getattr(transformers, model.task.architecture)
    module = architecture.from_pretrained(model.path, dtype=torch.float16).to(run.device).eval()
    call = torch.compile(module, dynamic=True) if compiled else module
    order = range(len(sequences)) if in_order else np.argsort([-len(sequence) for sequence in sequences]).tolist()
    groups = [order[start : start + PEER_BATCH] for start in range(0, len(sequences), PEER_BATCH)]

    def upload(group: Sequence[int]) -> dict[str, torch.Tensor]:
        arrays = pad([sequences[i] for i in group], 0).arrays
        return {name: torch.from_numpy(array).to(run.device) for name, array in arrays.items()}

    uploaded = [upload(group) for group in groups]

    @torch.inference_mode()
    def compute() -> None:
        for inputs in uploaded:
            call(**inputs)

    @torch.inference_mode()
    def whole() -> None:
        for group in groups:
            [value.float().cpu().numpy() for value in call(**upload(group)).values()]

    return Contender(compute, whole)


def layer_weights(config: ModelConfig) -> int:
    """Weights of the layers' products: what one sequence must read whatever its length."""
    return config.num_hidden_layers * (4 * config.hidden_size**2 + 2 * config.hidden_size * config.intermediate_size)


def shape_of(model: ServedModel) -> ModelConfig:
    assert model.checkpoint is not None
    return model.checkpoint.config


@contextmanager
def survived(run: Run, contender: str, model: str) -> Iterator[None]:
    """Let one fail without the others: its error is a row."""
    try:
        yield
    except Exception as error:  # of any library
        found: dict[str, Any] = {"model": model, "contender": contender}
        run.found(**found, error=f"{type(error).__name__}: {error}"[:1000])
