"""What a run says while it runs: a progress bar on stderr, JSON lines and TensorBoard."""

from __future__ import annotations

import json
import time
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeRemainingColumn

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


class RunLog:
    """Writes a run's metrics; after a resume, lines of steps that are done again are dropped."""

    def __init__(self, directory: Path, name: str, start_step: int, total_steps: int) -> None:
        from torch.utils.tensorboard import SummaryWriter

        directory.mkdir(exist_ok=True)
        file = directory / "metrics.jsonl"
        if file.exists():
            kept = [line for line in file.read_text(encoding="utf-8").splitlines() if _step_of(line) <= start_step]
            draft = file.with_suffix(".partial")
            draft.write_text("".join(f"{line}\n" for line in kept), encoding="utf-8")
            draft.replace(file)
        self._stream = file.open("a", encoding="utf-8")
        self._board = SummaryWriter(directory / "tensorboard", purge_step=start_step + 1 if start_step else None)
        self._progress = progress_columns()
        self._bar = self._progress.add_task(name, total=total_steps, completed=start_step, note="")
        self._total = total_steps
        self._lines_every = max(1, total_steps // _LINES_WITHOUT_TERMINAL)
        self._started_s = time.perf_counter()

    def advance(self, step: int) -> None:
        """Move the bar to `step` steps done."""
        self._progress.update(self._bar, completed=step)

    def write(self, step: int, values: Mapping[str, Any]) -> None:
        """Record values under a step, everywhere."""
        row = {"step": step, "elapsed_s": round(time.perf_counter() - self._started_s, 3), **values}
        self._stream.write(json.dumps(row) + "\n")
        self._stream.flush()
        for key, value in values.items():
            self._board.add_scalar(key, value, step)
        note = "  ".join(f"{key} {_short(value)}" for key, value in values.items())
        self._progress.update(self._bar, note=note)
        if not self._progress.console.is_terminal and (step % self._lines_every == 0 or step == self._total):
            self._progress.console.print(f"step {step}/{self._total}  {note}", highlight=False, soft_wrap=True)

    def __enter__(self) -> Self:
        """Show the bar."""
        self._progress.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
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
