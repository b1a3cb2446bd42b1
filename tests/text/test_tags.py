from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from seqeval.metrics.sequence_labeling import get_entities

from bertfast.errors import DataError
from bertfast.text.tags import Span, refuse_no_tag, spans_of, tags_of, to_iob2

WORDS = ["Ann", "Lee", "met", "Bo", "Cy"]
SCHEMES = {
    "IOB1": ["I-per", "I-per", "O", "I-per", "B-per"],
    "IOB2": ["B-per", "I-per", "O", "B-per", "B-per"],
    "BIOES": ["B-per", "E-per", "O", "S-per", "S-per"],
    "BILOU": ["B-per", "L-per", "O", "U-per", "U-per"],
    "BMES": ["B-per", "E-per", "O", "S-per", "S-per"],
    "BMEWO": ["B-per", "E-per", "O", "W-per", "W-per"],
}


@pytest.mark.parametrize("scheme", SCHEMES)
def test_every_scheme_is_read_alike(scheme: str) -> None:
    assert spans_of(SCHEMES[scheme]) == [Span(0, 2, "per"), Span(3, 4, "per"), Span(4, 5, "per")]
    assert to_iob2(SCHEMES[scheme]) == SCHEMES["IOB2"]


@pytest.mark.parametrize(
    ("tags", "spans"),
    [
        (["O", "I-a", "I-a"], [Span(1, 3, "a")]),
        (["B-a", "I-b"], [Span(0, 1, "a"), Span(1, 2, "b")]),
        (["I-a", "O", "I-a"], [Span(0, 1, "a"), Span(2, 3, "a")]),
        (["B-a", "M-a", "E-a", "I-a"], [Span(0, 3, "a"), Span(3, 4, "a")]),
        (["B-creative-work", "I-creative-work"], [Span(0, 2, "creative-work")]),
        (["NOUN", "NOUN", "O"], [Span(0, 2, "NOUN")]),
        ([], []),
    ],
)
def test_tags_that_break_their_scheme_are_mended(tags: list[str], spans: list[Span]) -> None:
    assert spans_of(tags) == spans


@settings(deadline=None)
@given(st.lists(st.sampled_from(["O", *(f"{prefix}-{label}" for prefix in "BIES" for label in ("a", "b-c"))])))
def test_spans_are_those_of_seqeval(tags: list[str]) -> None:
    expected = [Span(first, last + 1, label) for label, first, last in get_entities(tags)]
    assert spans_of(tags) == expected
    assert spans_of(to_iob2(tags)) == expected


def test_tags_of_spans_begin_each_with_b() -> None:
    assert tags_of([Span(1, 3, "a"), Span(3, 4, "a")], 5) == ["O", "B-a", "I-a", "B-a", "O"]


@pytest.mark.parametrize("text", ["", "o", "B", "B-", "-a", "per", "X-per", "BI-per", "B_per", "0"])
def test_what_is_no_tag_is_named(text: str) -> None:
    with pytest.raises(DataError, match=rf"f.conll:3 has '{text}' where a tag should be.*--label-column"):
        refuse_no_tag(text, "f.conll:3")
