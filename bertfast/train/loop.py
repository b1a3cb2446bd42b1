"""The training loop: one for all tasks. What step `n` learns from is a pure function of `n`."""

from __future__ import annotations

import math
import signal
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import torch
from torch import Tensor, nn

from bertfast.config import Precision, TrainConfig
from bertfast.errors import DivergenceError
from bertfast.tasks import Task
from bertfast.text.batch import TrainingBatch
from bertfast.train.device import make_deterministic
from bertfast.train.optimizer import learning_rate, make_optimizer
from bertfast.train.progress import RunLog
from bertfast.train.state import RunDirectory

Evaluate = Callable[[nn.Module], dict[str, float]]


class StepSource(Protocol):
    """Where a run's data comes from.

    Attributes:
        static_shapes: whether every micro-batch has the same shapes, so that it is compiled for just these.
    """

    static_shapes: bool

    @property
    def steps_per_epoch(self) -> int: ...

    def micro_batches(self, step: int) -> Sequence[TrainingBatch]:
        """What step `step` (from 0) learns from; the same for the same step, whenever it is asked."""
        ...


@dataclass(frozen=True)
class Losses:
    """Sums over the batches seen: losses in nats, right predictions, and how many each is a sum over."""

    sums: dict[str, float]
    correct: dict[str, float]
    counts: dict[str, int]

    def means(self, prefix: str = "") -> dict[str, float]:
        values = {f"{prefix}{name}": total / self.counts[name] for name, total in self.sums.items()}
        return values | {f"{prefix}{name}_accuracy": total / self.counts[name] for name, total in self.correct.items()}


@dataclass(frozen=True)
class Trainer:
    """The things that a step needs beside its data."""

    task: Task
    model: nn.Module
    device: torch.device
    precision: Precision

    def losses(self, inputs: Mapping[str, Tensor], targets: Mapping[str, Tensor]) -> dict[str, Tensor]:
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self.precision is Precision.BF16):
            return self.task.losses(self.task.forward(self.model, inputs, targets), targets)


def total_steps(source: StepSource, config: TrainConfig) -> int:
    return config.max_steps or math.ceil(config.epochs * source.steps_per_epoch)


def fit(
    model: nn.Module,
    task: Task,
    source: StepSource,
    config: TrainConfig,
    run: RunDirectory,
    evaluate: Evaluate,
) -> dict[str, float]:
    """Train `model` in place, from where `run` stands to the end; returns the last evaluation.

    `config` is resolved (see `device.resolve`): nothing in it is `auto`.

    The random numbers of a step depend on the seed and the step alone, so a run that was cut off ends with the
    weights of one that was not (bit for bit on a CPU with the same thread count).

    Raises:
        DivergenceError: the gradient is not finite; the last saved state is kept.
        KeyboardInterrupt: on Ctrl-C, after the state of the last whole step is saved.
    """
    steps = total_steps(source, config)
    device = torch.device(config.device)
    if config.threads:
        torch.set_num_threads(config.threads)
    make_deterministic(config, device)
    model.to(device).train()
    optimizer = make_optimizer(model, config)
    done = run.load_state(model, optimizer)
    trainer = Trainer(task, model, device, Precision(config.precision))
    step_losses = trainer.losses
    if config.compile:
        step_losses = torch.compile(trainer.losses, dynamic=not source.static_shapes)
    meter = _Meter()
    with RunLog(run.logs, task.name, done, steps) as log:
        with _interrupts_between_steps() as interrupted:
            for step, batches in _prefetched(source, range(done, steps)):
                set_learning_rate(optimizer, learning_rate(step, steps, config))
                torch.manual_seed(_step_seed(config.seed, step))
                meter.add(*optimizer_step(trainer, step_losses, optimizer, batches, config), batches)
                done = step + 1
                log.advance(done)
                if done % config.log_every_steps == 0 or done == steps:
                    log.write(done, meter.read(optimizer.param_groups[0]["lr"]))
                if done % config.checkpoint_every_steps == 0 or done == steps or interrupted():
                    run.save_state(done, model, optimizer)
                if interrupted():
                    raise KeyboardInterrupt
                if done < steps and done % source.steps_per_epoch == 0:
                    log.write(done, evaluate(model))
                    meter.reset()
        final = evaluate(model)
        log.write(steps, final)
    return final


