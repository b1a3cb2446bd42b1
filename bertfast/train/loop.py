"""The training loop: one for all tasks. What step `n` learns from is a pure function of `n`."""

from __future__ import annotations

import math
import signal
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor, nn

from bertfast.config import Config, Precision, TrainConfig
from bertfast.errors import DivergenceError
from bertfast.model.encoder import checkpoint_gradients
from bertfast.tasks import Task
from bertfast.text.batch import Batch, TrainingBatch
from bertfast.train.device import place
from bertfast.train.diagnosis import Watch, first_bad_parameter
from bertfast.train.distributed import ALONE, World, gradients_stay_here, spread, whole
from bertfast.train.loader import prefetched
from bertfast.train.optimizer import clip, learning_rate, make_optimizer, set_learning_rate
from bertfast.train.progress import Meter, RunLog
from bertfast.train.selection import Best, Criterion, better, given_up
from bertfast.train.state import Progress, RunDirectory

Evaluate = Callable[[nn.Module], dict[str, float]]


class StepSource(Protocol):
    """Where a run's data comes from.

    Attributes:
        static_shapes: whether every micro-batch has the same shapes, so that it is compiled for just these.
        flops_per_token: what training on a real token takes, or None where it is not known.
    """

    static_shapes: bool
    flops_per_token: float | None

    @property
    def steps_per_epoch(self) -> int: ...

    def micro_batches(self, step: int) -> Sequence[TrainingBatch]:
        """What this rank learns from in step `step` (from 0), never nothing; the same whenever it is asked."""
        ...


@dataclass(frozen=True)
class Losses:
    """Sums over the batches seen: losses in nats, right predictions, and how many each is a sum over."""

    sums: dict[str, float]
    correct: dict[str, float]
    counts: dict[str, float]

    def means(self, prefix: str = "") -> dict[str, float]:
        values = {f"{prefix}{name}": total / self.counts[name] for name, total in self.sums.items()}
        return values | {f"{prefix}{name}_accuracy": total / self.counts[name] for name, total in self.correct.items()}


@dataclass(frozen=True)
class Trainer:
    """The things that a step needs beside its data.

    Attributes:
        settings: the task's own.
        model: the parameters.
        forward: what is called for a forward pass: the model, or its data-parallel wrapper.
    """

    task: Task
    settings: Config
    model: nn.Module
    forward: nn.Module
    device: torch.device
    precision: Precision
    world: World = ALONE

    def losses(self, inputs: Mapping[str, Any], targets: Mapping[str, Tensor]) -> dict[str, Tensor]:
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self.precision is Precision.BF16):
            outputs = self.task.forward(self.forward, inputs, targets)
            return self.task.losses(outputs, targets, self.settings)


def total_steps(steps_per_epoch: int, config: TrainConfig) -> int:
    return config.max_steps or math.ceil(config.epochs * steps_per_epoch)


