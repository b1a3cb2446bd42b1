"""What a run measures and says while it runs: a progress bar on stderr, JSON lines and TensorBoard."""

from __future__ import annotations

import json
import time
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import torch
from rich.console import Console
from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeRemainingColumn
from torch import Tensor

from bertfast.text.batch import TrainingBatch
from bertfast.train.diagnosis import Watch, mfu
from bertfast.train.distributed import World

_LINES_WITHOUT_TERMINAL = 10


def progress_columns() -> Progress:
    """A progress bar on stderr; `note` is free text behind the remaining time."""
    console = Console(stderr=True)
    return Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        TaskProgressColumn(),
        TimeRemainingColumn(elapsed_when_finished=True),
        TextColumn("{task.fields[note]}"),
        console=console,
        disable=not console.is_terminal,
    )


class Meter:
    """Means over the steps since the last reading, and over all ranks: losses, gradient norm, speed, waiting.

    Attributes:
        train_s: seconds in all steps of the run, those before a resume included.
    """

    def __init__(self, world: World, flops_per_token: float | None, device: torch.device, train_s: float = 0.0) -> None:
        self.train_s = train_s
        self._world = world
        self._flops_per_token = flops_per_token
        self._device_name = torch.cuda.get_device_name(device) if device.type == "cuda" else ""
        self._reset()

    def _reset(self) -> None:
        self._losses: dict[str, Tensor] = {}
        self._norm, self._steps = 0.0, 0
        self._real_tokens = self._packed_tokens = 0
        self._waited_s = self._elapsed_s = 0.0
        self._since_s = time.perf_counter()

    def add(self, losses: Mapping[str, Tensor], norm: float, batches: Sequence[TrainingBatch], waited_s: float) -> None:
        """Count a step: this rank's share of the mean losses, the norm, the micro-batches, the wait for them."""
        for name, value in losses.items():
            self._losses[name] = self._losses[name] + value if name in self._losses else value
        self._norm += norm
        self._steps += 1
        self._real_tokens += sum(batch.batch.real_tokens for batch in batches)
        packed = (batch.batch for batch in batches if batch.batch.packing is not None)
        self._packed_tokens += sum(batch.input_ids.size for batch in packed)
        self._waited_s += waited_s
        now_s = time.perf_counter()
        self.train_s += now_s - self._since_s
        self._elapsed_s, self._since_s = self._elapsed_s + now_s - self._since_s, now_s

    def pause(self) -> None:
        """Leave the time since the last step out: it went into something else."""
        self._since_s = time.perf_counter()

    def read(self, rate: float) -> dict[str, float]:
        """The means, by their names in the log, and the learning rate."""
        device = next(iter(self._losses.values())).device
        own = [self._real_tokens, self._packed_tokens, self._waited_s / self._world.size]
        sums = torch.cat([torch.stack(list(self._losses.values())).double(), torch.tensor(own, device=device)])
        *losses, real_tokens, packed_tokens, waited_s = self._world.sum(sums).tolist()
        values = {f"train_{name}": value / self._steps for name, value in zip(self._losses, losses, strict=True)}
        values["real_tokens_per_s"] = real_tokens / self._elapsed_s
        if packed_tokens:  # the layers may leave out the padding of rows that are not packed
            values["packing_efficiency"] = real_tokens / packed_tokens
        values |= {
            "loader_wait_share": waited_s / self._elapsed_s,
            "grad_norm": self._norm / self._steps,
            "learning_rate": rate,
        }
        if self._flops_per_token:
            share = mfu(values["real_tokens_per_s"], self._flops_per_token, self._device_name, self._world.size)
            values |= {} if share is None else {"mfu": share}
        self._reset()
        return values


class RunLog:
    """Writes a run's metrics; after a resume, lines of steps that are done again are dropped.

    What `watch` says of them becomes warnings. Where it is not `enabled` (in all processes of a run but one) it
    writes nothing.
    """

    def __init__(
        self,
        directory: Path,
        name: str,
        start_step: int,
        total_steps: int,
        watch: Watch | None = None,
        *,
        enabled: bool = True,
    ) -> None:
        self._enabled = enabled
        self._watch = watch
        if not enabled:
            return
        from torch.utils.tensorboard import SummaryWriter

        directory.mkdir(exist_ok=True)
        file = directory / "metrics.jsonl"
        earlier_s = 0.0
        if file.exists():
            kept = [line for line in file.read_text(encoding="utf-8").splitlines() if _step_of(line) <= start_step]
            draft = file.with_suffix(".partial")
            draft.write_text("".join(f"{line}\n" for line in kept), encoding="utf-8")
            draft.replace(file)
            rows = [json.loads(line) for line in kept]
            earlier_s = rows[-1]["elapsed_s"] if rows else 0.0
            if watch is not None:
                for row in rows:  # what they tell was said before the stop
                    watch.see(row)
        self._stream = file.open("a", encoding="utf-8")
        self._board = SummaryWriter(directory / "tensorboard", purge_step=start_step + 1)
        self._progress = progress_columns()
        self._bar = self._progress.add_task(name, total=total_steps, completed=start_step, note="")
        self._total = total_steps
        self._lines_every = max(1, total_steps // _LINES_WITHOUT_TERMINAL)
        self._started_s = time.perf_counter() - earlier_s

    def advance(self, step: int) -> None:
        """Move the bar to `step` steps done."""
        if self._enabled:
            self._progress.update(self._bar, completed=step)

    def write(self, step: int, values: Mapping[str, Any]) -> None:
        """Record values under a step, everywhere."""
        if not self._enabled:
            return
        row = {"step": step, "elapsed_s": round(time.perf_counter() - self._started_s, 3), **values}
        self._stream.write(json.dumps(row) + "\n")
        self._stream.flush()
        for key, value in values.items():
            self._board.add_scalar(key, value, step)
        for alarm in self._watch.see(row) if self._watch else ():
            warnings.warn(f"step {alarm.step}: {alarm.text}", stacklevel=2)
        note = "  ".join(f"{key} {_short(value)}" for key, value in values.items())
        self._progress.update(self._bar, note=note)
        if not self._progress.console.is_terminal and (step % self._lines_every == 0 or step == self._total):
            self._progress.console.print(f"step {step}/{self._total}  {note}", highlight=False, soft_wrap=True)

    def __enter__(self) -> Self:
        """Show the bar."""
        if self._enabled:
            self._progress.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._enabled:
            self._progress.stop()
            self._stream.close()
            self._board.close()


def _step_of(line: str) -> int:
    try:
        return int(json.loads(line)["step"])
    except (json.JSONDecodeError, KeyError):
        return 1 << 62  # the last line of a killed run may be half written


def _short(value: Any) -> str:
    if not isinstance(value, float):
        return str(value)
    return f"{value:,.0f}" if abs(value) >= 100 else f"{value:.3g}" if abs(value) < 1 else f"{value:.3f}"
