from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from bertfast.text.sentences import MAX_SENTENCE_CHARS, split_document


def test_sentences_end_at_punctuation_and_not_at_abbreviations() -> None:
    text = 'Dr. Smith met J. R. Jones at 5 p.m. on Monday. "Is it late?" she asked. It was! Version 2.5 came out.'
    assert list(split_document(text)) == [
        "Dr. Smith met J. R. Jones at 5 p.m. on Monday.",
        '"Is it late?" she asked.',
        "It was!",
        "Version 2.5 came out.",
    ]


def test_wrapped_prose_is_joined_and_lists_of_sentences_are_not() -> None:
    wrapped = "In the bosom of one of those\nspacious coves lies a town. It is\ncalled Tarry Town.\n\nA new paragraph."
    assert list(split_document(wrapped)) == [
        "In the bosom of one of those spacious coves lies a town.",
        "It is called Tarry Town.",
        "A new paragraph.",
    ]
    assert list(split_document("One sentence.\nAnother sentence.\nA third.")) == [
        "One sentence.",
        "Another sentence.",
        "A third.",
    ]


def test_chinese_is_cut_at_its_own_full_stops() -> None:
    assert list(split_document("\u4f60\u597d\u3002\u518d\u89c1\uff01")) == ["\u4f60\u597d\u3002", "\u518d\u89c1\uff01"]


@given(st.text(max_size=6000))
def test_no_character_is_lost_and_no_sentence_is_empty(text: str) -> None:
    sentences = list(split_document(text))
    assert "".join("".join(sentence.split()) for sentence in sentences) == "".join(text.split())
    assert all(sentence.strip() and len(sentence) <= MAX_SENTENCE_CHARS for sentence in sentences)
