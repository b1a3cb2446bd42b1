"""Tags of words, and the spans of words that they mark.

A tag is `O`, or a prefix and a type (`B-person`). Every scheme in use is read alike: IOB1, IOB2, BIOES, BILOU and BMES
differ in which prefixes they use, and none gives a prefix another meaning. What is written is IOB2.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import NamedTuple

from bertfast.errors import DataError

OUTSIDE = "O"
_BEGINS, _INSIDE, _ENDS, _SINGLE = "B", "IM", "EL", "SUW"
PREFIXES = _BEGINS + _INSIDE + _ENDS + _SINGLE


class Span(NamedTuple):
    """The words from `start` up to, and without, `end`."""

    start: int
    end: int
    label: str


def is_tag(text: str) -> bool:
    """Whether this is `O` or PREFIX-TYPE."""
    prefix, dash, label = text.partition("-")
    return text == OUTSIDE or (len(prefix) == 1 and prefix in PREFIXES and dash == "-" and label != "")


def refuse_no_tag(text: str, where: str) -> None:
    """Raise DataError for what is no tag; `where` is the file and the line."""
    if not is_tag(text):
        raise DataError(
            f"{where} has '{text[:60]}' where a tag should be: {OUTSIDE}, or one of {', '.join(PREFIXES)} with a type, "
            "such as B-person. Correct it, or name the column of the tags with --label-column."
        )


def spans_of(tags: Sequence[str]) -> list[Span]:
    """The spans that tags mark, read as leniently as conlleval (Tjong Kim Sang and Buchholz 2000) and seqeval do.

    A tag that goes on with what no tag before it began, begins a span itself. What is no tag, such as a class of a
    model that has no prefixes, counts as inside a span of that name.
    """
    spans: list[Span] = []
    may_go_on, label_before = False, ""
    for place, tag in enumerate(tags):
        prefix, label = (tag[0], tag[2:]) if is_tag(tag) else ("I", tag)
        if may_go_on and label == label_before and prefix in _INSIDE + _ENDS:
            spans[-1] = spans[-1]._replace(end=place + 1)
        elif prefix != OUTSIDE:
            spans.append(Span(place, place + 1, label))
        may_go_on, label_before = prefix in _BEGINS + _INSIDE, label
    return spans


def tags_of(spans: Iterable[Span], count: int) -> list[str]:
    """The IOB2 tags of `count` words that lie in these spans."""
    tags = [OUTSIDE] * count
    for span in spans:
        tags[span.start : span.end] = [f"B-{span.label}"] + [f"I-{span.label}"] * (span.end - span.start - 1)
    return tags


def to_iob2(tags: Sequence[str]) -> list[str]:
    """The same spans in IOB2."""
    return tags_of(spans_of(tags), len(tags))
