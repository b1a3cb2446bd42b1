"""The command line: thin verbs that parse, call one function and print.

Heavy packages are imported inside the verbs, so that `--help` works with no extra installed.
"""

from __future__ import annotations

import json
import os
import shlex
import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any, NoReturn, TextIO, cast

import typer
from rich.console import Console
from rich.table import Table
from typer.core import TyperGroup

from bertfast.console import counting, counting_text, errors, notifying
from bertfast.errors import BertfastError, ConfigError


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
            _fail(f"{where}{error.strerror or error}. Free space or choose a place that can be written.", 2)


app = typer.Typer(cls=Verbs, no_args_is_help=True, add_completion=False, pretty_exceptions_enable=False)
corpus_app = typer.Typer(no_args_is_help=True, help="Build corpora for pretraining.")
train_app = typer.Typer(no_args_is_help=True, help="Pretrain and fine-tune.")
app.add_typer(corpus_app, name="corpus")
app.add_typer(train_app, name="train")

Out = Annotated[Path, typer.Option("--out", help="Directory to write. It appears whole or not at all.")]
Overwrite = Annotated[bool, typer.Option("--overwrite", help="Replace what bertfast wrote there before.")]
ConfigFile = Annotated[Path | None, typer.Option("--config", help="Settings as TOML.")]
_PRESETS = "tiny, mini, small, medium, base, large, base-512, large-lamb, large-lamb-512"
PretrainConfigFile = Annotated[
    Path | None, typer.Option("--config", help=f"Settings as TOML: a file, or one of the presets {_PRESETS}.")
]
Settings = Annotated[list[str] | None, typer.Option("--set", help="One setting, such as learning_rate=3e-5.")]
Resume = Annotated[bool, typer.Option("--resume", help="Go on where a run that was cut off stands.")]
TextColumn = Annotated[str | None, typer.Option(help="Column of the text, where its name is unusual.")]
PairColumn = Annotated[str | None, typer.Option(help="Column of the second text of a pair.")]
LabelColumn = Annotated[str | None, typer.Option(help="Column of the label.")]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON instead of a table.")]
Threads = Annotated[int | None, typer.Option(min=1, help="CPU threads of a backend; its own default when not given.")]


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


@corpus_app.command("build")
def corpus_build(
    inputs: Annotated[list[Path], typer.Argument(help="Text files, JSON lines, Parquet, .gz of each, directories.")],
    out: Out,
    tokenizer: Annotated[Path | None, typer.Option(help="vocab.txt, tokenizer.json or a directory with one.")] = None,
    vocab_size: Annotated[
        int | None, typer.Option(min=100, help="Train a vocabulary of this size on the inputs.")
    ] = None,
    cased: Annotated[bool, typer.Option("--cased", help="Train a vocabulary that keeps case and accents.")] = False,
    documents: Annotated[
        str, typer.Option(help="What ends a document in plain text: blank-line or file.")
    ] = "blank-line",
    newlines: Annotated[str, typer.Option(help="What a line's end is: auto, sentence or wrapped.")] = "auto",
    text_column: TextColumn = None,
    workers: Annotated[int | None, typer.Option(min=1, help="Processes; one for each core when not given.")] = None,
    engine: Annotated[str, typer.Option(help="local, or ray: a Ray cluster that reads the inputs itself.")] = "local",
    overwrite: Overwrite = False,
) -> None:
    """Segment and tokenise raw text into a corpus for pretraining; a build that was cut off goes on where it was."""
    from bertfast.text import tokenizer as tokenization
    from bertfast.text.build import workforce_of
    from bertfast.text.corpus import build_corpus_of_files
    from bertfast.text.documents import Boundary, TextFormat
    from bertfast.text.sentences import Newlines
    from bertfast.text.workplace import NewVocabulary

    if (tokenizer is None) == (vocab_size is None):
        raise ConfigError("give either --tokenizer PATH to use a vocabulary or --vocab-size N to train one.")
    boundary = cast(Boundary, _choice("--documents", documents, ("blank-line", "file")))
    ends = cast(Newlines, _choice("--newlines", newlines, ("auto", "sentence", "wrapped")))
    if cased and tokenizer:
        raise ConfigError("--cased is of a vocabulary that is trained; --tokenizer keeps case or not as it was made.")
    workforce = workforce_of(_choice("--engine", engine, ("local", "ray")), workers)
    with counting_text() as count:
        build_corpus_of_files(
            inputs,
            out,
            tokenization.load(tokenizer) if tokenizer else NewVocabulary(vocab_size or 0, lowercase=not cased),
            text_format=TextFormat(boundary, text_column),
            newlines=ends,
            workforce=workforce,
            overwrite=overwrite,
            on_progress=count,
        )
    _print_json({"corpus": str(out), **_settings_of(out)})


