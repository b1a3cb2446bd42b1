"""Tagged sentences from CoNLL files: a word a line with its tag, and a blank line between sentences."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from itertools import groupby
from pathlib import Path
from typing import Any

from bertfast.errors import DataError
from bertfast.text.encodings import read_lines
from bertfast.text.tags import refuse_no_tag, to_iob2

_SPACES = re.compile(" +")
_LEFT_OUT = re.compile(r"-DOCSTART-(\s|$)|#\s?(([\w.:]+|new(doc|par) id) = [^\t]*|new(doc|par)\s*)$")
_NO_WORD = re.compile(r"\d+[-.]\d+\t")

_Row = tuple[int, list[str]]


@dataclass(frozen=True)
class Sentence:
    """Words and their tags.

    Attributes:
        tags: one a word, in IOB2; None where the file has none.
        where: the file and the line of the first word.
        id: `{"id": …}` where the file names its sentences.
    """

    tokens: list[str]
    tags: list[str] | None
    where: str
    id: Mapping[str, Any] = field(default_factory=dict)


def read_conll(path: Path, token_column: int = 1, tag_column: int | None = None) -> Iterator[Sentence]:
    """Yield the sentences of a CoNLL file, also .gz; tags of any scheme become IOB2.

    Columns are parted by tabs, or by spaces in a line without a tab. Left out are -DOCSTART- lines and the comments of
    CoNLL-U (`# key = value`, `# newdoc` and `# newpar`, without a tab); in any other line a # is a word. Where words
    are in another column than the first, lines that CoNLL-U numbers as several words (`1-2`) or as none (`1.1`) are
    left out too. A file of one column has no tags.

    Args:
        token_column: counted from 1.
        tag_column: counted from 1; the last where none is given.
    Raises:
        DataError: a line has more or fewer columns than the first, or no word, or no tag where its tag should be.
    """
    first = None
    for rows in _blocks(path, numbered=token_column > 1):
        first = first or _wide_enough(path, rows[0], max(token_column, tag_column or 1))
        width = len(first[1])
        for row in rows:
            _check(path, row, first, token_column)
        where = f"{path}:{rows[0][0]}"
        tokens = [columns[token_column - 1] for _, columns in rows]
        if width == 1:
            yield Sentence(tokens, None, where)
            continue
        tags = [columns[(tag_column or width) - 1] for _, columns in rows]
        for (number, _), tag in zip(rows, tags, strict=True):
            refuse_no_tag(tag, f"{path}:{number}")
        yield Sentence(tokens, to_iob2(tags), where)


def _blocks(path: Path, numbered: bool) -> Iterator[list[_Row]]:
    """The lines between blank ones, each as its number and its columns."""
    lines = (
        (number, line)
        for number, line in read_lines(path)
        if not _LEFT_OUT.match(line) and not (numbered and _NO_WORD.match(line))
    )
    for blank, block in groupby(lines, key=lambda item: not item[1].strip()):
        if not blank:
            yield [(number, _columns(line)) for number, line in block]


def _columns(line: str) -> list[str]:
    if "\t" in line:
        return [column.strip(" ") for column in line.split("\t")]
    return _SPACES.split(line.strip(" "))


def _wide_enough(path: Path, first: _Row, needed: int) -> _Row:
    number, columns = first
    if len(columns) < needed:
        raise DataError(f"{path}:{number} has {len(columns)} column(s), and column {needed} is asked for.")
    return first


def _check(path: Path, row: _Row, first: _Row, token_column: int) -> None:
    number, columns = row
    if len(columns) != len(first[1]):
        raise DataError(
            f"{path}:{number} has {len(columns)} column(s) ('{' '.join(columns)[:60]}'), and line {first[0]} has "
            f"{len(first[1])} ('{' '.join(first[1])[:60]}'). Correct either; a blank line ends a sentence."
        )
    if not columns[token_column - 1]:
        raise DataError(f"{path}:{number} has no word in column {token_column}. Give it one, or remove the line.")