def optimizer_step(
    trainer: Trainer,
    step_losses: Callable[..., dict[str, Tensor]],
    optimizer: torch.optim.Optimizer,
    batches: Sequence[TrainingBatch],
    config: TrainConfig,
) -> tuple[dict[str, float], float]:
    """One step over the micro-batches of a global batch; returns its mean losses and the gradient's norm.

    Every loss is divided by its count over the whole global batch, so how it is cut into micro-batches, and how
    much of them is padding, changes nothing.
    """
    counts: dict[str, int] = {}
    for batch in batches:
        for name, count in trainer.task.counts(batch.targets).items():
            counts[name] = counts.get(name, 0) + count
    sums: dict[str, Tensor] = {}
    for batch in batches:
        losses = step_losses(to_tensors(batch.batch.arrays, trainer.device), to_tensors(batch.targets, trainer.device))
        torch.stack([loss / max(1, counts[name]) for name, loss in losses.items()]).sum().backward()  # type: ignore[no-untyped-call]
        for name, loss in losses.items():
            sums[name] = sums.get(name, torch.zeros((), device=trainer.device)) + loss.detach()
    norm = nn.utils.clip_grad_norm_(trainer.model.parameters(), config.max_grad_norm)
    if not torch.isfinite(norm):
        raise DivergenceError(
            f"the gradient's norm is {norm.item()} with losses { ({k: v.item() for k, v in sums.items()}) }. "
            f"Lower learning_rate (now {config.learning_rate:g}), or set precision=fp32."
        )
    optimizer.step()
    optimizer.zero_grad(set_to_none=True)
    return {name: total.item() / max(1, counts[name]) for name, total in sums.items()}, float(norm)


@torch.no_grad()
def evaluate_losses(model: nn.Module, task: Task, batches: Iterable[TrainingBatch]) -> Losses:
    """Losses and right predictions over batches, without dropout and in fp32, as the published model will answer."""
    device = next(model.parameters()).device
    model.eval()
    sums: dict[str, float] = {}
    correct: dict[str, float] = {}
    counts: dict[str, int] = {}
    for batch in batches:
        inputs, targets = to_tensors(batch.batch.arrays, device), to_tensors(batch.targets, device)
        outputs = task.forward(model, inputs, targets)
        for totals, values in ((sums, task.losses(outputs, targets)), (correct, task.correct(outputs, targets))):
            for name, value in values.items():
                totals[name] = totals.get(name, 0.0) + value.item()
        for name, count in task.counts(batch.targets).items():
            counts[name] = counts.get(name, 0) + count
    model.train()
    return Losses(sums, correct, counts)


def to_tensors(arrays: Mapping[str, np.ndarray], device: torch.device) -> dict[str, Tensor]:
    """Arrays as tensors on the device."""
    return {name: torch.from_numpy(array).to(device, non_blocking=True) for name, array in arrays.items()}


def set_learning_rate(optimizer: torch.optim.Optimizer, rate: float) -> None:
    for group in optimizer.param_groups:
        group["lr"] = rate


class _Meter:
    """Losses, gradient norm and speed since the last reading."""

    def __init__(self) -> None:
        self.reset()

    def reset(self) -> None:
        self.losses: dict[str, float] = {}
        self.norm, self.tokens, self.steps = 0.0, 0, 0
        self.started_s = time.perf_counter()

    def add(self, losses: Mapping[str, float], norm: float, batches: Sequence[TrainingBatch]) -> None:
        for name, value in losses.items():
            self.losses[name] = self.losses.get(name, 0.0) + value
        self.norm += norm
        self.tokens += sum(batch.batch.real_tokens for batch in batches)
        self.steps += 1

    def read(self, rate: float) -> dict[str, float]:
        elapsed_s = time.perf_counter() - self.started_s
        values = {f"train_{name}": value / self.steps for name, value in self.losses.items()}
        values |= {
            "real_tokens_per_s": self.tokens / elapsed_s,
            "grad_norm": self.norm / self.steps,
            "learning_rate": rate,
        }
        self.reset()
        return values


def _prefetched(source: StepSource, steps: range) -> Iterator[tuple[int, Sequence[TrainingBatch]]]:
    """The micro-batches of each step; those of the next step are made while one is computed."""
    with ThreadPoolExecutor(1, thread_name_prefix="batches") as pool:
        ahead = deque(pool.submit(source.micro_batches, step) for step in steps[:1])
        for step in steps:
            batches = ahead.popleft().result()
            if step + 1 in steps:
                ahead.append(pool.submit(source.micro_batches, step + 1))
            yield step, batches


@contextmanager
def _interrupts_between_steps() -> Iterator[Callable[[], bool]]:
    """Hold the first Ctrl-C back until the step is whole; a second one interrupts at once.

    Yields a function that says whether there was one. Outside the main thread, where Python delivers no signals,
    nothing is held back.
    """
    caught: list[int] = []
    if threading.current_thread() is not threading.main_thread():
        yield lambda: False
        return
    before = signal.getsignal(signal.SIGINT)

    def hold_back(number: int, _: object) -> None:
        caught.append(number)
        signal.signal(signal.SIGINT, before)

    signal.signal(signal.SIGINT, hold_back)
    try:
        yield lambda: bool(caught)
    finally:
        signal.signal(signal.SIGINT, before)


def _step_seed(seed: int, step: int) -> int:
    return int(np.random.SeedSequence([seed, step]).generate_state(1, np.uint64)[0] >> 1)