@corpus_app.command("verify")
def corpus_verify(corpus: Annotated[Path, typer.Argument(help="A corpus of 'bertfast corpus build'.")]) -> None:
    """Check every file of a corpus against the hash that it was published with."""
    from bertfast.text.corpus import verify_corpus

    manifest = verify_corpus(corpus)
    size = sum(record.bytes for record in manifest.files.values())
    _print_json({"corpus": str(corpus), "sha256": manifest.sha256, "files": len(manifest.files), "bytes": size})


@corpus_app.command("instances")
def corpus_instances(
    inputs: Annotated[list[Path], typer.Argument(help="Text files: a sentence a line, a blank line after a document.")],
    vocab: Annotated[Path, typer.Option(help="vocab.txt, one token a line.")],
    out: Annotated[Path, typer.Option("--out", help="JSON lines to write. The file appears whole or not at all.")],
    mode: Annotated[str, typer.Option(help="google: as create_pretraining_data.py makes them.")] = "google",
    seed: Annotated[int, typer.Option(help="Seed of all random draws.")] = 12345,
    max_seq_length: Annotated[int, typer.Option(help="Tokens of an instance, [CLS] and [SEP] included.")] = 128,
    max_predictions_per_seq: Annotated[int, typer.Option(help="Masked tokens of an instance, at the most.")] = 20,
    masked_lm_prob: Annotated[float, typer.Option(help="Share of the tokens that is masked.")] = 0.15,
    dupe_factor: Annotated[int, typer.Option(help="Passes over the text, each masked in another way.")] = 10,
    short_seq_prob: Annotated[float, typer.Option(help="Share of documents that make shorter instances.")] = 0.1,
    whole_word_mask: Annotated[bool, typer.Option("--whole-word-mask", help="Mask all pieces of a word.")] = False,
    cased: Annotated[bool, typer.Option("--cased", help="Keep case and accents, for a cased vocabulary.")] = False,
) -> None:
    """Write the instances that Google's BERT code makes: for comparison and small texts, as memory holds them all."""
    from bertfast.text import reference, reference_tokenizer

    _choice("--mode", mode, ("google",))
    settings = {
        "seed": seed,
        "max_seq_length": max_seq_length,
        "max_predictions_per_seq": max_predictions_per_seq,
        "masked_lm_prob": masked_lm_prob,
        "dupe_factor": dupe_factor,
        "short_seq_prob": short_seq_prob,
        "whole_word_mask": whole_word_mask,
    }
    config = reference.ReferenceConfig.parse(settings, "corpus instances")
    tokenizer = reference_tokenizer.load(vocab, lowercase=not cased)
    with _output(str(out.absolute())) as sink:
        with counting("sentences") as count:
            documents = reference.read_documents(inputs, tokenizer, count)
        with counting("instances") as count:
            instances = reference.make_instances(documents, tokenizer.vocabulary, config, count)
        sink.writelines(json.dumps(vars(instance), ensure_ascii=False) + "\n" for instance in instances)
    _print_json({"file": str(out), "documents": len(documents), "instances": len(instances)})


