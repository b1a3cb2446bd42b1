"""What the verbs share: options, and how values are checked and printed."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any, TextIO

import typer

from bertfast.config import read_settings
from bertfast.errors import ConfigError, DataError, did_you_mean

Out = Annotated[Path, typer.Option("--out", help="Directory to write. It appears whole or not at all.")]
Overwrite = Annotated[bool, typer.Option("--overwrite", help="Replace what bertfast wrote there before.")]
ConfigFile = Annotated[Path | None, typer.Option("--config", help="Settings as TOML.")]
Settings = Annotated[list[str] | None, typer.Option("--set", help="One setting, such as learning_rate=3e-5.")]
TaskSettings = Annotated[
    list[str] | None, typer.Option("--set", help="A setting of the task, such as task.return_n_best=true.")
]
Resume = Annotated[bool, typer.Option("--resume", help="Go on where a run that was cut off stands.")]
TextColumn = Annotated[str | None, typer.Option(help="Column of the text, where its name is unusual.")]
PairColumn = Annotated[str | None, typer.Option(help="Column of the second text of a pair.")]
LabelColumn = Annotated[str | None, typer.Option(help="Column of the label.")]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON instead of a table.")]
Threads = Annotated[int | None, typer.Option(min=1, help="CPU threads of a backend; its own default when not given.")]


def choice(option: str, value: str, allowed: Sequence[str]) -> str:
    """The value of an option, or ConfigError where it is none of those allowed."""
    if value not in allowed:
        raise ConfigError(f"{option} {value} is not one of {', '.join(allowed)}.{did_you_mean(value, allowed)}")
    return value


def pop_task(values: dict[str, Any]) -> dict[str, Any]:
    """Take the table `task` out of settings; ConfigError where it is a value."""
    own = values.pop("task", {})
    if not isinstance(own, dict):
        raise ConfigError(f"task = {own!r} is a value, and [task] is a table: --set task.KEY=VALUE.")
    return own


def task_settings(overrides: Sequence[str] | None) -> dict[str, Any]:
    """What `--set task.KEY=VALUE` gave, by KEY; ConfigError for any other setting."""
    values = read_settings(None, overrides or ())
    own = pop_task(values)
    if values:
        raise ConfigError(f"--set {next(iter(values))} has no effect on a trained model. Write --set task.KEY=VALUE.")
    return own


def print_json(values: Any) -> None:
    """Print as JSON to standard output."""
    print(json.dumps(values, indent=1))


@contextmanager
def output(name: str, *, keep: bool = False) -> Iterator[TextIO]:
    """Standard output, or a file that appears only when it is complete.

    Args:
        keep: what was written before a DataError stays beside the file, as NAME.partial, and the error says so.
    """
    if name == "-":
        yield sys.stdout
        return
    target = Path(name)
    draft = target.with_name(target.name + ".partial")
    draft.parent.mkdir(parents=True, exist_ok=True)
    try:
        with draft.open("w", encoding="utf-8") as stream:
            yield stream
        draft.replace(target)
    except BaseException as error:
        if not (keep and isinstance(error, DataError) and draft.stat().st_size):
            draft.unlink(missing_ok=True)
            raise
        raise DataError(f"{error} The answers to what comes before it are in {draft}.") from None
