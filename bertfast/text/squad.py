"""Questions about contexts: SQuAD's JSON (v1.1 and v2), and rows with its fields as JSON lines or Parquet."""

from __future__ import annotations

import json
import warnings
from collections import Counter
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Literal, NamedTuple, cast

from bertfast.errors import DataError
from bertfast.text.encodings import read_lines
from bertfast.text.files import format_of
from bertfast.text.labelled import Columns, Example
from bertfast.text.tables import read_table, split_reference

Misaligned = Literal["repair", "drop", "refuse"]
_KINDS = {str: "a string", list: "a list", dict: "an object", int: "an integer"}


class Span(NamedTuple):
    """A right answer, and its first character in the context (None where that is not known: it cannot be learnt)."""

    text: str
    start: int | None


class _Question(NamedTuple):
    where: str
    request: dict[str, Any]
    answers: list[tuple[str, int]] | None


def read_squad(
    path: Path,
    columns: Columns | None = None,
    misaligned: Misaligned = "repair",
    *,
    answers_needed: bool = True,
) -> list[Example]:
    """Read questions with their contexts and right answers.

    The gold of an example is a tuple of `Span`, empty for an unanswerable question, and None where the file does
    not tell. One warning counts the answers that are blank or that `answer_start` does not point at.

    Args:
        columns: names of a row's question (`text`), context (`pair`) and answers (`label`), where they are others.
        misaligned: what becomes of such an answer: its start is moved to the nearest occurrence of its text, or
            forgotten, or the file is refused. One whose text the context lacks has no start either way; all of
            them still count as right when answers are scored.
    Raises:
        DataError: the file cannot be read, or a field is missing or of the wrong kind; the way to it is named.
    """
    columns = columns or Columns()
    in_rows = format_of(split_reference(path)[0]) in ("jsonl", "parquet")
    if not in_rows and columns != Columns():
        raise DataError(
            f"{path} is SQuAD's own JSON by its name, and its fields have fixed names. Leave the options that name "
            "columns out."
        )
    questions = list(_rows(path, columns) if in_rows else _nested(path))
    if not questions:
        raise DataError(f"{path} has no questions.")
    tally: Counter[str] = Counter()
    examples = [_example(question, misaligned, tally) for question in questions]
    unknown = [example for example in examples if example.gold is None]
    if unknown and answers_needed:
        raise DataError(
            f"{unknown[0].where} has no '{columns.label or 'answers'}', and so have {len(unknown)} of {len(examples)} "
            "questions. Give the right answers, and [] where there is none."
        )
    if wrong := tally["moved"] + tally["lost"]:
        warnings.warn(
            f"{path}: {wrong} of {tally['answers']} answers are blank or do not stand at their answer_start: "
            f"{tally['moved']} were found elsewhere in their context, and {tally['lost']} are left out of training.",
            stacklevel=2,
        )
    return examples


def _example(question: _Question, misaligned: Misaligned, tally: Counter[str]) -> Example:
    if question.answers is None:
        return Example(question.request, None, question.where)
    context = question.request["context"]
    spans = []
    for text, start in question.answers:
        tally["answers"] += 1
        place: int | None = start
        if not text.strip():
            place = None
            tally["lost"] += 1
        elif start < 0 or not context.startswith(text, start):
            if misaligned == "refuse":
                raise DataError(
                    f"{question.where}: answer_start {start} does not point at '{text}'. Correct it, or pass "
                    "--set task.misaligned=repair or drop."
                )
            place = _nearest(context, text, start) if misaligned == "repair" else None
            tally["lost" if place is None else "moved"] += 1
        spans.append(Span(text, place))
    return Example(question.request, tuple(spans), question.where)


def _nearest(context: str, text: str, start: int) -> int | None:
    """Where `text` stands closest to `start`, if it does."""
    start = max(0, start)
    found = (context.rfind(text, 0, start + len(text)), context.find(text, start))
    return min((place for place in found if place >= 0), key=lambda place: abs(place - start), default=None)


def _nested(path: Path) -> Iterator[_Question]:
    """SQuAD's own layout: articles, their paragraphs, and the questions about each."""
    for i, article in enumerate(_list(_read_json(path), "data", f"{path}")):
        for j, paragraph in enumerate(_list(article, "paragraphs", f"{path}: data[{i}]")):
            where = f"{path}: data[{i}].paragraphs[{j}]"
            context = _text(paragraph, "context", where)
            for k, question in enumerate(_list(paragraph, "qas", where)):
                place = f"{where}.qas[{k}]"
                yield _question(question, _text(question, "question", place), context, "answers", place)


def _rows(path: Path, columns: Columns) -> Iterator[_Question]:
    """One question a row, as the data set `squad` of the Hugging Face hub has them."""
    names = (columns.text or "question", columns.pair or "context", columns.label or "answers")
    for where, row in read_table(path):
        yield _question(row, _text(row, names[0], where), _text(row, names[1], where), names[2], where)


def _question(record: Mapping[str, Any], question: str, context: str, answers: str, where: str) -> _Question:
    request = {"question": question, "context": context}
    if "id" in record:
        request["id"] = record["id"]
    if record.get("is_impossible"):
        return _Question(where, request, [])
    given = record.get(answers)
    return _Question(where, request, None if given is None else _answers(given, f"{where}.{answers}"))


def _answers(given: object, where: str) -> list[tuple[str, int]]:
    """Answers as a list of objects (SQuAD) or as an object of lists (Hugging Face's rows)."""
    if isinstance(given, dict):
        texts, starts = (_list(given, key, where) for key in ("text", "answer_start"))
        if len(texts) != len(starts):
            raise DataError(f"{where} has {len(texts)} texts and {len(starts)} starts. Give each answer both.")
        given = [{"text": text, "answer_start": start} for text, start in zip(texts, starts, strict=True)]
    if not isinstance(given, list):
        raise DataError(f"{where} is {type(given).__name__}, and a list of answers is needed.")
    return [
        (_text(answer, "text", f"{where}[{i}]"), cast(int, _field(answer, "answer_start", int, f"{where}[{i}]")))
        for i, answer in enumerate(given)
    ]


def _read_json(path: Path) -> object:
    try:
        return json.loads("\n".join(line for _, line in read_lines(path)))
    except (ValueError, RecursionError) as error:  # a number of thousands of digits is a ValueError alone
        raise DataError(
            f"{path} is not whole JSON ({error}). Copy it again, or name it .jsonl where each line is an object."
        ) from None


def _list(record: object, key: str, where: str) -> list[Any]:
    return cast(list[Any], _field(record, key, list, where))


def _text(record: object, key: str, where: str) -> str:
    text = cast(str, _field(record, key, str, where))
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise DataError(
            f"{where}: '{key}' holds half of a surrogate pair at character {error.start}. Remove it."
        ) from None
    return text


def _field(record: object, key: str, kind: type, where: str) -> object:
    if not isinstance(record, dict):
        raise DataError(f"{where} is {type(record).__name__}, and an object with '{key}' is needed.")
    if key not in record:
        raise DataError(f"{where} has no '{key}'; it has {', '.join(record) or 'nothing'}. Add it.")
    if not isinstance(record[key], kind):
        raise DataError(f"{where}: '{key}' is {type(record[key]).__name__}, and {_KINDS[kind]} is needed.")
    return record[key]
