from __future__ import annotations

from itertools import pairwise
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bertfast.text.conll import read_conll
from bertfast.text.words import join_words, split_words


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("Ann lives in London.", "Ann|lives|in|London|."),
        ("London's U.S. forces, O'Brien (AT&T)", "London|'s|U.S.|forces|,|O'Brien|(|AT&T|)"),
        ("3.5% of 1,000 at 10:30, not 2-1", "3.5|%|of|1,000|at|10:30|,|not|2-1"),
        ("@ann: #news at http://t.co/aB1, a@b.com", "@ann|:|#news|at|http://t.co/aB1|,|a@b.com"),
        ("Paris/London—which?", "Paris|/|London|—|which|?"),
        ("it\u2019s 'quoted'", "it|\u2019s|'|quoted|'"),
        ("北京x's", "北|京|x|'s"),
        ("👩‍👩‍👧❤️👍🏽ok🇫🇷🇩🇪", "👩‍👩‍👧|❤️|👍🏽|ok|🇫🇷|🇩🇪"),
        ("cafe\u0301 हिन्दी مرحبا، שלום", "cafe\u0301|हिन्दी|مرحبا|،|שלום"),
        ("\u200bfoo\u200bbar\x07 \ufeff", "foo\u200bbar"),
        (" \r\n\t\u00a0", ""),
        ("", ""),
    ],
)
def test_words_are_cut_as_tagged_files_cut_them(text: str, words: str) -> None:
    assert "|".join(text[start:end] for start, end in split_words(text)) == words


@settings(deadline=None)
@given(st.text(max_size=80))
def test_words_are_in_order_and_what_is_between_them_cannot_be_seen(text: str) -> None:
    words = split_words(text)
    ends = [(0, 0), *words, (len(text), len(text))]
    for (_, end), (start, _) in pairwise(ends):
        assert all(not character.isprintable() or character.isspace() for character in text[end:start])
    assert all(start < end and text[start:end].strip() for start, end in words)


def test_joined_words_stand_where_their_offsets_say() -> None:
    text, offsets = join_words(["New York", "👍", "."])
    assert text == "New York 👍 ."
    assert [text[start:end] for start, end in offsets] == ["New York", "👍", "."]


@pytest.mark.data
def test_nearly_all_words_of_a_tagged_file_are_found_in_its_text(data_folder: Path) -> None:
    """The file cuts news and forum posts as a person would; 99.8 % of its words come out alike."""
    found = total = 0
    for sentence in read_conll(data_folder / "ner" / "test.conll"):
        text, offsets = join_words(sentence.tokens)
        found += len(set(offsets) & set(split_words(text)))
        total += len(offsets)
    assert found / total > 0.995
