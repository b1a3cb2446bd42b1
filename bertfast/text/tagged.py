"""Tagged sentences from a file of any format that holds them."""

from __future__ import annotations

from pathlib import Path

from bertfast.errors import DataError
from bertfast.text.conll import Sentence, read_conll
from bertfast.text.documents import read_json_lines, read_parquet
from bertfast.text.files import format_of
from bertfast.text.labelled import Columns
from bertfast.text.tags import refuse_no_tag, to_iob2

TAG_NAMES = ("tags", "ner_tags", "labels")


def read_tagged(path: Path, columns: Columns) -> list[Sentence]:
    """The sentences of JSON lines or Parquet with lists of `tokens` and of `tags`, or else of a CoNLL file.

    Args:
        columns: `text` and `label` name the columns; those of a CoNLL file are numbers, counted from 1.
    Raises:
        DataError: the file holds no sentence, or one that is malformed.
    """
    readers = {"jsonl": read_json_lines, "parquet": read_parquet}
    kind = format_of(path)
    if kind in readers:
        rows = (_sentence(f"{path}:{number}", row, columns) for number, row in readers[kind](path))
        sentences = [sentence for sentence in rows if sentence.tokens]
    else:
        sentences = list(read_conll(path, _place(columns.text) or 1, _place(columns.label)))
    if not sentences:
        raise DataError(f"{path} holds no sentence. Check that it is the right file.")
    return sentences


def _place(column: str | None) -> int | None:
    if column is None:
        return None
    if not column.isdecimal() or int(column) < 1:
        raise DataError(f"a CoNLL file has no column '{column}': its columns have numbers, from 1.")
    return int(column)


def _sentence(where: str, row: dict[str, object], columns: Columns) -> Sentence:
    tokens = _words(where, row, columns.text or "tokens")
    name = columns.label or next((name for name in TAG_NAMES if name in row), None)
    if name is None:
        return Sentence(tokens, None, where)
    tags = _words(where, row, name)
    if len(tokens) != len(tags):
        raise DataError(f"{where} has {len(tokens)} tokens and {len(tags)} '{name}'. Give each token one tag.")
    for tag in tags:
        refuse_no_tag(tag, where)
    return Sentence(tokens, to_iob2(tags), where)


def _words(where: str, row: dict[str, object], name: str) -> list[str]:
    words = row.get(name)
    if not isinstance(words, list) or not all(isinstance(word, str) and word for word in words):
        raise DataError(
            f"{where} has {str(words)[:60]} as '{name}', and a list of words is needed, none of them empty. Tags that "
            "are numbers must be written as their names."
        )
    return words
