"""Labelled rows from TSV, CSV, JSON lines and Parquet, each also as .gz, with columns found by their usual names."""

from __future__ import annotations

import csv
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Any

from bertfast.config import Config
from bertfast.errors import DataError, did_you_mean
from bertfast.text.documents import read_json_lines, read_lines, read_parquet
from bertfast.text.files import format_of

PAIR_NAMES = (
    ("sentence1", "sentence2"),
    ("premise", "hypothesis"),
    ("question", "context"),
    ("question", "sentence"),
    ("question", "answer"),
    ("question1", "question2"),
    ("text", "pair"),
    ("text", "text_pair"),
    ("sentence", "pair"),
)
TEXT_NAMES = ("text", "sentence", "sentence1", "premise", "question", "question1")
LABEL_NAMES = ("label", "gold_label", "labels", "category", "class")
GOLD_LABEL, NO_GOLD_LABEL = "gold_label", "-"

Row = dict[str, object]
Request = Mapping[str, Any]


class Columns(Config):
    """Which columns to read; what is None is found by its usual name."""

    text: str | None = None
    pair: str | None = None
    label: str | None = None


@dataclass(frozen=True)
class Example:
    """What a model is asked, and the answer that is right.

    Attributes:
        request: as `predict` takes it, such as `{"text": …, "pair": …}`.
        gold: the right answer in the form of the task, such as a label as it is written; None where the file has none.
        where: the file and the line that it comes from.
    """

    request: Request
    gold: Any = None
    where: str = ""


def read_examples(path: Path, columns: Columns | None = None, *, labels_needed: bool = True) -> list[Example]:
    """Read a labelled file. Rows whose `gold_label` is `-` (the annotators of SNLI and MNLI disagreed) are left out,
    with a warning that counts them.

    Raises:
        DataError: the file cannot be read, lacks a column, or a row lacks its text or label.
    """
    rows = _rows(path)
    try:
        first = next(rows)
    except StopIteration:
        raise DataError(f"{path} has no rows.") from None
    names = _find_columns(path, list(first[1]), columns or Columns(), labels_needed)
    examples = [_example(path, row, names) for row in chain([first], rows)]
    if names.label != GOLD_LABEL:
        return examples
    kept = [example for example in examples if example.gold != NO_GOLD_LABEL]
    if not kept:
        raise DataError(f"{path}: all {len(examples)} rows carry the label '{NO_GOLD_LABEL}' (no gold label).")
    if len(kept) < len(examples):
        warnings.warn(f"{path}: {len(examples) - len(kept)} rows without a gold label were left out.", stacklevel=2)
    return kept


def label_names(examples: Sequence[Example]) -> tuple[str, ...]:
    """The distinct labels: in numeric order where all are numbers, else in alphabetical order.

    Raises:
        DataError: fewer than two.
    """
    found = {example.gold for example in examples if example.gold is not None}
    if len(found) < 2:
        raise DataError(
            f"the training rows carry {len(found)} distinct label(s), {sorted(found)}; at least 2 are needed."
        )
    numeric = all(label.removeprefix("-").isdecimal() for label in found)
    return tuple(sorted(found, key=int) if numeric else sorted(found))


def label_ids(examples: Sequence[Example], names: Sequence[str]) -> list[int]:
    """Each example's place in `names`.

    Raises:
        DataError: a label that `names` lacks.
    """
    refuse_unknown_labels(examples, names)
    index = {name: number for number, name in enumerate(names)}
    return [index[example.gold] for example in examples]


def refuse_unknown_labels(examples: Sequence[Example], names: Sequence[str]) -> None:
    """Raise DataError for a label that `names` lacks; examples without one pass."""
    for example in examples:
        if example.gold is not None and example.gold not in names:
            raise DataError(
                f"{example.where} has the label '{example.gold}', and the model knows {', '.join(names)}."
                f"{did_you_mean(example.gold, names)} Correct the file, or train with rows of that label."
            )


