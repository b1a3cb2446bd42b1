"""What the command line says beside its results: progress and speed, on standard error."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, Progress, SpinnerColumn, TaskProgressColumn, TextColumn, TimeElapsedColumn

errors = Console(stderr=True)
SAID_EVERY_S = 15.0  # where progress goes into a file, which no bar can move in


@contextmanager
def counting(what: str) -> Iterator[Any]:
    """Show how many of these things are done."""
    columns = (SpinnerColumn(), TextColumn("{task.description}"), TimeElapsedColumn())
    with Progress(*columns, console=errors, disable=not errors.is_terminal) as progress:
        bar, say = progress.add_task(f"0 {what}", total=None, done=0), _now_and_then()

        def count(more: int) -> None:
            done = progress.tasks[0].fields["done"] + more
            progress.update(bar, done=done, description=f"{done:,} {what}")
            say(f"{done:,} {what}")

        yield count


@contextmanager
def counting_text() -> Iterator[Any]:
    """Show how many documents and megabytes are done, and say at the end how fast it went."""
    columns = (SpinnerColumn(), TextColumn("{task.description}"), TimeElapsedColumn())
    total_documents = total_bytes = 0
    started_s: float | None = None
    with Progress(*columns, console=errors, disable=not errors.is_terminal) as progress:
        bar, say = progress.add_task("training a vocabulary", total=None), _now_and_then()

        def count(documents: int, size: int) -> None:
            nonlocal total_documents, total_bytes, started_s
            started_s = started_s or time.monotonic()
            total_documents, total_bytes = total_documents + documents, total_bytes + size
            description = f"{total_documents:,} documents, {total_bytes / 1e6:,.0f} MB"
            progress.update(bar, description=description)
            say(description)

        yield count
    elapsed_s = time.monotonic() - (started_s or 0)
    speed = f"{total_bytes / 1e6:,.1f} MB of text in {elapsed_s:.1f} s: {total_bytes / 1e6 / elapsed_s:.1f} MB/s"
    errors.print(speed, highlight=False)


@contextmanager
def notifying() -> Iterator[Any]:
    columns = (BarColumn(), TaskProgressColumn(), TextColumn("{task.description}"))
    with Progress(*columns, console=errors, transient=True, disable=not errors.is_terminal) as progress:
        bar, say = progress.add_task("start"), _now_and_then()

        def notify(what: str, done: int, total: int) -> None:
            progress.update(bar, description=what, completed=done, total=total)
            say(f"{done}/{total} {what}")

        yield notify


def _now_and_then() -> Callable[[str], None]:
    """Prints a line now and then where there is no terminal, so that a log shows that something happens."""
    last_s = time.monotonic()

    def say(line: str) -> None:
        nonlocal last_s
        if not errors.is_terminal and time.monotonic() - last_s >= SAID_EVERY_S:
            last_s = time.monotonic()
            errors.print(line, highlight=False, markup=False, soft_wrap=True)

    return say
