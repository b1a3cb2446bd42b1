"""Sentence segmentation by rule: fast, without a model, for the segment pairs of next-sentence prediction.

The boundaries need not be perfect (the reference cuts its text with such rules too); what matters is that they
are stable and that text without punctuation still ends somewhere.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Literal

Newlines = Literal["auto", "sentence", "wrapped"]
MAX_SENTENCE_CHARS = 2000

_ABBREVIATION = re.compile(
    r"(?:\b(?:Mr|Mrs|Ms|Dr|Prof|Sr|Jr|St|Mt|vs|etc|cf|approx|no|vol|fig|eq|pp?|ed|eds|al|inc|ltd|co|dept|gen|col"
    r"|sen|rep|gov|rev|hon|capt|lt|sgt|jan|feb|mar|apr|jun|jul|aug|sept?|oct|nov|dec|e\.g|i\.e|a\.m|p\.m|u\.s|u\.k)"
    r"|\b[A-Z])\.$",
    re.IGNORECASE,
)
# It begins with the mark itself and not with a look behind: so the search runs from mark to mark, three times as fast.
_BOUNDARY = re.compile(r"[.!?][\"'\u2019\u201d)\]]*\s+(?=[\"'\u2018\u201c(\[]?[^\Wa-z_])|[\u3002\uff01\uff1f]")
_CLOSING = "\"'\u2019\u201d)]"
_ENDS_SENTENCE = tuple(".!?:;\u3002\uff01\uff1f")


def split_document(text: str, newlines: Newlines = "auto") -> Iterator[str]:
    """Yield a document's sentences, stripped, none empty.

    Args:
        newlines: whether a line's end ends a sentence (`sentence`, the reference's format), or only wraps it
            (`wrapped`); `auto` looks at how the lines end.
    """
    lines = [line.strip() for line in text.splitlines()]
    if newlines == "wrapped" or (newlines == "auto" and _is_wrapped(lines)):
        lines = _paragraphs(lines)
    for line in lines:
        yield from split_line(line)


def split_line(line: str) -> Iterator[str]:
    """Yield the sentences of text without line breaks; what runs on is cut after `MAX_SENTENCE_CHARS`."""
    start = 0
    for match in _BOUNDARY.finditer(line):
        mark = match.start()
        if line[mark] == "." and _ABBREVIATION.search(line, max(start, mark - 7), mark + 1):
            continue
        yield from _pieces(line[start : match.end()].strip())
        start = match.end()
    yield from _pieces(line[start:].strip())


def _pieces(sentence: str) -> Iterator[str]:
    while len(sentence) > MAX_SENTENCE_CHARS:
        cut = sentence.rfind(" ", 1, MAX_SENTENCE_CHARS)
        cut = cut if cut > 0 else MAX_SENTENCE_CHARS
        yield sentence[:cut].rstrip()
        sentence = sentence[cut:].lstrip()
    if sentence:
        yield sentence


def _is_wrapped(lines: list[str]) -> bool:
    """Hard-wrapped prose: lines of a bounded width of which most do not end where a sentence ends."""
    body = [line for line in lines[:-1] if line]
    if not body or max(map(len, body)) > 100:
        return False
    return sum(not line.rstrip(_CLOSING).endswith(_ENDS_SENTENCE) for line in body) > len(body) / 2


def _paragraphs(lines: list[str]) -> list[str]:
    paragraphs: list[list[str]] = [[]]
    for line in lines:
        if line:
            paragraphs[-1].append(line)
        elif paragraphs[-1]:
            paragraphs.append([])
    return [" ".join(paragraph) for paragraph in paragraphs if paragraph]
