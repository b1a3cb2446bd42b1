"""`bertfast train`: pretrain, and fine-tune for each task."""

from __future__ import annotations

import inspect
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import typer

from bertfast.cli.options import (
    ConfigFile,
    LabelColumn,
    Out,
    Overwrite,
    PairColumn,
    Resume,
    Settings,
    TextColumn,
    pop_task,
    print_json,
)
from bertfast.errors import ConfigError
from bertfast.text.labelled import Columns

train_app = typer.Typer(no_args_is_help=True, help="Pretrain and fine-tune.")

_PRESETS = "tiny, mini, small, medium, base, large, base-512, large-lamb, large-lamb-512"
PretrainConfigFile = Annotated[
    Path | None, typer.Option("--config", help=f"Settings as TOML: a file, or one of the presets {_PRESETS}.")
]


@train_app.command("pretrain")
def train_pretrain(
    corpus: Annotated[Path, typer.Option(help="A corpus of 'bertfast corpus build'.")],
    out: Out,
    model: Annotated[
        Path | None,
        typer.Option(help="Go on from this checkpoint, or hub:OWNER/NAME@REVISION; from scratch when not given."),
    ] = None,
    config: PretrainConfigFile = None,
    settings: Settings = None,
    resume: Resume = False,
    overwrite: Overwrite = False,
) -> None:
    """Pretrain with masked language modelling and next-sentence prediction."""
    from bertfast.config import PretrainConfig, presets, read_settings
    from bertfast.model.snapshot import local_model
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
        start=open_checkpoint(local_model(model)) if model else None,
        resume=resume,
        overwrite=overwrite,
    )
    if os.environ.get("RANK", "0") == "0":  # torchrun starts many; one prints
        print_json({"checkpoint": str(out), **result})


Model = Annotated[
    Path, typer.Option(help="The checkpoint to start from: ours, a BERT of others, or hub:OWNER/NAME@REVISION.")
]
Train = Annotated[
    Path, typer.Option("--train", help="Examples to learn from: a file, FILE:SPLIT, or hub:OWNER/NAME:SPLIT.")
]
Dev = Annotated[Path, typer.Option("--dev", help="Examples to be judged by.")]
Teacher = Annotated[Path | None, typer.Option(help="A checkpoint of the same task whose answers are learnt too.")]
Seeds = Annotated[
    str | None,
    typer.Option(help="Several runs, into OUT/seed-N: so many from `seed` on (3), or these seeds (0,1,7)."),
]
MultiLabel = Annotated[bool, typer.Option("--multi-label", help="Any number of labels a text, instead of one.")]


@dataclass(frozen=True)
class FinetuneOptions:
    """The options of a verb that fine-tunes: typer makes them of this record's fields."""

    model: Model
    train: Train
    dev: Dev
    out: Out
    text_column: TextColumn = None
    pair_column: PairColumn = None
    label_column: LabelColumn = None
    config: ConfigFile = None
    settings: Settings = None
    teacher: Teacher = None
    seeds: Seeds = None
    resume: Resume = False
    overwrite: Overwrite = False


@dataclass(frozen=True)
class ClassifyOptions(FinetuneOptions):
    multi_label: MultiLabel = False


def _add_verb(name: str, summary: str, options: type[FinetuneOptions] = FinetuneOptions) -> None:
    def verb(**given: Any) -> None:
        chosen = options(**given)
        multi_label = isinstance(chosen, ClassifyOptions) and chosen.multi_label
        _finetune("multi-label" if multi_label else name, chosen)

    verb.__signature__ = inspect.signature(options, eval_str=True)  # type: ignore[attr-defined]
    train_app.command(name, help=summary)(verb)


_add_verb("classify", "Fine-tune a classifier of texts or of pairs of texts.", ClassifyOptions)
_add_verb("regress", "Fine-tune a model that gives a text or a pair of texts a number.")
_add_verb("qa", "Fine-tune a model that finds the answer to a question in a context (SQuAD JSON, or rows like it).")
_add_verb("tag", "Fine-tune a tagger of words, such as for names: CoNLL files, or rows of `tokens` and `tags`.")
_add_verb("embed", "Fine-tune sentence vectors: on graded pairs, on pairs that belong together, or on triplets.")
_add_verb("rerank", "Fine-tune a scorer of pairs: how well the second text answers the first, 0 to 1.")


def _finetune(task: str, options: FinetuneOptions) -> None:
    from bertfast.config import FinetuneConfig, read_settings
    from bertfast.model.snapshot import local_model
    from bertfast.model.weights import open_checkpoint
    from bertfast.tasks import get_task
    from bertfast.text.hub import local_data
    from bertfast.train.distill import refuse_lessons_without_teacher
    from bertfast.train.finetune import finetune
    from bertfast.train.seeds import parse_seeds, run_seeds
    from bertfast.train.selection import metrics_on_dev

    values = read_settings(options.config, options.settings or [])
    own = pop_task(values)
    record = get_task(task)
    config = FinetuneConfig.parse({"max_length": record.max_length} | values, "settings")
    if options.teacher is None:
        refuse_lessons_without_teacher(config)
    start = open_checkpoint(local_model(options.model))
    teacher = open_checkpoint(local_model(options.teacher)) if options.teacher else None
    train, dev = local_data(options.train), local_data(options.dev)

    def run(seed: int, to: Path) -> dict[str, float]:
        return finetune(
            start,
            record,
            train,
            dev,
            to,
            config.model_copy(update={"seed": seed}),
            task_settings=own,
            columns=Columns(text=options.text_column, pair=options.pair_column, label=options.label_column),
            teacher=teacher,
            resume=options.resume,
            overwrite=options.overwrite,
        )

    if options.seeds is None:
        print_json({"checkpoint": str(options.out), **run(config.seed, options.out)})
    else:
        wanted = parse_seeds(options.seeds, config.seed if "seed" in values else None)
        print_json(run_seeds(run, wanted, options.out, metrics_on_dev(record)))