def fit(
    model: nn.Module,
    task: Task,
    settings: Config,
    source: StepSource,
    config: TrainConfig,
    run: RunDirectory,
    evaluate: Evaluate,
    world: World = ALONE,
    watch: Watch | None = None,
    criterion: Criterion | None = None,
) -> dict[str, float]:
    """Train `model` in place, from where `run` stands to the end; returns the last evaluation.

    With it come the `steps` taken and the seconds in them (`train_s`, without evaluations and saving). With a
    `criterion` that keeps the best, weights and evaluation are those of `best_step`.
    `config` is resolved (see `device.resolve`): nothing in it is `auto`. All processes of `world` call it, each with
    its own share of the data in `source`. `watch` looks at what is logged.

    The random numbers of a step depend on the seed, the step and the rank alone, and so does its rate, so a run that
    was cut off ends with the weights of one that was not (bit for bit on a CPU with as many threads and processes).

    Raises:
        DivergenceError: the gradient is not finite; the last saved states are kept.
        KeyboardInterrupt: on Ctrl-C, after the state of the last whole step is saved.
    """
    steps = total_steps(source.steps_per_epoch, config)
    trainer = _trainer(model, task, settings, config, world)
    optimizer = make_optimizer(model, config)
    progress = run.load_state(model, optimizer)
    step_losses = _compiled(trainer, source) if config.compile else trainer.losses
    meter = Meter(world, source.flops_per_token, trainer.device, progress.train_s)
    done, best, found = progress.step, progress.best, dict[str, float]()
    ahead = range(done, done if given_up(best, criterion) else steps)

    def examine() -> dict[str, float]:
        nonlocal best
        found = evaluate(model)
        log.write(done, found)
        best = better(best, criterion, done, found, model) if criterion else None
        meter.pause()
        return found

    def save() -> None:
        run.save_state(Progress(done, meter.train_s, best), model, optimizer, config.keep_states)
        meter.pause()

    with RunLog(run.logs, task.name, done, steps, watch, enabled=world.leads) as log:
        with _interrupts_between_steps() as interrupted:
            for step, batches, waited_s in prefetched(source.micro_batches, ahead, int(config.workers)):
                counts, stopping = _agree(trainer, batches, interrupted())
                if stopping:
                    save()
                    raise KeyboardInterrupt
                rate = learning_rate(step, steps, config)
                set_learning_rate(optimizer, rate)
                torch.manual_seed(_step_seed(config.seed, step, world.rank))
                idle = world.largest(len(batches), trainer.device) - len(batches) if config.sharding == "fsdp" else 0
                losses, norm = optimizer_step(trainer, step_losses, optimizer, batches, counts, config, idle=idle)
                meter.add(losses, norm, batches, waited_s)
                done = step + 1
                log.advance(done)
                if done % config.log_every_steps == 0 or done == steps:
                    log.write(done, meter.read(rate))
                found = {}
                if done < steps and done % (config.evaluate_every_steps or source.steps_per_epoch) == 0:
                    found = examine()
                stopping = given_up(best, criterion)
                if stopping or done == steps or done % config.checkpoint_every_steps == 0:
                    save()
                if stopping:
                    break
            if world.largest(int(interrupted()), trainer.device):
                raise KeyboardInterrupt
        found = found or examine()
    return {**_published(model, best, done, found, evaluate), "steps": done, "train_s": round(meter.train_s, 3)}


def _trainer(model: nn.Module, task: Task, settings: Config, config: TrainConfig, world: World) -> Trainer:
    """Put the model where it is trained, and into the wrapper that it is trained in."""
    device = place(config, world)
    model.to(device).train()
    checkpoint_gradients(model, config.gradient_checkpointing)
    forward = spread(model, world, device, config.sharding)
    return Trainer(task, settings, model, forward, device, Precision(config.precision), world)


def _published(
    model: nn.Module, best: Best | None, done: int, found: dict[str, float], evaluate: Evaluate
) -> dict[str, float]:
    """What is found of the weights that the run ends with: the last ones, or the best, which are put back."""
    if best is None or not best.weights:
        return found
    model.load_state_dict(best.weights)
    return {**(found if best.step == done else evaluate(model)), "best_step": best.step}


def _compiled(trainer: Trainer, source: StepSource) -> Callable[..., dict[str, Tensor]]:
    return torch.compile(trainer.losses, dynamic=not source.static_shapes)