@train_app.command("pretrain")
def train_pretrain(
    corpus: Annotated[Path, typer.Option(help="A corpus of 'bertfast corpus build'.")],
    out: Out,
    model: Annotated[Path | None, typer.Option(help="Go on from this checkpoint; from scratch when not given.")] = None,
    config: PretrainConfigFile = None,
    settings: Settings = None,
    resume: Resume = False,
    overwrite: Overwrite = False,
) -> None:
    """Pretrain with masked language modelling and next-sentence prediction."""
    from bertfast.config import PretrainConfig, presets, read_settings
    from bertfast.model.weights import open_checkpoint
    from bertfast.text.corpus import open_corpus
    from bertfast.train.pretrain import pretrain

    values = read_settings(config, settings or [], "pretrain")
    shape = values.pop("model", {})
    if not isinstance(shape, dict):
        raise ConfigError(f"model = {shape!r} is a value, and [model] is a table: --set model.hidden_size=256.")
    if str(config) in presets("pretrain") and not shape and model is None:
        raise ConfigError(f"--config {config} is a second phase: give the checkpoint of the first one as --model.")
    result = pretrain(
        open_corpus(corpus),
        out,
        PretrainConfig.parse(values, "settings"),
        model_settings=shape,
        start=open_checkpoint(model) if model else None,
        resume=resume,
        overwrite=overwrite,
    )
    if os.environ.get("RANK", "0") == "0":  # torchrun starts many; one prints
        _print_json({"checkpoint": str(out), **result})


@train_app.command("classify")
def train_classify(
    model: Annotated[Path, typer.Option(help="The checkpoint to start from: ours or a Hugging Face BERT directory.")],
    train: Annotated[Path, typer.Option(help="Labelled rows: TSV, CSV, JSON lines, Parquet, .gz of each.")],
    dev: Annotated[Path, typer.Option(help="Rows to evaluate on.")],
    out: Out,
    text_column: TextColumn = None,
    pair_column: PairColumn = None,
    label_column: LabelColumn = None,
    config: ConfigFile = None,
    settings: Settings = None,
    resume: Resume = False,
    overwrite: Overwrite = False,
) -> None:
    """Fine-tune a classifier of texts or of pairs of texts."""
    from bertfast.config import FinetuneConfig, read_settings
    from bertfast.model.weights import open_checkpoint
    from bertfast.tasks import get_task
    from bertfast.text.labelled import Columns
    from bertfast.train.finetune import finetune

    result = finetune(
        open_checkpoint(model),
        get_task("classify"),
        train,
        dev,
        out,
        FinetuneConfig.parse(read_settings(config, settings or []), "settings"),
        columns=Columns(text=text_column, pair=pair_column, label=label_column),
        resume=resume,
        overwrite=overwrite,
    )
    _print_json({"checkpoint": str(out), **result})


@app.command()
def export(
    checkpoint: Annotated[Path, typer.Argument(help="A checkpoint of ours or a Hugging Face BERT directory.")],
    out: Out,
    precision: Annotated[str, typer.Option(help="fp32.")] = "fp32",
    overwrite: Overwrite = False,
) -> None:
    """Export to ONNX; nothing is published that does not reproduce its source."""
    from bertfast.export.export import export as export_checkpoint

    _choice("--precision", precision, ("fp32",))
    checks = export_checkpoint(checkpoint, out, overwrite=overwrite)
    worst = {runtime: max(errors_of.values()) for runtime, errors_of in checks.items()}
    _print_json({"onnx": str(out), "largest_relative_error": worst})


@app.command()
def bench(
    artefacts: Annotated[list[Path], typer.Argument(metavar="ARTEFACT...", help="Checkpoints and exported models.")],
    data: Annotated[Path, typer.Option(help="Rows to measure on; with labels, accuracy is measured too.")],
    out: Out,
    backend: Annotated[list[str] | None, typer.Option(help="Only these backends.")] = None,
    scenario: Annotated[list[str] | None, typer.Option(help="offline, single-stream; both when not given.")] = None,
    repeats: Annotated[int, typer.Option(min=1, help="Interleaved repeats.")] = 5,
    limit: Annotated[int | None, typer.Option(min=1, help="Only this many rows, spread over the file.")] = None,
    threads: Threads = None,
    text_column: TextColumn = None,
    pair_column: PairColumn = None,
    label_column: LabelColumn = None,
    as_json: AsJson = False,
    overwrite: Overwrite = False,
) -> None:
    """Measure speed and accuracy of every artefact in every backend that runs it."""
    from bertfast.backends import available
    from bertfast.bench.report import print_table
    from bertfast.bench.run import BenchPlan
    from bertfast.bench.run import bench as run_bench
    from bertfast.bench.scenarios import Scenario, spread
    from bertfast.text.labelled import Columns, read_examples

    names = [item.name for item in available()]
    for name in backend or []:
        _choice("--backend", name, names)
    scenarios = [Scenario(_choice("--scenario", name, [s.value for s in Scenario])) for name in scenario or []]
    columns = Columns(text=text_column, pair=pair_column, label=label_column)
    rows = read_examples(data, columns, labels_needed=False)
    rows = [rows[i] for i in spread(len(rows), limit)] if limit else rows
    plan = BenchPlan(
        artefacts,
        data,
        rows,
        shlex.join(["bertfast", *sys.argv[1:]]),
        backends=backend or (),
        scenarios=scenarios or tuple(Scenario),
        repeats=repeats,
        threads=threads,
    )
    with notifying() as notify:
        report = run_bench(plan, out, overwrite=overwrite, notify=notify)
    if as_json:
        print(report.model_dump_json())
        return
    print_table(report)
    print(f"{out / 'report.html'}")