def _rows(path: Path) -> Iterator[tuple[int, Row]]:
    readers: dict[str, Callable[[Path], Iterator[tuple[int, Row]]]] = {
        "jsonl": read_json_lines,
        "parquet": read_parquet,
        "tsv": _read_tsv,
        "csv": _read_csv,
    }
    kind = format_of(path)
    if kind not in readers:
        raise DataError(f"{path}: labelled rows come as {', '.join(f'.{name}' for name in readers)} (also .gz).")
    return readers[kind](path)


def _read_tsv(path: Path) -> Iterator[tuple[int, Row]]:
    """Tab-separated with a header; quotes are ordinary characters, as in GLUE."""
    lines = read_lines(path)
    _, header_line = next(lines, (1, ""))
    header = header_line.split("\t")
    for number, line in lines:
        if line:
            yield number, _named(path, number, header, line.split("\t"))


def _read_csv(path: Path) -> Iterator[tuple[int, Row]]:
    """Comma-separated with a header; quoted fields may span lines."""
    csv.field_size_limit(2**31 - 1)
    reader = csv.reader((f"{line}\n" for _, line in read_lines(path)), strict=True)
    try:
        header = next(reader, [])
        for fields in reader:
            if fields:
                yield reader.line_num, _named(path, reader.line_num, header, fields)
    except csv.Error as error:
        raise DataError(f"{path}:{reader.line_num} is not well-formed CSV: {error}. Is a quote left open?") from None


def _named(path: Path, number: int, header: Sequence[str], fields: Sequence[str]) -> Row:
    if len(fields) != len(header):
        raise DataError(
            f"{path}:{number} has {len(fields)} fields and the header has {len(header)} ({', '.join(header)})."
        )
    return dict(zip(header, fields, strict=True))


def _find_columns(path: Path, present: list[str], wanted: Columns, labels_needed: bool) -> Columns:
    usual_text, usual_pair = next(
        (pair for pair in PAIR_NAMES if set(pair) <= set(present) and wanted.text in (None, pair[0])), (None, None)
    )
    text = _column(path, present, wanted.text or usual_text, TEXT_NAMES, "--text-column")
    pair = _column(path, present, wanted.pair or usual_pair, (), "--pair-column", needed=False)
    label = _column(path, present, wanted.label, LABEL_NAMES, "--label-column", needed=labels_needed)
    return Columns(text=text, pair=pair, label=label)


def _column(
    path: Path, present: list[str], given: str | None, usual: Sequence[str], option: str, *, needed: bool = True
) -> str | None:
    if given is not None:
        if given not in present:
            raise DataError(
                f"{path} has no column '{given}'; it has {', '.join(present)}.{did_you_mean(given, present)}"
            )
        return given
    found = next((name for name in usual if name in present), None)
    if found is None and needed:
        near = next((hint for name in usual if (hint := did_you_mean(name, present))), "")
        raise DataError(
            f"{path} has none of the columns {', '.join(usual)}; it has {', '.join(present)}.{near}"
            f" Name it with {option}."
        )
    return found


def _example(path: Path, row: tuple[int, Row], names: Columns) -> Example:
    number, values = row
    unread = [second for first, second in PAIR_NAMES if names.pair is None and first == names.text and second in values]
    if unread and unread[0] not in (names.text, names.label):
        raise DataError(
            f"{path}:{number} has a '{unread[0]}' and the first row has none. Give every row the same columns."
        )

    def field(name: str | None) -> str | None:
        if name is None:
            return None
        value = values.get(name)
        if value is None or (name == names.label and not str(value).strip()):
            raise DataError(f"{path}:{number} has no '{name}'.")
        return str(value)

    label, pair = field(names.label), field(names.pair)
    request = {"text": field(names.text) or ""} | ({} if pair is None else {"pair": pair})
    return Example(request, None if label is None else label.strip(), f"{path}:{number}")