def optimizer_step(
    trainer: Trainer,
    step_losses: Callable[..., dict[str, Tensor]],
    optimizer: torch.optim.Optimizer,
    batches: Sequence[TrainingBatch],
    counts: Mapping[str, float],
    config: TrainConfig,
    *,
    idle: int = 0,
) -> tuple[dict[str, Tensor], float]:
    """One step over the micro-batches of this rank; returns its share of the mean losses and the gradient's norm.

    Every loss is divided by its count over the whole global batch, so how that is cut into micro-batches and
    shares, and how much of them is padding, changes nothing.

    Args:
        idle: passes to make after these, in which nothing is learnt: while parameters are cut over the ranks, each
            rank takes part in as many passes as the one with most micro-batches.
    """
    world, device = trainer.world, trainer.device
    means = {name: torch.zeros((), device=device) for name in counts}
    passes = [*((batch, 1.0) for batch in batches), *[(batches[-1], 0.0)] * idle]
    for number, (batch, weight) in enumerate(passes, 1):
        with gradients_stay_here(trainer.forward, last=number == len(passes)):
            losses = step_losses(to_inputs(batch.batch, device), to_tensors(batch.targets, device))
            shares = {name: weight * loss / (counts[name] or 1) for name, loss in losses.items()}
            # The wrappers average gradients over the ranks, and what is wanted is their sum.
            (torch.stack(list(shares.values())).sum() * world.size).backward()  # type: ignore[no-untyped-call]
        for name, share in shares.items():
            means[name] += share.detach()
    parameters = [parameter for parameter in trainer.model.parameters() if parameter.grad is not None]
    norm = whole(nn.utils.get_total_norm([parameter.grad for parameter in parameters if parameter.grad is not None]))
    if not math.isfinite(norm.item()):
        losses_said = {name: world.sum(mean).item() for name, mean in means.items()}
        raise DivergenceError(
            f"the gradient's norm is {norm.item()} with losses {losses_said}; what is not finite is "
            f"{first_bad_parameter(trainer.model)}. The last saved states are kept. Lower learning_rate (now "
            f"{config.learning_rate:g}), or set precision=fp32, and go on with --resume."
        )
    clip(optimizer, parameters, norm, config.max_grad_norm, alone=world.size == 1)
    optimizer.step()
    optimizer.zero_grad(set_to_none=True)
    return means, norm.item()


def count(task: Task, batches: Sequence[TrainingBatch]) -> dict[str, float]:
    """By how many each summed loss of these micro-batches is divided."""
    counts: dict[str, float] = {}
    for batch in batches:
        _add(counts, task.counts(batch.targets))
    return counts


def _add(totals: dict[str, float], values: Mapping[str, float]) -> None:
    for name, value in values.items():
        totals[name] = totals.get(name, 0) + value


def _agree(trainer: Trainer, batches: Sequence[TrainingBatch], interrupted: bool) -> tuple[dict[str, float], bool]:
    """By how many each loss is divided over all ranks, and whether any of them was interrupted."""
    counts = count(trainer.task, batches)
    if trainer.world.size == 1:
        return counts, interrupted
    together = trainer.world.sum(torch.tensor([*counts.values(), int(interrupted)], device=trainer.device)).tolist()
    return dict(zip(counts, together, strict=False)), together[-1] > 0


@torch.no_grad()
def evaluate_losses(model: nn.Module, task: Task, settings: Config, batches: Iterable[TrainingBatch]) -> Losses:
    """Losses and right predictions over batches, without dropout and in fp32, as the published model will answer."""
    device = next(model.parameters()).device
    model.eval()
    sums: dict[str, float] = {}
    correct: dict[str, float] = {}
    counts: dict[str, float] = {}
    for batch in batches:
        inputs, targets = to_inputs(batch.batch, device), to_tensors(batch.targets, device)
        outputs = task.forward(model, inputs, targets)
        _add(sums, {name: loss.item() for name, loss in task.losses(outputs, targets, settings).items()})
        _add(correct, {name: right.item() for name, right in task.correct(outputs, targets).items()})
        _add(counts, task.counts(batch.targets))
    model.train()
    return Losses(sums, correct, counts)


def to_tensors(arrays: Mapping[str, np.ndarray], device: torch.device) -> dict[str, Tensor]:
    """Arrays as tensors on the device."""
    tensors = {name: torch.from_numpy(array) for name, array in arrays.items()}
    if device.type == "cuda":  # only from pinned memory does a copy run beside the computation
        return {name: tensor.pin_memory().to(device, non_blocking=True) for name, tensor in tensors.items()}
    return tensors


def to_inputs(batch: Batch, device: torch.device) -> dict[str, Any]:
    """What a model's forward pass takes of a batch."""
    inputs: dict[str, Any] = dict(to_tensors(batch.arrays, device))
    if (packing := batch.packing) is not None:
        inputs |= to_tensors(
            {
                "position_ids": packing.position_ids,
                "sequence_starts": packing.sequence_starts,
                "cu_seqlens": packing.cu_seqlens,
            },
            device,
        )
        inputs["max_seqlen"] = packing.max_seqlen
    return inputs


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


def _step_seed(seed: int, step: int, rank: int) -> int:
    return int(np.random.SeedSequence([seed, step, rank]).generate_state(1, np.uint64)[0] >> 1)
