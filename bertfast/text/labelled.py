"""Labelled rows from TSV, CSV, JSON lines and Parquet, each also as .gz, with columns found by their usual names."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from textwrap import shorten
from typing import Any

from bertfast.config import Config
from bertfast.errors import DataError, did_you_mean
from bertfast.text.tables import Row, read_table

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
    ("anchor", "positive"),
    ("query", "passage"),
    ("query", "document"),
)
TEXT_NAMES = ("text", "sentence", "sentence1", "premise", "question", "question1")
LABEL_NAMES = ("label", "gold_label", "labels", "category", "class")
NUMBER_NAMES = ("score", "similarity", "similarity_score", *LABEL_NAMES)
GOLD_LABEL, NO_GOLD_LABEL = "gold_label", "-"
ID = "id"
_SHOWN = 60
_LABELS_SHOWN = 200

Request = Mapping[str, Any]


class Columns(Config):
    """Which columns to read; what is None is found by its usual name.

    A text that is the first of a usual pair, such as `question`, brings the second with it where the file has that and
    it is not the label.
    """

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


def evenly_spread(count: int, most: int) -> list[int]:
    """At most `most` of `count` places, evenly from the first to the last; one alone is the first."""
    chosen = min(count, most)
    return [round(place * (count - 1) / max(1, chosen - 1)) for place in range(chosen)]


def label_text(value: object) -> str | None:
    """A label as text without white space around it: 1, 1.0 and "1" are "1", and true is "true".

    Raises:
        ValueError: several labels.
    """
    match value:
        case None:
            return None
        case bool():
            return str(value).lower()
        case float() if math.isnan(value):  # how pandas writes that there is none
            return None
        case float() if value.is_integer():
            return str(int(value))
        case list() | dict():
            raise ValueError("one label")
    return str(value).strip() or None


def label_number(value: object) -> float | None:
    """A label that is a number, or text of one.

    Raises:
        ValueError: it is none, or not finite.
    """
    text = label_text(value)
    if text is None:
        return None
    if not _is_number(text):
        raise ValueError("a number")
    return float(text)


def label_set(value: object, separator: str) -> tuple[str, ...]:
    """The labels of a row that may have none: a list, or text with something between them; each once, in order.

    Raises:
        ValueError: a label of a list is empty, or itself a list.
    """
    if not isinstance(value, list):
        labels = [part.strip() for part in (label_text(value) or "").split(separator)]
        return tuple(sorted(set(filter(None, labels))))
    named = [label_text(part) for part in value]
    if None in named:
        raise ValueError("a list without empty labels")
    return tuple(sorted(set(filter(None, named))))


def id_of(row: Row) -> Request:
    """`{"id": …}`, by which an answer is joined to its row, where the row has one that is a string or an integer."""
    return {ID: row[ID]} if isinstance(row.get(ID), str | int) else {}


def read_examples(
    path: Path,
    columns: Columns | None = None,
    *,
    labels_needed: bool = True,
    usual_labels: Sequence[str] = LABEL_NAMES,
    gold: Callable[[object], Any] = label_text,
) -> list[Example]:
    """Read a labelled file. Texts without a character are kept, with a warning that counts them. The `id` of a row
    goes with its request.

    Where labels are needed, rows whose `gold_label` is `-` (the annotators of SNLI and MNLI disagreed) are left out,
    with a warning that counts them. Where none are, every row is kept, and one without a right answer has the gold
    None; a warning counts the labels that cannot be one.

    Args:
        path: as `tables.read_table` takes it: a split of the file may be named.
        labels_needed: whether each row must have its label.
        usual_labels: names of the label's column that are looked for, the likeliest first.
        gold: the right answer from what the label's column holds; None where it holds none. It raises ValueError with
            what is needed instead.
    Raises:
        DataError: the file cannot be read, lacks a column, or a row lacks its text or a label that is needed.
    """
    rows = read_table(path)
    try:
        first = next(rows)
    except StopIteration:
        raise DataError(f"{path} has no rows.") from None
    names = _find_columns(path, list(first[1]), columns or Columns(), labels_needed, usual_labels)
    left_out = 0
    unread: list[str] = []
    examples = []
    for where, row in chain([first], rows):
        if labels_needed and _annotators_disagreed(row, names):
            left_out += 1
        else:
            right = _gold(where, row, names, gold, None if labels_needed else unread)
            examples.append(Example(_request(where, row, names), right, where))
    if not examples:
        raise DataError(f"{path}: all {left_out} rows carry the label '{NO_GOLD_LABEL}' (no gold label).")
    if left_out:
        warnings.warn(f"{path}: {left_out} rows without a gold label were left out.", stacklevel=2)
    if unread:
        warnings.warn(
            f"{path}: {len(unread)} of {len(examples)} labels are passed over, as none is needed here. The first: "
            f"{unread[0]}",
            stacklevel=2,
        )
    _tell_of_empty_texts(path, examples, names)
    return examples


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
    return in_order(found)


def in_order(labels: Iterable[str]) -> tuple[str, ...]:
    """Labels in numeric order where all are numbers, else in alphabetical order."""
    names = sorted(labels)
    return tuple(sorted(names, key=float) if all(map(_is_number, names)) else names)


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
    known = {None, *names}
    for example in examples:
        if example.gold not in known:
            raise DataError(
                f"{example.where} has the label '{example.gold}', and the model knows "
                f"{shorten(', '.join(names), _LABELS_SHOWN, placeholder=' ...')} ({len(names)} labels)."
                f"{did_you_mean(example.gold, names)} Correct the file, or train with rows of that label."
            )


def _find_columns(
    path: Path, present: list[str], wanted: Columns, labels_needed: bool, usual_labels: Sequence[str]
) -> Columns:
    usual_text, usual_pair = next(
        (
            pair
            for pair in PAIR_NAMES
            if set(pair) <= set(present) and wanted.text in (None, pair[0]) and wanted.label not in pair
        ),
        (None, None),
    )
    text = _column(path, present, wanted.text or usual_text, TEXT_NAMES, "--text-column")
    pair = _column(path, present, wanted.pair or usual_pair, (), "--pair-column", needed=False)
    label = _column(path, present, wanted.label, usual_labels, "--label-column", needed=labels_needed)
    return Columns(text=text, pair=pair, label=label)


def _column(
    path: Path, present: list[str], given: str | None, usual: Sequence[str], option: str, *, needed: bool = True
) -> str | None:
    shown = ", ".join(shorten(name, _SHOWN, placeholder="...") for name in present) + "."
    if any(_is_number(name) or len(name) > _SHOWN for name in present):
        shown += " That looks like a row of data: give the file a first row with the names of its columns."
    if given is not None:
        if given not in present:
            raise DataError(f"{path} has no column '{given}'; it has {shown}{did_you_mean(given, present)}")
        return given
    found = next((name for name in usual if name in present), None)
    if found is None and needed:
        near = next((hint for name in usual if (hint := did_you_mean(name, present))), "")
        raise DataError(
            f"{path} has none of the columns {', '.join(usual)}; it has {shown}{near} Or name it with {option}."
        )
    return found


def _is_number(text: str) -> bool:
    try:
        return math.isfinite(float(text))
    except ValueError:
        return False


def _request(where: str, row: Row, names: Columns) -> Request:
    unread = [second for first, second in PAIR_NAMES if names.pair is None and first == names.text and second in row]
    if unread and unread[0] not in (names.text, names.label):
        raise DataError(f"{where} has a '{unread[0]}' and the first row has none. Give every row the same columns.")
    request = {"text": _text(where, row, names.text or "")}
    if names.pair is not None:
        request["pair"] = _text(where, row, names.pair)
    return {**request, **id_of(row)}


def _text(where: str, row: Row, name: str) -> str:
    value = row.get(name)
    if value is None:
        raise DataError(f"{where} has no '{name}'. Give it one, or name another column.")
    if not isinstance(value, str):
        raise DataError(
            f"{where}: '{name}' is {type(value).__name__}, and text is needed. Write it in quotes, or name another "
            "column."
        )
    return value


def _annotators_disagreed(row: Row, names: Columns) -> bool:
    return names.label == GOLD_LABEL and str(row.get(GOLD_LABEL)).strip() == NO_GOLD_LABEL


def _gold(where: str, row: Row, names: Columns, gold: Callable[[object], Any], unread: list[str] | None) -> Any:
    """The right answer of a row. Where none is needed there is a list for what is wrong with its label."""
    name = names.label
    if name is None or _annotators_disagreed(row, names):
        return None
    try:
        value = gold(row[name]) if name in row else None
    except ValueError as error:
        wrong = f"{where}: '{name}' is {row.get(name)!r}, and {error} is needed."
        if unread is None:
            raise DataError(f"{wrong} Correct it, or name another column with --label-column.") from None
        unread.append(wrong)
        return None
    if value is None and unread is None:
        raise DataError(f"{where} has no '{name}'. Give every row its label, or leave the row out.")
    return value


def _tell_of_empty_texts(path: Path, examples: Sequence[Example], names: Columns) -> None:
    for key, name, option in (("text", names.text, "--text-column"), ("pair", names.pair, "--pair-column")):
        empty = [example.where for example in examples if not example.request.get(key, "x").strip()]
        if len(empty) == len(examples):
            raise DataError(f"{path}: '{name}' is empty in all {len(examples)} rows. Name another with {option}.")
        if empty:
            warnings.warn(
                f"{path}: '{name}' is empty in {len(empty)} of {len(examples)} rows, the first at {empty[0]}. They are "
                "kept, as such texts may come.",
                stacklevel=3,
            )