@app.command()
def predict(
    artefact: Annotated[Path, typer.Argument(help="A checkpoint or an exported model.")],
    backend: Annotated[
        str | None, typer.Option(help="The runtime; the preferred installed one when not given.")
    ] = None,
    input_file: Annotated[str, typer.Option("--input", help="JSON lines, or - for standard input.")] = "-",
    output_file: Annotated[str, typer.Option("--output", help="JSON lines, or - for standard output.")] = "-",
    threads: Threads = None,
) -> None:
    """Answer requests: JSON lines in, JSON lines out, in the same order."""
    from bertfast.backends.predictor import load
    from bertfast.text.requests import in_windows, read_requests

    with load(artefact, backend, threads=threads) as model, _output(output_file) as sink:
        truncated = 0
        for window in in_windows(read_requests(input_file, model.model.task.read_request)):
            for request, answer in zip(window, model.predict(window), strict=True):
                truncated += "truncated" in answer
                sink.write(json.dumps(({"id": request["id"]} if "id" in request else {}) | answer) + "\n")
            sink.flush()
    if truncated:
        errors.print(f"{truncated:,} inputs were cut to the model's {model.model.max_length} tokens.", highlight=False)


@app.command()
def doctor(as_json: AsJson = False) -> None:
    """What this machine has, what is missing, and what to install."""
    from bertfast.doctor import examine

    found = examine()
    if as_json:
        _print_json(found)
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
            table.add_row(present, item["name"], item["version"] or item["remedy"])
        console.print(table)


def main() -> None:
    """Run the command line."""
    warnings.showwarning = _show_warning
    app()


def _show_warning(message: Warning | str, *_: Any, **__: Any) -> None:
    errors.print(f"warning: {message}", style="yellow", markup=False, highlight=False, soft_wrap=True)


def _fail(message: str, status: int) -> NoReturn:
    errors.print(message, style="bold red", markup=False, highlight=False, soft_wrap=True)
    sys.exit(status)


def _choice(option: str, value: str, allowed: tuple[str, ...] | list[str]) -> str:
    from bertfast.errors import did_you_mean

    if value not in allowed:
        raise ConfigError(f"{option} {value} is not one of {', '.join(allowed)}.{did_you_mean(value, allowed)}")
    return value


def _settings_of(path: Path) -> dict[str, Any]:
    from bertfast import artifact

    settings = artifact.open_manifest(path, verify_hashes=False).settings
    return {
        key: settings[key] for key in ("vocab_size", "documents", "sentences", "tokens", "duplicate_sentence_share")
    }


def _print_json(values: Any) -> None:
    print(json.dumps(values, indent=1))


@contextmanager
def _output(name: str) -> Iterator[TextIO]:
    """Standard output, or a file that appears only when it is complete."""
    if name == "-":
        yield sys.stdout
        return
    target = Path(name)
    draft = target.with_name(target.name + ".partial")
    try:
        with draft.open("w", encoding="utf-8") as stream:
            yield stream
        draft.replace(target)
    finally:
        draft.unlink(missing_ok=True)


if __name__ == "__main__":
    main()
