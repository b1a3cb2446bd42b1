"""Tagged sentences from a file of any format that holds them."""

from __future__ import annotations

import warnings
from pathlib import Path

from bertfast.errors import DataError
from bertfast.text.conll import Sentence, read_conll
from bertfast.text.files import format_of
from bertfast.text.labelled import Columns, id_of
from bertfast.text.tables import Row, read_table, split_reference
from bertfast.text.tags import refuse_no_tag, to_iob2

TAG_NAMES = ("tags", "ner_tags", "labels")


def read_tagged(path: Path, columns: Columns, *, tags_needed: bool = True) -> list[Sentence]:
    """The sentences of JSON lines or Parquet with lists of `tokens` and of `tags`, or else of a CoNLL file.

    Args:
        path: rows may be those of a split, as `tables.read_table` takes it.
        columns: `text` and `label` name the columns; those of a CoNLL file are numbers, counted from 1.
        tags_needed: where none are, rows without a word are kept, so that each row has its answer; else they are left
            out, with a warning that counts them.
    Raises:
        DataError: the file holds no sentence, or one that is malformed; or a column for a second text is named.
    """
    if columns.pair is not None:
        raise DataError(f"{path} is to have tagged words, which have no second text. Leave --pair-column out.")
    if format_of(split_reference(path)[0]) in ("jsonl", "parquet"):
        sentences = [_sentence(where, row, columns) for where, row in read_table(path)]
    else:
        sentences = list(read_conll(path, _place(columns.text) or 1, _place(columns.label)))
    kept = [sentence for sentence in sentences if sentence.tokens]
    if not kept:
        raise DataError(f"{path} holds no sentence. Check that it is the right file.")
    if not tags_needed:
        return sentences
    if empty := len(sentences) - len(kept):
        warnings.warn(f"{path}: {empty} of {len(sentences)} rows have no words and were left out.", stacklevel=2)
    return kept


def _place(column: str | None) -> int | None:
    if column is None:
        return None
    if not column.isdecimal() or int(column) < 1:
        raise DataError(f"a CoNLL file has no column '{column}': its columns have numbers, from 1.")
    return int(column)


def _sentence(where: str, row: Row, columns: Columns) -> Sentence:
    tokens = _words(where, row, columns.text or "tokens")
    name = columns.label or next((name for name in TAG_NAMES if name in row), None)
    if name is None or row.get(name) is None:
        return Sentence(tokens, None, where, id_of(row))
    tags = _words(where, row, name)
    if len(tokens) != len(tags):
        raise DataError(f"{where} has {len(tokens)} tokens and {len(tags)} '{name}'. Give each token one tag.")
    for tag in tags:
        refuse_no_tag(tag, where)
    return Sentence(tokens, to_iob2(tags), where, id_of(row))


def _words(where: str, row: Row, name: str) -> list[str]:
    words = row.get(name)
    if not isinstance(words, list) or not all(isinstance(word, str) and word for word in words):
        raise DataError(
            f"{where} has {str(words)[:60]} as '{name}', and a list of words is needed, none of them empty. Tags that "
            "are numbers must be written as their names."
        )
    return words
