"""The command line: thin verbs that parse, call one function and print.

Heavy packages are imported inside the verbs, so that `--help` works with no extra installed.
"""

from __future__ import annotations

import errno
import json
import os
import sys
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, NoReturn

import typer
from rich.console import Console
from rich.markup import escape
from rich.table import Table
from typer.core import TyperGroup

from bertfast.cli.bench import bench
from bertfast.cli.build import build
from bertfast.cli.corpus import corpus_app
from bertfast.cli.export import adopt, export
from bertfast.cli.options import (
    AsJson,
    LabelColumn,
    PairColumn,
    TaskSettings,
    TextColumn,
    Threads,
    output,
    print_json,
    task_settings,
)
from bertfast.cli.train import train_app
from bertfast.console import errors
from bertfast.errors import BertfastError, ConfigError

if TYPE_CHECKING:
    from bertfast.backends import ServedModel
    from bertfast.tasks import Answer
    from bertfast.text.labelled import Columns, Request

__all__ = ["app", "main"]


class Verbs(TyperGroup):
    """The verbs; what the user can mend ends with status 2, a message and no traceback."""

    def invoke(self, ctx: Any) -> Any:
        try:
            return super().invoke(ctx)
        except BertfastError as error:
            _fail(f"{type(error).__name__}: {error}", error.exit_status)
        except KeyboardInterrupt:
            _fail(
                "interrupted; nothing half-written was left. A training run goes on with --resume, "
                "a corpus build when it is started again.",
                130,
            )
        except BrokenPipeError:  # nobody reads on; the flush at the exit must not fail
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            sys.exit(0)
        except ModuleNotFoundError as error:
            if (error.name or "").partition(".")[0] == "bertfast":
                raise
            _fail(f"the package '{error.name}' is missing. 'bertfast doctor' says which extra brings it.", 2)
        except OSError as error:
            where = f"{error.filename}: " if error.filename else ""
            remedy = (
                "Free space or choose a place that can be written."
                if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS)
                else "Check the path, its permissions and its disk."
            )
            _fail(f"{where}{error.strerror or error}. {remedy}", 2)


app = typer.Typer(cls=Verbs, no_args_is_help=True, add_completion=False, pretty_exceptions_enable=False)
app.add_typer(corpus_app, name="corpus")
app.add_typer(train_app, name="train")


@app.callback(invoke_without_command=True)
def _version(version: Annotated[bool, typer.Option("--version", help="Print the version.")] = False) -> None:
    """BERT encoders from raw text to the fastest engine, with proof of what that costs in accuracy."""
    if version:
        from bertfast.artifact import version as installed

        print(installed())
        raise typer.Exit


@app.command()
def quickstart(
    out: Annotated[Path, typer.Option("--out", help="Where everything goes.")] = Path("quickstart"),
) -> None:
    """The whole way, offline: text, vocabulary, pretraining, fine-tuning, ONNX, benchmark."""
    from bertfast.quickstart import run

    run(out)


app.command()(export)
app.command()(adopt)
app.command()(build)
app.command()(bench)


@app.command()
def predict(
    artefact: Annotated[Path, typer.Argument(help="A checkpoint, an exported model, or hub:OWNER/NAME@REVISION.")],
    backend: Annotated[
        str | None, typer.Option(help="The runtime; the preferred installed one when not given.")
    ] = None,
    input_file: Annotated[
        str,
        typer.Option(
            "--input",
            help="JSON lines, - for standard input, or data of the task: a file, FILE:SPLIT or hub:OWNER/NAME.",
        ),
    ] = "-",
    output_file: Annotated[str, typer.Option("--output", help="JSON lines, or - for standard output.")] = "-",
    squad: Annotated[bool, typer.Option("--squad", help="Write {id: answer}, as SQuAD's evaluation reads it.")] = False,
    threads: Threads = None,
    text_column: TextColumn = None,
    pair_column: PairColumn = None,
    label_column: LabelColumn = None,
    settings: TaskSettings = None,
) -> None:
    """Answer requests: JSON lines in, JSON lines out, in the same order."""
    from bertfast.backends.predictor import load
    from bertfast.model.snapshot import local_model
    from bertfast.tasks.qa import predictions
    from bertfast.text.labelled import Columns
    from bertfast.text.requests import in_windows

    columns = Columns(text=text_column, pair=pair_column, label=label_column)
    own = task_settings(settings)
    with (
        load(local_model(artefact), backend, threads=threads, settings=own) as model,
        output(output_file, keep=True) as sink,
    ):
        truncated = 0
        said: dict[str, str] = {}
        for window in in_windows(_requests(input_file, columns, model.model)):
            answers = model.predict(window)
            truncated += sum("truncated" in answer for answer in answers)
            if squad:
                said |= predictions(window, answers, said)
                continue
            for request, answer in zip(window, answers, strict=True):
                sink.write(_json_line(({"id": request["id"]} if "id" in request else {}) | answer))
            sink.flush()
        if squad:
            sink.write(json.dumps(said, ensure_ascii=False) + "\n")
    if truncated:
        errors.print(
            f"Inputs that were cut: {truncated:,}. Texts go to the model's {model.model.context.max_length} tokens, "
            "questions to task.max_query_length or half of the model's.",
            highlight=False,
        )


def _json_line(answer: Answer) -> str:
    return json.dumps(answer, default=lambda vector: vector.tolist()) + "\n"


def _requests(name: str, columns: Columns, model: ServedModel) -> Iterator[Request]:
    """Requests as JSON lines; or those of data that the task reads, without the golds that they may have."""
    from bertfast.text.files import format_of
    from bertfast.text.hub import local_data
    from bertfast.text.requests import read_requests

    named = columns.model_dump(exclude_none=True)
    if name == "-" and named:
        raise ConfigError(f"--{next(iter(named))}-column is of a file, and standard input has requests. Give --input.")
    if name == "-" or (format_of(Path(name)) == "jsonl" and not named):
        return read_requests(name, model.task.check)
    examples = model.task.read(local_data(Path(name)), columns, model.context.settings, False)
    return (example.request for example in examples)


@app.command()
def doctor(as_json: AsJson = False) -> None:
    """What this machine has, what is missing, and what to install."""
    from bertfast.doctor import examine

    found = examine()
    if as_json:
        print_json(found)
        return
    console = Console()
    machine = found["machine"]
    memory = f", {machine['memory_bytes'] / 2**30:.0f} GiB" if machine["memory_bytes"] else ""
    console.print(
        f"bertfast {found['bertfast']} on {machine['cpu']}, {machine['cores']} cores{memory}", highlight=False
    )
    console.print(f"GPU: {machine['gpu'] or 'none'}", highlight=False)
    for section in ("backends", "packages", "tools"):
        table = Table(title=section, title_justify="left", show_header=False, box=None, padding=(0, 2))
        for item in found[section]:
            present = "[green]yes[/]" if item["version"] else "[red]no[/]"
            table.add_row(present, item["name"], escape(item["version"] or item["remedy"]))
        console.print(table)
    for problem in found["problems"]:
        console.print(f"problem: {problem}", style="yellow", markup=False, highlight=False, soft_wrap=True)


def main() -> None:
    """Run the command line."""
    warnings.showwarning = _show_warning
    app()


def _show_warning(message: Warning | str, *_: Any, **__: Any) -> None:
    errors.print(f"warning: {message}", style="yellow", markup=False, highlight=False, soft_wrap=True)


def _fail(message: str, status: int) -> NoReturn:
    errors.print(message, style="bold red", markup=False, highlight=False, soft_wrap=True)
    sys.exit(status)
